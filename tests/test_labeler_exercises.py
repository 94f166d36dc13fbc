"""The checks of stage 4's exercises are worth something: right answers pass, stubs are told apart, plausible mistakes are caught."""
import csv
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from exercise_page import ExercisePage, write_notebook
from scipy.optimize import linear_sum_assignment
from scipy.signal import butter, filtfilt, lfilter, sosfilt, sosfiltfilt
from torch.nn.functional import scaled_dot_product_attention

from stage_modules.attention import exercises as stage1
from stage_modules.attention.scaled_dot_product import scaled_dot_product_attention as course_attention
from stage_modules.labeler import exercises as ex
from stage_modules.labeler.features import facing_angle as library_facing
from stage_modules.labeler.label import vote as library_vote
from stage_modules.labeler.markers import Recording
from stage_modules.seq2seq import exercises as stage2
from stage_modules.toolkit.checking import prove_check
from stage_modules.unet1d import exercises as stage3

PAGE = ExercisePage("stage4_labeler")


# ---- answers: right ones in two ways, and the mistakes that people make

def gaps(visible, most, fits=lambda n, most: n <= most, ends=False, seen=False):
    out, start = visible.clone() if seen else torch.zeros_like(visible), None
    for i, there in enumerate([*visible.tolist(), None]):
        if there is False:
            start = i if start is None else start
        elif start is not None:
            if fits(i - start, most) and (ends or (start > 0 and there is not None)): out[start:i] = True
            start = None
    return out


def gaps_by_morphology(visible, most):
    v = visible.numpy()
    index = np.flatnonzero(v)
    out = np.zeros_like(v)
    for a, b in itertools.pairwise(index):
        if 1 < b - a <= most + 1: out[a + 1:b] = True
    return torch.from_numpy(out)


def gaps_first_part(visible, most):
    far = torch.where(visible, torch.arange(len(visible)), -99).cummax(0).values
    return gaps(visible, 10 ** 6) & (torch.arange(len(visible)) - far <= most)


def mean_of(x, mask, axis=1, hide=True, count=lambda m: m.sum(1, keepdim=True).clamp(min=1)):
    return (x.masked_fill(~mask[..., None], 0.0) if hide else x).sum(axis) / count(mask)


def mean_by_einsum(x, mask):
    weights = mask.float() / mask.float().sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,btd->bd", weights, x)


def attend(q, k, v, mask, scale=None, key_axis=True, late=False, empty=True):
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    keep = mask[:, None] if key_axis else mask[..., None]
    if not late: scores = scores.masked_fill(~keep, -torch.inf)
    weights = scores.softmax(-1) * (keep if late else 1)
    return (weights.nan_to_num(0.0) if empty else weights) @ v


def attend_by_torch(q, k, v, mask):
    out = scaled_dot_product_attention(q, k, v, mask[:, None] | ~mask.any(1)[:, None, None])
    return out * mask.any(1)[:, None, None]


def attend_by_the_course(q, k, v, mask): return course_attention(q, k, v, mask[:, None])[0]


def facing(left, right, turn=lambda x, y: math.atan2(x, -y), mean=lambda d: d.nanmean(0)):
    x, y = mean(right - left)[:2].tolist()
    return turn(x, y)


def facing_of_the_library(left, right): return library_facing(Recording(torch.stack([left, right], 1).numpy(), ("L", "R"), 100.0), "L", "R")


def offsets(points, target, order=lambda o: o.nanmean(0).norm(dim=-1).argsort(), sign=1, drop=True, zero=True):
    apart = sign * (points - points[:, [target]])
    if drop: apart = apart[:, [i for i in range(points.shape[1]) if i != target]]
    apart = apart[:, order(apart)]
    return apart.nan_to_num(0.0) if zero else apart


def offsets_by_numpy(points, target):
    apart = np.delete(points.numpy() - points.numpy()[:, [target]], target, 1)
    return torch.from_numpy(np.nan_to_num(apart[:, np.argsort(np.linalg.norm(np.nanmean(apart, 0), axis=-1))]))


def offsets_each_frame(points, target):
    apart = offsets(points, target, lambda o: torch.arange(o.shape[1]))
    return apart.gather(1, apart.norm(dim=-1).argsort(1)[..., None].expand_as(apart))


def offsets_zero_first(points, target): return offsets(points.nan_to_num(0.0), target)


def assigned(p, score=lambda p: p.double().clamp(1e-6, 1 - 1e-6).logit(), maximize=True):
    return torch.from_numpy(linear_sum_assignment(score(p).numpy(), maximize=maximize)[1])


def assigned_by_swaps(p):  # exchanges until nothing is gained; from every start
    def total(way): return sum(float(ex._odds(p)[i, j]) for i, j in enumerate(way))
    return torch.tensor(max((way for way in itertools.permutations(range(p.shape[1]), len(p))), key=total))


def surest(p):
    p, out = p.clone(), torch.full((len(p),), -1)
    for _ in range(len(p)):
        i, j = divmod(int(p.argmax()), p.shape[1])
        out[i], p[i], p[:, j] = j, -1, -1
    return out


def voted(labels, confidence, M, weight=lambda c: c, whole=lambda votes, c, n: votes.sum(), keep=lambda labels: labels >= 0, none=(-1, 0.0)):
    named = keep(labels)
    votes = torch.bincount(labels[named] % M, weights=weight(confidence[named]), minlength=M)
    return (int(votes.argmax()), float(votes.max() / whole(votes, confidence, len(labels)))) if votes.any() else none


def voted_by_the_library(labels, confidence, M):
    frame = np.where(labels[:, None].numpy() >= 0, labels[:, None].numpy(), -1)
    name, share = library_vote(frame, (confidence * (labels >= 0))[:, None].numpy(), M)
    return int(name[0]), float(share[0])


def filtered(x, rate, cutoff, order=2, run=sosfiltfilt, axis=0, edge=lambda cutoff, rate: 2 * cutoff / rate):
    return torch.from_numpy(run(butter(order, edge(cutoff, rate), output="sos"), x.numpy(), axis=axis).copy())


def filtered_by_hand(x, rate, cutoff):  # once, turned round, once more, after half a second of standing still
    b, a = butter(2, cutoff, fs=rate)
    pad = int(rate / 2)
    y = np.concatenate([np.repeat(x[:1].numpy(), pad, 0), x.numpy(), np.repeat(x[-1:].numpy(), pad, 0)])
    for _ in range(2): y = (lfilter(b, a, y - y[0], axis=0) + y[0])[::-1]
    return torch.from_numpy(y[pad:-pad].copy())


def filtered_by_ba(x, rate, cutoff): return torch.from_numpy(filtfilt(*butter(2, cutoff, fs=rate), x.numpy(), axis=0).copy())


def pulled(points, pairs, lengths, tolerance, measure=torch.abs, off=lambda d, length: d - length, more=lambda p, out: out):
    distance = (points[:, pairs[:, 0]] - points[:, pairs[:, 1]]).square().sum(-1).sqrt()
    return more(points[:, pairs], measure(off(distance, lengths)) > tolerance)


def pulled_one_by_one(points, pairs, lengths, tolerance):
    rows = [[abs(math.dist(frame[a], frame[b]) - length) > tolerance for (a, b), length in zip(pairs.tolist(), lengths.tolist())] for frame in points.tolist()]
    return torch.tensor(rows)


ANSWERS = {
    "short_gaps": ([gaps, gaps_by_morphology], {
        "long gaps are filled in part": gaps_first_part,
        "one too few": lambda v, n: gaps(v, n, lambda n, most: n < most),
        "one too many": lambda v, n: gaps(v, n + 1),
        "the ends are gaps": lambda v, n: gaps(v, n, ends=True),
        "seen frames too": lambda v, n: gaps(v, n, seen=True),
        "all that is missing": lambda v, n: ~v,
        "no bool": lambda v, n: gaps(v, n).float(),
    }),
    "masked_mean": ([mean_of, mean_by_einsum], {
        "padding counts": lambda x, m: x.mean(1),
        "divided by all frames": lambda x, m: mean_of(x, m, count=lambda m: m.shape[1]),
        "NaN for nothing": lambda x, m: mean_of(x, m, count=lambda m: m.sum(1, keepdim=True)),
        "padding is summed": lambda x, m: mean_of(x, m, hide=False),
        "over the batch": lambda x, m: mean_of(x, m, axis=0, count=lambda m: m.shape[0]),
        "the last real frame": lambda x, m: x[torch.arange(len(x)), m.sum(1).clamp(min=1) - 1],
        "the maximum": lambda x, m: x.masked_fill(~m[..., None], -1e9).amax(1),
    }),
    "frame_attention": ([attend, attend_by_torch, attend_by_the_course], {
        "no mask": lambda q, k, v, m: attend(q, k, v, torch.ones_like(m)),
        "no scaling": lambda q, k, v, m: attend(q, k, v, m, scale=1.0),
        "scaled by D": lambda q, k, v, m: attend(q, k, v, m, scale=1 / q.shape[-1]),
        "queries are masked": lambda q, k, v, m: attend(q, k, v, m, key_axis=False),
        "masked after the softmax": lambda q, k, v, m: attend(q, k, v, m, late=True),
        "NaN for nothing": lambda q, k, v, m: attend(q, k, v, m, empty=False),
        "softmax over queries": lambda q, k, v, m: (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~m[:, None], -1e9).softmax(1) @ v,
        "mask the wrong way round": lambda q, k, v, m: attend(q, k, v, ~m),
    }),
    "facing_angle": ([facing, facing_of_the_library], {
        "the arrow's own angle": lambda l, r: facing(l, r, lambda x, y: math.atan2(y, x)),
        "backwards": lambda l, r: facing(l, r, lambda x, y: math.atan2(-x, y)),
        "to the other side": lambda l, r: facing(l, r, lambda x, y: -math.atan2(x, -y)),
        "degrees": lambda l, r: math.degrees(facing(l, r)),
        "NaN": lambda l, r: facing(l, r, mean=lambda d: d.mean(0)),
        "the first frame": lambda l, r: facing(l, r, mean=lambda d: d[0]),
        "mean of angles": lambda l, r: torch.atan2((r - l)[:, 0], (l - r)[:, 1]).nanmean(),
        "the middle's direction": lambda l, r: torch.atan2(*(l + r).nanmean(0)[:2].flip(0)),
    }),
    "nearest_offsets": ([offsets, offsets_by_numpy], {
        "no order": lambda p, t: offsets(p, t, lambda o: torch.arange(o.shape[1])),
        "farthest first": lambda p, t: offsets(p, t, lambda o: o.nanmean(0).norm(dim=-1).argsort(descending=True)),
        "an order for each frame": offsets_each_frame,
        "by mean distance": lambda p, t: offsets(p, t, lambda o: o.norm(dim=-1).nanmean(0).argsort()),
        "from the other to the target": lambda p, t: offsets(p, t, sign=-1),
        "the target among the others": lambda p, t: offsets(p, t, drop=False),
        "NaN stays": lambda p, t: offsets(p, t, zero=False),
        "missing is the origin": offsets_zero_first,
        "by the first frame": lambda p, t: offsets(p, t, lambda o: o[0].norm(dim=-1).argsort()),
    }),
    "assign_names": ([assigned, assigned_by_swaps], {
        "each its favourite": lambda p: p.argmax(1),
        "surest first": surest,
        "the smallest sum": lambda p: assigned(p, maximize=False),
        "probabilities": lambda p: assigned(p, lambda p: p.double()),
        "log probabilities": lambda p: assigned(p, lambda p: p.double().clamp(min=1e-6).log()),
        "other way round": lambda p: torch.from_numpy(linear_sum_assignment(ex._odds(p).numpy().T, maximize=True)[0]),
        "not whole": lambda p: assigned(p).float(),
        "infinite odds": lambda p: assigned(p, lambda p: p.double().logit()),
        "as they come": lambda p: torch.arange(len(p)),
    }),
    "vote": ([voted, voted_by_the_library], {
        "heads": lambda *a: voted(*a, weight=torch.ones_like),
        "share of all frames": lambda *a: voted(*a, whole=lambda votes, c, n: n),
        "share of all confidence": lambda *a: voted(*a, whole=lambda votes, c, n: c.sum()),
        "no name is the last name": lambda *a: voted(*a, keep=lambda labels: labels >= -1),
        "the surest frame": lambda labels, c, M: (int(labels[c.argmax()]), float(c.max() / c.sum())),
        "no name is marker 0": lambda *a: voted(*a, none=(0, 0.0)),
        "the last frame": lambda labels, c, M: (int(labels[-1]), 1.0),
        "confidence squared": lambda *a: voted(*a, weight=torch.square),
    }),
    "zero_phase": ([filtered, filtered_by_hand, filtered_by_ba], {
        "one way": lambda *a: filtered(*a, run=sosfilt),
        "fourth order": lambda *a: filtered(*a, order=4),
        "first order": lambda *a: filtered(*a, order=1),
        "over the wrong axis": lambda x, *a: filtered(x.mT.contiguous().mT.repeat(1, 20), *a, axis=1)[:, :x.shape[1]],
        "half the cutoff": lambda *a: filtered(*a, edge=lambda cutoff, rate: cutoff / rate),
        "always 100 Hz": lambda x, rate, cutoff: filtered(x, 100.0, cutoff),
        "always 6 Hz": lambda x, rate, cutoff: filtered(x, rate, 6.0),
        "no filter": lambda x, rate, cutoff: x.clone(),
        "a moving average": lambda x, rate, cutoff: torch.nn.functional.avg_pool1d(x.mT, 9, 1, 4, count_include_pad=False).mT,
    }),
    "strained": ([pulled, pulled_one_by_one], {
        "stretched only": lambda *a: pulled(*a, measure=lambda d: d),
        "squeezed only": lambda *a: pulled(*a, measure=lambda d: -d),
        "missing is strained": lambda *a: pulled(*a, more=lambda p, out: out | p.isnan().any(-1).any(-1)),
        "a ratio": lambda *a: pulled(*a, off=lambda d, length: d / length - 1),
        "fitting, not strained": lambda *a: ~pulled(*a),
        "missing is the origin": lambda p, *a: pulled(p.nan_to_num(0.0), *a),
        "no bool": lambda *a: pulled(*a).float(),
        "for the whole pair": lambda *a: pulled(*a).any(0).expand(len(a[0]), -1).clone(),
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


# ---- the notebook: solutions are complete, examples are true, stubs are stubs

def test_every_exercise_has_hint_check_and_solution(): PAGE.assert_complete(ex.CHECKS)


@pytest.mark.parametrize("name", ex.CHECKS)
def test_folded_solution_passes_its_check(name):
    verdict = ex.CHECKS[name](PAGE.solution(name))
    assert verdict, verdict


def test_examples_in_the_statements_are_true(): PAGE.assert_examples_are_true(len(ex.CHECKS))


# ---- grading notebooks: stage 1's grader with this stage's checks

def test_the_notebook_of_stubs_is_graded_not_done():
    row = ex.grade_notebook(PAGE.path)
    assert row["cells_failed"] == 0 and row["passed"] == 0
    assert {row[name] for name in ex.CHECKS} == {"not done yet"}


def test_grading_a_folder(tmp_path):
    handed_in, table = tmp_path / "handed in", tmp_path / "grades.csv"
    handed_in.mkdir()
    write_notebook(handed_in, "ben.ipynb", "1 / 0", "def vote(labels, confidence, num_markers): return 0, 1.", "def z_score(x): return x")
    write_notebook(handed_in, "anna.ipynb", PAGE.imports, *PAGE.solutions().values())
    done = subprocess.run([sys.executable, "-m", "stage_modules.labeler.exercises", str(handed_in), "--output", str(table)], check=False, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    anna, ben = csv.DictReader(table.open(encoding="utf-8"))
    assert anna["notebook"] == "anna.ipynb" and anna["passed"] == str(len(ex.CHECKS)) and anna["cells_failed"] == "0"
    assert (ben["cells_failed"], ben["vote"], ben["strained"]) == ("1", "failed", "not done yet")
    assert f"{len(ex.CHECKS)} of {len(ex.CHECKS)} passed" in done.stdout


def test_the_stages_grade_their_own_exercises():
    assert set(ex.grade({}).verdicts) == set(ex.CHECKS)
    for other in stage1, stage2, stage3: assert not set(ex.CHECKS) & set(other.CHECKS)
