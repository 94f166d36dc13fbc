"Labelling: the choice of names against brute force, what must not change it, bad input, bad checkpoints, and files that are left alone."
import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import nn

from stage_modules.labeler import evaluate
from stage_modules.labeler import label as lab
from stage_modules.labeler.features import FeatureScale, align, facing_angle
from stage_modules.labeler.label import (Evidence, Labeler, SegmentDistances, assign_frames, assign_trajectories, check_segments, distance_scores, export, filled_frames,
                                         greedy_names, name_frames, name_limits, name_trajectories, pair_distances, rivals, vote, window_starts)
from stage_modules.labeler.markers import MarkerSet, Recording, read_c3d, write_c3d
from stage_modules.labeler.model import build_labeler
from stage_modules.labeler.simulate import Subject, default_markers, simulate, spoil
from stage_modules.toolkit.checkpoints import save_checkpoint
from stage_modules.toolkit.errors import CheckpointError, DataError

random = st.integers(0, 2**32 - 1).map(np.random.default_rng)
SET = default_markers()


class MeanPlace(nn.Module):
    "Names by the place against the middle of the others: no weights, and right often enough."
    def __init__(self, recordings, width=60.0):
        super().__init__()
        turned = [align(r.points, facing_angle(r, *SET.facing)) for r in recordings]
        self.width, self.places = width, torch.from_numpy(np.mean([np.mean(p - p.mean(1, keepdims=True), 0) for p in turned], 0))

    def forward(self, features, mask):
        others = features.unflatten(-1, (-1, 5))[..., :3]
        middle = others.sum(2) / (others != 0).any(-1).sum(2, keepdim=True).clamp(min=1)
        place = -(middle * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return -((place[:, None] - self.places) ** 2).sum(-1) / (2 * self.width**2)


@pytest.fixture(scope="module")
def people():
    return [simulate(SET, "walk", Subject.draw(i), seconds=2.0, heading=0.5 * i, seed=i) for i in range(4)]


@pytest.fixture(scope="module")
def labeler(people):
    return Labeler(MeanPlace(people[:3]), SET, FeatureScale(), {"frames_read": 12, "packed": True}, SegmentDistances.fit(people[:3], SET))


@pytest.fixture(scope="module")
def damaged(people):
    return spoil(people[3], SET, occlusion=0.15, ghosts=2, seed=1)


# ------------------------------------------------------------------ the choice of names


def blinking(rng, frames, columns):
    visible = rng.random((frames, columns)) < rng.choice([0.3, 0.6, 0.9])
    visible[rng.integers(frames), :] |= ~visible.any(0)
    return visible


def valid(names, visible):
    for seen in visible:
        here = names[seen & (names >= 0)]
        if len(set(here)) < len(here): return False
    return True


@settings(max_examples=60, deadline=None)
@given(random, st.integers(1, 5), st.integers(1, 3))
def test_trajectories_get_the_best_of_all_choices(rng, N, M):
    visible, gain = blinking(rng, 6, N), rng.normal(0.5, 2, (N, M))
    def worth(names): return sum(gain[i, m] for i, m in enumerate(names) if m >= 0)
    best = max(worth(names) for names in itertools.product(range(-1, M), repeat=N) if valid(np.array(names), visible))
    names = assign_trajectories(gain, visible)
    assert valid(names, visible) and np.isclose(worth(names), best, atol=1e-3)
    surest = greedy_names(gain, visible)
    assert valid(surest, visible) and worth(surest) <= best + 1e-9


def test_a_large_tangle_is_decided_without_a_clock():
    "Nonsense for evidence, of which the relaxed programme can make no whole choices: valid names, close to the bound, the same each time."
    rng = np.random.default_rng(0)
    N, M, frames = 120, 15, 300
    start = rng.integers(0, frames - 40, N)
    visible = (np.arange(frames)[:, None] >= start) & (np.arange(frames)[:, None] < start + rng.integers(20, 120, N))
    visible[rng.random((frames, N)) < 0.1] = False # gaps in which others can be
    gain = rng.normal(1, 3, (N, M))
    number = np.where(gain > 0, np.cumsum(gain > 0).reshape(gain.shape) - 1, -1)
    relaxed = milp(-gain[gain > 0], bounds=Bounds(0, 1), constraints=LinearConstraint(name_limits(number, rivals(visible)), ub=1))
    assert ((relaxed.x > 1e-6) & (relaxed.x < 1 - 1e-6)).any() and (gain > 0).sum() > 500, "not the case that this test is about"
    names = assign_trajectories(gain, visible, few=M)
    worth = gain[np.flatnonzero(names >= 0), names[names >= 0]].sum()
    surest = greedy_names(gain, visible)
    assert valid(names, visible) and np.array_equal(names, assign_trajectories(gain, visible, few=M))
    assert max(.98 * -relaxed.fun, gain[np.flatnonzero(surest >= 0), surest[surest >= 0]].sum()) < worth < -relaxed.fun + 1e-6


@settings(max_examples=40, deadline=None)
@given(random, st.integers(1, 8))
def test_rivals_are_those_who_meet(rng, N):
    visible = blinking(rng, 12, N)
    meet = {(a, b) for seen in visible for a, b in itertools.combinations(np.flatnonzero(seen).tolist(), 2)}
    assert {(int(a), int(b)) for group in rivals(visible) for a, b in itertools.combinations(group, 2)} == meet


@settings(max_examples=30, deadline=None)
@given(random, st.booleans())
def test_frames_have_each_name_once_and_nothing_where_nothing_is(rng, ghosts):
    visible, gain, none = rng.random((7, 5)) < 0.7, rng.normal(0, 3, (7, 5, 4)), rng.normal(0, 3, (7, 5))
    names = assign_frames(gain, visible, none if ghosts else None)
    assert (names[~visible] == -1).all()
    for f in range(7):
        here = names[f][names[f] >= 0]
        assert len(set(here)) == len(here)
        if not ghosts: assert len(here) == min(visible[f].sum(), 4), "whoever finds a free name takes it"
        else: assert all(gain[f, i, m] > none[f, i] - 1e-9 for i, m in enumerate(names[f]) if m >= 0), "who gains by no name stays without"


def test_a_ghost_stays_without_a_name_and_fragments_share_one():
    visible = np.ones((20, 4), bool)
    visible[8:, 1] = visible[:12, 2] = False # two fragments of marker 1
    scores = np.log(np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.8, 0.15], [0.1, 0.2, 0.7]])) # the last column: nobody
    names, chances = name_trajectories(scores, visible)
    assert names.tolist() == [0, 1, 1, -1] and np.allclose(chances.sum(1), 1)
    visible[7:13, 1:3] = True # now they meet
    assert sorted(name_trajectories(scores, visible)[0][1:3].tolist()) == [-1, 1]


@settings(max_examples=30, deadline=None)
@given(random)
def test_votes(rng):
    labels, weight = rng.integers(-1, 3, (9, 4)), rng.random((9, 4))
    weight[:, 3] = 0
    names, share = vote(labels, weight, 3)
    for i in range(3):
        votes = {m: weight[labels[:, i] == m, i].sum() for m in range(-1, 3)}
        assert votes[names[i]] == pytest.approx(max(votes.values())) and share[i] == pytest.approx(max(votes.values()) / weight[:, i].sum())
    assert names[3] == -1 and share[3] == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.integers(1, 150), st.integers(1, 4))
def test_windows_cover_a_recording(frames, window, overlap):
    spans = window_starts(frames, window, max(1, window // overlap))
    seen = np.zeros(frames, int)
    for a, b in spans: seen[a:b] += 1
    assert seen.all() and all(b - a == min(window, frames) for a, b in spans) and len(set(spans)) == len(spans)


# ------------------------------------------------------------------ distances


def test_distances_mend_two_exchanged_names(people):
    test, distances = people[3], SegmentDistances.fit(people[:3], SET)
    truth, visible = np.arange(len(SET)), test.visible
    scores = np.full((len(SET), len(SET) + 1), -6.0)
    scores[truth, truth] = 0.0
    heel, ankle = SET.index(["LHEE", "LANK"])
    scores[[heel, ankle], [heel, ankle]], scores[[heel, ankle], [ankle, heel]] = -1.5, 0.0 # the net mixes them up
    assert name_trajectories(scores, visible)[0].tolist() != truth.tolist()
    assert name_trajectories(scores, visible, test.points, distances)[0].tolist() == truth.tolist()


def test_distances_of_a_larger_person_fit_too(people):
    distances, test = SegmentDistances.fit(people[:3], SET), people[3]
    truth = np.arange(len(SET))
    for size in 0.85, 1.0, 1.15:
        pairs = pair_distances(test.points * np.float32(size))
        assert (distance_scores(pairs, truth, distances).argmax(1) == truth).mean() > 0.85
        assert np.nanmean(check_segments(pairs, truth, distances)) < 0.1


def test_pairs_are_those_who_meet():
    points = np.zeros((60, 3, 3), np.float32)
    points[:, 1, 0] = 10
    points[:, 2, 1] = 20
    points[30:, 1] = points[:30, 2] = np.nan
    i, j, apart, count = pair_distances(points)
    assert {(int(a), int(b)): round(float(d)) for a, b, d in zip(i, j, apart)} == {(0, 1): 10, (1, 0): 10, (0, 2): 20, (2, 0): 20}
    assert count.min() >= 2


@pytest.mark.parametrize("bad", [{}, {"markers": 3, "first": [0], "second": [9], "mean": [1.0], "between": [1.0], "within": [1.0]},
                                 {"markers": "x", "first": [], "second": [], "mean": [], "between": [], "within": []}, []])
def test_distances_that_are_none(bad):
    with pytest.raises(ValueError, match="SegmentDistances"): SegmentDistances.from_json(bad)


def test_nobody_named_says_nothing(people):
    distances = SegmentDistances.fit(people[:1], SET)
    nobody = np.full(len(SET), -1)
    pairs = pair_distances(people[3].points)
    assert not distance_scores(pairs, nobody, distances).any() and np.isnan(check_segments(pairs, nobody, distances)).all()


# ------------------------------------------------------------------ the labeler


def right(labelling, damaged):
    real = damaged.truth >= 0
    return ((labelling.frame_labels == damaged.truth)[real].mean(), (labelling.names == damaged.truth)[real].mean())


def test_trajectories_are_better_than_frames(labeler, damaged):
    labelling = labeler.label(damaged.recording)
    before, after = right(labelling, damaged)
    assert before > 0.6 and after > max(before, 0.85), (before, after)
    assert valid(labelling.names, damaged.recording.visible)
    assert (labelling.frame_labels[~damaged.recording.visible] == -1).all()
    assert np.isfinite(labelling.confidence).all() and (labelling.confidence >= 0).all() and (labelling.confidence <= 1 + 1e-9).all()


def test_order_place_and_direction_do_not_matter(labeler, people):
    test = people[3]
    plain = labeler.label(test).labels
    shuffled, order = test.shuffled(1)
    again = labeler.label(shuffled).labels
    assert [again[k] for k in np.argsort(order)] == list(plain)
    moved = replace(test, points=align(test.points, 1.3) + np.float32([500, -900, 0]))
    assert np.mean([a == b for a, b in zip(labeler.label(moved).labels, plain)]) > 0.9


def test_names_that_a_file_has_are_not_looked_at(labeler, people):
    nonsense = people[3].rename(dict(zip(people[3].labels, [f"X{i}" for i in range(len(SET))])))
    labelling = labeler.label(nonsense)
    assert labelling.labels == labeler.label(people[3]).labels and any("does not know" in note and "X0" in note for note in labelling.notes)


def test_another_rate_is_resampled_and_said(labeler, people):
    slow = people[3].resample(60.0)
    labelling = labeler.label(slow)
    assert labelling.frame_labels.shape == slow.visible.shape and "resampled from 60 to 100" in labelling.notes[0]
    assert np.mean([a == b for a, b in zip(labelling.labels, labeler.label(people[3]).labels)]) > 0.85
    with pytest.raises(ValueError, match="the net is for 100"): labeler.probabilities(slow)


def test_too_few_markers(labeler, people):
    for few in people[3].select(people[3].labels[:2]), replace(people[3], points=np.full_like(people[3].points, np.nan)):
        with pytest.raises(DataError, match="markers are visible at once"): labeler.label(few)
    points = people[3].points.copy()
    points[:20, 2:] = np.nan
    assert any("20 of 200 frames show fewer than 3" in note for note in labeler.label(replace(people[3], points=points)).notes)


def test_a_trajectory_that_is_never_seen_and_a_recording_of_one_frame(labeler, people):
    points = people[3].points.copy()
    points[:, 5] = np.nan
    labelling = labeler.label(replace(people[3], points=points))
    assert labelling.labels[5] == "" and not any(row["trajectory"] == people[3].labels[5] for row in labelling.doubtful())
    assert len(labeler.label(people[3].cut(50, 51)).labels) == len(SET)


def test_evidence_and_frames_agree(labeler, damaged):
    evidence = labeler.evidence(damaged.recording)
    dense = labeler.probabilities(damaged.recording)
    seen = damaged.recording.visible
    assert np.allclose(dense[seen].sum(-1), 1, atol=1e-5)
    names, sure = name_frames(evidence, seen)
    f, n = np.nonzero(seen)
    assert np.allclose(sure[seen], dense[f, n, names[f, n]], atol=1e-6)


def test_long_trajectories_count_more_than_short_ones():
    evidence = Evidence(np.array([0, 1]), np.array([0, 0]), np.array([480, 10]), np.log([[0.6, 0.4], [0.6, 0.4]]), (480, 2), 480)
    assert np.allclose(evidence.totals(120)[0], 4 * evidence.totals(120)[1])


# ------------------------------------------------------------------ files


def test_an_export_fills_what_it_says_and_keeps_what_was_measured(labeler, damaged, tmp_path):
    labelling = labeler.label(damaged.recording)
    plain = labelling.apply()
    filled = export(labelling, tmp_path / "a.c3d", max_gap=15)
    written = read_c3d(tmp_path / "a.c3d")
    assert np.allclose(np.nan_to_num(written.select(plain.labels).points[plain.visible]), plain.points[plain.visible], atol=1e-2)
    new = written.select(plain.labels).visible & ~plain.visible
    assert new.sum() == sum(b - a + 1 for spans in filled.values() for a, b in spans) > 0
    assert not export(labelling, tmp_path / "b.c3d") and (read_c3d(tmp_path / "b.c3d").visible.sum() == plain.visible.sum())
    assert not filled_frames(plain.points, plain.points, plain.labels)


def checkpoint(folder, distances=None, markers=SET, files=(), **settings):
    torch.manual_seed(0)
    net = build_labeler(len(markers), **{"model_type": "lstm", "nLSTMcells": 8, "nLSTMlayers": 1, "FCnodes": 8, "ghost_class": True, **settings})
    content = {"marker_set.json": markers.to_json(), "scale.json": FeatureScale(300.0, 500.0, 5000.0).to_json()} | ({"distances.json": distances.to_json()} if distances else {})
    save_checkpoint(folder, net, asdict(net.settings) | {"rate": 100.0, "window": 120, "frames_read": 12, "packed": True, "cutoff": 6.0}, content | dict(files))
    return folder


def test_a_checkpoint_comes_back(people, tmp_path):
    distances = SegmentDistances.fit(people[:2], SET)
    loaded = Labeler.load(checkpoint(tmp_path / "net", distances), model_type="lstm", max_len=240, marker_set=SET)
    assert loaded.settings["packed"] is True and loaded.settings["frames_read"] == 12 and np.allclose(np.nan_to_num(loaded.distances.mean), np.nan_to_num(distances.mean), atol=0.01)
    assert Labeler.load(checkpoint(tmp_path / "run" / "best")).distances is None


@pytest.mark.parametrize("expected, words", [({"model_type": "hybrid"}, "model_type 'lstm', expected 'hybrid'"), ({"max_len": 99}, "max_len 240, expected 99"),
                                             ({"marker_set": MarkerSet((*SET.markers[1:], "NOSE"))}, f"it lacks NOSE; it has {SET.markers[0]} in addition")])
def test_a_checkpoint_of_another_labeler(expected, words, tmp_path):
    with pytest.raises(CheckpointError, match=words): Labeler.load(checkpoint(tmp_path / "net"), **expected)


@pytest.mark.parametrize("files, words", [({"marker_set.json": {"markers": 3}}, "not a marker set"), ({"scale.json": {"position": -1}}, "FeatureScale"), ({"scale.json": []}, "scale|FeatureScale|list"),
                                          ({"distances.json": {"markers": 3}}, "SegmentDistances"), ({"marker_set.json": MarkerSet(SET.markers[:5]).to_json()}, "came with shape")])
def test_a_checkpoint_with_files_that_do_not_go_together(files, words, tmp_path):
    with pytest.raises(CheckpointError, match=words): Labeler.load(checkpoint(tmp_path / "net", files=files))


def test_a_checkpoint_of_something_else(tmp_path):
    save_checkpoint(tmp_path / "other", nn.Linear(2, 2), {"model_type": "ddpm"})
    with pytest.raises(CheckpointError, match="not of a marker labeler"): Labeler.load(tmp_path / "other")
    with pytest.raises(CheckpointError, match="no such folder"): Labeler.load(tmp_path / "nothing")


@pytest.fixture
def place(people, tmp_path):
    checkpoint(tmp_path / "net", SegmentDistances.fit(people[:2], SET))
    (tmp_path / "in").mkdir()
    write_c3d(people[3].cut(0, 60).shuffled(0)[0], tmp_path / "in" / "walk.c3d")
    return tmp_path


def run(place, *arguments): return lab.main([*map(str, arguments), "--ckpt", str(place / "net"), "--no-progress"])


def test_the_command_writes_two_files_and_leaves_the_input_alone(place, capsys):
    walk = place / "in" / "walk.c3d"
    content = walk.read_bytes()
    assert run(place, walk) == 0 and walk.read_bytes() == content
    assert sorted(p.name for p in walk.parent.iterdir()) == ["walk.c3d", "walk_labelled.c3d", "walk_labelled.json"]
    report = json.loads((place / "in" / "walk_labelled.json").read_text())
    assert report["file"] == "walk.c3d" and len(report["trajectories"]) == len(SET) and "walk_labelled.c3d" in capsys.readouterr().out
    assert run(place, walk) == 2 and "--overwrite" in capsys.readouterr().err
    assert run(place, walk, "--overwrite", "--output-dir", place / "in") == 0
    assert run(place, place / "in" / "walk_labelled.c3d") == 0 and (place / "in" / "walk_labelled_labelled.c3d").exists()


def test_bad_files_are_named_and_the_others_labelled(place, capsys):
    walk = place / "in" / "walk.c3d"
    (place / "in" / "short.c3d").write_bytes(walk.read_bytes()[:2000])
    (place / "in" / "text.c3d").write_text("not a C3D file")
    two = read_c3d(walk)
    write_c3d(two.select(two.labels[:2]), place / "in" / "two.c3d")
    bad = [place / "in" / name for name in ("short.c3d", "text.c3d", "two.c3d", "gone.c3d")]
    assert run(place, *bad, walk, "--output-dir", place / "out") == 2
    errors = capsys.readouterr().err.splitlines()
    assert [name for name in ("short", "text", "two", "gone") if not any(name in line for line in errors)] == []
    assert sorted(p.name for p in (place / "out").iterdir()) == ["walk_labelled.c3d", "walk_labelled.json"]


def test_a_marker_set_that_does_not_match(place, capsys):
    (place / "set.json").write_text(json.dumps(MarkerSet((*SET.markers[:-1], "NOSE")).to_json()))
    assert run(place, place / "in" / "walk.c3d", "--marker-set", place / "set.json") == 2
    assert "it lacks NOSE" in (error := capsys.readouterr().err) and f"it has {SET.markers[-1]}" in error
    assert run(place, place / "in" / "walk.c3d", "--model-type", "transformer") == 2 and "expected 'transformer'" in capsys.readouterr().err
    assert lab.main(["--ckpt", str(place / "net")]) == 2 and "no files" in capsys.readouterr().err


def test_an_interrupted_export_leaves_no_half_file(place, monkeypatch):
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr("stage_modules.labeler.markers.check_c3d", lambda path: stop() if path.name.startswith(".") else None)
    assert run(place, place / "in" / "walk.c3d") == 130
    assert [p.name for p in (place / "in").iterdir()] == ["walk.c3d"]


# ------------------------------------------------------------------ evaluation


def test_evaluation_by_place(people, tmp_path, capsys):
    truth = people[3]
    wrong = truth.rename({"LANK": "RANK", "RANK": "LANK"}).shuffled(3)[0]
    assert evaluate.compare(wrong, truth)["right"] == 0 and evaluate.compare(wrong, truth)["unlabelled"] == 1
    points = truth.points.copy()
    points[:100, 0] = np.nan
    half = evaluate.compare(replace(truth, points=points), truth)
    assert half["right"] == pytest.approx(1 - 100 / truth.visible.sum()) and half["trajectories_right"] == pytest.approx(1 - 1 / len(SET))
    with pytest.raises(DataError, match="frames at"): evaluate.compare(truth.resample(50.0), truth)
    with pytest.raises(DataError, match="no marker with a name"): evaluate.compare(truth, wrong)
    write_c3d(truth, tmp_path / "a.c3d")
    assert evaluate.main([str(tmp_path / "a.c3d"), "--truth", str(tmp_path), "--output", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())[str(tmp_path / "a.c3d")]["right"] == 1
    assert evaluate.main([str(tmp_path / "a.c3d"), "--truth", str(tmp_path / "b.c3d")]) == 2 and "b.c3d" in capsys.readouterr().err
    assert evaluate.main([str(tmp_path / "a.c3d"), "--truth", str(tmp_path), "--output", str(tmp_path / "out.json")]) == 2, "never overwritten"
