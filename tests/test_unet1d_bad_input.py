"""What people, disks and strangers hand to the pose generator: every command answers in one line, and nothing that was there is harmed.

Broken on purpose to see each test fail: weights not looked at, True taken for a number, files written in place, other mid-blocks let through, an interrupt not
caught; and seen to fail before it was mended: a value of a million numbers in a message, memory that is not there."""
import json
import random
import shutil
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from stage_modules.toolkit import checkpoints
from stage_modules.toolkit.checkpoints import load_checkpoint, save_checkpoint
from stage_modules.toolkit.errors import CheckpointError
from stage_modules.unet1d import explore, flow
from stage_modules.unet1d.poses import Normaliser, make_poses
from stage_modules.unet1d.sample import GeneratorConfig, PoseGenerator, build_model, build_process, save_generator, written_beside
from stage_modules.unet1d.sample import main as sample_main
from stage_modules.unet1d.skeleton import default_skeleton
from stage_modules.unet1d.train import main as train_main

QUIET = ["--base_channels", "8", "--channel_multipliers", "1", "2", "--time_emb_dim", "16", "--mid_num_heads", "2", "--batch_size", "32", "--device", "cpu", "--no-progress",
         "--no-tensorboard", "--epochs", "1"]
FILES = ["config.json", "model.safetensors", "normaliser.json", "skeleton.json"]


def steady(examples: int) -> settings: return settings(derandomize=True, deadline=None, max_examples=examples)


def everything(folder: Path) -> dict[str, bytes]: return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".log"}


def said_once(code: int, capsys: pytest.CaptureFixture) -> str:
    "What a refused command says: exit code 2, one line."
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, (code, said)
    return said


@pytest.fixture(scope="module")
def rows() -> np.ndarray: return np.concatenate([clip.poses for clip in make_poses(3, 40)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray) -> Path:
    "A finished run of a convolution."
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "poses.npy", rows)
    assert train_main([*QUIET, "--data_path", str(folder / "poses.npy"), "--output_dir", str(folder), "--exp_name", "run"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray) -> dict[str, Path]:
    "Small checkpoints of each kind, with weights that are no average too."
    folder = tmp_path_factory.mktemp("tiny")
    for kind, middle in ("ddpm", "conv"), ("flow", "attention"):
        torch.manual_seed(0)
        config = GeneratorConfig(kind, middle, 2, 8, (1, 1), 4, timesteps=20)
        save_generator(PoseGenerator(build_model(config), build_process(config), Normaliser.fit(rows), default_skeleton(), config), folder / kind)
    return {kind: folder / kind for kind in ("ddpm", "flow")}


# ------------------------------------------------------------------ poses


def changed(rows: np.ndarray, value: float) -> np.ndarray:
    rows = rows.copy()
    rows[17, 5] = value
    return rows


NUMPY = {"NaN": (lambda r: changed(r, np.nan), "row 17"), "infinity": (lambda r: changed(r, np.inf), "row 17"), "minus infinity": (lambda r: changed(r, -np.inf), "row 17"),
         "too large": (lambda r: changed(r.astype(np.float64), 1e300), "row 17"), "wrong width": (lambda r: r[:, 1:], "shape"), "no rows": (lambda r: r[:0], "no rows"),
         "one axis": (lambda r: r.ravel(), "shape"), "three axes": (lambda r: r.reshape(120, -1, 8), "shape"), "text": (lambda r: np.array([["a"] * 72] * 9), "numbers"),
         "pickled": (lambda r: np.array([{"a": 1}] * 72, dtype=object), "without pickle"), "complex": (lambda r: r + 1j, "numbers"), "one row": (lambda r: r[:1], "left for"),
         "a number": (lambda r: np.float32(3.), "shape"), "truth": (lambda r: r > 0, "numbers")}


@pytest.mark.parametrize("width", [72, 128])
@pytest.mark.parametrize("name", NUMPY)
def test_poses_that_cannot_be_used_are_one_line(name: str, width: int, rows: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make, expected = NUMPY[name]
    data = make(np.concatenate([rows, rows], 1)[:, :width])
    np.save(tmp_path / "bad.npy", data, allow_pickle=True)
    said = said_once(train_main([*QUIET, "--pose_dim", str(width), "--data_path", str(tmp_path / "bad.npy"), "--output_dir", str(tmp_path / "runs")]), capsys)
    assert "bad.npy" in said and expected in said, said
    assert not (tmp_path / "runs").exists()


def test_files_that_are_no_arrays_are_one_line(rows: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(tmp_path / "whole.npz", a=rows)
    np.save(tmp_path / "whole.npy", rows)
    (tmp_path / "empty_folder").mkdir()
    whole = {end: (tmp_path / f"whole.{end}").read_bytes() for end in ("npy", "npz")}
    with zipfile.ZipFile(tmp_path / "none.npz", "w"): pass
    (tmp_path / "none.npz").write_bytes((tmp_path / "none.npz").read_bytes())
    for name, content in {"zero.npy": b"", "zero.npz": b"", "zero.amc": b"", "text.npy": b"1 2 3\n", "cut.npy": whole["npy"][:500], "cut.npz": whole["npz"][:500], "pickle.npy": b"\x80\x04N.",
                          "poses.csv": b"1,2,3\n", "alone.amc": b":FULLY-SPECIFIED\n:DEGREES\n1\nroot 0 0 0 0 0 0\n", "lies.npy": whole["npy"].replace(b"(120, 72)", b"(999, 72)"),
                          "huge.npy": whole["npy"].replace(b"(120, 72), }   ", b"(10**9, 72), }")}.items(): (tmp_path / name).write_bytes(content)
    bad = [p for p in sorted(tmp_path.iterdir()) if not p.name.startswith("whole")] + [tmp_path / "nowhere.npy", tmp_path / "whole.npy/inside.npy"]
    assert len(bad) > 12
    for path in bad:
        for width in "72", "128":
            said = said_once(train_main([*QUIET, "--pose_dim", width, "--data_path", str(path), "--output_dir", str(tmp_path / "runs")]), capsys)
            assert path.stem in said, said
    assert not (tmp_path / "runs").exists()


@pytest.mark.needs_data("cmu-mocap/02.asf", "cmu-mocap/02_01.amc")
@pytest.mark.parametrize("old, new, expected", [("lfemur ", "lfemurs ", "lfemurs"), ("\nltibia 1", "\nltibia 1 1", "ltibia"), ("\nltibia", "\nltibia NaN", ":"), (":DEGREES", ":RADIANS", "radians"),
    ("\r\n2\r\n", "\r\n5\r\n", ":")])
def test_motion_that_does_not_match_its_skeleton_is_one_line(old: str, new: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from stage_modules.toolkit.datasets import fetch
    shutil.copy(fetch("cmu-mocap/02.asf"), tmp_path / "02.asf")
    text = Path(fetch("cmu-mocap/02_01.amc")).read_bytes().decode()
    assert old in text
    (tmp_path / "02_01.amc").write_bytes(text.replace(old, new, 1).encode())
    said = said_once(train_main([*QUIET, "--data_path", str(tmp_path / "02_01.amc"), "--output_dir", str(tmp_path / "runs")]), capsys)
    assert "02_01.amc:" in said and expected in said and not (tmp_path / "runs").exists()


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize("flags, expected", [
    (["--mid_structure", "attention", "--mid_num_heads", "5"], "channels=16 is not a multiple of num_heads=5"), (["--channel_multipliers", "1", "2", "4", "8", "16"], "pose_dim=72 is not a multiple of 16"),
    (["--pose_dim", "130", "--channel_multipliers", "1", "2", "4"], "pose_dim=130 is not a multiple of 4"), (["--batch_size", "1"], "batch_size is 1, expected 2 or more"), (["--batch_size", "-3"], "batch_size is -3"),
    (["--base_channels", "7"], "base_channels=7"), (["--base_channels", "0"], "base_channels is 0"), (["--base_channels", "60000"], "parameters, and training it takes"), (["--time_emb_dim", "0"], "time_emb_dim is 0"),
    (["--timesteps", "0"], "timesteps is 0"), (["--timesteps", "1000000000"], "timesteps is 1000000000"), (["--learning_rate", "0"], "learning_rate is 0"), (["--learning_rate", "nan"], "learning_rate is nan"),
    (["--weight_decay", "-1"], "weight_decay is -1"), (["--grad_clip", "0"], "gradient_clip_norm is 0"), (["--epochs", "0"], "num_epochs is 0"), (["--log_interval", "0"], "log_every is 0"),
    (["--save_interval", "0"], "save_every is 0"), (["--ema_decay", "1"], "ema_decay is 1"), (["--seed", "-1"], "seed is -1"), (["--data_path", ""], "data_path is ''"), (["--exp_name", "../x"], "exp_name is '../x'"),
    (["--positions", "joints", "--pose_dim", "80"], "multiple of 24"), (["--data_path", "None", "--pose_dim", "128"], "pose_dim is 128"), (["--data_path", "cmu", "--pose_dim", "128"], "pose_dim is 128"),
    (["--channel_multipliers"], "channel_multipliers"), (["--channel_multipliers", "1", "-2"], "channel_multipliers"), (["--max_steps", "0"], "max_steps is 0"), (["--warmup_steps", "-1"], "warmup_steps is -1")])
def test_a_training_that_cannot_be_is_one_line(flags: list[str], expected: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert expected in said_once(train_main([*QUIET, "--data_path", str(run.parent / "poses.npy"), "--output_dir", str(tmp_path / "runs"), *flags]), capsys)
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("mine")
    for place in tmp_path / "file", tmp_path / "file/inside":
        said_once(train_main([*QUIET, "--data_path", str(run.parent / "poses.npy"), "--output_dir", str(place)]), capsys)
        for flag, name in ("--save_numpy", "x.npy"), ("--save_figure", "x.png"), ("--save_animation", "x.gif"):
            assert "is a file, expected a folder" in said_once(sample_main(["--ckpt", str(run), "--num_steps", "1", "--no-progress", flag, str(place / name)]), capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("flags, expected", [
    (["--num_samples", "0"], "num_samples is 0, expected 1 or more"), (["--num_samples", "-5"], "num_samples is -5"), (["--batch_size", "0"], "batch_size is 0"), (["--num_steps", "0"], "num_steps is 0, expected 1 to 1000"),
    (["--num_steps", "1001"], "num_steps is 1001"), (["--solver", "euler"], "solver is 'euler', expected one of ddpm, ddim: the checkpoint's model_type is 'ddpm'"), (["--solver", ""], "solver is ''"), (["--seed", "-1"], "seed is -1"),
    (["--mid_structure", "attention"], "error: this checkpoint has mid_structure='conv', asked for 'attention'\n"), (["--save_numpy", "x.txt"], "expected a file that ends in .npy"),
    (["--save_figure", "x.npy"], "expected a file that ends in .png"), (["--save_animation", "x"], "expected a file that ends in .gif"), (["--ckpt", "nowhere"], "there is no such folder"),
    (["--num_samples", "100000000000"], "Unable to allocate")])
def test_a_request_that_cannot_be_is_one_line(flags: list[str], expected: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in said_once(sample_main(["--ckpt", str(run), "--num_steps", "2", "--no-progress", *flags]), capsys)
    assert not list(tmp_path.iterdir())


def test_the_solvers_of_the_other_process(tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for kind, solver in ("flow", "ddim"), ("ddpm", "rk4"):
        said = said_once(sample_main(["--ckpt", str(tiny[kind]), "--solver", solver, "--no-progress", "--save_numpy", str(tmp_path / "x.npy")]), capsys)
        assert f"solver is '{solver}'" in said and f"model_type is '{kind}'" in said
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ nothing half-written


def test_the_other_mid_block_is_not_resumed(run: Path, capsys: pytest.CaptureFixture) -> None:
    before = everything(run)
    flags = [*QUIET, "--data_path", str(run.parent / "poses.npy"), "--output_dir", str(run.parent), "--exp_name", "run", "--resume"]
    assert said_once(train_main([*flags, "--mid_structure", "attention"]), capsys) == "error: this checkpoint has mid_structure='conv', asked for 'attention'\n"
    for flag, value in ("--model_type", "flow"), ("--timesteps", "10"):
        assert f"field '{flag[2:]}' came with" in said_once(train_main([*flags, flag, value]), capsys)
    assert everything(run) == before
    with pytest.raises(CheckpointError) as caught: PoseGenerator.load(run, mid_structure="attention")
    assert str(caught.value) == "this checkpoint has mid_structure='conv', asked for 'attention'"


def test_a_full_disk_leaves_the_run_as_it_was(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    before, written = everything(run), checkpoints._write_tensors
    def full(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        written(path, tensors)
        path.write_bytes(path.read_bytes()[:100]) # half of it is there when the disk says no
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(checkpoints, "_write_tensors", full)
    flags = [*QUIET, "--data_path", str(run.parent / "poses.npy"), "--output_dir", str(run.parent), "--exp_name", "run", "--resume", "--epochs", "2"]
    assert "No space left on device" in said_once(train_main(flags), capsys)
    assert everything(run) == before


class Stopped:
    "An exception half-way through writing a file."
    def __init__(self, error: BaseException): self.error = error
    def __call__(self, *args: Any, **_: Any) -> None:
        target = next(a for a in args if isinstance(a, (str, Path)) or hasattr(a, "write"))
        target.write(b"half") if hasattr(target, "write") else Path(target).write_bytes(b"half")
        raise self.error


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
@pytest.mark.parametrize("flag, name, where", [("--save_numpy", "x.npy", (np, "save")), ("--save_figure", "x.png", (explore.Figure, "savefig")), ("--save_animation", "x.gif", (explore.Animation, "save"))])
def test_a_file_is_replaced_when_the_new_one_is_whole(flag: str, name: str, where: tuple[Any, str], error: BaseException, code: int, run: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / name).write_bytes(b"what was there")
    ask = ["--ckpt", str(run), "--num_samples", "2", "--num_steps", "2", "--no-progress", flag, str(tmp_path / name)]
    with monkeypatch.context() as patch:
        patch.setattr(*where, Stopped(error) if where[0] is np else lambda self, *args, **more: Stopped(error)(*args))
        assert sample_main(ask) == code
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"what was there")]
    assert capsys.readouterr().err.count("\n") == (code == 2)
    assert sample_main(ask) == 0 and (tmp_path / name).stat().st_size > 500 and len(list(tmp_path.iterdir())) == 1


def test_an_interrupt_while_sampling_or_reading_writes_nothing(tiny: dict[str, Path], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def press(*_: Any, **__: Any) -> None: raise KeyboardInterrupt
    monkeypatch.setattr(flow.FlowMatching, "sample", press)
    assert sample_main(["--ckpt", str(tiny["flow"]), "--no-progress", "--save_numpy", str(tmp_path / "x.npy")]) == 130
    monkeypatch.setattr("stage_modules.unet1d.train.read_poses", press)
    assert train_main([*QUIET, "--data_path", str(run.parent / "poses.npy"), "--output_dir", str(tmp_path / "runs")]) == 130
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""


def test_what_a_kill_left_beside_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".writing.x.npy").write_bytes(b"half")
    with written_beside(tmp_path / "x.npy") as new: new.write_bytes(b"whole")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.npy", b"whole")]


# ------------------------------------------------------------------ checkpoints


def sample_or_refuse(folder: Path) -> str | None:
    "Poses from the folder, or what was said instead; the folder as it was."
    before = everything(folder)
    try: generator = PoseGenerator.load(folder)
    except CheckpointError as error:
        assert str(error) and len(str(error)) < 2000
        return str(error)
    try: poses = generator.sample(2, num_steps=1)
    except FloatingPointError as error: return str(error) # finite weights, and numbers that are not
    finally: assert everything(folder) == before
    assert poses.shape == (2, generator.config.pose_dim) and np.isfinite(poses).all()


strange = st.sampled_from([None, True, False, 0, -1, 1, 2, 3, 2**40, 10**30, 10**400, .5, 1e300, float("nan"), float("inf"), "", "x", "conv", "attention", "flow", "joints", "cosine", "\ud800",
                           [], [1], [1, 1, 1], ["a"], [[]], [1] * 40, [0, 1], [2**40], [True], {}, {"a": 1}])
CONFIG = [name for name in asdict(GeneratorConfig())]


def put(folder: Path, source: Path, file: str, value: Any) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / file).write_text(json.dumps(value), encoding="utf-8")


@steady(150)
@given(st.sampled_from(["ddpm", "flow"]), st.sampled_from(CONFIG), strange)
@example("ddpm", "base_channels", 2**16) # would fill the memory
@example("ddpm", "timesteps", 2**40)
@example("ddpm", "channel_multipliers", [1] * 10**6) # would never end
@example("ddpm", "pose_dim", 2**20)
@example("flow", "mid_num_heads", 0) # a division by zero
@example("flow", "mid_structure", "conv")
@example("ddpm", "positions", "joints")
def test_a_changed_configuration_samples_or_is_refused(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, kind: str, name: str, new: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed generator"
    put(folder, tiny[kind], "config.json", json.loads((tiny[kind] / "config.json").read_text()) | {name: new})
    sample_or_refuse(folder)


@pytest.mark.parametrize("name, new, expected", [("model_type", "gan", "model_type is 'gan'"), ("base_channels", 2**15, "came with shape"), ("base_channels", "8", "field 'base_channels' came with '8'"),
    ("base_channels", True, "came with True"), ("timesteps", 10**400, "timesteps is 1000"), ("pose_dim", 128, "normaliser"), ("mid_structure", "attention", "is missing"), ("channel_multipliers", "1,2", "came with '1,2'")])
def test_what_is_wrong_with_a_configuration_is_named(name: str, new: Any, expected: str, tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    put(tmp_path / "c", tiny["ddpm"], "config.json", json.loads((tiny["ddpm"] / "config.json").read_text()) | {name: new})
    assert expected in said_once(sample_main(["--ckpt", str(tmp_path / "c"), "--no-progress", "--save_numpy", str(tmp_path / "x.npy")]), capsys)
    assert not (tmp_path / "x.npy").exists()


@steady(120)
@given(st.sampled_from(["normaliser.json", "skeleton.json"]), st.integers(0, 10**6), strange)
@example("normaliser.json", 0, [])
@example("normaliser.json", 3, 10**400)
@example("normaliser.json", 3, float("nan"))
@example("normaliser.json", 3, 1e300)
@example("skeleton.json", 5, float("nan"))
@example("skeleton.json", 5, 10**400)
def test_a_changed_normaliser_or_skeleton_samples_or_is_refused(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, file: str, number: int, new: Any) -> None:
    folder, data = tmp_path_factory.getbasetemp() / "other", json.loads((tiny["ddpm"] / file).read_text())
    places = [()]
    for place in places: # every place in the JSON value
        part = data
        for key in place: part = part[key]
        places += [(*place, key) for key in (part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ())]
    place = places[number % len(places)]
    part = data
    for key in place[:-1]: part = part[key]
    if place: part[place[-1]] = new
    put(folder, tiny["ddpm"], file, data if place else new)
    sample_or_refuse(folder)


@steady(150)
@given(st.sampled_from(["ddpm", "flow"]), st.sampled_from(FILES), st.sampled_from(["flip", "cut", "insert", "remove", "append"]), st.integers(0, 2**32), st.binary(min_size=1, max_size=4))
def test_damaged_bytes_sample_or_are_refused(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, kind: str, file: str, damage: str, seed: int, new: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    shutil.copytree(tiny[kind], folder, dirs_exist_ok=True)
    content = (folder / file).read_bytes()
    at = random.Random(seed).randrange(min(len(content), random.Random(seed + 1).choice([64, len(content)]))) # headers are short, and worth a second visit
    (folder / file).write_bytes({"flip": content[:at] + new[:1] + content[at + 1:], "cut": content[:at], "insert": content[:at] + new + content[at:],
                                 "remove": content[:at] + content[at + len(new):], "append": content + new}[damage])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore") # of torch, about odd sizes
        sample_or_refuse(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_gone_or_of_another_kind(file: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    for content in b"[" * 100_000, b"1" * 5000, b"NaN", b"\xef\xbb\xbf{}", b"\0" * 100, b"\xff\xfe{", b"", b"[1]", b"{}", b'{"a": "\\ud800"}', b"not JSON", b'"text"', b"null":
        shutil.copytree(tiny["ddpm"], tmp_path / "c", dirs_exist_ok=True)
        (tmp_path / "c" / file).write_bytes(content)
        assert sample_or_refuse(tmp_path / "c")
    (tmp_path / "c" / file).unlink()
    found = sample_or_refuse(tmp_path / "c")
    assert found is None if file == "skeleton.json" else file in found # our own body stands in


def test_weights_that_are_no_numbers_are_named(tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = load_checkpoint(tiny["ddpm"])
    class Weights(nn.Module):
        def state_dict(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]: return found.tensors | {"out.bias": torch.tensor([torch.nan])}
    save_checkpoint(tmp_path / "c", Weights(), found.config, found.files)
    said = said_once(sample_main(["--ckpt", str(tmp_path / "c"), "--no-progress", "--save_numpy", str(tmp_path / "x.npy")]), capsys)
    assert "model.safetensors: tensor 'out.bias' holds numbers that are not finite" in said and not (tmp_path / "x.npy").exists()


def test_a_checkpoint_of_something_else_is_none_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_checkpoint(tmp_path / "last", nn.Linear(2, 2), {"hidden_size": 3})
    assert "is not of a pose generator: field 'model_type' is missing" in said_once(sample_main(["--ckpt", str(tmp_path), "--no-progress"]), capsys)
    np.save(tmp_path / "poses.npy", np.random.default_rng(0).normal(size=(60, 72)))
    before = everything(tmp_path)
    said_once(train_main([*QUIET, "--data_path", str(tmp_path / "poses.npy"), "--output_dir", str(tmp_path), "--exp_name", ".", "--resume"]), capsys)
    assert everything(tmp_path) == before


def test_samples_that_are_no_numbers_are_told(tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    put(tmp_path / "c", tiny["ddpm"], "normaliser.json", {"mean": [0.] * 72, "std": [1e300] * 72})
    said = said_once(sample_main(["--ckpt", str(tmp_path / "c"), "--no-progress", "--num_samples", "2", "--save_numpy", str(tmp_path / "x.npy")]), capsys)
    assert "are not finite" in said and not (tmp_path / "x.npy").exists()
