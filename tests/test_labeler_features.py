"Features of markers: any pattern of gaps, bad input, and what must not change them."
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import butter, filtfilt

from stage_modules.labeler.features import (
    FeatureScale,
    acceleration,
    align,
    estimate_facing,
    facing_angle,
    fill_gaps,
    marker_features,
    mean_sizes,
    motion,
    neighbour_order,
    packed_order,
    pair_features,
    runs,
    smooth,
    velocity,
    window_spans,
)
from stage_modules.labeler.markers import Recording
from stage_modules.toolkit.errors import ShapeError

gaps = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def points_with_gaps(rng: np.random.Generator, frames: int, columns: int, share: float = 0.3) -> np.ndarray:
    points = (rng.normal(0, 400, (1, columns, 3)) + np.cumsum(rng.normal(0, 4, (frames, columns, 3)), 0)).astype(np.float32)
    points[rng.random((frames, columns)) < share] = np.nan
    return points


@settings(max_examples=60, deadline=None)
@given(gaps, st.integers(1, 60), st.integers(1, 40), st.integers(0, 30))
def test_windows_cover_what_is_visible_exactly_once(rng, frames, length, more):
    visible = rng.random((frames, 3)) < rng.choice([0.2, 0.7, 0.97])
    times = np.zeros(visible.shape, int)
    spans = window_spans(visible, length, length + more)
    for column, start, stop in spans:
        times[start:stop, column] += 1
        assert 1 <= stop - start <= length + more
    assert (times == visible).all()
    assert (np.lexsort((spans[:, 1], spans[:, 0])) == np.arange(len(spans))).all(), "sorted by column, then by time"


@settings(max_examples=60, deadline=None)
@given(gaps, st.integers(1, 60), st.integers(2, 40))
def test_a_short_rest_joins_the_window_before_it(rng, frames, length):
    visible = rng.random(frames) < 0.95
    for _, start, stop in window_spans(visible, length, 2 * length):
        begins_run = start == 0 or not visible[start - 1]
        assert stop - start >= length or (begins_run and (stop == frames or not visible[stop])), "only a whole run may be shorter than a window"


@settings(max_examples=40, deadline=None)
@given(gaps, st.integers(0, 6), st.booleans())
def test_filling_touches_only_gaps_that_are_short_enough(rng, most, cubic):
    points = points_with_gaps(rng, 40, 5)
    filled, seen = fill_gaps(points, most, cubic), np.isfinite(points).all(-1)
    assert (filled[seen] == points[seen]).all()
    now = np.isfinite(filled).all(-1)
    for column, start, stop in runs(~seen):
        inside = start > 0 and stop < len(points)
        assert now[start:stop, column].all() == (inside and stop - start <= most) and now[start:stop, column].any() == now[start:stop, column].all()


def test_a_cubic_is_right_on_a_curve_where_a_line_is_not():
    seconds = np.arange(100) / 100
    curve = np.stack([300 * np.sin(5 * seconds), 200 * np.cos(3 * seconds), 900 + 40 * seconds], -1)[:, None]
    hidden = curve.copy()
    hidden[40:52] = np.nan
    line, cubic = (np.abs(fill_gaps(hidden, 20, kind) - curve).max() for kind in (False, True))
    assert cubic < line / 3


def test_smoothing_is_column_by_column_and_run_by_run():
    points = points_with_gaps(np.random.default_rng(0), 200, 6, share=0.02)
    result, (b, a) = smooth(points, 100.0), butter(2, 6.0, fs=100.0)
    long = 0
    for column, start, stop in runs(np.isfinite(points).all(-1)):
        piece = points[start:stop, column]
        expected = filtfilt(b, a, piece.astype(np.float64), axis=0) if stop - start > 9 else piece
        assert np.allclose(result[start:stop, column], expected, atol=1e-3)
        long += stop - start > 9
    assert long > 6 and (np.isnan(result) == np.isnan(points)).all()


def test_smoothing_delays_nothing():
    seconds = np.arange(300) / 100
    slow = np.stack([np.sin(2 * np.pi * seconds)] * 3, -1)[:, None] * 100
    assert np.abs(smooth(slow, 100.0) - slow)[30:-30].max() < 0.5


@pytest.mark.parametrize("cutoff, rate", [(6.0, 12.0), (0.0, 100.0), (-1.0, 100.0), (60.0, 100.0)])
def test_a_cutoff_that_cannot_be(cutoff, rate):
    with pytest.raises(ValueError, match="cutoff"): smooth(np.zeros((20, 1, 3)), rate, cutoff)


def test_differences_never_reach_over_a_gap():
    points = points_with_gaps(np.random.default_rng(1), 60, 4)
    for change in velocity, acceleration:
        whole = change(points, 100.0)
        assert (np.isnan(whole) == np.isnan(points)).all()
        for column, start, stop in runs(np.isfinite(points).all(-1)):
            assert np.allclose(whole[start:stop, column], change(points[start:stop, column, None], 100.0)[:, 0], rtol=1e-4, atol=1e-2)


def plain(points: np.ndarray, num_others: int, kept=lambda i, distance, together: sorted(distance, key=distance.get)) -> np.ndarray:
    "Features with loops; `kept` gives the columns in order."
    T, N = points.shape[:2]
    v, a = velocity(points, 100.0), acceleration(points, 100.0)
    out = np.zeros((N, T, num_others, 5), np.float32)
    for i in range(N):
        both = {j: np.isfinite(points[:, i] + points[:, j]).all(-1) for j in range(N) if j != i}
        distance = {j: np.linalg.norm((points[b, j] - points[b, i]).mean(0)) if b.any() else np.inf for j, b in both.items()}
        for place, j in enumerate(kept(i, distance, {j: b.sum() for j, b in both.items()})[:num_others]):
            now = both[j]
            out[i, now, place] = np.column_stack([points[now, j] - points[now, i], np.linalg.norm(v[now, j] - v[now, i], axis=1), np.linalg.norm(a[now, j] - a[now, i], axis=1)])
    return out.reshape(N, T, -1)


@settings(max_examples=25, deadline=None)
@given(gaps, st.integers(1, 30), st.integers(1, 7))
def test_features_agree_with_loops(rng, frames, columns):
    points = points_with_gaps(rng, frames, columns)
    features, mask = marker_features(points, 100.0, 6)
    assert torch.allclose(features, torch.from_numpy(plain(points, 6)), rtol=1e-3, atol=2.0)
    assert (mask.numpy() == np.isfinite(points[..., 0]).T).all() and features.shape == (columns, frames, 30)
    assert features.dtype == torch.float32 and not features[~mask].any()


@settings(max_examples=25, deadline=None)
@given(gaps)
def test_of_too_many_those_seen_longest_are_kept(rng):
    points = points_with_gaps(rng, 25, 9, share=0.5)
    def longest(i, distance, together):
        best = sorted(distance, key=lambda j: (-together[j], distance[j]))[:4]
        return sorted(best, key=distance.get)
    assert torch.allclose(marker_features(points, 100.0, 4)[0], torch.from_numpy(plain(points, 4, longest)), rtol=1e-3, atol=2.0)


@settings(max_examples=25, deadline=None)
@given(gaps, st.integers(1, 9))
def test_packed_features_have_no_holes_and_lose_nothing(rng, num_others):
    points = points_with_gaps(rng, 20, 8)
    features, mask = marker_features(points, 100.0, num_others, packed=True)
    others = features.unflatten(-1, (num_others, 5))
    there = (others != 0).any(-1)
    assert not (there[..., 1:] & ~there[..., :-1]).any(), "a hole"
    expected = (mask.sum(0)[None] - 1).clamp(0, num_others) * mask
    assert (there.sum(-1) == expected).all()
    steady = marker_features(points, 100.0, 9)[0].unflatten(-1, (9, 5))
    if num_others >= 7: assert torch.allclose(others.sum(-2), steady.sum(-2), rtol=1e-3, atol=5.0)


def test_pieces_of_a_marker_take_one_place_at_a_time():
    points = points_with_gaps(np.random.default_rng(3), 40, 6, share=0.0)
    pieces = np.concatenate([points, points[:, 3:4]], 1)
    pieces[20:, 3], pieces[:20, 6] = np.nan, np.nan
    whole, cut = marker_features(points, 100.0, 5, targets=[0])[0], marker_features(pieces, 100.0, 5, targets=[0], packed=True)[0]
    same = torch.isclose(whole.unflatten(-1, (5, 5)), cut.unflatten(-1, (5, 5)), rtol=1e-3, atol=2.0).all(-1)[..., 0:]
    assert same[:, 1:19].float().mean() > 0.9
    assert (cut.unflatten(-1, (5, 5)) != 0).any(-1).all(), "five others in every frame"


@settings(max_examples=20, deadline=None)
@given(gaps)
def test_targets_and_columns_may_come_in_any_order(rng):
    points = points_with_gaps(rng, 15, 8)
    for packed in False, True:
        everyone, _ = marker_features(points, 100.0, 7, packed=packed)
        chosen = rng.permutation(8)[:3]
        assert torch.allclose(marker_features(points, 100.0, 7, chosen, packed)[0], everyone[chosen], atol=1e-3)
        order = rng.permutation(8)
        assert torch.allclose(marker_features(points[:, order], 100.0, 7, packed=packed)[0], everyone[order], rtol=1e-3, atol=2.0)


def test_a_window_of_a_recording_is_the_recording_s_window():
    points = points_with_gaps(np.random.default_rng(4), 90, 6, share=0.05)
    inner = pair_features(motion(points, 100.0)[30:60], 5)[0]
    alone = marker_features(points[30:60], 100.0, 5)[0]
    assert torch.allclose(inner[:, 2:-2], alone[:, 2:-2], rtol=1e-3, atol=2.0)


def test_nobody_else_and_never_together():
    features, mask = marker_features(np.zeros((4, 1, 3), np.float32), 100.0, 3)
    assert mask.all() and not features.any() and features.shape == (1, 4, 15)
    apart = np.zeros((4, 2, 3), np.float32)
    apart[:2, 0] = apart[2:, 1] = np.nan
    for packed in False, True: assert not marker_features(apart, 100.0, 3, packed=packed)[0].any()
    everything_gone, mask = marker_features(np.full((4, 2, 3), np.nan, np.float32), 100.0, 3)
    assert not everything_gone.any() and not mask.any()


def test_orders_never_name_the_target():
    position = torch.from_numpy(points_with_gaps(np.random.default_rng(5), 12, 7, share=0.7))
    targets = torch.arange(7)
    assert not (neighbour_order(position, 6, targets) == targets[:, None]).any()
    assert not (packed_order(position, 6, targets) == targets[None, :, None]).any()
    assert all(len(set(row.tolist())) == 6 for row in neighbour_order(position, 6, targets))


@settings(max_examples=30, deadline=None)
@given(st.floats(-3.1, 3.1), st.floats(-3000, 3000))
def test_facing_is_found_and_undone(angle, shift):
    points = np.array([[[0.0, 200, 1400], [0.0, -200, 1400], [300, 0, 0]]]) + shift
    recording = Recording(align(points, -angle), ("L", "R", "T"), 100.0)
    assert np.isclose(np.exp(1j * facing_angle(recording, "L", "R")), np.exp(1j * angle), atol=1e-3)
    assert np.isclose(recording.points[..., 2], points[..., 2], atol=1e-3).all()
    assert np.allclose(np.linalg.norm(align(points, 1.0), axis=-1), np.linalg.norm(points, axis=-1))


def test_facing_without_the_markers():
    recording = Recording(np.full((3, 2, 3), np.nan), ("L", "R"), 100.0)
    with pytest.raises(ValueError, match="never seen in the same frame"): facing_angle(recording, "L", "R")
    with pytest.raises(ValueError, match="no marker 'X'"): facing_angle(recording, "L", "X")


@settings(max_examples=20, deadline=None)
@given(st.floats(-3.1, 3.1), gaps)
def test_who_travels_faces_the_way_of_travel(angle, rng):
    body = rng.normal(0, 200, (1, 20, 3)) + np.linspace(0, 3000, 80)[:, None, None] * [1, 0, 0]
    points = align(body, -angle)
    points[rng.random(points.shape[:2]) < 0.2] = np.nan
    assert abs(np.angle(np.exp(1j * (estimate_facing(points)[0] - angle)))) < 0.2


def test_scale_of_metres_and_of_nothing():
    features = marker_features(points_with_gaps(np.random.default_rng(6), 30, 6), 100.0, 9)[0]
    scale = FeatureScale.fit([features, features[:, :10]])
    assert np.isclose(mean_sizes([features])[0], np.abs(features.unflatten(-1, (-1, 5))[..., :3].numpy()).sum() / (3 * (features.unflatten(-1, (-1, 5)) != 0).any(-1).sum()), rtol=1e-4)
    assert torch.allclose(scale.apply(features).unflatten(-1, (-1, 5))[..., 4] * scale.acceleration, features.unflatten(-1, (-1, 5))[..., 4], rtol=1e-4)
    assert FeatureScale.from_json(json.loads(json.dumps(scale.to_json()))) == scale
    assert scale.apply(features.to(torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no other marker"): FeatureScale.fit([torch.zeros(2, 3, 10)])
    for bad in {"position": 1.0, "speed": -1.0, "acceleration": 1.0}, {"position": 1.0, "speed": float("nan"), "acceleration": 1.0}, {"position": "1", "speed": 1.0, "acceleration": 1.0}, {}:
        with pytest.raises(ValueError, match="FeatureScale"): FeatureScale.from_json(bad)


@pytest.mark.parametrize("call", [lambda p: fill_gaps(p), lambda p: smooth(p, 100.0), lambda p: velocity(p, 100.0), lambda p: marker_features(p, 100.0, 3), lambda p: estimate_facing(p)])
def test_what_is_no_array_of_points(call):
    with pytest.raises(ShapeError, match="points"): call(np.zeros((5, 3)))
    with pytest.raises(ShapeError, match="points"): call(np.zeros((5, 2, 4)))
    with pytest.raises(ValueError, match="floating"): call(np.zeros((5, 2, 3), int))


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="most is -1"): fill_gaps(np.zeros((5, 2, 3)), most=-1)
    with pytest.raises(ValueError, match="length is 0"): window_spans(np.ones(5, bool), 0)
    with pytest.raises(ValueError, match="longest=9"): window_spans(np.ones(5, bool), 10, 9)
