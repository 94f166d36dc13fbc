"""Training, embedding and reconstructing: figures that padding does not touch, runs that are stopped, memory that is not there, files that are broken, and results that take nobody's place.

Broken on purpose to see each test fail: SSIM's windows over filler, its second constant, means over filler, means of batches in place of images; a seed that is not set, held-out drops
with a seed 2**32 away, parts of a batch rounded down, a resumed run that looks for another batch size; rows of the table in the order of the batches, images kept in memory, rows written one
after the other, inputs not looked for, expectations not compared, sizes not built on trial; filler left on copies, two pictures of one name."""
import csv
import importlib
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
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from stage_modules.autoencoder.cnn import ModelSettings, build_model
from stage_modules.autoencoder.embed import Embedder, SourceConfig, find_images, load_autoencoder
from stage_modules.autoencoder.embed import main as embed_main
from stage_modules.autoencoder.images import DropImages, collate_images, draw_drops, read_image
from stage_modules.autoencoder.model import Autoencoder_Transformer
from stage_modules.autoencoder.reconstruct import Reconstructor, picture_names
from stage_modules.autoencoder.reconstruct import main as reconstruct_main
from stage_modules.autoencoder.train import (ReconstructionLoss, TrainConfig, decide, fit_into_memory, fitting_batch_size, held_out_figures, image_figures, main, prepare, read_data, ssim,
    train)
from stage_modules.toolkit.checkpoints import load_checkpoint, save_checkpoint
from stage_modules.toolkit.errors import CheckpointError, DataError
from stage_modules.toolkit.training import Callback

training = importlib.import_module("stage_modules.autoencoder.train") # the package has a function of that name

SMALL = dict(preset="tiny", input_size=(24, 24), patch_size=8, num_layers=1, images=48, valid_images=8, batch_size=8, num_epochs=2, progress=False, tensorboard=False, device="cpu")
FLAGS = "--preset tiny --input_size 24 24 --patch-size 8 --num_layers 1 --images 48 --valid_images 8 --batch_size 8 --epochs 2 --no-progress --no-tensorboard --device cpu".split()
CNN = dict(model_type="cnn", channels=(8, 12), strides=(4, 2), depth=1, patch_size=None)


def config(**changes) -> TrainConfig:
    return TrainConfig(**SMALL | {"output_dir": None} | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    "The folder of a training run."
    folder = tmp_path_factory.mktemp("runs")
    train(config(output_dir=str(folder), exp_name="run"))
    return folder / "run"


@pytest.fixture
def pictures(tmp_path) -> Path:
    "Five pictures of several kinds and sizes, in two folders."
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.jpg", "more/a.tif", "c.npy", "d, \"e\".png"]):
        image = (255 * draw_drops((30 + i, 40 + 9 * i), 1, seed=i).frames[0, 0, 0].numpy()).astype(np.uint8)
        if name.endswith(".npy"): np.save(folder / name, image)
        else: Image.fromarray(image).save(folder / name)
    return folder


def said(capsys, command, *flags) -> tuple[int, str, str]:
    "Exit code, output and errors of a command."
    code = command([str(flag) for flag in flags])
    found = capsys.readouterr()
    return code, found.out, found.err


# ------------------------------------------------------------------ figures


def ssim_by_windows(x: np.ndarray, y: np.ndarray, widths: int) -> float:
    "The definition, one window at a time, in double precision; columns from `widths` on do not exist."
    x, y = x[:, :widths].astype(float), y[:, :widths].astype(float)
    d = np.arange(-5, 6)
    w = np.exp(-(d[:, None]**2 + d**2) / 4.5)
    w /= w.sum()
    found = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i:i + 11, j:j + 11], y[i:i + 11, j:j + 11]
            ma, mb = (w * a).sum(), (w * b).sum()
            va, vb, c = (w * (a - ma)**2).sum(), (w * (b - mb)**2).sum(), (w * (a - ma) * (b - mb)).sum()
            found.append((2 * ma * mb + .01**2) * (2 * c + .03**2) / ((ma**2 + mb**2 + .01**2) * (va + vb + .03**2)))
    return float(np.mean(found))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), height=st.integers(11, 16), widths=st.lists(st.integers(11, 20), min_size=1, max_size=3), noise=st.floats(0, 1))
def test_ssim_is_what_the_definition_says(seed, height, widths, noise):
    generator = torch.Generator().manual_seed(seed)
    batch = collate_images([torch.rand(1, height, width, generator=generator) for width in widths])
    output = batch.images + noise * torch.randn(batch.images.shape, generator=generator)
    found = ssim(output, batch.images, batch.pixel_mask)
    for i, width in enumerate(widths):
        assert found[i].item() == pytest.approx(ssim_by_windows(output[i, 0].numpy(), batch.images[i, 0].numpy(), width), abs=2e-4)
    assert (found <= 1 + 1e-6).all() and torch.allclose(ssim(batch.images, output, batch.pixel_mask), found, atol=1e-5)


def test_ssim_of_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    drop = draw_drops((60, 80), 1, seed=1).frames[0]
    noisy = (drop + .1 * torch.randn(drop.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    theirs = metrics.structural_similarity(noisy[0, 0].double().numpy(), drop[0, 0].double().numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)
    assert ssim(noisy, drop).item() == pytest.approx(theirs, abs=1e-4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), widths=st.lists(st.integers(11, 30), min_size=2, max_size=4), kind=st.sampled_from(["mse", "l1"]))
def test_figures_of_a_batch_are_those_of_its_images(seed, widths, kind):
    generator = torch.Generator().manual_seed(seed)
    batch = collate_images([torch.rand(1, 12, width, generator=generator) for width in widths])
    output = torch.rand(batch.images.shape, generator=generator)
    if batch.pixel_mask is not None: output = output.masked_fill(~batch.pixel_mask[:, None, None], 1e6) # filler must not count, whatever it is
    found = image_figures(output, *batch)
    for i, width in enumerate(widths):
        alone = image_figures(output[i:i + 1, ..., :width], batch.images[i:i + 1, ..., :width])
        for name in found: assert found[name][i].item() == pytest.approx(alone[name].item(), abs=1e-5)
    total, count = ReconstructionLoss(kind)(lambda images, pixel_mask: (output, None), batch)
    assert count == len(widths) and (total / count).item() == pytest.approx(found[kind].mean().item(), abs=1e-6)


def test_figures_of_sets_do_not_hang_on_the_batch_size():
    drops, model = DropImages(11, (24, 24), widths=(24, 40)), build_model(config()).eval()
    tables = [held_out_figures(training.ImageBatches(drops, size, shuffle=False))(model) for size in (1, 4, 11)]
    for table in tables[1:]: assert table == pytest.approx(tables[0], abs=1e-5)
    assert set(tables[0]) == {"valid_loss", "mse", "l1", "ssim"}
    narrow = held_out_figures(training.ImageBatches([torch.rand(1, 8, 30)] * 3, 2))(model)
    assert set(narrow) == {"valid_loss", "mse", "l1"}, "no window fits, and no figure is made up"


# ------------------------------------------------------------------ runs


@pytest.mark.parametrize("changes", [{}, CNN, {"widths": (24, 40), "loss": "l1", "dropout": .1}, {"tokens": "single", "patch_size": None}, {"mixed_precision": "bf16"}])
def test_stopped_and_resumed_to_the_bit(tmp_path, monkeypatch, changes):
    monkeypatch.setattr(training, "save_reconstructions", lambda *_: None) # drawing takes longer than training here
    class Stop(Callback):
        def on_step(self, trainer):
            if trainer.progress.step == 5: trainer.stop("interrupted")

    there = config(output_dir=str(tmp_path), **changes)
    whole = train(replace(there, exp_name="whole"))
    trainer, _ = prepare(replace(there, exp_name="broken"))
    trainer.callbacks.append(Stop())
    trainer.fit()
    resumed = train(replace(there, exp_name="broken", resume=True))
    for name, tensor in whole.model.state_dict().items(): assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert whole.figures == resumed.figures and not resumed.interrupted
    kept, _ = load_autoencoder(tmp_path / "broken")
    assert all(torch.equal(tensor, whole.model.state_dict()[name]) for name, tensor in kept.state_dict().items())


def test_killed_by_ctrl_c_and_resumed(tmp_path):
    flags = [*FLAGS, "--output_dir", str(tmp_path), "--epochs", "200", "--max-steps", "900"]
    run = subprocess.Popen([sys.executable, "-m", "stage_modules.autoencoder.train", *flags, "--exp_name", "broken"], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (tmp_path / "broken/last/config.json").exists() and run.poll() is None and time.monotonic() < until: time.sleep(.02)
    run.send_signal(signal.SIGINT)
    _, told = run.communicate(timeout=120)
    assert run.returncode == 130 and "resume=True goes on from there" in told, told
    step = load_checkpoint(tmp_path / "broken/last", with_state=True).state["progress"]["step"]
    assert 0 < step < 900 and read_image(tmp_path / "broken/reconstructions.png").shape[0] == 1
    resumed = train(config(output_dir=str(tmp_path), exp_name="broken", num_epochs=200, max_steps=step + 6, resume=True, warmup_steps=45))
    assert resumed.history[-1]["step"] == step + 6


def test_what_the_command_says(tmp_path, capsys, pictures):
    code, out, err = said(capsys, main, *FLAGS, "--output-dir", tmp_path, "--data_path", pictures, "--own-widths", "--valid_split", "last", "--valid-share", ".4")
    assert code == 0 and out.startswith("3 images, ") and "2 held out: MSE " in out and out.count("\n") == 1 and not err
    assert (tmp_path / "transformer-patch-tiny/reconstructions.png").exists()
    code, _, err = said(capsys, main, *FLAGS, "--output-dir", tmp_path, "--preset", "huge")
    assert code == 2 and err == "error: preset is 'huge', expected one of tiny, small, medium, large, xlarge\n"
    code, _, err = said(capsys, main, *FLAGS, "--output-dir", tmp_path, "--resume", "--exp-name", "transformer-patch-tiny", "--model-type", "cnn")
    assert code == 2 and "is of a run with model_type 'transformer', and this one has 'cnn'" in err


def test_bad_files(tmp_path, capsys, pictures):
    for name in "bad 1.png", "more/bad 2.jpg": (pictures / name).write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    flags = [*FLAGS, "--output_dir", tmp_path / "runs", "--data_path", pictures]
    code, _, err = said(capsys, main, *flags)
    assert code == 2 and "bad 1.png" in err and "bad 2.jpg" in err and "skip_bad_files" in err and not (tmp_path / "runs").exists()
    code, out, err = said(capsys, main, *flags, "--skip_bad_files")
    assert code == 0 and out.count("left out: ") == 2 and "bad 1.png" in out and "\n4 images, " in out
    for command, target in (embed_main, "--output"), (reconstruct_main, "--output_dir"):
        rest = ["--ckpt", tmp_path / "runs/transformer-patch-tiny", "--data_path", pictures, target, tmp_path / "results.npy", "--no-progress"]
        code, _, err = said(capsys, command, *rest)
        assert code == 2 and "bad 1.png" in err and "bad 2.jpg" in err and not (tmp_path / "results.npy").exists()
        code, out, err = said(capsys, command, *rest[:4], target, tmp_path / f"{command.__module__}.npy", "--no-progress", "--skip-bad-files")
        assert code == 0 and out.count("left out: ") == 2 and "\n5 images" in out


def test_bad_data(tmp_path, pictures):
    (tmp_path / "empty").mkdir()
    for changes, says in [(dict(data_path=str(tmp_path / "nowhere")), "no such folder"), (dict(data_path=str(tmp_path / "empty")), "no file matches"),
                          (dict(data_path=str(pictures / "more")), "leaves none of them to train on")]:
        with pytest.raises(DataError, match=says): train(config(**changes))
    for changes, says in [(dict(widths=(24, 8)), "size is"), (dict(input_size=(24, 0)), "input_size is"), (dict(widths=(24, 40), tokens="single", patch_size=None), "tokens is 'single'"),
                          (dict(num_heads=7), "num_heads is 7"), (dict(mixed_precision="fp16"), "fp16 needs a GPU"), (dict(data_path="real", widths=(24,)), "widths is"), (dict(noise=2.), "noise=2"),
                          (dict(latent=100), "latent is 100, expected 128 to 8192")]:
        if "fp16" in says and torch.cuda.is_available(): continue
        with pytest.raises(ValueError, match=says): train(config(**changes))


def test_held_out_images_are_others(pictures):
    drops = read_data(config(images=100, valid_images=100))
    assert not {image.sum().item() for image in drops.train} & {image.sum().item() for image in drops.valid}
    files = read_data(config(data_path=str(pictures), valid_share=.3))
    names = [{files.train.dataset.files[i].name for i in part.items} for part in (files.train, files.valid)]
    assert len(names[0]) == 3 and not names[0] & names[1]


def test_real_pictures(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "skimage", None)
    code, _, err = said(capsys, main, *FLAGS, "--data_path", "real")
    assert code == 2 and "stage_modules[images]" in err
    monkeypatch.undo()
    pytest.importorskip("skimage")
    data = read_data(config(data_path="real", input_size=(152, 200)))
    assert data.train[0].shape == (1, 152, 200) and len(data.valid) >= 1


def test_compile_is_asked_for_and_not_saved(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *args, **kwargs: asked.append(type(self)))
    done = train(config(compile=True, output_dir=str(tmp_path), exp_name="run"))
    assert asked == [Autoencoder_Transformer] and load_autoencoder(tmp_path / "run")[0].state_dict().keys() == done.model.state_dict().keys()


def test_the_time_there_is_decides_the_steps(monkeypatch):
    monkeypatch.setattr(training, "seconds_per_batch", lambda *_: 1.)
    trainer, _ = prepare(config(max_minutes=.15))
    assert trainer.total_steps == int(.9 * 9 / 1.1) and trainer.config.warmup_steps == 0
    trainer, _ = prepare(config(max_minutes=.15, gradient_accumulation_steps=2))
    assert trainer.total_steps == int(.9 * 9 / 1.1 / 2)


# ------------------------------------------------------------------ memory


@pytest.fixture
def room_for_two(monkeypatch):
    "A machine whose memory takes two images in training."
    forward = Autoencoder_Transformer.forward
    def small(self, x, *args, **kwargs):
        if len(x) > 2 and self.training: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB.")
        return forward(self, x, *args, **kwargs)
    monkeypatch.setattr(Autoencoder_Transformer, "forward", small)


def test_out_of_memory_says_what_helps(room_for_two, capsys):
    code, _, err = said(capsys, main, *FLAGS, "--output_dir", "None")
    assert code == 2 and err.count("\n") == 1
    ways = ["--auto_batch_size, or by hand --batch_size 4 --gradient_accumulation_steps 2", "--use_gradient_checkpointing", "--mixed_precision bf16", "--patch_size 16", "a smaller --input_size"]
    places = [err.index(way) for way in ways]
    assert places == sorted(places) and "a smaller --preset" not in err


def test_a_batch_that_fits_is_found(room_for_two, tmp_path):
    done = train(config(auto_batch_size=True, output_dir=str(tmp_path), exp_name="run"))
    assert (done.config.batch_size, done.config.gradient_accumulation_steps) == (2, 4)
    assert [row["step"] for row in done.history][-1] == 2 * 48 / 8, "a step sees as many images as were asked for"
    longer = train(config(auto_batch_size=True, output_dir=str(tmp_path), exp_name="run", resume=True, num_epochs=3))
    assert (longer.config.batch_size, longer.history[-1]["step"]) == (2, 18)


def test_memory_that_ends_in_the_middle_loses_nothing(tmp_path, monkeypatch, capsys):
    flags = [*FLAGS, "--output_dir", tmp_path, "--exp_name", "run", "--epochs", "3"]
    step = training.Engine.step
    def ends(self, *args):
        if ends.left == 0: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        ends.left -= 1
        return step(self, *args)
    ends.left = 8
    monkeypatch.setattr(training.Engine, "step", ends)
    code, _, err = said(capsys, main, *flags)
    assert code == 2 and "Nothing is lost" in err and "--use_gradient_checkpointing" in err
    monkeypatch.undo()
    code, _, err = said(capsys, main, *flags, "--resume", "--use_gradient_checkpointing")
    assert code == 0, err
    assert load_checkpoint(tmp_path / "run/last", with_state=True).state["progress"]["step"] == 18


@settings(max_examples=50, deadline=None, derandomize=True)
@given(start=st.integers(1, 300), room=st.integers(0, 300))
def test_the_first_half_that_fits(start, room):
    tried = []
    def attempt(size):
        tried.append(size)
        if size > room: raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("accelerate.utils.memory.clear_device_cache", lambda **_: None) # collecting garbage takes long, and there is none
        if not room:
            with pytest.raises(MemoryError): fitting_batch_size(attempt, start)
            return
        found = fitting_batch_size(attempt, start)
        assert found <= room and tried[-1] == found and (found == start or 2 * found + 1 > room)
        fitted = fit_into_memory(decide(config(batch_size=start)), 24, lambda _, size, __: attempt(size))
    assert fitted.batch_size == found and start <= fitted.batch_size * fitted.gradient_accumulation_steps < start + found


def test_other_errors_are_not_taken_for_it(monkeypatch):
    def broken(*_, **__): raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    monkeypatch.setattr(Autoencoder_Transformer, "forward", broken)
    for auto in False, True:
        with pytest.raises(RuntimeError, match="mat1 and mat2"): train(config(auto_batch_size=auto))


# ------------------------------------------------------------------ checkpoints


def test_a_checkpoint_of_something_else(run, tmp_path):
    for expected, says in [(dict(preset="small"), "preset 'tiny', expected 'small'"), (dict(tokens="single"), "tokens 'patch', expected 'single'"), (dict(model_type="cnn"), "expected 'cnn'"),
                           (dict(latent=256), "latent 128, expected 256")]:
        with pytest.raises(CheckpointError, match=says): Embedder.load(run, **expected)
    good = load_checkpoint(run / "best")
    for change in [{"preset": 5}, {"preset": ["tiny"]}, {"tokens": None}, {"latent": "many"}, {"latent": 1e99}, {"num_layers": -3}, {"num_heads": 0}, {"patch_size": 0}, {"input_size": 24}, {"input_size": [24, "a"]},
                   {"dropout": "x"}, {"model_type": "rnn"}, {"model_type": "cnn", "channels": [8, "x"]}, {"model_type": "cnn", "channels": [8.5, 12], "strides": [4, 4]}, {"model_type": "cnn", "strides": [4, 3, 2]}, {"token_dim": 8192, "num_heads": 4, "num_layers": 64}]:
        save_checkpoint(tmp_path / "damaged", build_model(config()), good.config | change)
        with pytest.raises(CheckpointError, match="damaged"): Embedder.load(tmp_path / "damaged")
    missing = {name: value for name, value in good.config.items() if name != "tokens"}
    save_checkpoint(tmp_path / "damaged", build_model(config()), missing)
    with pytest.raises(CheckpointError, match="'tokens' is missing"): Reconstructor.load(tmp_path / "damaged")


def test_damaged_weights(run, tmp_path):
    good, model = load_checkpoint(run / "best"), build_model(config())
    with torch.no_grad(): next(model.parameters()).view(-1)[3] = torch.nan
    save_checkpoint(tmp_path / "nan", model, good.config)
    with pytest.raises(CheckpointError, match="not finite"): Embedder.load(tmp_path / "nan")
    save_checkpoint(tmp_path / "short", model, good.config)
    weights = tmp_path / "short/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cut short"): Embedder.load(tmp_path / "short")


# ------------------------------------------------------------------ embedding


PEAK = """
import resource, sys
from pathlib import Path
from stage_modules.autoencoder.embed import main
code, status = main(sys.argv[1:]), Path("/proc/self/status")
# Linux counts in ru_maxrss what the process was before it became this program
lines = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM")] if status.exists() else []
print(code, int(lines[0][1]) / 2**10 if lines else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def test_memory_does_not_grow_with_the_number_of_pictures(tmp_path):
    "With images kept, 1,100 more of 96 x 96 float32 are 40 MB."
    run = train(config(patch_size=48, input_size=(96, 96), images=8, num_epochs=1, output_dir=str(tmp_path), exp_name="run")).config.folder # four tokens: fast
    one = (255 * draw_drops((96, 96), 1).frames[0, 0, 0].numpy()).astype(np.uint8)
    peaks = {}
    for count in 100, 1200:
        (tmp_path / str(count)).mkdir()
        for i in range(count): np.save(tmp_path / f"{count}/{i:04d}.npy", one)
        flags = ["--ckpt", run, "--data_path", tmp_path / str(count), "--size", "96", "96", "--batch_size", "50", "--output", tmp_path / f"of_{count}.npy", "--device", "cpu", "--no-progress"]
        found = subprocess.run([sys.executable, "-c", PEAK, *map(str, flags)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
        code, peak = found.stdout.splitlines()[-1].split()
        assert code == "0"
        peaks[count] = float(peak) # MiB
        assert np.load(tmp_path / f"of_{count}.npy", mmap_mode="r").shape == (count, 128)
    assert peaks[1200] - peaks[100] < 15, peaks


def test_the_table_has_the_order_of_the_names(run, tmp_path, capsys, pictures):
    output = tmp_path / "table.npy"
    code, _, err = said(capsys, embed_main, "--ckpt", run, "--data-path", pictures, "--own_widths", "--output", output, "--batch_size", "2", "--no-progress")
    assert code == 0, err
    with open(output.with_suffix(".csv"), newline="", encoding="utf-8") as file: rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a.png", "b.jpg", "c.npy", "d, \"e\".png", "more/a.tif"] and [int(row["row"]) for row in rows] == [0, 1, 2, 3, 4]
    embedder, source = Embedder.load(run), find_images(SourceConfig(str(pictures), own_widths=True), (24, 24))
    assert len({image.shape[2] for image in source.dataset}) > 1
    for i, vector in enumerate(np.load(output)):
        assert np.allclose(vector, embedder.embed([source.dataset[i]])[0], atol=1e-5), rows[i]["name"]


def test_drops_come_with_their_truth(run, tmp_path, capsys):
    output = tmp_path / "drops.npy"
    code, _, _ = said(capsys, embed_main, "--ckpt", run, "--images", 7, "--seed", 3, "--output", output, "--no-progress")
    with open(output.with_suffix(".csv"), newline="", encoding="utf-8") as file: rows = list(csv.DictReader(file))
    drops = DropImages(7, (24, 24), seed=3)
    assert code == 0 and [float(row["radius"]) for row in rows] == drops.radius.tolist() and [float(row["speed"]) for row in rows] == drops.speed.tolist()


@pytest.mark.parametrize("command, target", [(embed_main, "--output"), (reconstruct_main, "--output_dir")])
def test_nothing_takes_the_place_of_a_picture(run, capsys, pictures, command, target):
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    rest = ["--ckpt", run, "--no-progress", "--overwrite", target]
    inside = pictures / "c.npy" if command is embed_main else pictures
    code, _, err = said(capsys, command, *rest, inside, "--data_path", pictures)
    assert code == 2 and "never overwritten" in err
    code, _, err = said(capsys, command, *rest, pictures / ("new.npy" if command is embed_main else "new"), "--data_path", pictures)
    assert code == 2 and "searched for pictures" in err
    code, _, err = said(capsys, command, *rest, inside, "--data_path", pictures / ("c.npy" if command is embed_main else "a.png"))
    assert code == 2 and "never overwritten" in err
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before


def test_a_full_disk_leaves_what_was_there(run, tmp_path, capsys, monkeypatch):
    output = tmp_path / "table.npy"
    flags = ["--ckpt", run, "--images", 20, "--output", output, "--no-progress"]
    assert said(capsys, embed_main, *flags)[0] == 0
    before = output.read_bytes(), output.with_suffix(".csv").read_bytes()
    def full(file, shape, parts):
        next(iter(parts))
        file.write(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("stage_modules.autoencoder.embed.write_rows", full)
    code, _, err = said(capsys, embed_main, *flags, "--overwrite", "--seed", 9)
    assert code == 2 and "No space left" in err and (output.read_bytes(), output.with_suffix(".csv").read_bytes()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.npy"]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(widths=st.lists(st.sampled_from([24, 25, 40]), min_size=1, max_size=7), batch_size=st.integers(1, 8))
def test_embeddings_do_not_hang_on_the_batch(widths, batch_size):
    torch.manual_seed(0)
    model = build_model(ModelSettings(preset="tiny", patch_size=8, num_layers=1)).eval()
    images = [draw_drops((24, width), 1, seed=i).frames[0, 0] for i, width in enumerate(widths)]
    table = Embedder(model).embed(images, batch_size)
    with torch.no_grad():
        for image, row in zip(images, table): assert torch.allclose(model.Embedding(image[None])[0], row, atol=1e-5)
        drops = DropImages(9, (24, 24), widths=(40, 24, 32)) # a data set that knows its widths: batches are in another order
        for image, row in zip(drops, Embedder(model).embed(drops, batch_size)): assert torch.allclose(model.Embedding(image[None])[0], row, atol=1e-5)


# ------------------------------------------------------------------ reconstructing


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([f"{folder}{stem}{ending}" for folder in ("", "x/") for stem in ("a", "b", "a.b") for ending in (".png", ".jpg", ".npy", "")]), unique=True))
def test_copies_have_names_of_their_own(names):
    found = picture_names(names)
    assert len(set(found)) == len(names) and all(name.endswith(".png") for name in found)
    for name, copy in zip(names, found): assert copy.startswith(name.rsplit(".", 1)[0])


def test_a_folder_of_copies(run, tmp_path, capsys, pictures):
    code, _, err = said(capsys, reconstruct_main, "--ckpt", run, "--data_path", pictures, "--own-widths", "--output_dir", tmp_path / "copies", "--batch_size", 2, "--no-progress")
    assert code == 0, err
    report = json.loads((tmp_path / "copies/figures.json").read_text(encoding="utf-8"))
    assert sorted(row["file"] for row in report["images"]) == ["a.png", "b.png", "c.png", "d, \"e\".png", "more/a.png"]
    assert [row["mse"] for row in report["images"]] == sorted((row["mse"] for row in report["images"]), reverse=True)
    model, source = load_autoencoder(run)[0], find_images(SourceConfig(str(pictures), own_widths=True), (24, 24))
    for row in report["images"]:
        image = source.dataset[source.names.index(row["name"])]
        with torch.no_grad(): copy = model(image[None])[0][0]
        assert (read_image(tmp_path / "copies" / row["file"]) - copy.clamp(0, 1)).abs().max() < 1 / 255
        assert row["mse"] == pytest.approx((copy - image).square().mean().item(), rel=1e-3)


def test_a_model_for_one_size_says_which(tmp_path, capsys, pictures):
    train(config(tokens="single", patch_size=None, output_dir=str(tmp_path), exp_name="single"))
    code, out, err = said(capsys, reconstruct_main, "--ckpt", tmp_path / "single", "--data_path", pictures, "--output_dir", tmp_path / "copies", "--no-progress")
    assert code == 0 and out.startswith("5 images"), err
    code, _, err = said(capsys, embed_main, "--ckpt", tmp_path / "single", "--data_path", pictures, "--size", 24, 32, "--output", tmp_path / "x.npy", "--no-progress")
    assert code == 2 and "(24, 24)" in err and "tokens='patch' takes any size" in err and not (tmp_path / "x.npy").exists()
