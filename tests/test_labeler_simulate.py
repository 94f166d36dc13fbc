"""Simulated recordings: properties over many seeds, damage against the truth that it comes with, and the command with its files.

Broken on purpose to see a test fail: feet that are not moved back, knees that snap when straight, no mirrored signs, truth one column off."""
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_modules.labeler.markers import BIOMECHZOO, MarkerSet, read_c3d
from stage_modules.labeler.simulate import (
    ACTIVITIES,
    AT,
    JOINTS,
    POSTURES,
    SEGMENTS,
    Body,
    Subject,
    contact_points,
    default_markers,
    fit_offsets,
    hidden_samples,
    landmark,
    load_marker_set,
    main,
    marker_places,
    mirrored,
    move_body,
    on_body,
    place_segments,
    pose,
    simulate,
    simulate_many,
    spoil,
    spread_markers,
    swap_columns,
)
from stage_modules.toolkit.errors import DataError, ShapeError

SMALL = ["--subjects", "1", "--trials", "1", "--seconds", "0.5", "--no-progress"]


def soles(turns: np.ndarray, origins: np.ndarray, body: Body) -> np.ndarray: # (F, C, 3)
    segments, where = contact_points()
    keep = np.isin(segments, (AT["left_foot"], AT["right_foot"]))
    return on_body(turns, origins, segments[keep], where[keep] * body.scale[segments[keep]])


@given(st.sampled_from(ACTIVITIES), st.integers(0, 10 ** 6))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_bodies_stay_whole_and_on_the_floor(activity: str, seed: int) -> None:
    subject = Subject.draw(seed)
    body = Body.of(subject)
    turns, origins = move_body(activity, subject, 200, 100., np.random.default_rng(seed))
    np.testing.assert_allclose(turns @ turns.swapaxes(-1, -2), np.broadcast_to(np.eye(3), turns.shape), atol=1e-9)
    for name in "left_shank", "right_foot", "left_forearm", "head": # bones keep their lengths
        i, foot = AT[name], turns[:, AT[name]] @ body.insets[AT[name]]
        parent = {"left_shank": "left_thigh", "right_foot": "right_shank", "left_forearm": "left_upperarm", "head": "torso"}[name]
        np.testing.assert_allclose(np.linalg.norm(origins[:, i] + foot - origins[:, AT[parent]], axis=-1), np.linalg.norm(body.joints[i]), rtol=1e-6)
    lowest = soles(turns, origins, body)[..., 2].min(1)
    assert lowest.min() > -80 and origins[..., 2].min() > -80, "nobody sinks into the floor"
    assert activity in ("jump", "kneel", "run") or lowest.max() < 60, "a walker never flies"
    speed = np.linalg.norm(np.diff(origins[:, 0], axis=0), axis=1) * 100
    assert speed.max() < 7000 and np.linalg.norm(np.diff(origins, 2, axis=0), axis=-1).max() * 1e4 < 30 * 9810, "no jumps in place or speed"


@pytest.mark.parametrize("activity, slowest, fastest", [("walk", .6, 2.3), ("turn", .6, 2.3), ("run", 1.2, 5.)])
def test_speeds_are_those_of_people(activity: str, slowest: float, fastest: float) -> None:
    speeds = [np.linalg.norm(np.diff(move_body(activity, Subject.draw(i), 300, 100., np.random.default_rng(i))[1][:, 0, :2], axis=0), axis=1).mean() / 10 for i in range(6)]
    assert slowest < min(speeds) and max(speeds) < fastest and np.ptp(speeds) > .1


def test_standing_feet_do_not_slide() -> None:
    for seed in range(4):
        subject = Subject.draw(seed)
        turns, origins = move_body("walk", subject, 300, 100., np.random.default_rng(seed))
        speed = np.linalg.norm(np.gradient(soles(turns, origins, Body.of(subject))[..., :2], axis=0), axis=-1) * 100
        assert np.median(speed.min(1)) < 60, "the best point of either sole nearly stands"


def test_heading_turns_everything_and_changes_nothing_else() -> None:
    a, b = (simulate(BIOMECHZOO, "run", seed=3, heading=h).points.astype(float) for h in (0., .7))
    turn = np.array([[np.cos(.7), -np.sin(.7), 0], [np.sin(.7), np.cos(.7), 0], [0, 0, 1]])
    np.testing.assert_allclose(a @ turn.T, b, atol=.05)
    ahead = np.diff(a[:, BIOMECHZOO.index(["SACR"])[0]], axis=0).mean(0)
    assert ahead[0] > 10 and abs(ahead[1]) < .25 * ahead[0], "heading 0 is along x"
    left = a[:, BIOMECHZOO.index(["LSHO"])[0]] - a[:, BIOMECHZOO.index(["RSHO"])[0]]
    assert left[:, 1].mean() > 200, "the left shoulder is on the left, +y"


def test_a_turn_turns() -> None:
    for seed in range(5):
        r = simulate(BIOMECHZOO, "turn", seed=seed)
        arrow = r.points[:, r.labels.index("LSHO"), :2] - r.points[:, r.labels.index("RSHO"), :2]
        angle = np.unwrap(np.arctan2(arrow[:, 1], arrow[:, 0]))
        assert 40 < np.degrees(abs(angle[-50:].mean() - angle[:50].mean())) < 200


@given(st.sampled_from(sorted(POSTURES)))
@settings(deadline=None, derandomize=True)
def test_mirrored_postures_are_mirror_images(name: str) -> None:
    body, angles = Body.of(Subject()), pose(1, **POSTURES[name]) + np.random.default_rng(0).normal(0, 5, (1, 15, 3))
    a, b = place_segments(angles, body)[1][0], place_segments(mirrored(angles), body)[1][0]
    swap = [0, 1, 2, *range(9, 15), *range(3, 9)]
    np.testing.assert_allclose(a * [1, -1, 1], b[swap], atol=1e-9)


def test_markers_of_a_segment_are_rigid_and_scaled() -> None:
    r = simulate(BIOMECHZOO, "run", seed=5)
    for segment in set(BIOMECHZOO.segments):
        own = r.points[:, [s == segment for s in BIOMECHZOO.segments]].astype(float)
        apart = np.linalg.norm(own[:, :, None] - own[:, None], axis=-1)
        assert np.ptp(apart, axis=0).max(initial=0) < .05
    small, large = (simulate(BIOMECHZOO, subject=Subject(height=h), placement_error=0., seed=1).points for h in (1.5, 2.))
    head = [BIOMECHZOO.index([n])[0] for n in ("LFHD", "RBHD")]
    ratio = np.linalg.norm(np.diff(large[0, head], axis=0)) / np.linalg.norm(np.diff(small[0, head], axis=0))
    assert abs(ratio - 2 / 1.5) < .01


def test_placement_error_is_what_was_asked_for() -> None:
    exact, moved = (simulate(BIOMECHZOO, subject=Subject(), placement_error=e, seed=7).points for e in (0., 10.))
    error = np.linalg.norm(moved - exact, axis=-1)
    assert np.ptp(error, axis=0).max() < .05, "each marker is off by the same distance throughout"
    assert 12 < error[0].mean() < 20 # three axes of 10 mm each: 16 mm on average


def test_offsets_names_and_rule() -> None:
    named = MarkerSet(("LKNE", "X1", "X2"), ("left_thigh", "left_thigh", "left_thigh"))
    rows, places = marker_places(named)
    assert rows.tolist() == [AT["left_thigh"]] * 3 and np.array_equal(places[0], landmark("LKNE")[1]) and np.array_equal(places[1:], spread_markers("left_thigh", 2))
    given_ = replace(named, offsets=np.array([[1, 2, 3], [np.nan] * 3, [4, 5, 6]]))
    assert marker_places(given_)[1][[0, 2]].tolist() == [[1, 2, 3], [4, 5, 6]] and np.isfinite(marker_places(given_)[1]).all()
    many = marker_places(MarkerSet(tuple(f"m{i}" for i in range(60)), tuple(SEGMENTS[i % 15] for i in range(60))))[1]
    assert np.isfinite(many).all() and len(np.unique(many.round(3), axis=0)) == 60
    with pytest.raises(ValueError, match="no segment for NOSE"): simulate(MarkerSet(("NOSE",)))


@pytest.mark.parametrize("settings_, message", [({"activity": "swim"}, "swim"), ({"seconds": -1}, "seconds=-1"), ({"rate": 0}, "rate=0"), ({"placement_error": -1.}, "placement_error=-1")])
def test_bad_settings_are_named(settings_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message): simulate(BIOMECHZOO, **settings_)
    with pytest.raises(ShapeError): place_segments(np.zeros((2, 14, 3)), Body.of(Subject()))


@given(st.floats(0, .9), st.integers(0, 4), st.integers(0, 3), st.booleans(), st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_truth_tells_where_every_sample_comes_from(occlusion: float, ghosts: int, swaps: int, fragments: bool, seed: int) -> None:
    marker_set = default_markers()
    clean = simulate(marker_set, "walk", Subject(), seconds=1., seed=1)
    recording, truth = spoil(clean, marker_set, occlusion, ghosts=ghosts, swaps=swaps, fragments=fragments, seed=seed)
    frame, column = np.nonzero(truth >= 0)
    np.testing.assert_array_equal(recording.points[frame, column], clean.points[frame, truth[frame, column]]) # the very sample
    assert len(set(zip(frame, truth[frame, column]))) == len(frame), "no marker twice in a frame"
    assert abs(len(frame) / clean.visible.sum() - (1 - occlusion)) < .02
    assert (truth[~recording.visible] == -1).all() and truth.dtype == np.int16 and recording.labels == tuple(f"*{i}" for i in range(len(recording.labels)))
    assert (recording.visible & (truth == -1)).any(0).sum() == ghosts
    if fragments: assert (np.diff(recording.visible.astype(int), axis=0, prepend=0) == 1).sum(0).max() == 1, "one run each"


def test_damage_is_the_same_for_the_same_seed_and_columns_are_mixed() -> None:
    marker_set, clean = default_markers(), simulate(default_markers(), seconds=1.)
    a, b, c = (spoil(clean, marker_set, seed=s) for s in (0, 0, 1))
    np.testing.assert_array_equal(a.recording.points, b.recording.points)
    assert a.truth.shape != c.truth.shape or not np.array_equal(a.truth, c.truth)
    order = a.truth.max(0)[a.truth.max(0) >= 0]
    assert (np.diff(order) < 0).mean() > .3


def test_gaps_of_the_recording_stay_and_swaps_are_neighbours() -> None:
    marker_set, clean = default_markers(), simulate(default_markers(), seconds=2.)
    points = clean.points.copy()
    points[50:80, 3], points[:, 4] = np.nan, np.nan
    recording, truth = spoil(replace(clean, points=points), marker_set, occlusion=0., ghosts=0)
    assert not (truth[50:80] == 3).any() and not (truth == 4).any() and len(recording.labels) == 39 # one marker gone, one in two pieces
    _swapped, who = swap_columns(clean.points.astype(float), np.tile(np.arange(39), (200, 1)), 1, np.random.default_rng(0))
    changed = np.flatnonzero((who != np.arange(39)).any(0))
    at = int(np.argmax(who[:, changed[0]] != changed[0]))
    assert len(changed) == 2 and at > 0 and np.linalg.norm(clean.points[at, changed[0]] - clean.points[at, changed[1]]) < 150


@pytest.mark.parametrize("settings_, message", [({"occlusion": 1.}, "occlusion=1.0"), ({"occlusion": -.1}, "occlusion"), ({"ghosts": -1}, "ghosts=-1"), ({"jitter": -1.}, "jitter"), ({"gap_seconds": (.5, .1)}, "longest_gap")])
def test_bad_damage_is_named(settings_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message): spoil(simulate(default_markers(), seconds=.5), default_markers(), **settings_)


def test_spoiling_another_marker_set_names_what_is_missing() -> None:
    with pytest.raises((DataError, ValueError), match="LTHI|LCPG|T2|SACR"): spoil(simulate(default_markers(), seconds=.5), BIOMECHZOO)


def test_gaps_last_as_long_as_asked() -> None:
    hidden = hidden_samples((1000, 200), .05, (8, 12), np.random.default_rng(0))
    edges = np.diff(hidden.astype(int), axis=0, prepend=0, append=0)
    length = np.nonzero(edges.T == -1)[1] - np.nonzero(edges.T == 1)[1]
    assert 8 <= np.quantile(length, .05) and np.median(length) in (9, 10, 11) and abs(hidden.mean() - .05) < .001


def test_offsets_are_found_from_a_recording_with_gaps() -> None:
    marker_set = default_markers()
    wearing = replace(marker_set, offsets=marker_set.offsets + np.array([0, 0, 30], np.float32)) # all of them 3 cm to the right
    clean = simulate(wearing, "walk", Subject(), seconds=2., placement_error=0., seed=2)
    points = clean.points.copy()
    points[::2, 5], points[:, 7] = np.nan, np.nan
    fitted = fit_offsets(replace(clean, points=points), replace(marker_set, offsets=None), frames=6, rounds=1)
    assert np.isfinite(fitted.offsets).all()
    np.testing.assert_allclose(fitted.offsets[7], marker_set.offsets[7], atol=1e-3) # never seen: as its name says
    with pytest.raises((DataError, ValueError), match="LCPG|T2|SACR"): fit_offsets(clean, BIOMECHZOO)


def test_many_people_differ() -> None:
    made = simulate_many(default_markers(), 3, 2, seconds=.5)
    assert [r.name for r in made] == ["subject01/walk1", "subject01/run2", "subject02/run1", "subject02/kneel2", "subject03/kneel1", "subject03/jump2"]
    span = lambda r: np.linalg.norm(np.diff(r.points[0, [r.labels.index(n) for n in ("RTIB", "RANK")]], axis=0))
    assert len({round(float(span(r)), 1) for r in made}) == 6
    with pytest.raises(ValueError, match="trials_each=0"): simulate_many(default_markers(), 1, 0)


def test_the_command_writes_files_that_read_back_and_never_overwrites(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-m", "stage_modules.labeler.simulate", "--output-dir", str(tmp_path / "a" / "b"), *SMALL, "--spoiled", "--swaps", "1"], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "a" / "b"
    assert sorted(p.name for p in folder.iterdir()) == ["subject01_walk1.c3d", "subject01_walk1_spoiled.c3d", "truth.json"]
    clean, spoiled, truth = read_c3d(folder / "subject01_walk1.c3d"), read_c3d(folder / "subject01_walk1_spoiled.c3d"), json.loads((folder / "truth.json").read_text())["subject01_walk1_spoiled.c3d"]
    assert clean.labels == default_markers().markers and list(truth) == list(spoiled.labels) and abs(clean.points[..., 2].min()) < 200
    for label, runs in truth.items():
        for start, stop, marker in runs:
            assert spoiled.visible[start:stop, spoiled.labels.index(label)].all()
            if marker: np.testing.assert_allclose(spoiled.points[start, spoiled.labels.index(label)], clean.points[start, clean.labels.index(marker)], atol=.01)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert main(["--output-dir", str(folder), *SMALL]) == 2
    (folder / "subject01_walk1.c3d").unlink()
    assert main(["--output-dir", str(folder), *SMALL, "--spoiled"]) == 2 and not (folder / "subject01_walk1.c3d").exists(), "nothing is written where one file is in the way"
    assert all((folder / name).read_bytes() == content for name, content in before.items() if name != "subject01_walk1.c3d")


XML = """<OpenSimDocument><MarkerSet><objects><Marker name="A"><socket_parent_frame>/bodyset/femur_r</socket_parent_frame><location>0.05 -0.11 0.07</location></Marker>
<Marker name="B"><socket_parent_frame>/bodyset/torso</socket_parent_frame><location>0 0.42 0.16</location></Marker></objects></MarkerSet></OpenSimDocument>"""


def test_marker_sets_from_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "set.xml").write_text(XML)
    (tmp_path / "set.json").write_text(json.dumps(default_markers().to_json()))
    found = load_marker_set(tmp_path / "set.xml")
    np.testing.assert_allclose(marker_places(found)[1], [[50, -110, 70], [0, 420, 160]], atol=1e-3)
    assert simulate(found, seconds=.5).labels == ("A", "B") and load_marker_set(tmp_path / "set.json").markers == default_markers().markers
    for name, text in {"bad.json": "{", "list.json": "[1]", "other.json": '{"a": 1}', "bad.xml": "<a>"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError): load_marker_set(tmp_path / name)
        assert main(["--marker-set", str(tmp_path / name), "--output-dir", str(tmp_path / "out"), *SMALL]) == 2
    assert main(["--marker-set", str(tmp_path / "none.json"), "--output-dir", str(tmp_path / "out"), *SMALL]) == 2 and "no such file" in capsys.readouterr().err
    assert main(["--activities", "swim", "--output-dir", str(tmp_path / "out"), *SMALL]) == 2 and "swim" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interruption_leaves_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stage_modules.labeler.simulate as module
    real, calls = module.write_c3d, []

    def write(recording: object, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2: raise KeyboardInterrupt
        real(recording, path)

    monkeypatch.setattr(module, "write_c3d", write)
    assert main(["--output-dir", str(tmp_path / "out"), "--subjects", "1", "--trials", "3", "--seconds", "0.5", "--no-progress"]) == 130
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["subject01_walk1.c3d"] and read_c3d(calls[0]).points.shape[1] == 39


def test_joints_and_signs_agree_on_both_sides() -> None:
    origins = place_segments(np.zeros((1, 15, 3)), Body.of(Subject()))[1][0]
    for name in ("upperarm", "forearm", "hand", "thigh", "shank", "foot"):
        np.testing.assert_allclose(origins[AT[f"left_{name}"]] * [1, -1, 1], origins[AT[f"right_{name}"]], atol=1e-9)
    assert origins[AT["left_upperarm"], 1] == JOINTS["upperarm"][2], "left is +y"
