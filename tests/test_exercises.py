"""The exercises' checks are worth something: right answers pass, stubs are told apart, plausible mistakes are caught."""
import csv
import math
import subprocess
import sys

import pytest
import torch
from exercise_page import ExercisePage, write_notebook
from torch import nn
from torch.nn.functional import elu

from stage_modules.attention import exercises as ex
from stage_modules.attention import multihead, scaled_dot_product, scores
from stage_modules.toolkit.checking import prove_check

PAGE = ExercisePage("stage1_attention")


# ---- answers: right ones in two ways, and the mistakes that people make

def softmax_by_hand(scores, mask):
    top = scores.masked_fill(~mask, -1e30).amax(-1, keepdim=True)
    mass = torch.where(mask, scores - top, torch.full_like(scores, -1e30)).exp() * mask
    total = mass.sum(-1, keepdim=True)
    return mass / torch.where(total > 0, total, torch.ones_like(total))


def softmax_mended(scores, mask):  # zeros on an empty row, and on a row that held a NaN
    return scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num()


def attention_by(scale=lambda q: math.sqrt(q.shape[-1]), axis=-1, use_mask=True, flip=False):
    def attention(query, key, value, mask=None):
        table = query @ key.mT / scale(query)
        if mask is not None and use_mask: table = table.masked_fill(mask if flip else ~mask, -torch.inf)
        weights = table.softmax(axis)
        return weights @ value, weights
    return attention


def attention_einsum(q, k, v, mask=None):
    table = torch.einsum("...td,...sd->...ts", q, k) * k.shape[-1] ** -0.5
    weights = scores.masked_softmax(table, mask)
    return torch.einsum("...ts,...sd->...td", weights, v), weights


def sinusoid(length, dim, base=10000.0, halves=False, first=0, exponent=None):
    angle = torch.arange(first, length + first)[:, None] / base ** (torch.arange(0, dim, 2) / dim if exponent is None else exponent(dim))
    return torch.cat([angle.sin(), angle.cos()], -1) if halves else torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def sinusoid_loop(length, dim):
    table = torch.zeros(length, dim)
    for p in range(length):
        for i in range(0, dim, 2):
            table[p, i], table[p, i + 1] = math.sin(p / 10000 ** (i / dim)), math.cos(p / 10000 ** (i / dim))
    return table


def rotary(x, sign=1, first=0, halves=False, speed=None):
    L, D = x.shape[-2:]
    angle = sign * torch.arange(first, L + first)[:, None] / 10000 ** ((torch.arange(0, D, 2) if speed is None else speed(D)) / D)
    a, b = x.chunk(2, -1) if halves else (x[..., 0::2], x[..., 1::2])
    turned = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
    return torch.cat(turned, -1) if halves else torch.stack(turned, -1).flatten(-2)


def rotary_matrix(x):
    L, D = x.shape[-2:]
    out = torch.empty_like(x)
    for p in range(L):
        for i in range(0, D, 2):
            t = p / 10000 ** (i / D)
            turn = torch.tensor([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]])
            out[..., p, i:i + 2] = x[..., p, i:i + 2] @ turn.T
    return out


def online(query, key, value, block, running_max=True, rescale=True, scale=True, tail=True, divide=True):
    T = len(query)
    largest, total, mixed = torch.full((T, 1), -torch.inf), torch.zeros(T, 1), torch.zeros(T, value.shape[-1])
    end = len(key) if tail or len(key) < block else len(key) // block * block
    for start in range(0, end, block):
        table = query @ key[start:start + block].mT / (query.shape[-1] ** 0.5 if scale else 1)
        new = torch.maximum(largest, table.amax(-1, keepdim=True)) if running_max else torch.zeros(T, 1)
        shrink, weights = (largest - new).exp() if running_max and rescale else torch.ones(T, 1), (table - new).exp()
        total, mixed = total * shrink + weights.sum(-1, keepdim=True), mixed * shrink + weights @ value[start:start + block]
        largest = new
    return mixed / total if divide else mixed


def online_log(query, key, value, block):  # carries the logarithm of the sum instead of the largest and the sum
    log_total, context = torch.full((len(query), 1), -torch.inf), torch.zeros(len(query), value.shape[-1])
    for keys, values in zip(key.split(block), value.split(block)):
        table = query @ keys.mT / key.shape[-1] ** 0.5
        here = table.logsumexp(-1, keepdim=True)
        new = torch.logaddexp(log_total, here)
        context = context * (log_total - new).exp() + (table - new).exp() @ values
        log_total = new
    return context


def temperature(scores, keys, spread=lambda w: torch.special.entr(w).sum().exp(), answer=lambda t: t):
    low, high = -14.0, 14.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if spread((scores.double() / math.exp(middle)).softmax(-1)) < keys else (low, middle)
    return answer(math.exp(low))


def temperature_search(scores, keys):  # a fine grid, then a finer one
    def best(grid):
        weights = (scores.double()[None] / grid.exp()[:, None]).softmax(-1)
        return grid[(torch.special.entr(weights).sum(-1).exp() - keys).abs().argmin()]
    centre = best(torch.linspace(-14, 14, 20001, dtype=torch.double))
    return best(torch.linspace(centre.item() - 0.01, centre.item() + 0.01, 20001, dtype=torch.double)).exp()


def block_once(x, attention, norm1, feedforward, norm2):
    return x + feedforward(norm2(x + attention(norm1(x))))  # the second residual path starts too early


def block_post(x, attention, norm1, feedforward, norm2):
    x = norm1(x + attention(x))
    return norm2(x + feedforward(x))


def block_right(x, attention, norm1, feedforward, norm2):
    middle = torch.add(x, attention(norm1(x)))
    return middle.add(feedforward(norm2(middle)))


def linear_loop(query, key, value, inclusive=True, kernel=lambda x: elu(x) + 1, divide=True):
    q, k = kernel(query), kernel(key)
    state, total, out = 0.0, 0.0, []
    for t in range(query.shape[-2]):
        add = k[..., t, :, None] * value[..., t, None, :], k[..., t, :]
        before = state, total
        state, total = state + add[0], total + add[1]
        s, z = (state, total) if inclusive or t == 0 else before
        mixed = (q[..., t, None, :] @ s).squeeze(-2)
        out.append(mixed / (q[..., t, :] * z).sum(-1, keepdim=True) if divide else mixed)
    return torch.stack(out, -2)


def linear_cumsum(query, key, value):
    q, k = elu(query) + 1, elu(key) + 1
    state = torch.einsum("...sd,...se->...sde", k, value).cumsum(-3)
    return torch.einsum("...td,...tde->...te", q, state) / torch.einsum("...td,...td->...t", q, k.cumsum(-2))[..., None]


def linear_everything(query, key, value):  # sums over the future too
    q, k = elu(query) + 1, elu(key) + 1
    return q @ (k.mT @ value) / (q @ k.sum(-2)[..., None])


ANSWERS = {
    "masked_softmax": ([scores.masked_softmax, softmax_by_hand], {
        "no mask": lambda s, m: s.softmax(-1), "mask the wrong way round": lambda s, m: scores.masked_softmax(s, ~m),
        "NaN on an empty row": lambda s, m: s.masked_fill(~m, -torch.inf).softmax(-1), "hides a NaN": softmax_mended,
        "wrong axis": lambda s, m: s.masked_fill(~m, -1e9).softmax(-2) * m, "masked after the softmax": lambda s, m: s.softmax(-1) * m,
        "no maximum subtracted": lambda s, m: s.exp() * m / (s.exp() * m).sum(-1, keepdim=True).clamp(min=1e-9),
        "an empty row shares evenly": lambda s, m: s.masked_fill(~m, -1e9).softmax(-1)}),
    "attention": ([attention_by(), attention_einsum], {
        "no scaling": attention_by(scale=lambda q: 1), "scaled by d": attention_by(scale=lambda q: q.shape[-1]), "wrong axis": attention_by(axis=-2),
        "no mask": attention_by(use_mask=False), "mask the wrong way round": attention_by(flip=True),
        "context only": lambda *a, **k: attention_by()(*a, **k)[0], "scaled by the length": attention_by(scale=lambda q: math.sqrt(q.shape[-2])),
        "masked with zero": lambda q, k, v, mask=None: (lambda w: (w @ v, w))(((q @ k.mT / q.shape[-1] ** 0.5) * (1 if mask is None else mask)).softmax(-1))}),
    "causal_mask": ([scaled_dot_product.causal_mask, lambda n: ~torch.triu(torch.ones(n, n), 1).bool()], {
        "the future": lambda n: torch.ones(n, n).triu().bool(), "not itself": lambda n: torch.ones(n, n).tril(-1).bool(),
        "floats": lambda n: torch.ones(n, n).tril(), "one too far": lambda n: torch.ones(n, n).tril(1).bool(),
        "no mask": lambda n: torch.ones(n, n).bool(), "itself alone": lambda n: torch.eye(n).bool()}),
    "padding_mask": ([scaled_dot_product.padding_mask, lambda n: torch.stack([torch.arange(int(n.max())) < x for x in n])], {
        "off by one": lambda n: torch.arange(int(n.max())) <= n[:, None], "padding is True": lambda n: torch.arange(int(n.max())) >= n[:, None],
        "at the wrong end": lambda n: (torch.arange(int(n.max())) < n[:, None]).flip(1), "one column too many": lambda n: torch.arange(int(n.max()) + 1) < n[:, None],
        "whole numbers": lambda n: (torch.arange(int(n.max())) < n[:, None]).long()}),
    "split_heads": ([multihead.split_heads, lambda x, h: torch.stack(x.chunk(h, -1), 1)], {
        "one reshape": lambda x, h: x.reshape(x.shape[0], h, x.shape[1], -1), "not moved": lambda x, h: x.unflatten(-1, (h, -1)),
        "dealt out like cards": lambda x, h: x.unflatten(-1, (-1, h)).permute(0, 3, 1, 2), "features before positions": lambda x, h: multihead.split_heads(x, h).mT}),
    "merge_heads": ([multihead.join_heads, lambda x: torch.cat(x.unbind(1), -1)], {
        "one reshape": lambda x: x.reshape(x.shape[0], x.shape[2], -1), "dealt out like cards": lambda x: x.permute(0, 2, 3, 1).flatten(-2),
        "heads averaged": lambda x: x.mean(1), "positions and heads mixed": lambda x: x.flatten(1, 2)}),
    "sinusoidal_positions": ([sinusoid, sinusoid_loop], {
        "two halves": lambda n, d: sinusoid(n, d, halves=True), "starts at 1": lambda n, d: sinusoid(n, d, first=1), "base 1,000": lambda n, d: sinusoid(n, d, base=1000.0),
        "exponent halved": lambda n, d: sinusoid(n, d, exponent=lambda D: torch.arange(D // 2) / D), "sine only": lambda n, d: sinusoid(n, d)[:, 0::2].repeat_interleave(2, -1),
        "cosine first": lambda n, d: sinusoid(n, d).unflatten(-1, (-1, 2)).flip(-1).flatten(-2)}),
    "rotate": ([rotary, rotary_matrix], {
        "no turn": lambda x: x.clone(), "the other way": lambda x: rotary(x, sign=-1), "starts at 1": lambda x: rotary(x, first=1), "halves paired": lambda x: rotary(x, halves=True),
        "one speed for all": lambda x: rotary(x, speed=lambda D: torch.zeros(D // 2)), "added instead of turned": lambda x: x + sinusoid(*x.shape[-2:])}),
    "online_attention": ([online, online_log], {
        "no running maximum": lambda *a: online(*a, running_max=False), "old sums not shrunk": lambda *a: online(*a, rescale=False), "no scaling": lambda *a: online(*a, scale=False),
        "last block forgotten": lambda *a: online(*a, tail=False), "not divided": lambda *a: online(*a, divide=False),
        "a full table": lambda q, k, v, b: scaled_dot_product.scaled_dot_product_attention(q, k, v)[0]}),
    "temperature_for": ([temperature, temperature_search], {
        "inverse": lambda s, n: temperature(s, n, answer=lambda t: 1 / t), "always 1": lambda s, n: 1.0, "bits for nats": lambda s, n: temperature(s, n, lambda w: 2 ** torch.special.entr(w).sum()),
        "entropy for keys": lambda s, n: temperature(s, n, lambda w: torch.special.entr(w).sum()), "negative": lambda s, n: -temperature(s, n), "keys as temperature": lambda s, n: n}),
    "pre_norm_block": ([block_right, lambda x, a, n1, f, n2: (lambda h: h + f(n2(h)))(x + a(n1(x)))], {
        "post-norm": block_post, "second sum from the start": block_once, "no residual": lambda x, a, n1, f, n2: f(n2(a(n1(x)))),
        "norm on the path": lambda x, a, n1, f, n2: (lambda h: n2(h) + f(n2(h)))(n1(x) + a(n1(x))), "one norm twice": lambda x, a, n1, f, n2: (lambda h: h + f(n1(h)))(x + a(n1(x))),
        "no norm": lambda x, a, n1, f, n2: (lambda h: h + f(h))(x + a(x))}),
    "local_mask": ([lambda n, w: torch.ones(n, n).tril().triu(-w).bool(), lambda n, w: torch.tensor([[s <= t and s >= t - w for s in range(n)] for t in range(n)])], {
        "one short": lambda n, w: torch.ones(n, n).tril().triu(1 - w).bool(), "both sides": lambda n, w: torch.ones(n, n).tril(w).triu(-w).bool(),
        "ahead instead of back": lambda n, w: torch.ones(n, n).triu().tril(w).bool(), "no window": lambda n, w: torch.ones(n, n).tril().bool(), "one too far": lambda n, w: torch.ones(n, n).tril().triu(-w - 1).bool()}),
    "linear_attention": ([linear_loop, linear_cumsum], {
        "sees the future": linear_everything, "not itself": lambda *a: linear_loop(*a, inclusive=False), "not divided": lambda *a: linear_loop(*a, divide=False),
        "elu without 1": lambda *a: linear_loop(*a, kernel=elu), "relu": lambda *a: linear_loop(*a, kernel=lambda x: x.relu() + 1e-6),
        "softmax": lambda q, k, v: scaled_dot_product.scaled_dot_product_attention(q, k, v, scaled_dot_product.causal_mask(q.shape[-2]))[0]}),
}


@pytest.mark.parametrize("name", ex.CHECKS)
def test_check_tells_right_from_wrong(name):
    right, wrong = ANSWERS[name]
    caught = prove_check(ex.CHECKS[name], right, wrong)
    assert len(caught) == len(wrong) >= 3


@pytest.mark.parametrize("name", ex.CHECKS)
def test_check_never_raises(name):
    for answer in None, 3, len, nn.Linear(2, 2), lambda *a, **k: "soon", lambda *a, **k: torch.tensor(math.nan), lambda *a, **k: 1 / 0, lambda: None:
        assert not ex.CHECKS[name](answer)


# ---- the notebook: solutions are complete, examples are true, stubs are stubs

def test_every_exercise_has_hint_check_and_solution():
    PAGE.assert_complete(ex.CHECKS)


@pytest.mark.parametrize("name", ex.CHECKS)
def test_folded_solution_passes_its_check(name):
    verdict = ex.CHECKS[name](PAGE.solution(name))
    assert verdict, verdict


def test_examples_in_the_statements_are_true():
    PAGE.assert_examples_are_true(len(ex.CHECKS))


# ---- grading notebooks

def test_the_notebook_of_stubs_is_graded_not_done():
    row = ex.grade_notebook(PAGE.path)
    assert row["cells_failed"] == 0 and row["passed"] == 0
    assert {row[name] for name in ex.CHECKS} == {"not done yet"}


def test_grading_a_class(tmp_path):
    solved = write_notebook(tmp_path, "anna.ipynb", PAGE.imports, *PAGE.solutions().values())
    hostile = write_notebook(tmp_path, "ben.ipynb", "import sys, torch\nsys.exit(3)", "while True: pass", "%matplotlib inline\ndef padding_mask(lengths):\n    while True: pass",
                       "def causal_mask(n): return torch.ones(n, n).tril().bool()", "check_rotate = lambda f: True\ndef rotate(x): return x")
    table = tmp_path / "grades.csv"
    done = subprocess.run([sys.executable, "-m", "stage_modules.attention.exercises", str(solved), str(hostile), "--output", str(table), "--cell_seconds", "4"],
                          capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    anna, ben = csv.DictReader(table.open(encoding="utf-8"))
    assert anna["passed"] == str(len(ex.CHECKS)) and anna["cells_failed"] == "0"
    assert (ben["cells_failed"], ben["causal_mask"], ben["padding_mask"], ben["rotate"]) == ("2", "passed", "failed", "failed")
    assert f"{len(ex.CHECKS)} of {len(ex.CHECKS)} passed" in done.stdout


def test_what_grading_cannot_run(tmp_path):
    gone = write_notebook(tmp_path, "gone.ipynb", "import os\nos._exit(0)")
    row = ex.grade_notebook(gone)
    assert {row[name] for name in ex.CHECKS} == {"no result"}
    deaf = write_notebook(tmp_path, "deaf.ipynb", "import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: time.sleep(1)")
    row = ex.grade_notebook(deaf, total_seconds=6)
    assert {row[name] for name in ex.CHECKS} == {"time limit"}
    (tmp_path / "text.ipynb").write_text("not JSON")
    with pytest.raises(ValueError, match="not a notebook"): ex.grade_notebook(tmp_path / "text.ipynb")
