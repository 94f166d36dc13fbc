"""What the checkpoints page cannot show: writers that are killed, disks that are full, files that are damaged byte by byte.

Broken on purpose to see each test fail: writing in place, no `ready` name, a reader that does not look again."""
import json
import os
import pickle
import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stage_modules.toolkit import checkpoints
from stage_modules.toolkit.checkpoints import (
    check_config,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    pack,
    remove_checkpoint,
    save_checkpoint,
    unpack,
)
from stage_modules.toolkit.errors import CheckpointError


def make_model(value: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        for p in model.parameters(): p.fill_(value)
    return model


def save(folder: Path, value: float) -> None:
    save_checkpoint(folder, make_model(value), {"value": value}, {"words.json": [value]}, state={"step": value, "moments": {0: torch.full((3,), value)}})


def whole(folder: Path) -> float:
    "Which checkpoint this is; every file must be from the same one."
    checkpoint = load_checkpoint(folder, with_state=True)
    values = {checkpoint.config["value"], checkpoint.files["words.json"][0], checkpoint.state["step"],
              checkpoint.state["moments"][0][0].item(), checkpoint.tensors["0.weight"][0, 0].item()}
    assert len(values) == 1, f"files of different checkpoints: {values}"
    return values.pop()


DISK = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree")


def killed_at_call(action, number: int) -> bool:
    "Runs `action` in a process that dies by SIGKILL before its n-th call that touches the disk (Python's audit events tell); False if it ended before."
    child = os.fork()
    if child == 0:
        seen = 0
        def audit(event, args):
            nonlocal seen
            if event in DISK:
                if seen == number: os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
        sys.addaudithook(audit)
        try: action()
        finally: os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture
def no_fsync(monkeypatch):
    "A killed process loses nothing that it has written; fsync is against power cuts, and hundreds of them take minutes."
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def every_kill(action, start, tmp_path):
    "A fresh folder, made by `start`, for each call at which `action` can be killed."
    for number in range(2000):
        folder = tmp_path / str(number) / "last"
        start(folder)
        if not killed_at_call(lambda folder=folder: action(folder), number):
            assert number > 10, "the kill should have come to many calls"
            return
        yield number, folder
    raise AssertionError("never came to an end")


def test_kill_at_every_call_leaves_the_old_or_the_new(tmp_path, no_fsync):
    seen = []
    for number, folder in every_kill(lambda f: save(f, 2.), lambda f: save(f, 1.), tmp_path):
        seen.append(whole(folder))
        save(folder, 3.) # the next save finds its way, and cleans up
        assert whole(folder) == 3.
        assert [path.name for path in folder.parent.iterdir()] == ["last"], f"leftovers after a kill at call {number}"
    assert seen == sorted(seen) and set(seen) == {1., 2.}, "first the old one, from some moment on the new one"


def test_kill_during_the_first_save_leaves_none_or_all(tmp_path, no_fsync):
    seen = []
    for _, folder in every_kill(lambda f: save(f, 2.), lambda f: f.parent.mkdir(), tmp_path):
        seen.append(find_checkpoint(folder) is not None)
        if seen[-1]: assert whole(folder) == 2.
    assert seen == sorted(seen) and set(seen) == {False, True}


def test_kill_while_cleaning_up_after_a_kill(tmp_path, no_fsync):
    def left_in_the_gap(folder):
        save(folder, 1.)
        save(folder.with_name("new"), 2.)
        os.rename(folder.with_name("new"), checkpoints._sibling(folder, "ready"))
        os.rename(folder, checkpoints._sibling(folder, "old"))
    for _, folder in every_kill(lambda f: save(f, 3.), left_in_the_gap, tmp_path): assert whole(folder) in (2., 3.)


def test_reading_while_somebody_writes(tmp_path, no_fsync):
    folder, seen = tmp_path / "last", set()
    save(folder, 0.)
    child = os.fork()
    if child == 0:
        for i in range(150): save(folder, float(i))
        os._exit(0)
    while os.waitpid(child, os.WNOHANG)[0] == 0: seen.add(whole(folder))
    assert whole(folder) == 149. and len(seen) > 3


def test_full_disk_keeps_the_old_one(tmp_path):
    folder, big = tmp_path / "best", nn.Linear(1000, 1000)
    save_checkpoint(folder, make_model(1.), {"value": 1.})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1])) # a file cannot grow past this: the same error path as a full disk
    try:
        with pytest.raises(CheckpointError, match="could not be written, and what was there before is untouched.*too large"): save_checkpoint(folder, big, {})
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert load_checkpoint(folder).config == {"value": 1.}
    assert [path.name for path in tmp_path.iterdir()] == ["best"], "half a checkpoint must not keep a full disk full"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="could not be written"): save_checkpoint(tmp_path / "file" / "last", make_model(1.), {})
    with pytest.raises(CheckpointError, match="is a file"): save_checkpoint(tmp_path / "file", make_model(1.), {})
    assert (tmp_path / "file").is_file()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "words.json", "state.json", "state.safetensors"])
def test_every_truncation_is_noticed_and_names_the_file(tmp_path, name):
    save(tmp_path / "last", 1.)
    path = tmp_path / "last" / name
    content = path.read_bytes()
    for length in sorted({*range(0, len(content), max(1, len(content) // 97)), len(content) - 1}):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as caught: load_checkpoint(tmp_path / "last", with_state=True)
        assert caught.value.path == path and str(path) in str(caught.value)
    path.unlink()
    if name != "words.json":
        with pytest.raises(CheckpointError, match=f"{name} is missing"): load_checkpoint(tmp_path / "last", with_state=True)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(position=st.integers(0, 400), value=st.integers(0, 255), name=st.sampled_from(["model.safetensors", "config.json", "state.json", "state.safetensors"]))
def test_a_changed_byte_gives_a_checkpoint_or_a_checkpoint_error(tmp_path_factory, position, value, name):
    folder = tmp_path_factory.getbasetemp() / "changed by a byte"
    if not folder.exists(): save(folder, 1.)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:position] + bytes([value]) + content[position + 1:])
    try: load_weights(make_model(0.), folder), load_checkpoint(folder, with_state=True)
    except CheckpointError: pass # and nothing else: no KeyError, no crash
    finally: (folder / name).write_bytes(content)


@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_is_run(tmp_path, protocol):
    class Trap:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "ran"),)
    save(tmp_path / "last", 1.)
    for name in "model.safetensors", "state.safetensors":
        content = (tmp_path / "last" / name).read_bytes()
        (tmp_path / "last" / name).write_bytes(pickle.dumps({"0.weight": Trap()}, protocol))
        with pytest.raises(CheckpointError): load_checkpoint(tmp_path / "last", with_state=True)
        (tmp_path / "last" / name).write_bytes(content)
    torch.save({"0.weight": Trap()}, tmp_path / "last" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a pickle"): load_checkpoint(tmp_path / "last")
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "photos").mkdir()
    with pytest.raises(CheckpointError, match="config.json is missing; the folder holds nothing"): load_checkpoint(tmp_path / "photos")
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(CheckpointError, match="cat.png"): load_checkpoint(tmp_path / "photos")
    for action in (lambda: save(tmp_path / "photos", 1.), lambda: remove_checkpoint(tmp_path / "photos")):
        with pytest.raises(CheckpointError, match="would be lost"): action()
    assert (tmp_path / "photos" / "cat.png").exists()
    (tmp_path / "photos" / "model.safetensors").write_bytes(b"\0" * 100)
    (tmp_path / "photos" / "config.json").write_text("[1, 2]")
    with pytest.raises(CheckpointError): load_checkpoint(tmp_path / "photos")


def test_saving_through_a_symbolic_link_replaces_what_it_points_to(tmp_path):
    save(tmp_path / "real", 1.)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(tmp_path / "link", 2.)
    assert (tmp_path / "link").is_symlink() and whole(tmp_path / "real") == 2.


nested = st.recursive(
    st.none() | st.booleans() | st.integers(-2**60, 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3), max_leaves=8)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(nested)
def test_pack_and_unpack_are_inverse(value):
    back = unpack(json.loads(json.dumps(pack(value, {}))), {})
    assert back == value and str(back) == str(value) # str tells 1 from 1.0 and True


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_every_kind_of_number_comes_back_to_the_bit(tmp_path, dtype):
    model = nn.Module()
    model.register_buffer("numbers", torch.randn(7, 5).mul(10).to(dtype).t()) # not contiguous
    model.register_buffer("one", torch.ones((), dtype=dtype))
    model.register_buffer("none", torch.ones(0, 3, dtype=dtype))
    save_checkpoint(tmp_path / "last", model, {})
    tensors = load_checkpoint(tmp_path / "last").tensors
    for name, tensor in model.state_dict().items(): assert tensors[name].dtype == dtype and torch.equal(tensors[name], tensor)


def test_check_config_names_the_first_difference():
    with pytest.raises(CheckpointError, match="^run: field 'dim' came with 3, expected 4$"): check_config({"dim": 3, "heads": 1}, {"dim": 4, "heads": 2}, "run")
    with pytest.raises(CheckpointError, match="'heads' is missing"): check_config({"dim": 3}, {"dim": 3, "heads": 2}, "run")
    check_config({"dim": 3, "old": 1}, {"dim": 3}, "run", may_differ={"old"})
