"How near poses are: against formulas, plain loops and scipy, on sets where the answer is known, and in bounded memory."
import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import ortho_group
from scipy.stats import t as student

from stage_modules.toolkit.errors import ShapeError
from stage_modules.unet1d import quality
from stage_modules.unet1d.poses import make_poses, split_clips
from stage_modules.unet1d.quality import (
    frechet_distance,
    measure_quality,
    nearest_distances,
    neighbour_radii,
    outside_range,
    precision_recall,
    quality_table,
    seed_interval,
)
from stage_modules.unet1d.skeleton import Skeleton, default_skeleton, forward_kinematics

fixed = settings(derandomize=True, deadline=None, max_examples=40)
seeds = st.integers(0, 10_000)
BLOCKS = quality._blocks # as it is, with blocks of a real size


def points(seed: int, count: int, width: int) -> np.ndarray:
    "Correlated points, each dimension with a scale of its own."
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) @ random.normal(size=(width, width)) + random.normal(size=width) * 5


def joint_positions(poses: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    return forward_kinematics(poses, skeleton)[:, list(skeleton.joint_indices)].astype(np.float64)


def textbook_frechet(a: np.ndarray, b: np.ndarray) -> float:
    "The formula as it is printed, with scipy's matrix square root (of a matrix made regular)."
    mean, (one, two) = a.mean(0) - b.mean(0), (np.atleast_2d(np.cov(x.T)) + 1e-9 * np.eye(a.shape[1]) for x in (a, b))
    return float(mean @ mean + np.trace(one + two) - 2 * np.trace(sqrtm(one @ two)).real)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    "Distances in blocks of at most 50, so that every border is met."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "_blocks", lambda rows, columns: BLOCKS(rows, columns, 50))
        yield


@fixed
@given(seeds, st.integers(1, 8), st.integers(30, 60), st.integers(30, 60))
def test_frechet_is_the_textbook_formula(seed: int, width: int, n: int, m: int) -> None:
    a, b = points(seed, n, width), points(seed + 1, m, width)
    assert math.isclose(frechet_distance(a, b), textbook_frechet(a, b), rel_tol=1e-7, abs_tol=1e-7)


@fixed
@given(seeds, st.integers(1, 6))
def test_frechet_of_independent_dimensions_adds_up(seed: int, width: int) -> None:
    random = np.random.default_rng(seed)
    design = np.array(list(itertools.product([-1., 1.], repeat=width))) # mean 0, exactly uncorrelated
    scales, means = random.uniform(.1, 5, size=(2, width)), random.normal(size=(2, width))
    a, b = (design * s + m for s, m in zip(scales, means))
    deviations = scales * np.sqrt(len(design) / (len(design) - 1))
    assert math.isclose(frechet_distance(a, b), np.sum((means[0] - means[1])**2 + (deviations[0] - deviations[1])**2), rel_tol=1e-9)


@fixed
@given(seeds, st.integers(2, 7), st.floats(.01, 100), st.booleans())
def test_frechet_invariances(seed: int, width: int, scale: float, few: bool) -> None:
    count = 3 if few else 40 # with 3 points every covariance is singular
    a, b = points(seed, count, width), points(seed + 1, count + 2, width)
    value = frechet_distance(a, b)
    near = lambda other, times=1.: math.isclose(other, value * times, rel_tol=1e-8, abs_tol=1e-9 * times)
    turn, shift = ortho_group.rvs(width, random_state=seed), np.random.default_rng(seed).normal(size=width) * 10
    assert value > 0 and near(frechet_distance(b, a))
    assert near(frechet_distance(a @ turn + shift, b @ turn + shift))
    assert near(frechet_distance(a * scale, b * scale), scale**2)
    assert near(frechet_distance(a[::-1], b))
    assert frechet_distance(a, a[::-1]) < 1e-10 * np.sum(a.var(0)) * width


def test_frechet_with_constant_and_dependent_dimensions() -> None:
    a, b = points(0, 50, 4), points(1, 60, 4)
    value, wide = frechet_distance(a, b), lambda x, *extra: np.column_stack([x, *extra])
    same = frechet_distance(wide(a, np.full(50, 7.), np.zeros(50)), wide(b, np.full(60, 7.), np.zeros(60)))
    assert math.isclose(same, value, rel_tol=1e-12)
    apart = frechet_distance(wide(a, np.full(50, 7.)), wide(b, np.full(60, 4.)))
    assert math.isclose(apart, value + 9, rel_tol=1e-12)
    twice = frechet_distance(wide(a, a), wide(b, b)) # a turn by 45 degrees makes it the same set, longer by sqrt(2)
    assert math.isclose(twice, 2 * value, rel_tol=1e-9)
    one_is_still = frechet_distance(wide(a, np.zeros(50)), wide(b, np.tile([-2., 2.], 30))) # only b moves there, so it may turn what a has
    assert one_is_still > value


def test_frechet_far_from_the_origin_and_on_itself_keeps_its_digits() -> None:
    a, b = points(0, 200, 5), points(1, 200, 5)
    assert math.isclose(frechet_distance(a + 1e6, b + 1e6), frechet_distance(a, b), rel_tol=1e-6)
    body = joint_positions(make_poses(num_clips=2, frames=40, seed=0)[0].poses, default_skeleton()).reshape(40, -1).astype(np.float64)
    assert frechet_distance(body, body) < 1e-9 # singular: 40 bodies, 72 numbers, a root that never moves
    assert math.isclose(frechet_distance(body, body + 3.), 72 * 9, rel_tol=1e-9)


@pytest.mark.parametrize(("width", "n", "m"), [(1, 50, 50), (3, 100, 400), (20, 500, 500)])
def test_frechet_floor_of_gaussians_is_what_theory_says(width: int, n: int, m: int) -> None:
    random, sigma = np.random.default_rng(0), 3.
    values = [frechet_distance(*(random.normal(0, sigma, size=(size, width)) for size in (n, m))) for _ in range(200)]
    expected = (width + width * (width + 1) / 4) * sigma**2 * (1 / n + 1 / m)
    assert abs(np.mean(values) / expected - 1) < max(.05, 3 * np.std(values) / np.mean(values) / math.sqrt(200))


def looped_radii(x: np.ndarray, k: int) -> list[float]:
    return [sorted(math.dist(p, q) for j, q in enumerate(x) if j != i)[k - 1] for i, p in enumerate(x)]


def looped_share(balls: np.ndarray, x: np.ndarray, k: int) -> float:
    "Share of `x` in any of the balls."
    radii = looped_radii(balls, k)
    return sum(any(math.dist(p, q) <= r for q, r in zip(balls, radii)) for p in x) / len(x)


@fixed
@given(seeds, st.integers(6, 25), st.integers(6, 25), st.integers(1, 5), st.booleans())
def test_precision_and_recall_are_what_loops_find(seed: int, n: int, m: int, k: int, on_a_grid: bool) -> None:
    random = np.random.default_rng(seed)
    real, fake = (random.integers(0, 4, size=(size, 2)).astype(float) if on_a_grid else random.normal(size=(size, 3)) for size in (m, n))
    found = precision_recall(real, fake, k) # a grid has many ties and many copies
    np.testing.assert_allclose(neighbour_radii(real, k), looped_radii(real, k))
    assert found == (looped_share(real, fake, k), looped_share(fake, real, k))
    assert found == precision_recall(fake, real, k)[::-1]
    assert precision_recall(real, real, k) == (1., 1.)
    assert precision_recall(real, fake, min(n, m) - 1) >= found


def test_a_dropped_mode_costs_recall_and_junk_costs_precision() -> None:
    random = np.random.default_rng(0)
    real = np.vstack([random.normal(size=(200, 4)), random.normal(size=(200, 4)) + 20])
    fresh = np.vstack([random.normal(size=(200, 4)), random.normal(size=(200, 4)) + 20])
    floor, dropped = precision_recall(real, fresh), precision_recall(real, random.normal(size=(400, 4)))
    junk = precision_recall(real, np.where(np.arange(400)[:, None] % 4 == 0, random.uniform(-90, 90, size=(400, 4)), fresh))
    assert floor.precision > .85 and floor.recall > .85
    assert dropped.recall <= .5 and dropped.precision > .85
    assert .6 < junk.precision < .76 and junk.recall > .8


@fixed
@given(seeds, st.integers(0, 12), st.integers(1, 30), st.integers(1, 5))
def test_nearest_distances_are_what_loops_find(seed: int, n: int, m: int, joints: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(n, joints, 3)), random.normal(size=(m, joints, 3))
    by_hand = [min(sum(math.dist(p, q) for p, q in zip(x, y)) / joints for y in b) for x in a]
    np.testing.assert_allclose(nearest_distances(a, b), by_hand, atol=1e-12)
    copies = b[random.integers(0, m, 7)]
    assert (nearest_distances(copies, b) == 0).all() # exactly, so that a copy can be told from a near miss


def test_memory_does_not_grow_with_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "_blocks", BLOCKS)
    random, size = np.random.default_rng(0), 8000 # one matrix of distances: 512 MB
    a, b = random.normal(size=(size, 2, 3)), random.normal(size=(size, 2, 3))
    tracemalloc.start()
    try:
        near, (precision, _) = nearest_distances(a, b), precision_recall(a[:, 0], b[:, 0])
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert len(near) == size and precision > .9 and peak < 150e6, f"{peak / 1e6:.0f} MB at the most"


def test_outside_range() -> None:
    train = np.array([[0., 5.], [1., 5.]])
    assert outside_range(train, train, tolerance=0) == 0
    assert outside_range([[-.05, 5.2], [1.2, 4.95]], train) == 2 / 4
    assert outside_range([[-.05, 5.2], [1.2, 4.95]], train, tolerance=.3) == 0
    with pytest.raises(ValueError, match="0 poses and 2"): outside_range(np.zeros((0, 2)), train)


@fixed
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.sampled_from([.5, .9, .95]))
def test_seed_interval_is_students(values: list[float], confidence: float) -> None:
    mean, low, high = seed_interval(values, confidence)
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    expected = student.interval(confidence, len(values) - 1, loc=np.mean(values), scale=error) if error else (mean, mean)
    np.testing.assert_allclose((low, high), expected, atol=1e-9)


def test_seed_interval_holds_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(3, 2, size=(2000, 3))
    inside = [low <= 3 <= high for _, low, high in map(seed_interval, draws)]
    assert abs(np.mean(inside) - .95) < .015


@pytest.fixture(scope="module")
def split():
    return split_clips(make_poses(num_clips=6, frames=240, seed=1), seed=0)


def few(poses: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    return poses[np.random.default_rng(seed).permutation(len(poses))[:count]]


def test_report_has_the_figures_of_the_single_functions(split) -> None:
    skeleton, samples, held_out, train = default_skeleton(), few(split.valid, 50), few(split.test, 60), few(split.train, 200)
    report = measure_quality(samples, held_out, train, skeleton, seed=3, k=6, neighbour_poses=40)
    flat = lambda poses: joint_positions(poses, skeleton).reshape(len(poses), -1)
    draws = [np.random.default_rng(seed).permutation(200) for seed in range(3, 3 + quality.FLOOR_DRAWS)]
    near = lambda poses: nearest_distances(joint_positions(poses, skeleton), joint_positions(train, skeleton))
    expected = {
        "frechet": textbook_frechet(flat(samples), flat(held_out)), "frechet_train": textbook_frechet(flat(samples), flat(train[draws[0][50:]])),
        "frechet_floor": np.mean([textbook_frechet(flat(train[d[:50]]), flat(held_out)) for d in draws]),
        "frechet_train_floor": np.mean([textbook_frechet(flat(train[d[:50]]), flat(train[d[50:]])) for d in draws]),
        "nearest": np.median(near(samples)), "nearest_floor": np.median(near(held_out)), "copies_floor": 1 / 60,
        "copies": np.mean(near(samples) < np.quantile(near(held_out), .01)), "outside": outside_range(samples, train), "outside_floor": outside_range(held_out, train)}
    for name, fake in {"": flat(samples), "_floor": flat(train[draws[0][:50]])}.items():
        order, real = np.random.default_rng(3).permutation(50)[:40], flat(held_out)[np.random.default_rng(3).permutation(60)[:40]]
        expected["precision" + name], expected["recall" + name] = precision_recall(real, fake[order], 6)
    for name, value in expected.items(): assert math.isclose(getattr(report, name), value, rel_tol=1e-4, abs_tol=1e-9), name
    assert (report.samples, report.held_out, report.train, report.floor_samples, report.k, report.neighbour_poses) == (50, 60, 200, 50, 6, 40)
    assert report.frechet_ratio == report.frechet / report.frechet_floor


def test_stand_ins_are_never_compared_with_themselves(split) -> None:
    train = few(split.train, 60)
    report = measure_quality(few(split.valid, 59), few(split.test, 60), train, default_skeleton())
    assert report.floor_samples == 59 and math.isfinite(report.frechet_train) # half of training stands in for samples, half is left
    halves = measure_quality(few(split.valid, 30), few(split.test, 60), train, default_skeleton())
    assert math.isclose(report.frechet_train_floor, halves.frechet_train_floor)


def test_reports_print_side_by_side_when_their_floors_are_the_same(split) -> None:
    measured = {name: measure_quality(few(split.valid, 40, seed), split.test, split.train, default_skeleton()) for seed, name in enumerate(("conv", "a rather long name"))}
    lines = quality_table(measured).splitlines()
    assert max(map(len, lines)) < 130 and len({len(line) for line in lines[:8]}) == 1
    for title, key, digits in ("precision ", "precision", 2), ("nearest training", "nearest", 2), ("Frechet distance to held-out", "frechet", 1):
        row = next(line for line in lines if line.startswith(title)).split()[-3:]
        first, second = measured.values()
        assert list(map(float, row)) == [round(getattr(first, key), digits), round(getattr(second, key), digits), round(getattr(first, key + "_floor"), digits)]
    measured["fewer"] = measure_quality(few(split.valid, 30), split.test, split.train, default_skeleton())
    with pytest.raises(ValueError, match="different floors"): quality_table(measured)


def test_a_copier_is_found_out_and_looks_perfect_otherwise(split) -> None:
    train, held_out = split.train, few(split.test, 150)
    copier = measure_quality(few(train, 150, seed=5), held_out, train, default_skeleton())
    assert copier.nearest < 1e-4 and copier.copies == 1 and copier.copies_floor <= .02 < copier.nearest_floor
    assert copier.frechet_ratio < 2 and copier.precision > .8 * copier.precision_floor


def test_one_seed_one_report_and_tensors_are_as_good_as_arrays(split) -> None:
    train, held_out, samples = few(split.train, 100), few(split.test, 40), few(split.valid, 30)
    one = measure_quality(samples, held_out, train, default_skeleton(), seed=1)
    two = measure_quality(*(torch.tensor(x, requires_grad=True) for x in (samples, held_out, train)), default_skeleton(), seed=1)
    assert one == two and one != measure_quality(samples, held_out, train, default_skeleton(), seed=2)
    assert measure_quality(samples, held_out, train[:25], default_skeleton()).floor_samples == 25
    assert measure_quality(samples, held_out, train, default_skeleton(), floor_samples=70).floor_samples == 70


def test_what_cannot_be_measured_is_named(split) -> None:
    skeleton, real = default_skeleton(), split.test[:20]
    broken = real.copy(); broken[17, 3] = np.nan
    with pytest.raises(ValueError, match="samples: row 17"): measure_quality(broken, real, real, skeleton)
    with pytest.raises(ValueError, match="train: row 17"): measure_quality(real, real, broken, skeleton)
    with pytest.raises(ShapeError, match="held_out"): measure_quality(real, real[:, :66], real, skeleton)
    with pytest.raises(ValueError, match="samples is 5; with k=5 it takes 6"): measure_quality(real[:5], real, real, skeleton, k=5)
    with pytest.raises(ValueError, match="floor_samples is 0"): measure_quality(real, real, real, skeleton, floor_samples=0, k=5)
    with pytest.raises(ValueError, match="k=4"): neighbour_radii(real[:4], 4)
    with pytest.raises(ValueError, match="k=0"): precision_recall(real, real, 0)
    with pytest.raises(ShapeError, match="b has shape"): frechet_distance(real, real[:, :5])
    with pytest.raises(ValueError, match="two points"): frechet_distance(real, real[:1])
    with pytest.raises(ShapeError, match="b has shape"): nearest_distances(np.zeros((2, 24, 3)), np.zeros((2, 23, 3)))
    with pytest.raises(ValueError, match="no pose"): nearest_distances(np.zeros((2, 24, 3)), np.zeros((0, 24, 3)))
    with pytest.raises(ValueError, match="more seeds"): seed_interval([1.])
