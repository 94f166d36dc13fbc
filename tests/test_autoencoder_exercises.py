"""The checks of stage 5's exercises are worth something: right answers pass, stubs are told apart, plausible mistakes are caught."""
import csv
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from einops import rearrange
from exercise_page import ExercisePage, write_notebook
from torch.nn import functional as F

from stage_modules.attention import exercises as stage1
from stage_modules.autoencoder import exercises as ex
from stage_modules.autoencoder.blocks import sinusoidal_2d
from stage_modules.autoencoder.explore import attention_distance as library_distance
from stage_modules.autoencoder.model import PRESETS, create_autoencoder
from stage_modules.autoencoder.patches import cut_patches as library_cut
from stage_modules.autoencoder.patches import join_patches as library_join
from stage_modules.labeler import exercises as stage4
from stage_modules.seq2seq import exercises as stage2
from stage_modules.toolkit.checking import prove_check
from stage_modules.unet1d import exercises as stage3

PAGE = ExercisePage("stage5_autoencoder")


# ---- answers: right ones in two ways, and the mistakes that people make

def lacking(size, P): return [-n % P for n in size]


def cut(images, P, pattern="b 1 (r p) (c q) -> b (r c) (p q)", fill=lambda down, across: (0, across, 0, down), **how):
    whole = F.pad(images, fill(*lacking(images.shape[-2:], P)), **how)
    return rearrange(whole, pattern, p=P, q=P)


def cut_by_unfold(images, P): return F.unfold(F.pad(images, (0, -images.shape[3] % P, 0, -images.shape[2] % P)), P, stride=P).mT


def joined(patches, size, P, pattern="b (r c) (p q) -> b 1 (r p) (c q)", count=lambda n, P: math.ceil(n / P), crop=lambda x, h, w: x[..., :h, :w]):
    rows, columns = (count(n, P) for n in size)
    return crop(rearrange(patches, pattern, r=rows, c=columns, p=P), *size)


def joined_by_fold(patches, size, P): return F.fold(patches.mT, [n + -n % P for n in size], P, stride=P)[..., :size[0], :size[1]]


def placed(rows, columns, dim, base=100., of=None, start=0, join=lambda s, c: np.stack([s, c], -1), order=0, swap=False):
    half = dim // 2
    r, c = (x.reshape(-1, order="FC"[order == 0]) for x in np.mgrid[start:rows + start, start:columns + start])
    speeds = base ** (-np.arange(0, half, 2) / (of or half))
    halves = [join(np.sin(x[:, None] * speeds), np.cos(x[:, None] * speeds)).reshape(len(x), half) for x in (r, c)]
    return torch.tensor(np.concatenate(halves[::-1] if swap else halves, -1), dtype=torch.float32)


def sines_first(s, c): return np.concatenate([s, c], -1)


def split(packed, H, pattern="b l (n h d) -> n b h l d", moved=False):
    parts = rearrange(packed, pattern, n=3, h=H)
    return tuple((part.clone() if moved else part) for part in parts)


def split_by_strides(packed, H):
    B, L, D3 = packed.shape
    d = D3 // 3 // H
    return [packed.as_strided((B, H, L, d), (L * D3, d, D3, 1), packed.storage_offset() + n * H * d) for n in range(3)]


def back(query, key, value, grad, scale=None, own=lambda w, g: (w * g).sum(-1, keepdim=True), root=True, turn=True):
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    weights = (query @ key.mT * scale).softmax(-1)
    grad_weights = grad @ value.mT
    scores = weights * (grad_weights - own(weights, grad_weights)) * (scale if root else 1)
    return scores @ key, (scores.mT if turn or scores.shape[1] != scores.shape[2] else scores) @ query, weights.mT @ grad


def back_by_autograd(query, key, value, grad):
    given = [t.clone().requires_grad_() for t in (query, key, value)]
    weights = (given[0] @ given[1].mT / math.sqrt(query.shape[-1])).softmax(-1)
    (weights @ given[2]).backward(grad)
    return [t.grad for t in given]


def swapped(query, key, value, grad):
    q, k, v = back(query, key, value, grad)
    return (k, q, v) if q.shape == k.shape else (q, k, v)


def far(weights, rows, columns, measure=lambda d: d.norm(dim=-1), mean=lambda x: x.mean(-1), wide=None):
    token = torch.arange(rows * columns)
    place = torch.stack([token // (wide or columns), token % (wide or columns)], -1).float()
    return mean((weights * measure(place[:, None] - place)).sum(-1))


def far_from_the_mean_place(weights, rows, columns):
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return (weights @ place - place).norm(dim=-1).mean(-1)


def formula(D, Z, N, P, block=lambda D: 12 * D * D + 10 * D, sides=2, norms=2, latent=lambda D, Z: D * Z + Z + Z * D + D, patch=lambda D, n: n * D + D + D * n + n):
    return sides * N * block(D) + norms * 2 * D + latent(D, Z) + patch(D, P * P)


def added_up(D, Z, N, P):
    def linear(m, n, bias=True): return m * n + n * bias
    block = 2 * (2 * D) + linear(D, 3 * D, bias=False) + linear(D, D) + linear(D, 4 * D) + linear(4 * D, D)
    return sum([linear(P * P, D), N * block, 2 * D, linear(D, Z), linear(Z, D), N * block, 2 * D, linear(D, P * P)])


def held(parameters, blocks, between, inside, batch, half=False, checkpointing=False, each=16, stream=4, narrow=2, kept=lambda blocks, checkpointing: 1 if checkpointing else blocks):
    return each * parameters + batch * (stream * blocks * between + (narrow if half else 4) * inside * kept(blocks, checkpointing))


def held_block_by_block(parameters, blocks, between, inside, batch, half=False, checkpointing=False):
    number = 2 if half else 4
    blocks_hold = [4 * between + (0 if checkpointing else number * inside)] * blocks
    return parameters * (4 + 4 + 4 + 4) + batch * (sum(blocks_hold) + checkpointing * number * inside)


def accumulate(model, batches, share=lambda images, mask, all: 1 / sum(m.sum() * x.shape[2] for x, m in all), hide=True, error=torch.square, parts=None):
    model.zero_grad()
    for images, mask in batches[parts] if parts else batches:
        apart = error(model(images) - images)
        if hide: apart = apart.masked_fill(~mask[:, None, None], 0.)
        (apart.sum() * share(images, mask, batches)).backward()
    return [p.grad for p in model.parameters()]


def accumulate_means(model, batches):
    weights = torch.stack([mask.sum() for _, mask in batches]).float()
    total = [0.] * len(list(model.parameters()))
    for (images, mask), weight in zip(batches, weights / weights.sum()):
        error = (model(images) - images)[mask[:, None, None].expand_as(images)].square().mean()
        total = [t + weight * g for t, g in zip(total, torch.autograd.grad(error, list(model.parameters())))]
    return total


def one_graph(model, batches):
    pixels = sum(mask.sum() * images.shape[2] for images, mask in batches)
    loss = sum(((model(images) - images).square() * mask[:, None, None]).sum() for images, mask in batches) / pixels
    return torch.autograd.grad(loss, list(model.parameters()))


def one_large_batch(model, batches):
    widest = max(images.shape[-1] for images, _ in batches)
    images, mask = (torch.cat([F.pad(pair[i], (0, widest - pair[i].shape[-1])) for pair in batches]) for i in range(2))
    return one_graph(model, [(images, mask)])


def merge(context_a, lse_a, context_b, lse_b, total=torch.logaddexp, guard=True):
    lse = total(lse_a, lse_b)
    safe = torch.logaddexp(lse_a, lse_b)
    if guard: safe = safe.masked_fill(safe == -torch.inf, 0.)
    return (lse_a - safe).exp()[..., None] * context_a + (lse_b - safe).exp()[..., None] * context_b, lse


def merge_by_maximum(context_a, lse_a, context_b, lse_b):
    top = torch.maximum(lse_a, lse_b).clamp(min=-1e30)
    a, b = (lse_a - top).exp(), (lse_b - top).exp()
    mixed = (a[..., None] * context_a + b[..., None] * context_b) / (a + b).clamp(min=1e-30)[..., None]
    return mixed, top + (a + b).log()


def merge_as_they_are(context_a, lse_a, context_b, lse_b):
    a, b = lse_a.exp()[..., None], lse_b.exp()[..., None]
    return (a * context_a + b * context_b) / (a + b), (a + b).log()[..., 0]


ANSWERS = {
    "cut_patches": ([cut, cut_by_unfold, library_cut], {
        "a view": lambda x, P: cut(x, P, "b 1 (r p) (c q) -> b 1 (r p c q)").reshape(len(x), -1, P * P),
        "column after column": lambda x, P: cut(x, P, "b 1 (r p) (c q) -> b (c r) (p q)"),
        "patches lie on their side": lambda x, P: cut(x, P, "b 1 (r p) (c q) -> b (r c) (q p)"),
        "the rest is left out": lambda x, P: F.unfold(x, P, stride=P).mT,
        "filled up in front": lambda x, P: cut(x, P, fill=lambda down, across: (across, 0, down, 0)),
        "filled up on both sides": lambda x, P: cut(x, P, fill=lambda down, across: (across // 2, across - across // 2, down // 2, down - down // 2)),
        "filled up with ones": lambda x, P: cut(x, P, value=1.),
        "one patch too many": lambda x, P: cut(F.pad(x, (0, P - x.shape[3] % P, 0, P - x.shape[2] % P)), P),
    }),
    "join_patches": ([joined, joined_by_fold, library_join], {
        "a view": lambda x, size, P: joined(x, size, P, "b (r c) (p q) -> b (r c p q)", crop=lambda x, h, w: x[:, :h * w].reshape(len(x), 1, h, w)),
        "rounded down": lambda *a: joined(*a, count=lambda n, P: n // P),
        "width before height": lambda x, size, P: joined(x, size[::-1], P),
        "columns and rows changed places": lambda *a: joined(*a, "b (c r) (p q) -> b 1 (r p) (c q)"),
        "patches lie on their side": lambda *a: joined(*a, "b (r c) (q p) -> b 1 (r p) (c q)"),
        "nothing is cut off": lambda *a: joined(*a, crop=lambda x, h, w: x),
        "cut off in front": lambda *a: joined(*a, crop=lambda x, h, w: x[..., -h:, -w:]),
        "without the channel": lambda *a: joined(*a)[:, 0],
    }),
    "grid_positions": ([placed, sinusoidal_2d], {
        "the base of sentences": lambda *a: placed(*a, base=10_000.),
        "powers count over all of it": lambda *a: placed(*a, of=a[2]),
        "column before row": lambda *a: placed(*a, swap=True),
        "column after column": lambda *a: placed(*a, order=1),
        "all sines, then all cosines": lambda *a: placed(*a, join=sines_first),
        "cosine first": lambda *a: placed(*a, join=lambda s, c: np.stack([c, s], -1)),
        "counted from 1": lambda *a: placed(*a, start=1),
        "one long line": lambda R, C, D: placed(1, R * C, D),
        "a grid": lambda R, C, D: placed(R, C, D).view(R, C, D),
    }),
    "split_qkv": ([split, split_by_strides], {
        "copied": lambda *a: split(*a, moved=True),
        "heads first": lambda x, H: split(x, H, "b l (h n d) -> n b h l d"),
        "features first": lambda x, H: split(x, H, "b l (n d h) -> n b h l d"),
        "tokens before heads": lambda x, H: split(x, H, "b l (n h d) -> n b l h d"),
        "a view of the shape": lambda x, H: tuple(part.reshape(len(x), H, x.shape[1], -1) for part in x.chunk(3, -1)),
        "key, query, value": lambda x, H: [split(x, H)[i] for i in (1, 0, 2)],
        "one tensor": lambda x, H: rearrange(x, "b l (n h d) -> b h l (n d)", n=3, h=H),
        "no heads": lambda x, H: x.chunk(3, -1),
    }),
    "attention_gradients": ([back, back_by_autograd], {
        "weights do not compete": lambda *a: back(*a, own=lambda w, g: 0.),
        "less the plain mean": lambda *a: back(*a, own=lambda w, g: g.mean(-1, keepdim=True)),
        "less the sum over queries": lambda *a: back(*a, own=lambda w, g: (w * g).sum(-2, keepdim=True)),
        "no root on the way back": lambda *a: back(*a, root=False),
        "no root at all": lambda *a: back(*a, scale=1.),
        "query and key changed places": swapped,
        "scores not turned": lambda *a: back(*a, turn=False),
        "without the value": lambda *a: back(*a)[:2],
        "the gradient of the value is the value": lambda q, k, v, g: (*back(q, k, v, g)[:2], v),
    }),
    "attention_distance": ([far, lambda w, R, C: library_distance(w, (R, C))], {
        "around the corner": lambda *a: far(*a, measure=lambda d: d.abs().sum(-1)),
        "squared": lambda *a: far(*a, measure=lambda d: d.square().sum(-1)),
        "along the longer side": lambda *a: far(*a, measure=lambda d: d.abs().amax(-1)),
        "as many columns as rows": lambda w, R, C: far(w, R, C, wide=R),
        "in tokens": lambda w, R, C: far(w, R, C, wide=R * C),
        "the sum over those who look": lambda *a: far(*a, mean=lambda x: x.sum(-1)),
        "a number for each patch": lambda *a: far(*a, mean=lambda x: x),
        "the mean over all maps": lambda *a: far(*a).mean(),
        "how far the middle is": far_from_the_mean_place,
    }),
    "model_parameters": ([formula, added_up], {
        "a bias for queries, keys and values": lambda *a: formula(*a, block=lambda D: 12 * D * D + 13 * D),
        "no biases in blocks": lambda *a: formula(*a, block=lambda D: 12 * D * D + 4 * D),
        "no norms in blocks": lambda *a: formula(*a, block=lambda D: 12 * D * D + 6 * D),
        "no last norms": lambda *a: formula(*a, norms=0),
        "norms without a shift": lambda *a: formula(*a, block=lambda D: 12 * D * D + 8 * D, norms=1),
        "one side": lambda *a: formula(*a, sides=1),
        "half of the net in a block": lambda *a: formula(*a, block=lambda D: 8 * D * D + 6 * D),
        "one matrix for both ways of the latent": lambda *a: formula(*a, latent=lambda D, Z: D * Z + Z + D),
        "patches have P numbers": lambda D, Z, N, P: formula(D, Z, N, P, patch=lambda D, n: P * D + D + D * P + P),
        "a float": lambda *a: float(formula(*a)),
    }),
    "training_bytes": ([held, held_block_by_block], {
        "no gradients": lambda *a: held(*a, each=12),
        "weights alone": lambda *a: held(*a, each=4),
        "a batch is one image": lambda p, n, x, y, batch, *rest: held(p, n, x, y, min(batch, 1), *rest),
        "half of everything": lambda *a: held(*a) // (2 if len(a) > 5 and a[5] else 1),
        "the stream has half": lambda *a: held(*a, stream=2 if len(a) > 5 and a[5] else 4),
        "half is not half": lambda *a: held(*a, narrow=4),
        "checkpointing keeps nothing inside": lambda *a: held(*a, kept=lambda blocks, c: 0 if c else blocks),
        "checkpointing keeps all": lambda *a: held(*a, kept=lambda blocks, c: blocks),
        "one block": lambda *a: held(*a, kept=lambda blocks, c: 1),
    }),
    "accumulated_gradients": ([accumulate, accumulate_means], {
        "mean of means": lambda *a: accumulate(*a, share=lambda x, m, all: 1 / (len(all) * m.sum() * x.shape[2])),
        "sum of means": lambda *a: accumulate(*a, share=lambda x, m, all: 1 / (m.sum() * x.shape[2])),
        "the sum": lambda *a: accumulate(*a, share=lambda x, m, all: 1.),
        "images count, not pixels": lambda *a: accumulate(*a, share=lambda x, m, all: len(x) / sum(len(y) for y, _ in all) / (m.sum() * x.shape[2])),
        "columns, not pixels": lambda *a: accumulate(*a, share=lambda x, m, all: 1 / sum(n.sum() for _, n in all)),
        "padding is real": lambda *a: accumulate(*a, hide=False),
        "divided by all pixels": lambda *a: accumulate(*a, share=lambda x, m, all: 1 / sum(y.numel() for y, _ in all)),
        "the last part": lambda *a: accumulate(*a, parts=slice(-1, None)),
        "absolute differences": lambda *a: accumulate(*a, error=torch.abs),
        "all in one graph": one_graph,
        "all in one batch": one_large_batch,
    }),
    "merge_attention": ([merge, merge_by_maximum], {
        "no maximum": merge_as_they_are,
        "the plain mean": lambda a, p, b, q: ((a + b) / 2, torch.logaddexp(p, q)),
        "one or the other": lambda a, p, b, q: (torch.where((p > q)[..., None], a, b), torch.logaddexp(p, q)),
        "the sum of contexts": lambda a, p, b, q: (a + b, torch.logaddexp(p, q)),
        "changed places": lambda a, p, b, q: merge(b, p, a, q),
        "the larger one": lambda *a: merge(*a, total=torch.maximum),
        "the sum of logarithms": lambda *a: merge(*a, total=torch.add),
        "NaN for nothing": lambda *a: merge(*a, guard=False),
        "weights are logarithms": lambda a, p, b, q: ((p[..., None] * a + q[..., None] * b) / (p + q)[..., None], torch.logaddexp(p, q)),
        "the context alone": lambda *a: merge(*a)[0],
    }),
}


@pytest.mark.parametrize("name", ex.CHECKS)
def test_check_tells_right_from_wrong(name):
    right, wrong = ANSWERS[name]
    caught = prove_check(ex.CHECKS[name], right, wrong)
    assert len(set(caught.values())) > 1, caught


@pytest.mark.parametrize("name", ex.CHECKS)
def test_check_never_raises(name):
    for answer in (lambda *a: 1 / 0, lambda *a: "text", lambda *a: a, lambda: None, lambda *a: torch.zeros(0), lambda *a: [None], 7):
        assert not ex.CHECKS[name](answer)


@pytest.mark.parametrize("name", ex.CHECKS)
def test_a_check_leaves_the_random_numbers_alone(name):
    before = torch.get_rng_state()
    ex.CHECKS[name](ANSWERS[name][0][0])
    assert torch.equal(torch.get_rng_state(), before)


# ---- what the checks expect is what the stage's own code does

@pytest.mark.parametrize("height, width, patch", [*itertools.product((1, 5, 8), (3, 9), (2, 4, 16))])
def test_scissors_cut_as_the_library_does(height, width, patch):
    images = torch.rand(2, 1, height, width)
    patches = ex._cut(images, patch)
    assert torch.equal(patches, library_cut(images, patch))
    assert torch.equal(ex._joined(patches, (height, width), patch), images)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_formula_of_the_solution_counts_every_preset(preset):
    with torch.device("meta"): model = create_autoencoder(preset=preset)
    s = model.settings
    assert PAGE.solution("model_parameters")(s.token_dim, s.latent, s.num_layers, s.patch_size) == sum(p.numel() for p in model.parameters())


# ---- the notebook: solutions are complete, examples are true, stubs are stubs

def test_every_exercise_has_hint_check_and_solution(): PAGE.assert_complete(ex.CHECKS)


@pytest.mark.parametrize("name", ex.CHECKS)
def test_folded_solution_passes_its_check(name):
    verdict = ex.CHECKS[name](PAGE.solution(name))
    assert verdict, verdict


def test_examples_in_the_statements_are_true(): PAGE.assert_examples_are_true(len(ex.CHECKS))


# ---- grading notebooks: the toolkit's grader with this stage's checks

def test_the_notebook_of_stubs_runs_to_its_end_and_is_not_done():
    marks = ex.grade(PAGE.run(*PAGE.code)) # every cell, in one process
    assert {verdict.state for verdict in marks.verdicts.values()} == {"not done yet"} and marks.passed == 0


def test_grading_a_folder(tmp_path):
    handed_in, table = tmp_path / "handed in", tmp_path / "grades.csv"
    handed_in.mkdir()
    write_notebook(handed_in, "ben.ipynb", "1 / 0", "def join_patches(patches, size, patch_size): return patches", "def vote(*a): return 0, 1.")
    write_notebook(handed_in, "anna.ipynb", PAGE.imports, *PAGE.solutions().values())
    done = subprocess.run([sys.executable, "-m", "stage_modules.autoencoder.exercises", str(handed_in), "--output", str(table)], check=False, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    anna, ben = csv.DictReader(table.open(encoding="utf-8"))
    assert anna["notebook"] == "anna.ipynb" and anna["passed"] == str(len(ex.CHECKS)) and anna["cells_failed"] == "0"
    assert (ben["cells_failed"], ben["join_patches"], ben["cut_patches"]) == ("1", "failed", "not done yet")
    assert f"{len(ex.CHECKS)} of {len(ex.CHECKS)} passed" in done.stdout


def test_a_notebook_that_does_not_end_is_stopped(tmp_path):
    "It ignores the alarm of its cell, so only the parent can stop it."
    endless = write_notebook(tmp_path, "endless.ipynb", "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass")
    row = ex.grade_notebook(endless, cell_seconds=1, total_seconds=4)
    assert row["passed"] == 0 and {row[name] for name in ex.CHECKS} == {"time limit"}


def test_the_stages_grade_their_own_exercises():
    assert set(ex.grade({}).verdicts) == set(ex.CHECKS)
    for other in stage1, stage2, stage3, stage4: assert not set(ex.CHECKS) & set(other.CHECKS)
