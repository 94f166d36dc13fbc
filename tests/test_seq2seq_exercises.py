"""The checks of stage 2's exercises are worth something: right answers pass, stubs are told apart, plausible mistakes are caught."""
import csv
import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from exercise_page import ExercisePage, write_notebook
from sacrebleu.metrics import BLEU
from torch import nn
from torch.nn import functional as F

from stage_modules.attention import exercises as stage1
from stage_modules.seq2seq import coverage, model, search
from stage_modules.seq2seq import exercises as ex
from stage_modules.seq2seq.attention import BahdanauAttention
from stage_modules.seq2seq.data import make_batch
from stage_modules.toolkit.checking import prove_check

PAGE = ExercisePage("stage2_seq2seq")


# ---- answers: right ones in two ways, and the mistakes that people make

def shift(before=(1,), after=(2,), both=False, shifted=True, dtype=torch.int64, eos_last=False):
    def shift_targets(sentences):
        width = max(map(len, sentences)) + 1
        def row(words, last=()):
            filler = [0] * (width - len(words) - len(last))
            return [*words, *filler, *last] if eos_last else [*words, *last, *filler]
        first = torch.tensor([row([*before, *s]) for s in sentences], dtype=dtype)
        second = torch.tensor([row(s, after) for s in sentences], dtype=dtype)
        if both: second = torch.tensor([[*row([1, *s]), 0][:width] for s in sentences], dtype=dtype)
        return (first, second) if shifted else (second, first)
    return shift_targets


def shift_with_eos(sentences):  # the short sentences' <eos> is read
    width = max(map(len, sentences)) + 2
    table = torch.tensor([[1, *s, 2] + [0] * (width - len(s) - 2) for s in sentences])
    return table[:, :-1], table[:, 1:]


def library_batch(sentences):
    batch = make_batch([([4], s) for s in sentences])
    return batch.target_in, batch.target_out


def by_length(lengths, size, key=None, last=True, cut=None):
    order = sorted(range(len(lengths)), key=key or lengths.__getitem__)
    batches = [order[i:i + (cut or size)] for i in range(0, len(order), cut or size)]
    return batches if last or len(batches[-1]) == size else batches[:-1]


def loss_by(mask=True, reduce=lambda loss, real: loss.sum() / real.sum(), axis=-1, safe=True):
    def sequence_loss(logits, targets):
        log_probs = logits.log_softmax(axis) if safe else (logits.exp() / logits.exp().sum(-1, keepdim=True)).log()
        real = targets != 0 if mask else torch.ones_like(targets, dtype=torch.bool)
        return reduce(-log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1) * real, real)
    return sequence_loss


def smooth(targets, vocab_size, epsilon, right=lambda e, V: 1 - e + e / V, rest=lambda e, V: e / V, filler=0.0, zero=True):
    table = torch.full((*targets.shape, vocab_size), rest(epsilon, vocab_size))
    table.scatter_(-1, targets.unsqueeze(-1), right(epsilon, vocab_size))
    return table.masked_fill((targets == 0).unsqueeze(-1), filler) if zero else table


def additive(query, keys, mask, W, U, v, squash=torch.tanh, axis=-1, use=lambda scores, mask: scores.masked_fill(~mask, -torch.inf), scale=1.0, after=None):
    hidden = squash(F.linear(query, W)[:, None] + F.linear(keys, U))
    weights = (use(hidden @ v, mask) * scale).softmax(axis)
    if after: weights = after(weights, mask)
    return torch.einsum("bs,bsk->bk", weights, keys), weights


def additive_module(query, keys, mask, W, U, v):
    attention = BahdanauAttention(W.shape[1], U.shape[1], len(v))
    attention.load_state_dict({"query_projection.weight": W, "key_projection.weight": U, "vector": v})
    return attention(query, keys, keys, mask)


def luong(hidden, states, mask, scale=1.0, axis=-1, use=lambda scores, mask: scores.masked_fill(~mask[:, None], -torch.inf)):
    weights = use(torch.einsum("btd,bsd->bts", hidden, states) * scale, mask).softmax(axis)
    return torch.bmm(weights, states), weights


def luong_additive_mask(hidden, states, mask):
    weights = torch.softmax(hidden @ states.transpose(1, 2) + torch.where(mask, 0.0, -1e30).unsqueeze(1), dim=2)
    return weights @ states, weights


def luong_loop(hidden, states, mask):
    pairs = [luong(h[:, None], states, mask) for h in hidden.unbind(1)]
    return torch.cat([c for c, _ in pairs], 1), torch.cat([w for _, w in pairs], 1)


def covered(weights, target_mask, before=lambda w: w.cumsum(1) - w, overlap=torch.minimum, real=True, total=torch.sum):
    price = overlap(weights, before(weights)).sum(-1)
    return total(price[target_mask] if real else price)


def write(step, state, batch_size, max_length, first=1, feed_back=True, keep_state=False, stop="all", cut=True, eos=False):
    token, rows = torch.full((batch_size,), first), [[] for _ in range(batch_size)]
    ended = [False] * batch_size
    for _ in range(max_length):
        logits, after = step(token, state)
        if not keep_state: state = after
        words = logits.argmax(-1)
        if feed_back: token = words
        for b, word in enumerate(words.tolist()):
            if not ended[b] and word == 2 and eos: rows[b].append(2)
            ended[b] = (ended[b] and cut) or word == 2
            if not ended[b]: rows[b].append(word)
        if stop == "all" and all(ended) or stop == "any" and any(ended): break
    return rows


def write_then_cut(step, state, batch_size, max_length):
    table = torch.ones(batch_size, 1, dtype=torch.int64)
    while table.shape[1] <= max_length and not (table == 2).any(1).all():
        logits, state = step(table[:, -1], state)
        table = torch.cat([table, logits.argmax(-1, keepdim=True)], 1)
    rows = [row[1:] for row in table.tolist()]
    return [row[:row.index(2)] if 2 in row else row for row in rows]


def extend(scores, log_probs, join=torch.add, pick=None):
    N, K, V = log_probs.shape
    best, place = join(scores[..., None], log_probs).reshape(N, K * V).topk(K)
    return (best, *(pick(place, K, V) if pick else (place // V, place % V)))


def extend_two_stages(scores, log_probs):  # the K best words of each are enough
    K = min(scores.shape[1], log_probs.shape[-1])
    best, word = log_probs.topk(K, -1)
    total, place = (scores[..., None] + best).flatten(1).sort(dim=-1, descending=True, stable=True)
    place = place[:, :scores.shape[1]]
    return total[:, :scores.shape[1]], place // K, word.flatten(1).gather(1, place)


def beams(next_log_probs, beam_size, max_length, alpha, rank=None, width=None, stop_first=False, keep_live=True, end=2, count_bos=0, strip=True):
    rank = rank or (lambda p, n: p / ((5 + n) / 6) ** alpha)
    live, ended = [(0.0, [1])], []
    for _ in range(max_length):
        extended = [(p + q, [*t, w]) for p, t in live for w, q in enumerate(next_log_probs(t).tolist()) if q > -math.inf]
        extended = sorted(extended, reverse=True)[:width or beam_size]
        ended += [h for h in extended if h[1][-1] == end]
        live = [h for h in extended if h[1][-1] != end]
        if not live or stop_first and ended: break
    found = max(ended + (live if keep_live or not ended else []), key=lambda h: rank(h[0], len(h[1]) - 1 + count_bos))[1]
    return [w for w in found if w not in (1, 2)] if strip else found


def beams_kept_full(next_log_probs, beam_size, max_length, alpha):  # an ended hypothesis leaves, and another takes its place
    def score(h): return h[0] / ((5 + len(h[1])) / 6) ** alpha
    live, ended = [(0.0, [])], []
    for length in range(1, max_length + 1):
        p = torch.stack([x + next_log_probs([1, *t]) for x, t in live])
        best, place = p.flatten().topk(min(2 * beam_size, p.numel()))
        every = [(b, [*live[i // p.shape[1]][1], i % p.shape[1]]) for b, i in zip(best.tolist(), place.tolist()) if b > -math.inf]
        ended += [h for h in every[:beam_size] if h[1][-1] == 2]
        live = [h for h in every if h[1][-1] != 2][:beam_size]
    return [w for w in max(ended + live, key=score)[1] if w != 2]


def beams_everything(next_log_probs, beam_size, max_length, alpha): return beams(next_log_probs, beam_size, max_length, alpha, width=10**9)


def grams(words, n): return [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]


def matches(hypothesis, reference, n):
    left, count = grams(reference, n), 0
    for gram in grams(hypothesis, n):
        if gram in left: left.remove(gram); count += 1
    return count, len(grams(hypothesis, n))


def matches_counter(hypothesis, reference, n):
    found = Counter(grams(hypothesis, n))
    return (found & Counter(grams(reference, n))).total(), found.total()


def score(hypotheses, references, count=matches, longest=4, mean=None, penalty=None):
    sums = [[sum(x) for x in zip(*(count(h, r, n) for h, r in zip(hypotheses, references)))] for n in range(1, longest + 1)]
    if not all(m for m, _ in sums): return 0.0
    c, r = sum(map(len, hypotheses)), sum(map(len, references))
    shares = [m / t for m, t in sums]
    mean = mean or (lambda p: math.prod(p) ** (1 / len(p)))
    penalty = penalty or (lambda c, r: min(1.0, math.exp(1 - r / c)))
    return 100 * mean(shares) * penalty(c, r)


def sacrebleu(hypotheses, references):
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    return metric.corpus_score([" ".join(h) for h in hypotheses], [[" ".join(r) for r in references]]).score


def sentence_penalties(hypotheses, references):  # the brevity of each sentence, averaged
    mean = sum(min(1.0, math.exp(1 - len(r) / len(h))) for h, r in zip(hypotheses, references)) / len(references)
    return score(hypotheses, references, penalty=lambda c, r: mean)


ANSWERS = {
    "shift_targets": ([shift(), library_batch], {
        "no shift": shift(both=True), "the wrong way round": shift(shifted=False), "<eos> is read": shift_with_eos, "no <bos>": shift(before=()),
        "no <eos>": shift(after=()), "<eos> behind the filler": shift(eos_last=True), "floats": shift(dtype=torch.float32), "<eos> to begin with": shift(before=(2,))}),
    "batches_by_length": ([by_length, lambda n, size: [b.tolist() for b in torch.tensor(n).argsort(descending=True).split(size)]], {
        "as they come": lambda n, size: by_length(n, size, key=lambda i: i), "lengths for indices": lambda n, size: [[n[i] for i in b] for b in by_length(n, size)],
        "the last batch dropped": lambda n, size: by_length(n, size, last=False), "one too many in each": lambda n, size: by_length(n, size, cut=size + 1),
        "sorted as text": lambda n, size: by_length(n, size, key=lambda i: str(n[i])), "a batch for each length": lambda n, size: [[i for i, x in enumerate(n) if x == y] for y in sorted(set(n))],
        "batch_size batches": lambda n, size: by_length(n, size, cut=math.ceil(len(n) / size)), "dealt out like cards": lambda n, size: [list(range(len(n)))[i::math.ceil(len(n) / size)] for i in range(math.ceil(len(n) / size))]}),
    "sequence_loss": ([loss_by(), lambda x, y: F.cross_entropy(x[y > 0], y[y > 0])], {
        "filler counted": loss_by(mask=False), "filler below the line": loss_by(reduce=lambda loss, real: loss.mean()), "sum": loss_by(reduce=lambda loss, real: loss.sum()),
        "mean of sentence means": loss_by(reduce=lambda loss, real: (loss.sum(1) / real.sum(1)).mean()), "wrong axis": loss_by(axis=1), "overflow": loss_by(safe=False),
        "bits": loss_by(reduce=lambda loss, real: loss.sum() / real.sum() / math.log(2)), "log probability, not loss": loss_by(reduce=lambda loss, real: -loss.sum() / real.sum()),
        "one for each sentence": loss_by(reduce=lambda loss, real: loss.sum(1) / real.sum(1)), "detached": lambda x, y: loss_by()(x.detach(), y) + 0 * x.sum()}),
    "smooth_targets": ([smooth, lambda y, V, e: torch.lerp(F.one_hot(y, V).float(), torch.full((V,), 1 / V), e) * (y != 0)[..., None]], {
        "among the others": lambda y, V, e: smooth(y, V, e, lambda e, V: 1 - e, lambda e, V: e / (V - 1)), "nothing taken away": lambda y, V, e: smooth(y, V, e, lambda e, V: 1.0),
        "the right word too low": lambda y, V, e: smooth(y, V, e, lambda e, V: 1 - e), "epsilon for each": lambda y, V, e: smooth(y, V, e, rest=lambda e, V: e),
        "filler like a word": lambda y, V, e: smooth(y, V, e, zero=False), "filler even": lambda y, V, e: smooth(y, V, e, filler=1 / V),
        "one-hot": lambda y, V, e: F.one_hot(y, V).float() * (y != 0)[..., None], "the other way round": lambda y, V, e: smooth(y, V, 1 - e)}),
    "forcing_ratio": ([lambda i, k: 1 / (1 + math.exp(min(i / k, 700)) / k), lambda i, k: torch.sigmoid(torch.tensor(math.log(k) - i / k, dtype=torch.double))], {
        "overflow": lambda i, k: k / (k + math.exp(i / k)), "linear": lambda i, k: max(0.0, 1 - i / k), "exponential": lambda i, k: math.exp(-i / k),
        "it rises": lambda i, k: 1 - 1 / (1 + math.exp(min(i / k, 700)) / k), "k forgotten": lambda i, k: 1 / (1 + math.exp(min(i / k, 700))),
        "not divided by k": lambda i, k: k / (k + math.exp(min(i, 700))), "always": lambda i, k: 1.0, "it stays": lambda i, k: k / (k + 1), "one step late": lambda i, k: 1 / (1 + math.exp(min((i + 1) / k, 700)) / k)}),
    "additive_step": ([additive, additive_module], {
        "no mask": lambda *a: additive(*a, use=lambda s, m: s), "mask the wrong way round": lambda *a: additive(*a, use=lambda s, m: s.masked_fill(m, -1e9)),
        "wrong axis": lambda *a: additive(*a, axis=0), "no tanh": lambda *a: additive(*a, squash=lambda x: x), "masked after the softmax": lambda *a: additive(*a, use=lambda s, m: s, after=lambda w, m: w * m),
        "scaled": lambda *a: additive(*a, scale=0.5), "masked with zero": lambda *a: additive(*a, use=lambda s, m: s * m), "context only": lambda *a: additive(*a)[0],
        "plain mean": lambda *a: (a[1].mean(1), additive(*a)[1]), "query forgotten": lambda q, *a: additive(0 * q, *a), "weights first": lambda *a: additive(*a)[::-1]}),
    "dot_attention": ([luong, luong_additive_mask], {
        "a loop over steps": luong_loop, "scaled": lambda h, s, m: luong(h, s, m, scale=h.shape[-1] ** -0.5), "no mask": lambda *a: luong(*a, use=lambda x, m: x),
        "wrong axis": lambda *a: luong(*a, axis=1), "mask the wrong way round": lambda *a: luong(*a, use=lambda x, m: x.masked_fill(m[:, None], -1e9)),
        "mask lined up with steps": lambda *a: luong(*a, use=lambda x, m: x.masked_fill(~m, -torch.inf) if x.shape[1] in (1, len(m)) else x.masked_fill(~m[:, None], -torch.inf)),
        "queries from the source": lambda h, s, m: luong(s, s, m), "masked with zero": lambda *a: luong(*a, use=lambda x, m: x * m[:, None])}),
    "coverage_loss": ([covered, lambda w, m: coverage.coverage_loss(w, torch.ones_like(w[:, 0], dtype=torch.bool), m)], {
        "the step itself counts": lambda *a: covered(*a, before=lambda w: w.cumsum(1)), "filler counts": lambda *a: covered(*a, real=False), "the last step only": lambda *a: covered(*a, before=lambda w: F.pad(w[:, :-1], (0, 0, 1, 0))),
        "maximum": lambda *a: covered(*a, overlap=torch.maximum), "wrong axis": lambda *a: covered(*a, before=lambda w: w.cumsum(2) - w), "mean": lambda *a: covered(*a, total=torch.mean),
        "what comes later": lambda *a: covered(*a, before=lambda w: w.flip(1).cumsum(1).flip(1) - w), "no gradient to earlier looks": lambda *a: covered(*a, before=lambda w: (w.cumsum(1) - w).detach()),
        "one for each sentence": lambda w, m: (torch.minimum(w, w.cumsum(1) - w).sum(-1) * m).sum(1), "product": lambda *a: covered(*a, overlap=torch.mul)}),
    "greedy": ([write, write_then_cut], {
        "never stops": lambda *a: write(*a, stop="never"), "stops with the first": lambda *a: write(*a, stop="any"), "begins with filler": lambda *a: write(*a, first=0), "always reads <bos>": lambda *a: write(*a, feed_back=False),
        "state forgotten": lambda *a: write(*a, keep_state=True), "goes on behind <eos>": lambda *a: write(*a, cut=False, stop="never"), "with <eos>": lambda *a: write(*a, eos=True),
        "one too many": lambda step, state, n, most: write(step, state, n, most + 1), "one too few": lambda step, state, n, most: write(step, state, n, most - 1), "the first sentence only": lambda *a: write(*a)[:1]}),
    "length_score": ([lambda p, n, a: p * (6 / (5 + n)) ** a, lambda p, n, a: p / search.length_divisor(torch.tensor(n), a).item()], {
        "exponent above the line only": lambda p, n, a: p / ((5 + n) ** a / 6), "multiplied": lambda p, n, a: p * ((5 + n) / 6) ** a, "plain length": lambda p, n, a: p / n ** a,
        "alpha forgotten": lambda p, n, a: p / ((5 + n) / 6), "5 + n / 6": lambda p, n, a: p / (5 + n / 6) ** a, "off by one": lambda p, n, a: p / ((6 + n) / 6) ** a, "mean": lambda p, n, a: p / n, "no penalty": lambda p, n, a: p}),
    "beam_step": ([extend, extend_two_stages], {
        "each its own": lambda s, p: (s + p.amax(-1), torch.arange(s.shape[1]).expand_as(s), p.argmax(-1)), "scores forgotten": lambda s, p: extend(0 * s.clamp(min=-9), p), "multiplied": lambda *a: extend(*a, join=torch.mul),
        "divided by K": lambda *a: extend(*a, pick=lambda place, K, V: (place // K, place % K)), "word and beam swapped": lambda *a: extend(*a, pick=lambda place, K, V: (place % V, place // V)),
        "the place, undivided": lambda *a: extend(*a, pick=lambda place, K, V: (place // V, place)), "worst first": lambda s, p: tuple(t.flip(1) for t in extend(s, p)),
        "probabilities added": lambda s, p: extend(s.exp(), p.exp()), "all sentences in one row": lambda s, p: tuple(t.view_as(s) for t in extend(s.view(1, -1), p.reshape(1, -1, p.shape[-1])))}),
    "beam_search": ([beams, beams_kept_full], {
        "greedy": lambda f, K, n, a: beams(f, 1, n, a), "glad of the first": lambda *a: beams(*a, stop_first=True), "no length penalty": lambda *a: beams(*a, rank=lambda p, n: p),
        "mean per token": lambda *a: beams(*a, rank=lambda p, n: p / n), "everything kept": beams_everything, "what reaches the limit is lost": lambda *a: beams(*a, keep_live=False),
        "goes on behind <eos>": lambda *a: beams(*a, end=-1), "with <bos> and <eos>": lambda *a: beams(*a, strip=False), "penalty multiplied": lambda f, K, n, a: beams(f, K, n, a, rank=lambda p, m: p * ((5 + m) / 6) ** a),
        "one step too few": lambda f, K, n, a: beams(f, K, n - 1, a), "everything kept, unless asked to be greedy": lambda f, K, n, a: beams(f, K, n, a, width=1 if K == 1 else 10**9)}),
    "clipped_matches": ([matches, matches_counter], {
        "not clipped": lambda h, r, n: (sum(g in grams(r, n) for g in grams(h, n)), len(grams(h, n))), "each once": lambda h, r, n: (len(set(grams(h, n)) & set(grams(r, n))), len(grams(h, n))),
        "total of the reference": lambda h, r, n: (matches(h, r, n)[0], len(grams(r, n))), "one gram too few": lambda h, r, n: matches(h[:-1], r, n), "n words, not n-grams": lambda h, r, n: (matches(h, r, 1)[0], len(grams(h, n))),
        "n + 1": lambda h, r, n: matches(h, r, n + 1), "the quotient": lambda h, r, n: matches(h, r, n)[0] / max(1, len(grams(h, n))), "in any order": lambda h, r, n: ((Counter(map(frozenset, grams(h, n))) & Counter(map(frozenset, grams(r, n)))).total(), len(grams(h, n)))}),
    "bleu": ([score, sacrebleu], {
        "mean of sentences": lambda h, r: sum(score([a], [b]) for a, b in zip(h, r)) / len(r), "no brevity penalty": lambda h, r: score(h, r, penalty=lambda c, r: 1.0), "arithmetic mean": lambda h, r: score(h, r, mean=lambda p: sum(p) / len(p)),
        "a reward for being long": lambda h, r: score(h, r, penalty=lambda c, r: math.exp(1 - r / c)), "ratio for penalty": lambda h, r: score(h, r, penalty=lambda c, r: min(1, c / r)), "punished for being long": lambda h, r: score(h, r, penalty=lambda c, r: min(1.0, math.exp(1 - c / r))),
        "up to 3": lambda h, r: score(h, r, longest=3), "not clipped": lambda h, r: score(h, r, count=ANSWERS["clipped_matches"][1]["not clipped"]), "from 0 to 1": lambda h, r: score(h, r) / 100, "a penalty for each sentence": sentence_penalties,
        "smoothed": lambda h, r: score(h, r, count=lambda a, b, n: tuple(x + (n > 1) for x in matches(a, b, n)))}),
    "alignment_error_rate": ([lambda a, s, p: 1 - (sum(x in s for x in a) + sum(x in p for x in a)) / (len(a) + len(s)), lambda a, s, p: (len(a - p) + len(s - a)) / (len(a) + len(s))], {
        "sure ones only": lambda a, s, p: 1 - 2 * len(a & s) / (len(a) + len(s)), "possible ones only": lambda a, s, p: 1 - 2 * len(a & p) / (len(a) + len(p)), "divided by the possible": lambda a, s, p: 1 - (len(a & s) + len(a & p)) / (len(a) + len(p)),
        "accuracy": lambda a, s, p: (len(a & s) + len(a & p)) / (len(a) + len(s)), "precision only": lambda a, s, p: 1 - len(a & p) / len(a), "recall only": lambda a, s, p: 1 - len(a & s) / len(s), "source positions only": lambda a, s, p: 1 - 2 * len({x for x, _ in a} & {x for x, _ in p}) / (len(a) + len(s))}),
}


@pytest.mark.parametrize("name", ex.CHECKS)
def test_check_tells_right_from_wrong(name):
    right, wrong = ANSWERS[name]
    caught = prove_check(ex.CHECKS[name], right, wrong)
    assert len(caught) == len(wrong) >= 3


@pytest.mark.parametrize("name", ex.CHECKS)
def test_check_never_raises(name):
    for answer in None, 3, len, nn.Linear(2, 2), lambda *a, **k: "soon", lambda *a, **k: torch.tensor(math.nan), lambda *a, **k: 1 / 0, lambda: None, lambda *a, **k: [], lambda *a, **k: (None, 1):
        assert not ex.CHECKS[name](answer)


def test_the_library_s_own_functions_pass():
    def loss(logits, targets): return torch.div(*model.sequence_loss(logits, targets, targets != 0))
    assert ex.check_sequence_loss(loss)
    assert ex.check_shift_targets(library_batch)


# ---- the notebook: solutions are complete, examples are true, stubs are stubs

def test_every_exercise_has_hint_check_and_solution():
    PAGE.assert_complete(ex.CHECKS)


@pytest.mark.parametrize("name", ex.CHECKS)
def test_folded_solution_passes_its_check(name):
    verdict = ex.CHECKS[name](PAGE.solution(name))
    assert verdict, verdict


def test_examples_in_the_statements_are_true():
    PAGE.assert_examples_are_true(len(ex.CHECKS))


# ---- grading notebooks: stage 1's grader with this stage's checks

def test_the_notebook_of_stubs_is_graded_not_done():
    row = ex.grade_notebook(PAGE.path)
    assert row["cells_failed"] == 0 and row["passed"] == 0
    assert {row[name] for name in ex.CHECKS} == {"not done yet"}


def test_grading_a_class(tmp_path):
    solved = write_notebook(tmp_path, "anna.ipynb", PAGE.imports, *PAGE.solutions().values())
    other = write_notebook(tmp_path, "ben.ipynb", "1 / 0", "def length_score(p, length, alpha): return p", "def causal_mask(n): return 3")
    table = tmp_path / "grades.csv"
    done = subprocess.run([sys.executable, "-m", "stage_modules.seq2seq.exercises", str(solved), str(other), "--output", str(table)],
                          check=False, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    anna, ben = csv.DictReader(table.open(encoding="utf-8"))
    assert anna["passed"] == str(len(ex.CHECKS)) and anna["cells_failed"] == "0"
    assert (ben["cells_failed"], ben["length_score"], ben["bleu"]) == ("1", "failed", "not done yet")
    assert "causal_mask" not in ben, "that one is stage 1's"
    assert f"{len(ex.CHECKS)} of {len(ex.CHECKS)} passed" in done.stdout


def test_the_stages_grade_their_own_exercises():
    assert set(ex.grade({}).verdicts) == set(ex.CHECKS)
    assert set(stage1.grade({}).verdicts) == set(stage1.CHECKS)
    assert not set(ex.CHECKS) & set(stage1.CHECKS)
