"""Training of the labeler: damage that keeps the truth, batches that hang on nothing but their seed, runs that are stopped, files that are broken.

Broken on purpose to see each test fail: classes of fragments not taken along, gaps of another column, batches drawn with the global generator, the mask of
unseen trajectories, an average that is not saved, a scale that is fitted again in transfer."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_modules.labeler.markers import MarkerSet, Recording, write_c3d
from stage_modules.labeler.model import LabelerSettings, build_labeler
from stage_modules.labeler.train import (MARKER_SET, SCALE, Source, TrainConfig, WindowBatches, WindowSettings, damage, draw_window, fit_scale, fragments, make_source,
    pick, random_gaps, read_data, train)
from stage_modules.labeler.train import main as train_main
from stage_modules.labeler.transfer import TransferConfig, start_from, transfer
from stage_modules.labeler.transfer import main as transfer_main
from stage_modules.toolkit.checkpoints import load_checkpoint, save_checkpoint
from stage_modules.toolkit.errors import CheckpointError, DataError

NAMES = ("LSHO", "RSHO", "C7", "LKNE", "RKNE", "SACR")
SIZES = dict(nLSTMcells=8, nLSTMlayers=1, transformerDim=8, nAttentionHeads=2, FCnodes=8)
FLAGS = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))] + ["--facing", "LSHO", "RSHO", "--no-progress", "--no-tensorboard", "--device", "cpu"]


def body(frames=90, seed=0, rate=100.) -> Recording:
    "Six points that walk along x at a metre a second."
    rng = np.random.default_rng(seed)
    places = np.array([[0, 200, 1400], [0, -200, 1400], [-50, 0, 1450], [0, 150, 500], [0, -150, 500], [-100, 0, 950]]) * (1 + .05 * rng.standard_normal())
    time_ = np.arange(frames)[:, None, None] / rate
    swing = 100 * np.sin(2 * np.pi * time_ + rng.uniform(0, 6, (1, 6, 1)))
    return Recording((places + time_ * [1000., 0, 0] + swing * [1., 0, .3]).astype(np.float32), NAMES, rate)


def sources(**changes) -> list[Source]:
    return [make_source(body(seed=i), MarkerSet(NAMES, facing=("LSHO", "RSHO")), replace(WindowSettings(), **changes)) for i in range(3)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for i in range(3):
        (folder / f"P{i}").mkdir()
        write_c3d(body(seed=i), folder / f"P{i}" / "walk.c3d")
    return folder


def config(files: Path, **changes) -> TrainConfig:
    return TrainConfig(**{**SIZES, "data_path": str(files), "facing": ("LSHO", "RSHO"), "batch_size": 20, "epoch_steps": 4, "num_epochs": 3, "output_dir": None, "progress": False,
                          "tensorboard": False, "device": "cpu"} | changes)


# ------------------------------------------------------------------ damage


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), occlusion=st.floats(0, .9), drop=st.floats(0, .95), ghosts=st.integers(0, 5), lost=st.floats(0, .9))
def test_every_sample_of_a_column_is_its_markers(seed, occlusion, drop, ghosts, lost):
    rng = np.random.default_rng(seed)
    points = body(40, seed % 7).points.copy()
    points[rng.random(points.shape[:2]) < lost] = np.nan
    points[0, 0] = 0. # something is seen
    found, names = damage(rng, points, WindowSettings(occlusion=occlusion, drop=drop, ghosts=ghosts, undamaged=0., jitter=0.))
    assert found.shape[1] == len(names) and set(names) <= set(range(7)) and (names == 6).sum() <= max(ghosts * 21, 0)
    for column, name in enumerate(names):
        seen = np.isfinite(found[:, column, 0])
        if name < 6: np.testing.assert_array_equal(found[seen, column], points[seen, name])
    for name in range(6): # and no sample is there twice
        assert (np.isfinite(found[:, names == name, 0]).sum(1) <= 1).all()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(share=st.floats(0, .8), low=st.integers(1, 20), more=st.integers(0, 60), seed=st.integers(0, 1000))
def test_gaps_hide_the_share_that_was_asked_for(share, low, more, seed):
    hidden = random_gaps(np.random.default_rng(seed), 3000, 40, share, (low, low + more))
    assert abs(hidden.mean() - share) < .04
    assert abs(hidden[:50].mean() - hidden[-50:].mean()) < .25 # as likely at the edges as anywhere


def test_a_fragment_has_no_hole():
    points = np.where(random_gaps(np.random.default_rng(0), 200, 6, .4, (3, 9))[..., None], np.float32(np.nan), body(200).points)
    found, names = fragments(points, np.arange(6))
    for column in np.isfinite(found[..., 0]).T: assert np.abs(np.diff(np.concatenate([[0], column.astype(int), [0]]))).sum() == 2
    assert len(names) > 12


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), frames=st.integers(1, 60), lost=st.floats(0, 1), packed=st.booleans(), read=st.integers(1, 300))
def test_windows_of_bad_recordings_are_numbers(seed, frames, lost, packed, read):
    rng = np.random.default_rng(seed)
    points = body(frames, seed % 5).points.copy()
    points[rng.random(points.shape[:2]) < lost] = np.nan
    source = Source(points, (points[:, 1] - points[:, 0])[:, :2] if lost < .5 else np.tile([0., -1.], (frames, 1)), np.full(6, 50.))
    features, mask, names = draw_window(rng, source, WindowSettings(packed=packed, frames_read=read))
    assert features.isfinite().all() and mask.any(1).all() and len(features) == len(mask) == len(names) and features.shape[-1] == 25
    assert (features[~mask] == 0).all()


def test_batches_hang_on_their_seed_alone():
    there = sources()
    batches = WindowBatches(there, WindowSettings(), fit_scale(there, WindowSettings()), 30, 3, seed=5)
    first = list(batches)
    np.random.seed(1); torch.manual_seed(1)
    again, other = list(batches), list(WindowBatches(there, batches.settings, batches.scale, 30, 3, seed=6))
    for a, b in zip(first, again): assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert not torch.equal(first[0].features, other[0].features)
    assert [len(batch.names) for batch in first] == [30] * 3


def test_another_rate_is_the_same_to_a_net():
    marker_set, plain = MarkerSet(NAMES, facing=("LSHO", "RSHO")), replace(WindowSettings(), undamaged=1., shortest=80, window=80, size=0., proportions=0., warp=0., placement=0., yaw=0.)
    a, b = (draw_window(np.random.default_rng(0), make_source(body(frames, rate=rate), marker_set, plain), plain)[0].unflatten(-1, (-1, 5))[..., :3] for frames, rate in ((80, 100.), (159, 200.)))
    assert (a - b).abs().max() < 12 # mm, at the ends of the smoothing


# ------------------------------------------------------------------ runs


def test_killed_and_resumed_to_the_bit(files, tmp_path):
    whole = train(config(files, output_dir=str(tmp_path), exp_name="whole", num_epochs=16))
    flags = ["--data_path", str(files), "--output_dir", str(tmp_path), "--exp_name", "broken", "--batch_size", "20", "--epoch_steps", "4", "--epochs", "16", *FLAGS]
    run = subprocess.Popen([sys.executable, "-m", "stage_modules.labeler.train", *flags], env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (tmp_path / "broken/last/config.json").exists() and run.poll() is None and time.monotonic() < until: time.sleep(.02)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 130, said
    assert train_main([*flags, "--resume"]) == 0
    a, b = (load_checkpoint(tmp_path / name / "last").tensors for name in ("whole", "broken"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert [row["step"] for row in whole.history if "accuracy" in row][-1] == 64


def test_the_average_is_what_is_handed_out(files, tmp_path):
    result = train(config(files, output_dir=str(tmp_path), exp_name="run", ema_decay=.9, learning_rate=.05))
    saved = load_checkpoint(tmp_path / "run/best")
    for name, tensor in result.net.state_dict().items(): assert torch.equal(tensor, saved.tensors[f"average.module.{name}"])
    assert any(not torch.equal(tensor, saved.tensors[f"model.{name}"]) for name, tensor in result.net.state_dict().items())
    assert result.marker_set.markers == NAMES and saved.config["frames_read"] == result.config.frames_read


@pytest.mark.parametrize("kind, head", [("lstm", "pool"), ("transformer", "flatten"), ("hybrid", "flatten")])
def test_all_nets_learn_six_markers(files, kind, head):
    result = train(config(files, model_type=kind, head=head, max_len=16, transformerDim=16, transformerFFDim=32, nTransformerLayers=1, nLSTMcells=16, learning_rate=.01, epoch_steps=60, num_epochs=1, batch_size=40))
    losses = [row["loss"] for row in result.history if "loss" in row]
    assert losses[-1] < .8 * np.log(7) and result.accuracy > .5


def test_no_class_for_ghosts(files):
    result = train(config(files, ghost_class=False))
    assert result.net.fc[-1].out_features == 6 and all(np.isfinite(row.get("loss", 0.)) for row in result.history)


# ------------------------------------------------------------------ bad input


def test_broken_files_are_named_and_left_alone(files, tmp_path, capsys):
    content = (files / "P0/walk.c3d").read_bytes()
    (tmp_path / "ok.c3d").write_bytes(content)
    (tmp_path / "short.c3d").write_bytes(content[:700])
    assert train_main(["--data_path", str(tmp_path), "--output_dir", str(tmp_path / "runs"), *FLAGS]) == 2
    said = capsys.readouterr().err
    assert "short.c3d" in said and said.count("\n") == 1
    assert (tmp_path / "short.c3d").read_bytes() == content[:700] and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("changes, message", [({"facing": ("LSHO", "NOSE")}, "'NOSE' is not among the markers"), ({"holdout": ("P7",)}, "no recording of 'P7'"), ({"facing": None}, "give facing"),
    ({"data_path": "nowhere"}, "no such file"), ({"marker_set": "nowhere.xml"}, "nowhere.xml"), ({"holdout": ("P0", "P1", "P2")}, "leaves no recording")])
def test_data_that_cannot_be_trained_on(files, changes, message):
    with pytest.raises(ValueError, match=message): train(config(files, **changes)) # nearly all are DataErrors, which are ValueErrors


def test_all_of_a_marker_missing(tmp_path):
    points = body().points.copy()
    points[:, 0] = np.nan # the left shoulder is in the file, and never seen
    write_c3d(Recording(points, NAMES, 100.), tmp_path / "a.c3d")
    with pytest.raises(DataError, match="LSHO"): train(config(tmp_path))


# ------------------------------------------------------------------ transfer


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(config(files, output_dir=str(folder), exp_name="first", frames_read=5, rate=50., packed=False))
    return folder / "first"


def test_transfer_keeps_net_windows_and_scale(files, trained, tmp_path):
    result = transfer(TransferConfig(str(trained), str(files), str(tmp_path), max_steps=2, progress=False))
    assert (result.config.frames_read, result.config.rate, result.config.packed, result.config.nLSTMcells) == (5, 50., False, 8)
    before, after = load_checkpoint(trained / "best"), load_checkpoint(tmp_path / "transfer/best")
    assert before.files[SCALE] == after.files[SCALE] and before.files[MARKER_SET] == after.files[MARKER_SET]
    moved = max((before.tensors[name] - after.tensors[name]).abs().max() for name in before.tensors if name.startswith("average.module"))
    assert 0 < moved < .02


def test_transfer_to_another_marker_set(trained, tmp_path, capsys):
    write_c3d(replace(body(), labels=("A", "B", "C", "D", "E", "SACR")), tmp_path / "a.c3d")
    assert transfer_main(["--ckpt", str(trained), "--data_path", str(tmp_path), "--output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "missing are LSHO, RSHO, C7, LKNE, RKNE" in said and "extra are A, B, C, D, E" in said


def test_transfer_from_what_is_no_labeler(files, trained, tmp_path):
    found = load_checkpoint(trained / "best")
    net = build_labeler(6, ghost_class=True, **SIZES)
    for name, settings_, files_ in [("pose", {"model_type": "ddpm"}, found.files), ("bare", found.config, {}), ("other", found.config | {"nLSTMcells": 9, "nAttentionHeads": 3}, found.files)]:
        save_checkpoint(tmp_path / name, net, settings_, files_)
        with pytest.raises(CheckpointError): transfer(TransferConfig(str(tmp_path / name), str(files), None, progress=False))
    with pytest.raises(CheckpointError, match="no such folder"): start_from(tmp_path / "nothing")
