"""The training run of test_training_resume.py, in processes that may be killed.

With JSON settings as argument it trains once (this is what torchrun starts). Without, it reads such lines from stdin, forks a process for each and
answers with its id; a line with an id is answered with that process's exit code. Importing torch costs seconds, forking costs nothing.

No process outlives the one that started it: a test that is broken off leaves nobody behind who waits for a partner."""
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch._dynamo
from torch import nn

from stage_modules.toolkit import checkpoints, training
from stage_modules.toolkit.training import Callback, Trainer, TrainingConfig

LONGEST = 60. # seconds that a run may take: two processes that disagree wait for each other forever


def die_with_parent() -> None:
    "Torchrun puts its processes into sessions of their own, where no signal to a group reaches them."
    parent = os.getppid()
    def watch():
        while os.getppid() == parent: time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=watch, daemon=True).start()


class Rows:
    "Batches with a different number of rows that count in each; the order depends on the epoch."
    def __init__(self, batches: int, join: int = 1): self.batches, self.join, self.epoch = batches, join, 0
    def __len__(self) -> int: return (self.batches + self.join - 1) // self.join
    def set_epoch(self, epoch: int) -> None: self.epoch = epoch
    def __iter__(self):
        generator = torch.Generator().manual_seed(self.epoch)
        made = []
        for _ in range(self.batches):
            x, counts = torch.randn(6, 5, generator=generator), torch.rand(6, generator=generator) > 0.5
            counts[0] = True
            made.append((x, counts))
        for i in range(0, self.batches, self.join): yield tuple(torch.cat(parts) for parts in zip(*made[i:i + self.join]))


def make_model(dropout: float) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16, affine=False) if dropout else nn.Identity(), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1))


class Killer(Callback):
    "Sends itself a signal at the n-th time that a moment comes; SIGKILL at each one after that, too."
    def __init__(self, moment: str, times: int, number: int = signal.SIGKILL): self.moment, self.times, self.number = moment, times, number
    def come(self, moment: str) -> None:
        if moment != self.moment: return
        self.times -= 1
        if self.times == 0 or self.times < 0 and self.number == signal.SIGKILL: os.kill(os.getpid(), self.number)
    def on_step(self, trainer) -> None: self.come("step")
    def on_row(self, trainer, row) -> None: self.come("row")
    def on_save(self, trainer, folder) -> None: self.come(f"saved {folder.name}")


class Slow(Callback):
    "Takes its time after each step, on one process: its clock runs ahead of the others'."
    def __init__(self, seconds: float): self.seconds = seconds
    def on_step(self, trainer) -> None: time.sleep(self.seconds)


def patch(killer: Killer, slow: bool) -> None:
    "Lets the moments inside of a write come too."
    save_file, rename = checkpoints.save_file, os.rename
    def slow_save_file(tensors, path, metadata=None):
        killer.come(f"before {path.name}")
        save_file(tensors, path, metadata)
        if slow:
            path.write_bytes(path.read_bytes()[:-8]) # half written, for as long as the test needs to see it
            time.sleep(60)
        killer.come(f"after {path.name}")
    def watched_rename(old, new):
        killer.come(f"rename {Path(old).name}")
        rename(old, new)
    checkpoints.save_file, os.rename = slow_save_file, watched_rename
    os.fsync = lambda handle: None # against power cuts; a killed process loses nothing that it has written, and a busy disk takes its time


def train(settings: dict) -> None:
    "One run; `settings` may hold fields of TrainingConfig and the keys taken out below."
    settings = dict(settings)
    rank = os.environ.get("RANK", "0")
    kill, slow, pause, join, dropout, interrupt, behind, drift = (settings.pop(key, default) for key, default in
        {"kill": None, "slow": False, "pause": 0., "join": 1, "dropout": 0.3, "interrupt": {}, "behind": {}, "drift": {}}.items())
    killer = Killer(*interrupt[rank], signal.SIGINT) if rank in interrupt else Killer(*(kill or ("never", 1)))
    if rank in drift: # this process sees another validation loss than the others
        measured = training._validation_loss
        training._validation_loss = lambda *args: drift[rank] * measured(*args)
    patch(killer, slow)
    def loss_fn(model, batch):
        if model.training: killer.come("batch")
        time.sleep(pause)
        x, counts = batch
        error = (model(x).squeeze(-1) - x.sin().sum(-1)) ** 2
        return (error * counts).sum(), counts.sum()
    config = TrainingConfig(**{"num_epochs": 3, "learning_rate": 0.02, "schedule": "cosine", "warmup_steps": 3, "gradient_accumulation_steps": 2, "validate_every": 5,
                               "save_every": 3, "log_every": 2, "patience": 4, "progress": False, "tensorboard": False, "device": "cpu"} | settings)
    trainer = Trainer(make_model(dropout), config, Rows(11, join), loss_fn, Rows(3), callbacks=[killer, Slow(behind.get(rank, 0.))])
    trainer.fit()
    report = {"rank": trainer.rank, "world": trainer.world, "stop": trainer.stop_reason, "step": trainer.progress.step, "weights": [p.detach().flatten().tolist() for p in trainer.model.parameters()]}
    Path(config.output_dir, f"rank{trainer.rank}.json").write_text(json.dumps(report))


def exit_code(child: int) -> int:
    "Of a process that ends; one that does not is killed."
    deadline, parent = time.monotonic() + LONGEST, os.getppid()
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended: return os.waitstatus_to_exitcode(status)
        if os.getppid() != parent: sys.exit(1)
        if time.monotonic() > deadline: os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def serve() -> None:
    "Forks a process for each line of stdin, and waits for those it is asked about."
    for line in sys.stdin:
        settings = json.loads(line)
        if isinstance(settings, int):
            print(exit_code(settings), flush=True)
            continue
        child = os.fork()
        if child == 0:
            code = 1
            try:
                die_with_parent()
                os.environ.update(settings.pop("environment", {}))
                sys.stderr = open(settings.pop("stderr", os.devnull), "w", buffering=1)  # noqa: SIM115
                train(settings)
                code = 0
            except BaseException as error:  # noqa: BLE001
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
            finally: os._exit(code)
        print(child, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        die_with_parent()
        train(json.loads(sys.argv[1]))
    else: serve()
