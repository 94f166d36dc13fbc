"Beam search: properties over random models, batches and rules that a page shows only for a toy."
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stage_modules.seq2seq.data import make_batch
from stage_modules.seq2seq.model import Encoded, ModelConfig, Seq2Seq, build_model
from stage_modules.seq2seq.search import Hypothesis, beam_search, coverage_score, length_divisor

fixed = settings(derandomize=True, deadline=None, max_examples=25)
lengths_of = st.lists(st.integers(1, 9), min_size=1, max_size=6)
KINDS = ["none", "bahdanau", "luong", "coverage", "self"]
EOS = 2


def tiny(kind: str = "bahdanau", seed: int = 0, vocab: int = 25, num_layers: int = 1, end: float = 0.) -> Seq2Seq:
    "Random, decided enough that a rounding error decides nothing; `end` makes <eos> likelier."
    torch.manual_seed(seed)
    model = build_model(ModelConfig(kind, 7, 6, 8, num_layers=num_layers, dropout=.3, source_vocab_size=30, target_vocab_size=vocab))
    with torch.no_grad():
        model.decoder.output.weight.mul_(5)
        model.decoder.output.bias[EOS] += end
    return model.eval()


def batch_of(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    "Source ids and mask; each row ends in <eos>, which `lengths` leaves out."
    random = torch.Generator().manual_seed(seed)
    batch = make_batch([(torch.randint(4, 30, (n,), generator=random).tolist(), []) for n in lengths])
    return batch.source, batch.source_mask


def log_probability(model: Seq2Seq, source: Tensor, mask: Tensor, tokens: list[int]) -> float:
    "Of tokens (with <eos> where there is one), from one teacher-forced pass."
    logits = model(source, mask, torch.tensor([[1, *tokens[:-1]]]))[0]
    logits[:, [0, 1]] = -torch.inf
    return logits.log_softmax(-1)[torch.arange(len(tokens)), tokens].sum().item()


def closes(hypothesis: Hypothesis, model: Seq2Seq, source: Tensor, mask: Tensor) -> list[int]:
    "Its tokens with <eos> or without: the ones that give its log probability."
    for tokens in ([*hypothesis.ids, EOS], hypothesis.ids):
        if tokens and abs(log_probability(model, source, mask, tokens) - hypothesis.log_probability) < 1e-4: return tokens
    raise AssertionError(f"{hypothesis} has a probability that the model does not give")


@fixed
@given(lengths_of, st.sampled_from(KINDS), st.integers(0, 5), st.sampled_from([0., 3.]), st.sampled_from([None, 1, 4]))
def test_beam_of_one_is_greedy(lengths: list[int], kind: str, seed: int, end: float, max_length: int | None) -> None:
    model, (source, mask) = tiny(kind, seed, end=end), batch_of(lengths, seed)
    ids, weights = model.greedy(source, mask, max_length, need_weights=True)
    found = beam_search(model, source, mask, beam_size=1, max_length=max_length, need_weights=True)
    assert [h[0].ids for h in found] == ids
    if kind == "none": assert all(h[0].weights is None for h in found); return
    for (h,), weight in zip(found, weights): torch.testing.assert_close(h.weights, weight, atol=1e-5, rtol=0)


@fixed
@given(lengths_of, st.sampled_from(KINDS), st.integers(0, 5), st.integers(1, 6), st.sampled_from([0., .3]), st.integers(0, 3), st.integers(0, 3))
def test_result_does_not_depend_on_the_batch(lengths: list[int], kind: str, seed: int, width: int, beta: float, ngram: int, shortest: int) -> None:
    model, (source, mask) = tiny(kind, seed, end=2.), batch_of(lengths, seed)
    rules = {"beam_size": width, "n_best": width, "coverage_penalty": beta if kind != "none" else 0., "no_repeat_ngram": ngram, "min_length": shortest, "need_weights": True}
    together = beam_search(model, source, mask, **rules)
    for n, length in enumerate(mask.sum(1).tolist()):
        alone = beam_search(model, source[n:n + 1, :length], mask[n:n + 1, :length], **rules)[0]
        assert [h.ids for h in together[n]] == [h.ids for h in alone]
        for a, b in zip(together[n], alone):
            assert math.isclose(a.score, b.score, abs_tol=1e-4)
            if kind != "none": torch.testing.assert_close(a.weights, b.weights, atol=1e-5, rtol=0)


@fixed
@given(st.integers(0, 20), st.sampled_from(KINDS), st.sampled_from([0., .6, 1.]), st.sampled_from([0., .4]), st.integers(0, 2))
def test_beam_as_wide_as_the_space_finds_the_optimum(seed: int, kind: str, alpha: float, beta: float, shortest: int) -> None:
    beta, longest, letters = beta if kind != "none" else 0., 3, [3, 4, 5]
    model, (source, mask) = tiny(kind, seed, vocab=6, end=1.), batch_of([4], seed)
    def score(tokens: list[int]) -> float:
        value = log_probability(model, source, mask, tokens) / length_divisor(len(tokens), alpha)
        if not beta: return value
        looked = model.decoder(torch.tensor([[1, *tokens[:-1]]]), model.encoder(source, mask), need_weights=True)[1]
        return value + coverage_score(looked[0].sum(0), mask[0], beta).item()
    with torch.no_grad():
        ended = [[*w, EOS] for n in range(shortest, longest) for w in itertools.product(letters, repeat=n)]
        space = {tuple(w): score(list(w)) for w in ended + list(itertools.product(letters, repeat=longest))}
    found = beam_search(model, source, mask, 200, alpha, beta, shortest, longest, n_best=3)[0]
    for h, value in zip(found, sorted(space.values(), reverse=True)): assert math.isclose(h.score, value, abs_tol=1e-4)
    assert len(found) == 3


@fixed
@given(lengths_of, st.integers(0, 5), st.integers(2, 6), st.sampled_from([0., .6]))
def test_scores_are_what_the_model_says(lengths: list[int], seed: int, width: int, alpha: float) -> None:
    model, (source, mask) = tiny(seed=seed, num_layers=2, end=2.), batch_of(lengths, seed)
    for n, hypotheses in enumerate(beam_search(model, source, mask, width, alpha, n_best=width, need_weights=True)):
        row = source[n:n + 1, mask[n]], mask[n:n + 1, mask[n]]
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        assert len({tuple(h.ids) for h in hypotheses}) == len(hypotheses) > 0
        for h in hypotheses:
            tokens = closes(h, model, *row)
            assert math.isclose(h.score, h.log_probability / length_divisor(len(tokens), alpha), abs_tol=1e-9)
            forced = model.decoder(torch.tensor([[1, *tokens[:-1]]]), model.encoder(*row), need_weights=True)[1]
            torch.testing.assert_close(h.weights, forced[0], atol=1e-5, rtol=0)


@fixed
@given(lengths_of, st.integers(0, 5), st.integers(1, 3), st.integers(0, 6), st.integers(1, 12))
def test_rules_are_kept(lengths: list[int], seed: int, ngram: int, shortest: int, longest: int) -> None:
    model, (source, mask) = tiny(seed=seed, end=1.), batch_of(lengths, seed)
    for hypotheses in beam_search(model, source, mask, 4, n_best=4, no_repeat_ngram=ngram, min_length=shortest, max_length=longest):
        for h in hypotheses:
            grams = [tuple(h.ids[i:i + ngram]) for i in range(len(h.ids) - ngram + 1)]
            assert len(grams) == len(set(grams)) and min(shortest, longest) <= len(h.ids) <= longest


def test_nothing_left_to_write_ends_the_sentence() -> None:
    model, (source, mask) = tiny(vocab=5, end=-9.), batch_of([3]) # words 3 and 4 are all there are
    assert [sorted(h.ids) for h in beam_search(model, source, mask, 2, no_repeat_ngram=1, min_length=8)[0]] == [[3, 4]]


def test_wider_beams_find_likelier_sentences_when_nothing_ends_early() -> None:
    model, (source, mask) = tiny(seed=3), batch_of([5] * 40)
    sums = [sum(h[0].log_probability for h in beam_search(model, source, mask, K, 0., min_length=6, max_length=6)) for K in (1, 3, 30)]
    assert sums[0] < sums[1] < sums[2]


class Table(nn.Module):
    "The next word hangs on the last one."
    looks = False

    def __init__(self, table: Tensor):
        super().__init__()
        self.table, self.output = table, nn.Identity()

    def start(self, encoded: Encoded) -> Tensor: return encoded.summary

    def step(self, token: Tensor, state: Tensor): return self.table[token].log(), None, state


def test_the_search_goes_on_while_a_longer_sentence_can_still_win() -> None:
    model, (source, mask) = tiny(vocab=5), batch_of([3])
    model.decoder = Table(torch.tensor([[0, 0, 1., 0, 0], [0, 0, .52, .48, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]))
    short, long = (beam_search(model, source, mask, 8, alpha)[0][0] for alpha in (0., 1.))
    assert short.ids == [] and math.isclose(short.log_probability, math.log(.52), abs_tol=1e-5)
    assert long.ids == [3, 4] and math.isclose(long.score, math.log(.48) / length_divisor(3, 1.), abs_tol=1e-5)


class Recorder(nn.Module):
    "A decoder around another that notes how many rows each step has."

    def __init__(self, decoder: nn.Module):
        super().__init__()
        self.decoder, self.rows, self.starts = decoder, [], 0
        self.output, self.looks = decoder.output, decoder.looks

    def start(self, encoded: Encoded):
        self.starts += 1
        return self.decoder.start(encoded)

    def step(self, token: Tensor, state):
        self.rows.append(len(token))
        return self.decoder.step(token, state)


def test_finished_sentences_leave_and_keys_are_projected_once() -> None:
    model, (source, mask) = tiny(end=-9.), batch_of([1, 2, 8]) # nobody ends before the limit: 14, 16 and 28 tokens
    model.decoder = Recorder(model.decoder)
    beam_search(model, source, mask, 3)
    assert model.decoder.starts == 1
    assert model.decoder.rows == [3] + [9] * 13 + [6] * 2 + [3] * 12


def test_training_mode_and_gradients_are_left_alone() -> None:
    model, (source, mask) = tiny().train(), batch_of([4, 2])
    before = {name: p.clone() for name, p in model.state_dict().items()}
    first, second = (beam_search(model, source, mask, need_weights=True) for _ in range(2))
    assert model.training and [h[0].ids for h in first] == [h[0].ids for h in second] # no dropout in the search
    assert not first[0][0].weights.requires_grad
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())


def test_an_error_in_the_middle_puts_training_mode_back() -> None:
    model, (source, mask) = tiny().train(), batch_of([4])
    model.decoder.output = nn.Linear(3, 25)
    with pytest.raises(RuntimeError): beam_search(model, source, mask)
    assert model.training


@pytest.mark.parametrize("setting, value", [("beam_size", 0), ("n_best", 0), ("n_best", 6), ("length_penalty", -.1), ("coverage_penalty", -1.),
                                            ("min_length", -1), ("no_repeat_ngram", -1), ("max_length", 0)])
def test_impossible_settings_are_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting): beam_search(tiny(), *batch_of([3]), **{setting: value})


def test_empty_batch_and_empty_sentence() -> None:
    model = tiny()
    assert beam_search(model, torch.zeros(0, 3, dtype=torch.long), torch.zeros(0, 3, dtype=torch.bool)) == []
    source, mask = batch_of([3, 3])
    mask[1] = False
    found = beam_search(model, source, mask, coverage_penalty=.2, need_weights=True)
    assert len(found) == 2 and math.isfinite(found[1][0].score) and found[1][0].weights.shape[1] == 0
