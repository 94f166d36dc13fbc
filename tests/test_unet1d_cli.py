"""Training and sampling of poses as a user runs them: processes, signals, curves, flags.

Broken on purpose to see each test fail: validation with the learning network, sampling with it, no ramp, batch norm's buffers not averaged, noise of the
validation drawn anew, epoch_seconds not written."""
import json
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
import tyro
from PIL import Image

from stage_modules.toolkit.checkpoints import load_checkpoint
from stage_modules.toolkit.training import Callback
from stage_modules.unet1d.poses import make_poses
from stage_modules.unet1d.sample import AVERAGE, PoseGenerator, SampleConfig
from stage_modules.unet1d.sample import main as sample_main
from stage_modules.unet1d.skeleton import default_skeleton
from stage_modules.unet1d.train import AveragedPair, TrainConfig, prepare, ramped_decay, train
from stage_modules.unet1d.train import main as train_main

SIZES = ["--base_channels", "8", "--channel-multipliers", "1", "2", "--time_emb_dim", "16", "--mid-num-heads", "2", "--batch_size", "32", "--device", "cpu", "--no-progress"]
QUIET = [*SIZES, "--no-tensorboard"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def poses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("poses") / "poses.npy"
    np.save(path, np.concatenate([clip.poses for clip in make_poses(6, 60)]))
    return path


def command(module: str, *flags: object) -> list[str]: return [sys.executable, "-m", f"stage_modules.unet1d.{module}", *map(str, flags)]


def tensors(folder: Path, name: str = "last") -> dict[str, torch.Tensor]: return load_checkpoint(folder / name).tensors


def steps_of(folder: Path) -> int: return json.loads((folder / "last/state.json").read_text())["progress"]["step"]


def history_of(folder: Path) -> list[dict]:
    "Rows without the one thing that may differ."
    return [{k: v for k, v in row.items() if k != "epoch_seconds"} for row in json.loads((folder / "last/state.json").read_text())["progress"]["history"]]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool: return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def run_flags(poses: Path, folder: Path, *more: object) -> list[str]:
    return ["--data_path", str(poses), "--output_dir", str(folder.parent), "--exp_name", folder.name, "--epochs", "6", "--save_interval", "5", *map(str, more)]


@pytest.fixture(scope="module")
def whole(poses: Path) -> Path:
    "A run that nobody disturbed, through the real command, with both spellings of flags."
    folder = poses.parent / "whole"
    done = subprocess.run(command("train", *run_flags(poses, folder), *SIZES), env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert f"best checkpoint in {folder / 'best'}" in done.stdout and done.stderr == ""
    return folder


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_bits(poses: Path, whole: Path, kind: signal.Signals) -> None:
    folder = poses.parent / kind.name
    process = subprocess.Popen(command("train", *run_flags(poses, folder), *QUIET), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "last").is_dir() and process.poll() is None and time.monotonic() < deadline: time.sleep(.01)
    process.send_signal(kind)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[kind], said
    assert "Traceback" not in said and said.count("\n") == (kind == signal.SIGINT)
    assert 0 < steps_of(folder) < steps_of(whole)
    assert PoseGenerator.load(folder).sample(2, num_steps=2).shape == (2, 72) # what is there is whole
    assert train_main([*run_flags(poses, folder), *QUIET, "--resume"]) == 0
    assert same(tensors(folder), tensors(whole)) and same(tensors(folder, "best"), tensors(whole, "best")) and history_of(folder) == history_of(whole)


def test_the_curves_are_in_the_event_file(whole: Path) -> None:
    "Read back with TensorBoard's own reader."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(whole / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    history = json.loads((whole / "last/state.json").read_text())["progress"]["history"]
    for name in "loss", "learning_rate", "gradient_norm", "valid_loss", "epoch_seconds":
        found, rows = events.Scalars(name), [row for row in history if name in row]
        assert [event.step for event in found] == [row["step"] for row in rows]
        assert [event.value for event in found] == pytest.approx([row[name] for row in rows], rel=1e-5)
    seconds = [event.value for event in events.Scalars("epoch_seconds")]
    assert len(seconds) == 6 and min(seconds) > 0
    assert sum(seconds) <= json.loads((whole / "last/state.json").read_text())["progress"]["seconds"]


def test_what_is_saved_is_what_was_asked_for(whole: Path) -> None:
    found = load_checkpoint(whole / "best")
    assert found.config["num_epochs"] == 6 and found.config["channel_multipliers"] == [1, 2] and isinstance(found.config["warmup_steps"], int)
    assert sorted(found.files) == ["normaliser.json", "skeleton.json"] and len(found.files["normaliser.json"]["mean"]) == 72
    again = TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.config.items()})
    assert again.folder == whole # the configuration in the folder means this folder


def test_the_average_is_what_validates_and_what_samples(poses: Path, whole: Path) -> None:
    best = tensors(whole, "best")
    average = {k.removeprefix(AVERAGE): v for k, v in best.items() if k.startswith(AVERAGE)}
    learning = {k.removeprefix("model."): v for k, v in best.items() if k.startswith("model.")}
    assert not same(average, learning) and not torch.equal(average["down.0.norm1.running_var"], learning["down.0.norm1.running_var"])
    assert same(PoseGenerator.load(whole).model.state_dict(), average)
    config = tyro.cli(TrainConfig, args=[*run_flags(poses, whole), *QUIET])
    trainer, _ = prepare(replace(config, output_dir=None))
    history = [row for row in history_of(whole) if "valid_loss" in row]
    for weights, equal in ((best, True), ({**best, **{AVERAGE + k: v for k, v in learning.items()}}, False)):
        trainer.model.load_state_dict(weights)
        assert (trainer.validate()["valid_loss"] == pytest.approx(min(row["valid_loss"] for row in history), rel=1e-6)) == equal


def test_the_average_is_the_one_of_the_formula() -> None:
    "Against the sum written out, for a parameter and for a buffer."
    torch.manual_seed(0)
    pair = AveragedPair(torch.nn.BatchNorm1d(1), decay=.6)
    values = torch.randn(30).tolist()
    for value in values:
        with torch.no_grad():
            pair.model.weight.fill_(value)
            pair.model.running_mean.fill_(-value)
            pair.model.num_batches_tracked += 1
        pair.update()
    expected = values[0]
    for n, value in enumerate(values[1:], 1): expected += (1 - min(.6, (1 + n) / (10 + n))) * (value - expected)
    assert pair.average.module.weight.item() == pytest.approx(expected, rel=1e-5) and pair.average.module.running_mean.item() == pytest.approx(-expected, rel=1e-5)
    assert pair.average.module.num_batches_tracked == 30 and ramped_decay(5, .6) == 6 / 15


def test_validation_meets_the_same_noise_each_time(poses: Path) -> None:
    config = tyro.cli(TrainConfig, args=[*QUIET, "--data_path", str(poses), "--model_type", "flow"])
    trainer, _ = prepare(replace(config, output_dir=None, max_steps=1))
    first = trainer.validate()["valid_loss"]
    trainer.progress.step = 7 # the Trainer's own stream would be another one
    assert trainer.validate()["valid_loss"] == first


def test_the_same_seed_gives_the_same_run_in_another_process(poses: Path, whole: Path) -> None:
    torch.rand(7) # what was drawn before must not matter
    for seed, steps in (0, "None"), (1, 2): assert train_main([*run_flags(poses, poses.parent / f"seed{seed}", "--seed", seed, "--max_steps", steps), *QUIET]) == 0
    assert same(tensors(poses.parent / "seed0"), tensors(whole)) and history_of(poses.parent / "seed0") == history_of(whole)
    assert not same(tensors(poses.parent / "seed1"), tensors(whole))
    assert load_checkpoint(poses.parent / "seed1/last").files == load_checkpoint(whole / "last").files # the same poses to train on


def test_what_a_network_learns_here(poses: Path, whole: Path) -> None:
    losses = [row["valid_loss"] for row in history_of(whole) if "valid_loss" in row]
    assert losses[-1] < .9 * losses[0] and len(losses) == 6


# ------------------------------------------------------------------ sampling


def test_sample_writes_numbers_a_picture_and_an_animation(whole: Path, tmp_path: Path) -> None:
    files = {"--save_numpy": tmp_path / "new/x.npy", "--save-figure": tmp_path / "x.png", "--save_animation": tmp_path / "x.gif"}
    done = subprocess.run(command("sample", "--ckpt", whole, "--num-samples", 7, "--batch_size", 3, "--num_steps", 6, "--seed", 4, "--mid_structure", "conv", "--no-progress",
                                  *(word for pair in files.items() for word in pair)), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout == f"7 samples of ddpm with mid_structure conv: {', '.join(map(str, files.values()))}\n"
    poses = np.load(tmp_path / "new/x.npy")
    assert poses.shape == (7, 72) and poses.dtype == np.float32
    generator = PoseGenerator.load(whole)
    np.testing.assert_allclose(poses, generator.sample(7, num_steps=6, seed=4), rtol=1e-3, atol=1e-3)
    assert np.abs(poses - generator.sample(7, num_steps=6, seed=5)).max() > .05
    assert Image.open(tmp_path / "x.png").size[0] > 300 and Image.open(tmp_path / "x.gif").n_frames == 7 # six steps
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "x.gif", "x.png"]


@pytest.mark.parametrize("solver, steps", [("ddim", 5), ("ddpm", 9), (None, None)])
def test_batches_and_more_samples_change_no_pose(whole: Path, solver: str | None, steps: int | None) -> None:
    generator = PoseGenerator.load(whole)
    poses = generator.sample(9, solver=solver, num_steps=steps)
    np.testing.assert_array_equal(generator.sample(9, solver=solver, num_steps=steps), poses)
    if solver == "ddpm": return # it draws noise on the way, batch by batch
    np.testing.assert_allclose(generator.sample(9, 4, solver=solver, num_steps=steps), poses, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(generator.sample(5, solver=solver, num_steps=steps), poses[:5], rtol=1e-3, atol=2e-3)


def test_a_path_is_the_way_of_the_same_poses(whole: Path) -> None:
    generator = PoseGenerator.load(whole)
    drawn = generator.sample_path(5, num_steps=8, keep=4, batch_size=3)
    np.testing.assert_array_equal(drawn.poses, generator.sample(5, num_steps=8, batch_size=3))
    np.testing.assert_array_equal(drawn.path[-1], drawn.poses[:3])
    assert drawn.path.shape == (4, 3, 72) and drawn.times[0] == 999 and drawn.times[-1] == -1


# ------------------------------------------------------------------ other networks, other data


VARIANTS = [["--model_type", "flow"], ["--mid_structure", "attention"], ["--positions", "joints", "--mid-structure", "attention", "--model-type", "flow"], ["--noise_schedule", "cosine"],
            ["--mixed_precision", "bf16", "--optimizer", "sgd"], ["--split", "clips"], ["--gradient_accumulation_steps", "2", "--ema_decay", "0"]]


@pytest.mark.parametrize("flags", VARIANTS, ids=lambda flags: " ".join(flags).replace("--", ""))
def test_other_networks_train_and_sample_from_the_command_line(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for n, clip in enumerate(make_poses(6, 40)): np.save(tmp_path / f"clip{n}.npy", clip.poses) # a folder of clips
    assert train_main([*QUIET, *flags, "--data_path", str(tmp_path), "--output_dir", str(tmp_path / "runs"), "--max_steps", "4"]) == 0
    folder = next((tmp_path / "runs").iterdir())
    flow, middle = "flow" in flags, "attention" if "attention" in flags else "conv"
    assert folder.name == f"{'flow' if flow else 'ddpm'}-{middle}"
    for solver in ("euler", "midpoint", "rk4") if flow else ("ddpm", "ddim"):
        assert sample_main(["--ckpt", str(folder), "--solver", solver, "--num_steps", "3", "--num_samples", "2", "--mid_structure", middle, "--no-progress",
                            "--save_numpy", str(tmp_path / f"{solver}.npy")]) == 0
        assert np.isfinite(np.load(tmp_path / f"{solver}.npy")).all()
    assert "poses, " in capsys.readouterr().out


def test_numbers_of_another_width_need_no_body(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = np.random.default_rng(0).normal(size=(120, 1)) + np.linspace(0, 1, 128)
    np.savez(tmp_path / "rows.npz", a=rows[:60], b=rows[60:].astype(np.float32))
    assert train_main([*QUIET, "--data_path", str(tmp_path / "rows.npz"), "--pose_dim", "128", "--output_dir", str(tmp_path), "--exp_name", "run", "--epochs", "2"]) == 0
    assert not (tmp_path / "run/best/skeleton.json").exists()
    ask = ["--ckpt", str(tmp_path / "run"), "--num_samples", "3", "--num_steps", "4", "--no-progress"]
    assert sample_main([*ask, "--save_numpy", str(tmp_path / "x.npy")]) == 0 and np.load(tmp_path / "x.npy").shape == (3, 128)
    capsys.readouterr()
    for flag, file in ("--save_figure", "x.png"), ("--save_animation", "x.gif"):
        assert sample_main([*ask, flag, str(tmp_path / file)]) == 2 and not (tmp_path / file).exists()
        assert "draws bodies of 72 numbers, and this checkpoint makes 128; use save_numpy" in capsys.readouterr().err


def test_a_constant_number_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = np.concatenate([clip.poses for clip in make_poses(4, 40)])
    rows[:, 10] = .25
    np.save(tmp_path / "x.npy", rows)
    done = train(tyro.cli(TrainConfig, args=[*QUIET, "--data_path", str(tmp_path / "x.npy"), "--output_dir", "None", "--max_steps", "3"]))
    assert (done.generator.sample(4, num_steps=3)[:, 10] == np.float32(.25)).all() and done.generator.skeleton == default_skeleton()


@pytest.mark.needs_data("cmu-mocap/02.asf", "cmu-mocap/02_01.amc", "cmu-mocap/02_04.amc", "cmu-mocap/02_10.amc")
def test_motion_capture_brings_its_own_body(tmp_path: Path) -> None:
    from stage_modules.toolkit.datasets import fetch
    from stage_modules.unet1d.poses import cmu_skeleton
    for name in "02.asf", "02_01.amc": (tmp_path / name).write_bytes(Path(fetch(f"cmu-mocap/{name}")).read_bytes())
    for place in tmp_path, tmp_path / "02_01.amc":
        done = train(tyro.cli(TrainConfig, args=[*QUIET, "--data_path", str(place), "--output_dir", "None", "--max_steps", "2"]))
        assert done.generator.skeleton == cmu_skeleton() and len(done.split.train) > 150


def test_another_network_can_be_trained_too(poses: Path) -> None:
    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = torch.nn.Linear(72, 72)
        def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor: return self.line(x)
    done = train(tyro.cli(TrainConfig, args=[*QUIET, "--data_path", str(poses), "--output_dir", "None", "--max_steps", "3", "--model_type", "flow"]), Line())
    assert isinstance(done.generator.model, Line) and done.generator.sample(2, num_steps=2).shape == (2, 72)


# ------------------------------------------------------------------ runs and flags


def test_a_run_is_not_overwritten_and_another_one_not_resumed(poses: Path, whole: Path, capsys: pytest.CaptureFixture) -> None:
    before = tensors(whole)
    assert train_main([*run_flags(poses, whole), *QUIET]) == 2
    assert "holds a run already" in capsys.readouterr().err
    for flags, expected in (["--base_channels", "16"], "field 'base_channels' came with 8, expected 16"), (["--split_seed", "1"], "field 'split_seed' came with 0"):
        assert train_main([*run_flags(poses, whole), *QUIET, "--resume", *flags]) == 2
        said = capsys.readouterr().err
        assert expected in said and said.count("\n") == 1
    assert same(before, tensors(whole))


def test_a_run_of_so_many_minutes_keeps_its_plan_when_it_resumes(poses: Path, tmp_path: Path) -> None:
    flags = ["--data_path", str(poses), "--output_dir", str(tmp_path), "--exp_name", ".", *QUIET]
    assert train_main([*flags, "--max_minutes", "0.01"]) == 0
    planned = load_checkpoint(tmp_path / "last").config
    assert 1 <= planned["max_steps"] < 2000 * 8 # planned by the clock, short of what the epochs would be
    assert train_main([*flags, "--resume", "--max_minutes", "0.04"]) == 0
    resumed = load_checkpoint(tmp_path / "last").config
    assert [resumed[name] for name in ("max_steps", "warmup_steps", "num_epochs")] == [planned[name] for name in ("max_steps", "warmup_steps", "num_epochs")]


def test_an_epoch_that_was_interrupted_has_the_time_of_both_parts(poses: Path, tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step(self, trainer) -> None:
            if trainer.progress.step == 3: trainer.stop("interrupted")
    config = tyro.cli(TrainConfig, args=[*run_flags(poses, tmp_path / "run"), *QUIET, "--epochs", "2"])
    trainer, _ = prepare(config)
    trainer.callbacks.append(Stop())
    trainer.fit()
    first = trainer.progress.seconds
    state = json.loads((tmp_path / "run/last/state.json").read_text())
    state["progress"]["seconds"] += 100 # as if the first three steps had been slow
    (tmp_path / "run/last/state.json").write_text(json.dumps(state))
    seconds = [row["epoch_seconds"] for row in train(replace(config, resume=True)).history if "epoch_seconds" in row]
    assert len(seconds) == 2 and 100 + first < seconds[0] < 130 and seconds[1] < 30


TRAIN_FLAGS = {"model_type": "flow", "data_path": "a.npy", "epochs": 3, "batch_size": 16, "learning_rate": .002, "weight_decay": .5, "grad_clip": .25, "timesteps": 50, "base_channels": 64,
    "channel_multipliers": (1, 2, 2, 4), "time_emb_dim": 32, "mid_structure": "attention", "mid_num_heads": 4, "output_dir": "out", "exp_name": "x", "log_interval": 7, "save_interval": 9,
    "mixed_precision": "bf16", "resume": True, "seed": 3, "pose_dim": 128, "max_minutes": 1.5, "ema_decay": .9, "split": "clips", "noise_schedule": "cosine", "positions": "joints"}
LONG_FLAGS = {"num_epochs": 4, "gradient_clip_norm": 2., "log_every": 3, "save_every": 2}
SAMPLE_FLAGS = {"ckpt": "run", "num_samples": 5, "batch_size": 2, "num_steps": 7, "solver": "rk4", "save_numpy": "a.npy", "save_figure": "a.png", "save_animation": "a.gif", "seed": 3, "mid_structure": "conv"}
FIELDS = {"epochs": "num_epochs", "grad_clip": "gradient_clip_norm", "log_interval": "log_every", "save_interval": "save_every"}


@pytest.mark.parametrize("config, flags", [(TrainConfig, TRAIN_FLAGS), (TrainConfig, LONG_FLAGS), (SampleConfig, SAMPLE_FLAGS)])
def test_every_flag_exists_in_both_spellings(config: type, flags: dict[str, object]) -> None:
    for mark in "_", "-":
        words = [word for name, value in flags.items() for word in (f"--{name.replace('_', mark)}", *([] if value is True else map(str, value) if isinstance(value, tuple) else [str(value)]))]
        found = tyro.cli(config, args=words)
        for name, value in flags.items():
            got, field = getattr(found, FIELDS.get(name, name)), config.__dataclass_fields__[FIELDS.get(name, name)]
            assert got == value != field.default and type(got) is type(value), (name, got)


def test_without_arguments_it_trains_on_procedural_poses(tmp_path: Path) -> None:
    "Stopped by Ctrl-C as soon as it is under way: the whole run takes a while."
    place = tmp_path / "here"
    place.mkdir()
    with open(tmp_path / "screen", "w+", encoding="utf-8") as screen:
        watched = {k: v for k, v in ENVIRONMENT.items() if k != "STAGE_STATIC"} # which switches the progress bar off
        process = subprocess.Popen(command("train"), env=watched, cwd=place, stdout=subprocess.PIPE, stderr=screen)
        deadline = time.monotonic() + 120
        while "items/s" not in (tmp_path / "screen").read_text() and process.poll() is None and time.monotonic() < deadline: time.sleep(.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130, (tmp_path / "screen").read_text()
    found = load_checkpoint(place / "runs/poses/ddpm-conv/last")
    assert found.config["data_path"] is None and found.config["num_epochs"] > 1
    assert sum(t.numel() for name, t in found.tensors.items() if name.startswith("model.") and not any(part in name for part in ("running", "num_batches"))) == 5_767_169
    assert [p.name for p in place.iterdir()] == ["runs"]
