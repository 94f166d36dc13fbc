"""A run that is killed at any moment and resumed ends with the bits of a run that nobody killed; two processes train one model.

Broken on purpose to see each test fail: random streams not restored, position in the epoch forgotten, checkpoints written in
place, the mean of the processes' means instead of the mean, and each process stopping by its own clock, its own signal, its own validation."""
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stage_modules.toolkit.checkpoints import find_checkpoint, load_checkpoint

SCRIPT = Path(__file__).parent / "run_training.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def end(process: subprocess.Popen) -> None:
    "Kills a process with its whole group."
    try: os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError: pass # it has ended, and so has everybody in its group
    process.communicate()


class Forks:
    "Processes of run_training.py."
    def __init__(self):
        self.parent = subprocess.Popen([sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True)
    def ask(self, question) -> int:
        self.parent.stdin.write(json.dumps(question) + "\n")
        self.parent.stdin.flush()
        return int(self.parent.stdout.readline())
    def start(self, folder: Path, **settings) -> int: return self.ask({"output_dir": str(folder), "stderr": f"{folder}.stderr", **settings})
    def wait(self, child: int) -> int: return self.ask(child)
    def run(self, folder: Path, **settings) -> int: return self.wait(self.start(folder, **settings))


@pytest.fixture(scope="module")
def forks():
    forks = Forks()
    try: yield forks
    finally: end(forks.parent)


@pytest.fixture(scope="module")
def unbroken(forks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert forks.run(folder) == 0, Path(f"{folder}.stderr").read_text()
    return folder


def without_time(folder: Path) -> dict:
    "state.json; the seconds that a run took are the one thing that may differ."
    state = json.loads((folder / "last" / "state.json").read_text())
    state["progress"].pop("seconds")
    return state


def assert_same_to_the_bit(folder: Path, unbroken: Path) -> None:
    for name in "last/model.safetensors", "best/model.safetensors", "last/state.safetensors":
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), f"{name} differs"
    assert without_time(folder) == without_time(unbroken) # history, best value, patience, random generators
    assert not [path for path in folder.iterdir() if path.name.startswith(".")], "leftovers"


def test_the_unbroken_run_is_one_that_could_go_wrong(unbroken):
    progress = json.loads((unbroken / "last" / "state.json").read_text())["progress"]
    assert progress["step"] == 18 and progress["epoch"] == 3
    assert [row["step"] for row in progress["history"] if "valid_loss" in row] == [5, 10, 15, 18]
    assert progress["best_step"] in (5, 10, 15, 18)
    best, last = (load_checkpoint(unbroken / name).tensors for name in ("best", "last"))
    assert progress["best_step"] == 18 or not torch.equal(best["0.weight"], last["0.weight"])


MOMENTS = [("batch", 1), ("batch", 14), ("step", 1), ("step", 5), ("step", 11), ("step", 18), ("row", 4), ("saved best", 1), ("saved last", 2),
           *((f"{when} {name}.safetensors", n) for when in ("before", "after") for name, n in (("model", 3), ("state", 2))),
           *((f"rename {name}", n) for name, n in ((".last.writing", 3), ("last", 2), (".last.ready", 3), (".last.old", 2)))]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}-{moment[1]}".replace(" ", "-"))
def test_kill_and_resume(moment, forks, unbroken, tmp_path):
    assert forks.run(tmp_path / "run", kill=moment) == -signal.SIGKILL
    assert forks.run(tmp_path / "run", resume=True) == 0, (tmp_path / "run.stderr").read_text()
    assert_same_to_the_bit(tmp_path / "run", unbroken)


def test_killed_again_and_again(forks, unbroken, tmp_path):
    "Each life is one checkpoint longer than the one before, and dies at another moment."
    deaths = 0
    for moment in [("step", 4), ("rename .last.ready", 2), ("after model.safetensors", 3), ("batch", 9), ("rename last", 1), ("step", 2), ("never", 1)]:
        deaths += forks.run(tmp_path / "run", resume=True, kill=moment) == -signal.SIGKILL
    assert deaths == 6
    assert_same_to_the_bit(tmp_path / "run", unbroken)


def test_kill_from_outside_while_a_checkpoint_is_half_written(forks, unbroken, tmp_path):
    folder = tmp_path / "run"
    assert forks.run(folder, kill=("saved last", 2)) == -signal.SIGKILL
    before = json.loads((folder / "last" / "state.json").read_text())["progress"]["step"]
    child, writing = forks.start(folder, resume=True, slow=True), folder / ".last.writing" / "model.safetensors"
    for _ in range(2000):
        if writing.exists(): break
        time.sleep(0.01)
    time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    assert forks.wait(child) == -signal.SIGKILL
    assert writing.exists(), "the kill should have come while the checkpoint was being written"
    assert load_checkpoint(find_checkpoint(folder / "last"), with_state=True).state["progress"]["step"] == before
    assert forks.run(folder, resume=True) == 0
    assert_same_to_the_bit(folder, unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_stops_and_resumes(number, forks, unbroken, tmp_path):
    folder = tmp_path / "run"
    child = forks.start(folder, pause=0.02)
    while find_checkpoint(folder / "last") is None: time.sleep(0.005)
    time.sleep(0.03)
    os.kill(child, number)
    assert forks.wait(child) == 0, "an interrupted run ends in order"
    step = json.loads((folder / "last" / "state.json").read_text())["progress"]["step"]
    assert step < 18
    assert f"Interrupted after step {step}; saved in {folder / 'last'}, and resume=True goes on" in (tmp_path / "run.stderr").read_text()
    assert forks.run(folder, resume=True) == 0
    assert_same_to_the_bit(folder, unbroken)


def test_a_run_may_be_prolonged(forks, tmp_path):
    assert forks.run(tmp_path / "long", schedule="constant", validate_every=6, max_steps=18) == 0
    assert forks.run(tmp_path / "short", schedule="constant", validate_every=6, max_steps=12) == 0
    assert forks.run(tmp_path / "short", schedule="constant", validate_every=6, max_steps=18, resume=True) == 0
    assert_same_to_the_bit(tmp_path / "short", tmp_path / "long")


def two_forks(forks: Forks, folder: Path, **settings) -> list[int]:
    "Two processes of one run, the way torchrun sets them up."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environments = [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for r in range(2)]
    children = [forks.start(folder, environment=environment, **settings) for environment in environments]
    if settings.get("kill"): os.kill(children[1], signal.SIGKILL) if forks.wait(children[0]) else None
    else: assert forks.wait(children[0]) == 0, Path(f"{folder}.stderr").read_text()
    return forks.wait(children[1])


def reports(folder: Path) -> list[dict]: return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@contextmanager
def torchrun(**settings) -> Iterator[subprocess.Popen]:
    "Two processes by torchrun's own hand. Whatever happens, none of the three is left behind: the two die with the one."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT, json.dumps(settings)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try: yield process
    finally: end(process)


def test_torchrun_trains_one_model_on_two_processes(forks, tmp_path):
    "Against one process with batches twice as large. (Without dropout and batch norm, which see half the batch each.)"
    plain = {"dropout": 0., "gradient_accumulation_steps": 1, "optimizer": "sgd", "gradient_clip_norm": None} # Adam and clipping would hide a wrong length
    with torchrun(output_dir=str(tmp_path / "two"), **plain) as process:
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
    ranks = reports(tmp_path / "two")
    assert [rank["world"] for rank in ranks] == [2, 2] and [rank["rank"] for rank in ranks] == [0, 1]
    assert ranks[0]["weights"] == ranks[1]["weights"], "to the bit"
    assert forks.run(tmp_path / "one", join=2, **plain) == 0
    one = json.loads((tmp_path / "one" / "rank0.json").read_text())
    for a, b in zip(ranks[0]["weights"], one["weights"], strict=True): torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-5)
    histories = [without_time(tmp_path / name)["progress"]["history"] for name in ("two", "one")]
    assert [row["step"] for row in histories[0]] == [row["step"] for row in histories[1]]
    for a, b in zip(*histories, strict=True):
        for key in b.keys() - {"epoch"}: assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-4), key # 11 batches are 5.5 pairs
    log = (tmp_path / "two" / "train.log").read_text()
    assert log.count("started") == 1 and log.count("ended") == 1, "one process writes"


def test_two_processes_resume_to_the_bit(forks, tmp_path):
    two_forks(forks, tmp_path / "unbroken")
    assert json.loads((tmp_path / "unbroken" / "rank1.json").read_text())["world"] == 2
    two_forks(forks, tmp_path / "run", kill=("step", 5))
    assert not (tmp_path / "run" / "rank0.json").exists()
    two_forks(forks, tmp_path / "run", resume=True)
    assert_same_to_the_bit(tmp_path / "run", tmp_path / "unbroken")
    assert forks.run(tmp_path / "run", resume=True) == 1
    assert "the run was started with 2 processes, this one has 1" in (tmp_path / "run.stderr").read_text()


def test_torchrun_stops_both_when_the_minutes_are_over(tmp_path):
    "The main process is slower between two steps, as one is that writes a log: its clock passes the limit first."
    with torchrun(output_dir=str(tmp_path / "run"), num_epochs=500, max_minutes=0.5 / 60, behind={"0": 0.1}) as process:
        output = process.communicate(timeout=90)[0]
        assert process.returncode == 0, output
    assert_out_of_time(tmp_path / "run")


def test_both_stop_when_the_minutes_of_the_other_process_are_over(forks, tmp_path):
    assert two_forks(forks, tmp_path / "run", num_epochs=500, max_minutes=0.5 / 60, behind={"1": 0.1}) == 0
    assert_out_of_time(tmp_path / "run")


def assert_out_of_time(folder: Path) -> None:
    first, second = reports(folder)
    assert first == second | {"rank": 0} and first["stop"].endswith("minutes are over") and first["step"] < 20
    assert "valid_loss" in without_time(folder)["progress"]["history"][-1]


def test_torchrun_and_ctrl_c(tmp_path):
    "What a terminal does: an interrupt for everybody who is in the foreground."
    folder = tmp_path / "run"
    with torchrun(output_dir=str(folder), num_epochs=500, pause=0.01) as process:
        for _ in range(6000):
            if find_checkpoint(folder / "last") or process.poll() is not None: break
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        output = process.communicate(timeout=90)[0]
    first, second = reports(folder)
    assert first == second | {"rank": 0} and first["stop"] == "interrupted", output
    assert without_time(folder)["progress"]["step"] == first["step"]


@pytest.mark.parametrize("pressed", [{"0": ("step", 4)}, {"1": ("step", 4)}, {"1": ("row", 3)}, {"0": ("step", 4), "1": ("step", 5)}],
                         ids=["first", "second", "at-a-row", "both-at-different-steps"])
def test_one_process_is_interrupted_and_both_save_and_stop(pressed, forks, tmp_path):
    folder = tmp_path / "run"
    assert two_forks(forks, folder, interrupt=pressed) == 0
    first, second = reports(folder)
    assert first == second | {"rank": 0} and first["stop"] == "interrupted"
    assert without_time(folder)["progress"]["step"] == first["step"] == 4, "after the step in which it was pressed"


@pytest.mark.parametrize("drift", [{"0": -1.}, {"1": -1.}], ids=["first", "second"])
def test_patience_ends_for_both_where_they_measured_different_losses(drift, forks, tmp_path):
    assert two_forks(forks, tmp_path / "run", drift=drift, patience=1, num_epochs=6, validate_every=1) == 0
    first, second = reports(tmp_path / "run")
    assert first == second | {"rank": 0} and first["stop"] == "no better valid_loss in 1 validations"
