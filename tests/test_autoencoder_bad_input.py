"""What people, disks and small machines hand to the autoencoder: every command answers in one line, and nothing that was there is harmed.

Broken on purpose to see each test fail: numbers of a data set not looked at, the length of a size not compared, a name of a preset not asked to be text, pictures scaled before they are cut, links that
lead nowhere left out in silence, access to a folder not asked for, MemoryError not taken for a lack of memory, a first step that does not fit given up, advice to switch on what is on, embeddings kept."""
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset

from stage_modules.autoencoder import images as images_module
from stage_modules.autoencoder.cnn import Autoencoder_CNN
from stage_modules.autoencoder.embed import Embedder
from stage_modules.autoencoder.embed import main as embed_main
from stage_modules.autoencoder.images import DropImages, ImageFolder, as_images, draw_drops, fit_image, scaled_size
from stage_modules.autoencoder.model import Autoencoder_Transformer, create_autoencoder
from stage_modules.autoencoder.reconstruct import Reconstructor
from stage_modules.autoencoder.reconstruct import main as reconstruct_main
from stage_modules.autoencoder.train import TrainConfig, fitting_batch_size, main, train
from stage_modules.toolkit.checkpoints import load_checkpoint
from stage_modules.toolkit.errors import CheckpointError, DataError, ShapeError
from stage_modules.toolkit.training import Engine

training = importlib.import_module("stage_modules.autoencoder.train") # the package has a function of that name

FLAGS = "--preset tiny --input_size 24 24 --num_layers 1 --images 16 --valid_images 4 --batch_size 8 --epochs 1 --no-progress --no-tensorboard --device cpu".split()
COMMANDS = [(embed_main, "--output", "out.npy"), (reconstruct_main, "--output_dir", "out")]
LITTLE = dict(preset="tiny", num_layers=1)


def digest(folder: Path) -> dict[str, bytes]: return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    "Training runs of both tokenisations."
    folder = tmp_path_factory.mktemp("runs")
    for tokens in "patch", "single":
        train(TrainConfig(**LITTLE, tokens=tokens, input_size=(24, 32), images=16, valid_images=4, batch_size=8, num_epochs=1, progress=False, tensorboard=False, device="cpu", output_dir=str(folder), exp_name=tokens))
    return {tokens: folder / tokens for tokens in ("patch", "single")}


@pytest.fixture
def pictures(tmp_path) -> Path:
    "Three good pictures."
    (tmp_path / "pictures").mkdir()
    for i in range(3): Image.fromarray((255 * draw_drops((24, 32), 1, seed=i).frames[0, 0, 0].numpy()).astype(np.uint8)).save(tmp_path / f"pictures/{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def refused(capsys):
    "Runs a command that must not go through, and returns its one line."
    def run(command, *flags) -> str:
        code = command([str(flag) for flag in flags])
        out, err = capsys.readouterr()
        assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1, (code, out, err)
        return err
    return run


# ------------------------------------------------------------------ images


class Same(Dataset):
    "A data set of somebody else: the same image again and again, but for one."
    def __init__(self, good, bad, place): self.good, self.bad, self.place = good, bad, place
    def __len__(self): return 5
    def __getitem__(self, i): return self.bad if i == self.place else self.good


GOOD = torch.full((1, 24, 32), .5)


@pytest.mark.parametrize("bad, says", [
    (torch.rand(3, 24, 32), "image 0 has shape (3, 24, 32)"), (torch.full((1, 24, 32), 2.), "image 3 holds 2 at row 0, column 0"), (torch.full((1, 24, 32), 255.), "divided by 255"),
    (GOOD.index_fill(2, torch.tensor([7]), torch.nan), "image 3 holds nan at row 0, column 7"), (GOOD.index_fill(1, torch.tensor([5]), -torch.inf), "image 3 holds -inf at row 5, column 0"),
    (np.full((1, 24, 32), .5), "is of type ndarray"), (torch.rand(1, 24, 0), "24 high and 0 wide"),
])
def test_bad_images_of_a_data_set_are_named(runs, bad, says):
    for reader in Embedder.load(runs["patch"]).embed, Reconstructor.load(runs["patch"]).reconstruct:
        place = 3
        if "image 0" in says or "wide" in says or "ndarray" in says: place = 0 # one batch for each: the place in it is what can be named
        with pytest.raises((ValueError, TypeError)) as error: reader(Same(GOOD, bad, place), batch_size=1 if place == 0 else 2)
        assert says in str(error.value)


def test_images_that_say_what_white_is_are_converted(runs):
    embedder, eight = Embedder.load(runs["patch"]), np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)
    expected = embedder.embed(eight / 255)
    for same in eight, np.moveaxis(eight, -1, 1), eight.astype(np.uint16) * 257, torch.from_numpy(eight), list(eight), as_images(eight):
        assert torch.allclose(embedder.embed(same), expected, atol=1e-5)
    for wrong, says in (eight.astype(int), "is of type int64"), (eight.astype(float), "divided by 255"), ([], "of 0 images"), (np.zeros((2, 24, 0)), "without pixels"):
        with pytest.raises(ValueError, match=says): embedder.embed(wrong)


MODELS = {"patch": lambda: create_autoencoder((24, 32), **LITTLE).eval(), "single": lambda: create_autoencoder((24, 32), tokens="single", **LITTLE).eval(), "cnn": lambda: Autoencoder_CNN(128, (24, 32), (8, 12), (4, 2)).eval()}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_names_what_it_cannot_take_and_the_way_out(kind):
    model = MODELS[kind]()
    asks = [model, model.Embedding] + ([] if kind == "cnn" else [model.get_attention_maps])
    for bad, says in [(torch.rand(2, 3, 24, 32), "which is colour"), (torch.zeros(2, 1, 24, 32, dtype=torch.uint8), "torch.uint8"), (np.zeros((2, 1, 24, 32)), "is of type ndarray"), ([[.5]], "is of type list"),
                      (None, "is of type NoneType")]:
        for ask in asks:
            with pytest.raises((TypeError, ShapeError), match=says) as error: ask(bad)
            assert "`as_images` converts" in str(error.value)
    for size in (0, 32), (24, 0):
        for ask in asks:
            with pytest.raises(ValueError, match=f"{size[0]} high and {size[1]} wide"): ask(torch.rand(2, 1, *size))
    for size in 24, "24x32", (24,), (24., 32), (1, 24, 32), (24, 0), (-24, 32), (True, 32):
        with pytest.raises(ValueError, match="expected .height, width., each at least 1 pixel") as error: model.decode(torch.zeros(1, 128), size)
        assert f"size is {size!r}" in str(error.value)
    assert model.decode(torch.zeros(1, 128), (np.int64(24), np.int64(32))).shape == (1, 1, 24, 32)


def test_one_pixel_is_an_image():
    for kind in "patch", "cnn":
        with torch.no_grad(): assert MODELS[kind]()(torch.rand(2, 1, 1, 1))[0].shape == (2, 1, 1, 1)
    assert create_autoencoder((1, 1), tokens="single", **LITTLE).eval()(torch.rand(2, 1, 1, 1))[0].isfinite().all()


@pytest.mark.parametrize("overrides, says", [
    (dict(preset=["tiny"]), "expected one of tiny, small, medium, large, xlarge"), (dict(preset=None), "expected one of tiny"), (dict(input_size="24x32"), "input_size is '24x32'"),
    (dict(use_flash_attention="no"), "use_flash_attention is 'no', expected True or False"), (dict(use_gradient_checkpointing=1), "use_gradient_checkpointing is 1"), (dict(tokens=["patch"]), "expected patch or single"),
])
def test_settings_of_the_wrong_kind_are_named(overrides, says):
    with pytest.raises(ValueError, match=says): create_autoencoder(**{"preset": "tiny"} | overrides)


def test_the_maps_of_one_token_come_with_a_warning():
    with pytest.warns(UserWarning, match="every attention map is the number 1: .* a softmax over one score is 1") as told:
        maps = MODELS["single"]().get_attention_maps(torch.rand(2, 1, 24, 32), average_heads=False)
    assert len(told) == 1 and {name: (tuple(m.shape), m.min().item(), m.max().item()) for name, m in maps.items()} == {name: ((2, 4, 1, 1), 1., 1.) for name in ("layer_0", "average")}


# ------------------------------------------------------------------ sizes


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.tuples(st.integers(1, 40), st.integers(1, 300)), wanted=st.tuples(st.integers(1, 40), st.integers(1, 40)), turned=st.booleans())
def test_cutting_first_gives_what_scaling_first_gave(size, wanted, turned):
    if turned: size = size[::-1]
    rows, columns = torch.linspace(0, 1, size[0])[:, None], torch.linspace(0, 1, size[1])
    image = ((rows + columns) / 2)[None] # smooth, and nowhere the same
    scaled = scaled_size(size, wanted)
    whole = torch.nn.functional.interpolate(image[None], scaled, mode="bilinear", antialias=True)[0]
    top, left = (scaled[0] - wanted[0]) // 2, (scaled[1] - wanted[1]) // 2
    step = max(rows.diff(dim=0).max().item() if size[0] > 1 else 0, columns.diff().max().item() if size[1] > 1 else 0) # one pixel of the original
    assert (fit_image(image, wanted) - whole[:, top:top + wanted[0], left:left + wanted[1]]).abs().max() <= step / 2 + 1e-5


def test_a_line_of_a_hundred_thousand_pixels_is_a_picture(monkeypatch):
    interpolate, seen = images_module.F.interpolate, []
    def note(x, size, **settings):
        seen.append(size[0] * size[1])
        return interpolate(x, size, **settings)
    monkeypatch.setattr(images_module.F, "interpolate", note)
    for shape in (1, 100_000), (100_000, 1): assert fit_image(torch.rand(1, *shape), (201, 201)).shape == (1, 201, 201)
    assert max(seen) < 100 * 201 * 201, "it would be 4 billion pixels"


def test_pictures_of_any_size_go_through_the_command(runs, tmp_path, pictures, capsys):
    for name, shape in {"line": (1, 100_000), "dot": (1, 1)}.items(): Image.fromarray(np.full(shape, 90, np.uint8)).save(pictures / f"{name}.png")
    for tokens in runs:
        assert embed_main(["--ckpt", str(runs[tokens]), "--data_path", str(pictures), "--output", str(tmp_path / f"{tokens}.npy"), "--no-progress"]) == 0
        assert np.load(tmp_path / f"{tokens}.npy").shape == (5, 128)


@pytest.mark.parametrize("command, flag, name", COMMANDS)
def test_a_model_for_one_size_tells_a_command_which(runs, tmp_path, refused, pictures, command, flag, name):
    for size, says in ((32, 24), "(width, height)"), ((24, 24), "(24, 32)"):
        told = refused(command, "--ckpt", runs["single"], "--data_path", pictures, "--size", *size, flag, tmp_path / name, "--no-progress")
        assert says in told and "tokens='patch' takes any size" in told and not (tmp_path / name).exists()


@pytest.mark.parametrize("command, flag, name", COMMANDS)
@pytest.mark.parametrize("flags, says", [
    (["--size", 24, 0], "size is (24, 0)"), (["--size", -24, 24], "size is (-24, 24)"), (["--images", 0], "images is 0, expected 1 or more"), (["--batch_size", 0], "batch_size is 0"), (["--seed", -1], "seed is -1"),
    (["--seed", 2**70], "expected 0 to 4294967295"), (["--noise", "nan"], "noise=nan"), (["--preset", "small"], "preset 'tiny', expected 'small'"), (["--tokens", "single"], "tokens 'patch', expected 'single'"),
    (["--model_type", "cnn"], "expected 'cnn'"), (["--latent", 256], "latent 128, expected 256"), (["--own_widths"], "own_widths is True"), (["--data_path", "nowhere"], "nowhere: no such folder"), (["--ckpt", "nowhere"], "no such folder"),
])
def test_flags_that_cannot_be_are_named(runs, tmp_path, refused, command, flag, name, flags, says):
    assert says in refused(command, "--ckpt", runs["patch"], flag, tmp_path / name, "--no-progress", *flags)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("flags, says", [
    (["--preset", "huge"], "expected one of tiny, small, medium, large, xlarge"), (["--num_heads", 7], "num_heads is 7, expected a divisor of token_dim=80"), (["--tokens", "single", "--latent", 130], "num_heads is 4, expected a divisor of latent=130"),
    (["--input_size", 24, 0], "input_size is (24, 0)"), (["--widths", 24, 0], "size is (24, 0)"), (["--latent", 100], "128 to 8192"), (["--data_seed", -1], "data_seed is -1"), (["--tokens", "single", "--widths", 24, 40], "tokens is 'single', expected patch where images differ in width"),
])
def test_training_flags_that_cannot_be_are_named(tmp_path, refused, flags, says):
    assert says in refused(main, *FLAGS, "--output_dir", tmp_path / "runs", *flags)
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------ files


def test_every_kind_of_broken_file_is_named_and_can_be_left_out(runs, tmp_path, pictures, refused, capsys):
    whole = (pictures / "0.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[:len(whole) // 2]) # its header is fine
    (pictures / "empty.png").touch()
    (pictures / "text.jpg").write_text("not a picture")
    (pictures / "gone.png").symlink_to(tmp_path / "nowhere.png")
    np.save(pictures / "strip.npy", np.zeros((24, 0)))
    np.save(pictures / "nan.npy", np.full((24, 32), np.nan))
    bad, before = ["cut.png", "empty.png", "text.jpg", "gone.png", "strip.npy", "nan.npy"], digest(pictures)
    commands = [(main, FLAGS, "--output_dir", "runs")] + [(command, ["--ckpt", runs["patch"], "--no-progress"], flag, name) for command, flag, name in COMMANDS]
    for command, flags, target, name in commands:
        told = refused(command, *flags, "--data_path", pictures, target, tmp_path / name)
        assert "6 of 9 files cannot be used (skip_bad_files leaves them out)" in told and all(name in told for name in bad) and not (tmp_path / name).exists()
        assert command([str(f) for f in [*flags, "--data_path", pictures, target, tmp_path / name, "--skip_bad_files"]]) == 0
        out = capsys.readouterr().out
        assert out.count("left out: ") == 6 and all(name in out for name in bad)
    assert digest(pictures) == before and np.load(tmp_path / "out.npy").shape == (3, 128) and len(list((tmp_path / "out").glob("*.png"))) == 3


@pytest.mark.parametrize("command, flag, name", COMMANDS)
def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(runs, tmp_path, pictures, refused, monkeypatch, command, flag, name):
    (tmp_path / "nothing").mkdir()
    rest = ["--ckpt", runs["patch"], "--no-progress", flag, tmp_path / name, "--data_path"]
    assert "no file matches" in refused(command, *rest, tmp_path / "nothing")
    if os.geteuid() == 0: monkeypatch.setattr(images_module.os, "access", lambda path, mode: Path(path) != pictures) # root may read everything
    else: pictures.chmod(0)
    try: assert f"{pictures}: this folder cannot be read" in refused(command, *rest, pictures)
    finally: pictures.chmod(0o755)


def test_a_file_that_may_not_be_read_is_one_of_the_broken(pictures, monkeypatch):
    if os.geteuid() != 0: (pictures / "1.png").chmod(0)
    else: # who may read everything
        usual = Path.open
        def forbidden(self, *args, **settings):
            if self.name == "1.png": raise PermissionError(13, "Permission denied", str(self))
            return usual(self, *args, **settings)
        monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(DataError, match=r"1 of 3 files [\s\S]*1\.png: cannot be read: .*Permission denied"): ImageFolder(pictures)
    assert [file.name for file in ImageFolder(pictures, skip_bad_files=True).files] == ["0.png", "2.png"]


def test_a_picture_that_vanishes_meanwhile_is_named_and_results_stay(runs, tmp_path, pictures, refused, capsys, monkeypatch):
    flags = ["--ckpt", runs["patch"], "--data_path", pictures, "--output", tmp_path / "out.npy", "--no-progress", "--batch_size", 1]
    assert embed_main([str(flag) for flag in flags]) == 0
    capsys.readouterr()
    before, batches = (tmp_path / "out.npy").read_bytes(), Embedder.batches
    def vanish(self, *args, **settings):
        for batch in batches(self, *args, **settings):
            (pictures / "2.png").unlink(missing_ok=True)
            yield batch
    monkeypatch.setattr(Embedder, "batches", vanish)
    assert "2.png: no such file" in refused(embed_main, *flags, "--overwrite") and (tmp_path / "out.npy").read_bytes() == before


def test_places_where_nothing_can_be_written_are_named_before_the_work(runs, tmp_path, refused):
    (tmp_path / "file").write_text("something else")
    rest = ["--ckpt", runs["patch"], "--images", 3, "--no-progress"]
    for command, flag, names in (embed_main, "--output", ("file/out.npy", "file/er/out.npy")), (reconstruct_main, "--output_dir", ("file", "file/er")):
        for name in names:
            told = refused(command, *rest, flag, tmp_path / name)
            assert "file" in told and "expected a folder" in told
    (tmp_path / "taken.npy").mkdir()
    assert "is a folder, expected a file" in refused(embed_main, *rest, "--output", tmp_path / "taken.npy")
    assert (tmp_path / "file").read_text() == "something else"
    assert embed_main([str(flag) for flag in [*rest, "--output", tmp_path / "not/yet/there.npy"]]) == 0


# ------------------------------------------------------------------ checkpoints


def test_a_run_of_something_else_is_neither_resumed_nor_replaced(runs, tmp_path, refused):
    for tokens in runs: shutil.copytree(runs[tokens], tmp_path / tokens)
    for name, flags, says in [("patch", ["--preset", "small"], "preset 'tiny'"), ("patch", ["--tokens", "single"], "tokens 'patch'"), ("single", [], "tokens 'single', and this one has 'patch'"),
                              ("patch", ["--latent", 256], "'latent' came with 128, expected 256"), ("patch", ["--model_type", "cnn"], "model_type 'transformer'"), ("patch", ["--input_size", 32, 24], "'input_size' came with")]:
        before, rest = digest(tmp_path / name), [*FLAGS, "--input_size", 24, 32, "--output_dir", tmp_path, "--exp_name", name, *flags]
        assert "holds a run already" in refused(main, *rest)
        assert says in refused(main, *rest, "--resume") and digest(tmp_path / name) == before


@pytest.mark.parametrize("command, flag, name", COMMANDS)
def test_cut_files_of_a_checkpoint_are_named(runs, tmp_path, refused, command, flag, name):
    shutil.copytree(runs["patch"] / "best", tmp_path / "best")
    for file in "config.json", "model.safetensors":
        whole = (tmp_path / "best" / file).read_bytes()
        for length in 0, 7, len(whole) // 2, len(whole) - 1:
            (tmp_path / "best" / file).write_bytes(whole[:length])
            told = refused(command, "--ckpt", tmp_path / "best", flag, tmp_path / name, "--no-progress")
            assert f"{file}: is " in told and "cut short" in told and not (tmp_path / name).exists()
        (tmp_path / "best" / file).unlink()
        assert f"{file} is missing" in refused(command, "--ckpt", tmp_path / "best", flag, tmp_path / name)
        (tmp_path / "best" / file).write_bytes(whole)


json_values = st.recursive(st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats(allow_nan=True) | st.sampled_from(["", "tiny", "patch", "single", "cnn", "24"]), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=4)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(field=st.sampled_from(["input_size", "preset", "tokens", "patch_size", "latent", "num_heads", "num_layers", "token_dim", "dropout", "use_flash_attention", "use_gradient_checkpointing", "model_type", "channels", "strides", "depth"]), value=json_values)
def test_any_value_of_a_setting_is_taken_or_refused_by_name_of_the_file(runs, tmp_path_factory, field, value):
    place = tmp_path_factory.getbasetemp() / "damaged"
    if not place.exists(): shutil.copytree(runs["patch"] / "best", place)
    config = json.loads((runs["patch"] / "best/config.json").read_text()) | {field: value}
    (place / "config.json").write_text(json.dumps(config))
    try: embedder = Embedder.load(place)
    except CheckpointError as error: assert "damaged" in str(error)
    else: assert embedder.embed(GOOD[None]).shape == (1, 128)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(place=st.integers(0, 10**6), value=st.integers(0, 255), header=st.booleans())
def test_a_changed_byte_of_the_weights_loads_or_is_refused_by_name_of_the_file(runs, tmp_path_factory, place, value, header):
    folder = tmp_path_factory.getbasetemp() / "changed"
    if not folder.exists(): shutil.copytree(runs["patch"] / "best", folder)
    whole = bytearray((runs["patch"] / "best/model.safetensors").read_bytes())
    whole[place % (3000 if header else len(whole))] = value
    (folder / "model.safetensors").write_bytes(whole)
    try: assert Embedder.load(folder).settings.latent == 128
    except CheckpointError as error: assert "changed" in str(error)


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("command, flag, name", COMMANDS)
def test_embedding_that_does_not_fit_says_what_helps(runs, tmp_path, refused, monkeypatch, command, flag, name):
    usual = Autoencoder_Transformer.Embedding if command is embed_main else Autoencoder_Transformer.forward
    def small(self, x, *args, **settings):
        if len(x) > 2: raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return usual(self, x, *args, **settings)
    monkeypatch.setattr(Autoencoder_Transformer, usual.__name__, small)
    rest = ["--ckpt", runs["patch"], "--images", 5, flag, tmp_path / name, "--no-progress"]
    told = refused(command, *rest, "--batch_size", 4)
    ways = [told.index(way) for way in ("batch_size=4", "--batch_size 2 (the same results)", "a smaller --size", "smaller preset")]
    assert ways == sorted(ways) and not any(path.suffix for path in tmp_path.iterdir())
    assert command([str(part) for part in [*rest, "--batch_size", 2]]) == 0


def no_collection(monkeypatch) -> None: monkeypatch.setattr("accelerate.utils.memory.clear_device_cache", lambda **_: None) # it takes long, and there is nothing to collect


def test_a_search_knows_every_way_in_which_memory_ends(monkeypatch):
    no_collection(monkeypatch)
    for error in torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), RuntimeError("could not create a primitive"), RuntimeError("std::bad_alloc"), RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: 9 bytes"):
        def attempt(size, error=error):
            if size > 5: raise error
        assert fitting_batch_size(attempt, 16) == 4
    def broken(size): raise RuntimeError("could not create a primitive descriptor for a matmul primitive")
    with pytest.raises(RuntimeError, match="descriptor"): fitting_batch_size(broken, 16)


def test_a_trial_that_promised_too_much_is_not_the_end(tmp_path, monkeypatch):
    usual, steps = Engine.step, []
    def tight(self, window, *args):
        if len(window[0].images) > 2: raise MemoryError # smaller than it was in the trial
        steps.append(sum(len(batch.images) for batch in window))
        return usual(self, window, *args)
    no_collection(monkeypatch)
    monkeypatch.setattr(Engine, "step", tight)
    monkeypatch.setattr(training, "fit_into_memory", lambda config, width: config) # whatever was asked for fits
    monkeypatch.setattr(training, "save_reconstructions", lambda *_: None)
    config = TrainConfig(**LITTLE, input_size=(24, 24), images=16, valid_images=4, batch_size=8, num_epochs=1, progress=False, tensorboard=False, device="cpu", output_dir=str(tmp_path), exp_name="run")
    with pytest.raises(MemoryError, match="--auto_batch_size, or by hand --batch_size 4"): train(config)
    done = train(TrainConfig(**{**vars(config), "auto_batch_size": True}))
    assert (done.config.batch_size, done.config.gradient_accumulation_steps) == (2, 4) and steps == [8, 8]
    saved = load_checkpoint(tmp_path / "run/last").config
    assert (saved["batch_size"], saved["gradient_accumulation_steps"]) == (2, 4)


def test_who_searches_already_is_not_told_to_search(monkeypatch, refused):
    no_collection(monkeypatch)
    def never(*_): raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    monkeypatch.setattr(training.Engine, "step", never)
    told = refused(main, *FLAGS, "--output_dir", "None", "--auto_batch_size")
    assert "out of memory with batch_size=1." in told and "--auto_batch_size" not in told and "--batch_size" not in told
    ways = training.remedies(training.decide(TrainConfig(preset="tiny", batch_size=8, auto_batch_size=True)))
    assert ways[0].startswith("--batch_size 4 --gradient_accumulation_steps 2") and not any("--auto_batch_size" in way for way in ways)


LIMITED = """
import resource, sys, torch
from stage_modules.autoencoder.train import main
torch.set_num_threads(1)
flags = "--preset tiny --num_layers 1 --input_size 48 48 --patch-size 4 --valid_images 4 --max_steps 1 --no-progress --no-tensorboard --device cpu --output_dir None".split()
main([*flags, "--images", "4"]) # what a first use takes is not what we limit
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 150 * 2**20,) * 2)
for more in [], ["--auto_batch_size"]: print(main([*flags, "--images", "128", "--batch_size", "128", *more]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists() or torch.cuda.is_available(), reason="a limit on the addresses of a process, and no GPU that takes as many as it likes")
def test_under_a_real_limit_a_batch_is_found():
    told = subprocess.run([sys.executable, "-c", LIMITED], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120)
    assert [line for line in told.stdout.splitlines() if len(line) == 1] == ["2", "0"], told
    assert "out of memory with batch_size=128" in told.stderr and told.stderr.count("\n") == 1 and told.stdout.count("128 images") == 1


PEAKS = """
import sys, torch
from pathlib import Path
from stage_modules.autoencoder.embed import Embedder, ImageSource, write_embeddings
from stage_modules.autoencoder.model import create_autoencoder
class Drawn(torch.utils.data.Dataset):
    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def __getitem__(self, i): return torch.full((1, 32, 32), i / 10_000)
def peak(): return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) / 2**10
torch.manual_seed(0)
embedder = Embedder(create_autoencoder((32, 32), "tiny", num_layers=1, patch_size=32, latent=1024))
for count in 100, 10_000:
    write_embeddings(embedder, ImageSource(Drawn(count), [str(i) for i in range(count)], {}, [], None, {}), f"{sys.argv[1]}/{count}.npy", batch_size=50)
    print(peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_ten_thousand_images_take_no_more_memory_than_a_hundred(tmp_path):
    "Kept, the images would be 39 MiB, and their embeddings another 39."
    found = subprocess.run([sys.executable, "-c", PEAKS, tmp_path], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True)
    few, many = map(float, found.stdout.split())
    table = np.load(tmp_path / "10000.npy", mmap_mode="r")
    assert table.shape == (10_000, 1024) and many - few < 12, (few, many)
    torch.manual_seed(0)
    embedder = Embedder(create_autoencoder((32, 32), "tiny", num_layers=1, patch_size=32, latent=1024))
    rows = [0, 4_321, 9_999]
    assert np.allclose(table[rows], embedder.embed([torch.full((32, 32), row / 10_000) for row in rows]), atol=1e-5)
