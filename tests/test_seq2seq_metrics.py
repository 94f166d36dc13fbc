"Attention metrics and BLEU's uncertainty: properties over random maps, and sacreBLEU's own results."
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU
from sacrebleu.significance import PairedTest
from torch import Tensor

from stage_modules.seq2seq.evaluate import corpus_bleu, reference_streams
from stage_modules.seq2seq.metrics import (
    attention_spread,
    bleu_by_length,
    bleu_of,
    bleu_statistics,
    bootstrap_bleu,
    coverage_errors,
    expected_positions,
    measure_attention,
    monotonic_score,
    paired_bootstrap,
    resampled,
    row_entropy,
)

fixed = settings(derandomize=True, deadline=None, max_examples=40)
sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5)
WORDS = ["the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "tree", "quickly", ".", ",", "big", "small"]


def maps_of(shapes: list[tuple[int, int]], seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(t, s, generator=random).mul(3).softmax(-1) for t, s in shapes]


def texts(count: int, seed: int, noise: float = 0.) -> list[str]:
    "Sentences that hang on `seed` only in their noise."
    words, random = np.random.default_rng(7), np.random.default_rng(seed)
    sentences = [words.choice(WORDS, words.integers(4, 14)).tolist() for _ in range(count)]
    return [" ".join(str(random.choice(WORDS)) if random.random() < noise else w for w in s) for s in sentences]


@fixed
@given(sizes, st.integers(0, 9))
def test_spread_is_between_one_word_and_all(shapes: list[tuple[int, int]], seed: int) -> None:
    for w in maps_of(shapes, seed):
        bits, share = row_entropy(w), row_entropy(w, normalised=True)
        assert (bits >= -1e-6).all() and (bits <= math.log2(w.shape[1]) + 1e-5).all() and (share <= 1 + 1e-5).all()
        by_hand = [sum(-p * math.log2(p) for p in row if p > 0) for row in w.tolist()]
        torch.testing.assert_close(bits, torch.tensor(by_hand), atol=1e-4, rtol=0)


@fixed
@given(sizes, st.integers(0, 9))
def test_over_attended_less_left_over_is_known(shapes: list[tuple[int, int]], seed: int) -> None:
    left, over = coverage_errors(maps_of(shapes, seed))
    T, S = (sum(side) for side in zip(*shapes))
    assert math.isclose(over - left, (T - S) / S, abs_tol=1e-5) and 0 <= left <= 1 and over >= 0


@fixed
@given(sizes, st.integers(0, 9))
def test_filler_columns_and_order_of_sentences_change_nothing(shapes: list[tuple[int, int]], seed: int) -> None:
    maps = maps_of([(t + 1, s) for t, s in shapes], seed)
    for metric in attention_spread, monotonic_score, lambda w: sum(coverage_errors(w)):
        assert math.isclose(metric(maps), metric(maps[::-1]), abs_tol=1e-6)
    padded = [torch.nn.functional.pad(w, (0, 3)) for w in maps]
    assert math.isclose(attention_spread(maps), attention_spread(padded), abs_tol=1e-6)
    assert monotonic_score(maps) == monotonic_score(padded)


@fixed
@given(st.lists(st.integers(0, 7), min_size=2, max_size=9))
def test_monotonic_score_counts_steps(positions: list[int]) -> None:
    w = torch.nn.functional.one_hot(torch.tensor(positions), 8).float()
    assert expected_positions(w).tolist() == positions
    steps = [b >= a for a, b in itertools.pairwise(positions)]
    assert math.isclose(monotonic_score([w]), sum(steps) / len(steps), abs_tol=1e-6)


def test_rounding_is_no_step_back() -> None:
    row = torch.tensor([.1, .2, .3, .4])
    w = torch.stack([row, row + torch.tensor([1e-7, 0., 0., -1e-7])])
    assert monotonic_score([w]) == 1.


def test_report_has_every_metric_and_empty_input_is_refused() -> None:
    maps = maps_of([(3, 4), (2, 2)])
    report = measure_attention(maps, [[(0, 0)], [(1, 1)]])
    assert (report.spread_bits, report.monotonic, report.sentences) == (attention_spread(maps), monotonic_score(maps), 2)
    assert (report.left_over, report.over_attended) == tuple(coverage_errors(maps)) and 0 <= report.alignment_error <= 1
    for metric in attention_spread, monotonic_score, coverage_errors, measure_attention:
        with pytest.raises(ValueError): metric([])
        with pytest.raises(TypeError): metric(maps[0])


@pytest.mark.parametrize("metric", [BLEU(), BLEU(lowercase=True), BLEU(tokenize="char")])
def test_statistics_give_the_corpus_score(metric: BLEU) -> None:
    wrote, references = texts(60, 1, .3), [[a, b] if n % 3 else [a] for n, (a, b) in enumerate(zip(texts(60, 0), texts(60, 2, .2)))]
    stats = bleu_statistics(wrote, references, metric)
    assert math.isclose(bleu_of(stats.sum(0), metric), metric.corpus_score(wrote, reference_streams(references)).score, abs_tol=1e-9)
    part = list(range(5, 30))
    alone = metric.corpus_score([wrote[i] for i in part], reference_streams([references[i] for i in part])).score
    assert math.isclose(bleu_of(stats[part].sum(0), metric), alone, abs_tol=1e-9)


def test_bootstrap_agrees_with_sacrebleu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "5")
    wrote, references = texts(80, 1, .3), [[t] for t in texts(80, 0)]
    theirs = BLEU().corpus_score(wrote, reference_streams(references), n_bootstrap=400)
    ours = bootstrap_bleu(wrote, references, samples=400, seed=5)
    assert math.isclose(ours.score, theirs.score, abs_tol=1e-9)
    assert math.isclose((ours.high - ours.low) / 2, theirs._ci, rel_tol=.05) and ours.low < ours.score < ours.high
    narrow = bootstrap_bleu(wrote, references, samples=400, seed=5, confidence=.5)
    assert ours.low < narrow.low < narrow.high < ours.high


@pytest.mark.parametrize("noise", [.25, .3, .5])
def test_paired_test_agrees_with_sacrebleu(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACREBLEU_SEED", "5")
    one, two, references = texts(80, 1, .3), texts(80, 2, noise), [[t] for t in texts(80, 0)]
    _, theirs = PairedTest([("one", one), ("two", two)], {"bleu": BLEU()}, reference_streams(references), test_type="bs", n_samples=300)()
    ours = paired_bootstrap(one, two, references, samples=300, seed=5)
    baseline, system = theirs["BLEU"]
    assert math.isclose(ours.first, baseline.score, abs_tol=1e-9) and math.isclose(ours.second, system.score, abs_tol=1e-9)
    assert math.isclose(ours.p_value, system.p_value, abs_tol=1e-6)


def test_paired_test_is_the_same_the_other_way_round() -> None:
    one, two, references = texts(50, 1, .3), texts(50, 2, .4), [[t] for t in texts(50, 0)]
    a, b = paired_bootstrap(one, two, references, samples=200), paired_bootstrap(two, one, references, samples=200)
    assert math.isclose(a.difference, -b.difference) and a.p_value == b.p_value
    assert math.isclose(a.low, -b.high) and math.isclose(a.second_wins, 1 - b.second_wins, abs_tol=1e-9)
    assert a.low < a.difference < a.high


def test_draws_hang_on_the_seed_only() -> None:
    assert (resampled(9, 4, 1) == resampled(9, 4, 1)).all() and (resampled(9, 4, 1) != resampled(9, 4, 2)).any()
    assert (resampled(9, 4, 1).sum(1) == 9).all()


@fixed
@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.lists(st.integers(1, 25), max_size=4, unique=True).map(sorted))
def test_length_groups_part_the_sentences(lengths: list[int], edges: list[int]) -> None:
    sources = [" ".join(["w"] * n) for n in lengths]
    wrote, references = texts(len(lengths), 1, .2), [[t] for t in texts(len(lengths), 0)]
    groups = bleu_by_length(sources, wrote, references, edges)
    assert sum(g.sentences for g in groups) == len(lengths) and all(g.sentences for g in groups)
    for g in groups:
        low, high = ((0, math.inf) if g.words == "all" else (int(g.words[5:]) + 1, math.inf) if g.words.startswith("over")
                     else map(int, g.words.split("-")))
        chosen = [i for i, n in enumerate(lengths) if low <= n <= high]
        assert len(chosen) == g.sentences
        assert math.isclose(g.bleu, corpus_bleu([wrote[i] for i in chosen], [references[i] for i in chosen]).bleu, abs_tol=1e-9)
