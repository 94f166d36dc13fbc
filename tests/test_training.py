"""What the training page cannot show: odd settings, damaged runs, and that looking changes nothing.

Broken on purpose to see each test fail: counts left out of the division, validation drawing from the training's random stream,
an output folder that is not looked into."""
import json
import math
import os
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stage_modules.toolkit.checkpoints import load_checkpoint
from stage_modules.toolkit.errors import CheckpointError
from stage_modules.toolkit.training import (
    Callback,
    Engine,
    Trainer,
    TrainingConfig,
    changeable,
    epoch_batches,
    learning_rate_factor,
    to_device,
    windows,
)


@pytest.fixture(autouse=True)
def one_thread():
    "Small tensors, and a machine that may be busy."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.rand(n, generator=generator).round()


def make_batches(size=4, n=24): return DataLoader(TensorDataset(*rows(n)), batch_size=size, shuffle=True)


def squared_error(model, batch):
    x, counts = batch
    counts = counts.clone()
    counts[0] = 1.
    return (((model(x) - x.sum(-1, keepdim=True)) ** 2).squeeze(-1) * counts).sum(), counts.sum()


def make_model(dropout=0.2):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def make_trainer(folder=None, batches=None, model=None, loss_fn=squared_error, valid=True, evaluate=None, callbacks=(), files=None, config=TrainingConfig, **changes):
    changes = {"num_epochs": 2, "learning_rate": 0.02, "progress": False, "tensorboard": False, "device": "cpu"} | changes
    return Trainer(model or make_model(), config(output_dir=None if folder is None else str(folder), **changes), make_batches() if batches is None else batches, loss_fn,
                   make_batches() if valid else None, evaluate, callbacks, files)


def weights(trainer): return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_same_seed_same_weights_whatever_was_drawn_before():
    def run(seed):
        torch.manual_seed(random.randrange(2**31)) # the world outside must not matter
        trainer = make_trainer(seed=seed)
        trainer.fit()
        return weights(trainer)
    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_fit_leaves_the_generators_as_they_were():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    trainer = make_trainer()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    trainer.fit()
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]


class Nosy(Callback):
    def draw(self, *_): torch.rand(3), random.random(), np.random.rand()
    on_start = on_step = on_row = on_save = on_end = draw


def test_looking_changes_nothing(tmp_path):
    def evaluate(model):
        torch.rand(1000), random.random(), np.random.rand()
        return {"extra": 1.}
    quiet, watched = make_trainer(valid=False), make_trainer(tmp_path / "run", valid=True, evaluate=evaluate, callbacks=[Nosy()], validate_every=1, save_every=1, log_every=1)
    quiet.fit(), watched.fit()
    assert torch.equal(weights(quiet), weights(watched))
    assert watched.progress.history[-1]["extra"] == 1.


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 100))
def test_cutting_a_batch_into_uneven_pieces_changes_nothing(sizes, seed):
    x, counts = rows(sum(sizes), seed)
    counts[0] = 1.
    def loss_fn(model, batch):
        error = ((model(batch[0]) - batch[0].sum(-1, keepdim=True)) ** 2).squeeze(-1)
        return (error * batch[1]).sum(), batch[1].sum() # a piece may count nothing
    found = []
    for pieces in [(x, counts)], list(zip(x.split(sizes), counts.split(sizes))):
        engine = Engine(make_model(0.), TrainingConfig(device="cpu", optimizer="sgd", learning_rate=0.1), loss_fn)
        totals = engine.step(pieces)
        found.append(torch.cat([totals, *(p.detach().flatten() for p in engine.parameters)]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_trainer_is_the_plain_loop(optimizer):
    "Ten lines of torch that divide by the count before going backward, and the Trainer; SGD would notice a gradient that is too long."
    batches = DataLoader(TensorDataset(*rows()), batch_size=4)
    model = make_model(0.)
    plain = {"sgd": torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), "adamw": torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.)}[optimizer]
    for _ in range(2):
        for batch in batches:
            total, count = squared_error(model, batch)
            plain.zero_grad()
            (total / count).backward()
            plain.step()
    trainer = make_trainer(batches=batches, model=make_model(0.), optimizer=optimizer, weight_decay=0., gradient_clip_norm=None)
    trainer.fit()
    torch.testing.assert_close(weights(trainer), torch.cat([p.detach().flatten() for p in model.parameters()]), rtol=1e-4, atol=1e-5)


def test_accumulating_is_a_larger_batch():
    def weighted(model, batch):
        weight = 0.1 + batch[1]
        return (((model(batch[0]) - 1) ** 2).squeeze(-1) * weight).sum(), weight.sum()
    finals = []
    for size, accumulate in (8, 1), (4, 2), (2, 4):
        batches = DataLoader(TensorDataset(*rows()), batch_size=size)
        trainer = make_trainer(batches=batches, model=make_model(0.), loss_fn=weighted, gradient_accumulation_steps=accumulate, optimizer="sgd")
        trainer.fit()
        assert trainer.progress.step == 6
        finals.append(weights(trainer))
    for other in finals[1:]: torch.testing.assert_close(finals[0], other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_shuffling_dataloader_resumes_to_the_bit(tmp_path, own_generator):
    def loader(): return DataLoader(TensorDataset(*rows()), batch_size=4, shuffle=True, generator=torch.Generator() if own_generator else None)
    class StopAt(Callback):
        def on_step(self, trainer):
            if trainer.progress.step == 8: trainer.stop("enough")
    whole = make_trainer(tmp_path / "whole", batches=loader())
    whole.fit()
    make_trainer(tmp_path / "parts", batches=loader(), callbacks=[StopAt()]).fit()
    resumed = make_trainer(tmp_path / "parts", batches=loader(), resume=True)
    history = resumed.fit()
    assert torch.equal(weights(whole), weights(resumed)) and history == whole.progress.history


def test_stopped_and_fitted_again_goes_on():
    class StopOnce(Callback):
        def on_step(self, trainer):
            if trainer.progress.step == 5: trainer.stop("look")
    whole, parts = make_trainer(), make_trainer(callbacks=[StopOnce()])
    whole.fit(), parts.fit()
    assert parts.progress.step == 5 and parts.stop_reason == "look"
    assert parts.fit() == whole.progress.history
    assert torch.equal(weights(whole), weights(parts))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_the_step_and_keeps_the_checkpoint(tmp_path, bad):
    calls = iter(range(1000))
    def loss_fn(model, batch):
        total, count = squared_error(model, batch)
        return (total * bad if model.training and next(calls) == 8 else total), count
    trainer = make_trainer(tmp_path / "run", loss_fn=loss_fn)
    with pytest.raises(FloatingPointError, match=r"step 9: the loss is (nan|inf); the last good checkpoint is .*last"): trainer.fit()
    assert load_checkpoint(tmp_path / "run" / "last", with_state=True).state["progress"]["step"] == 6
    assert all(t.isfinite().all() for t in load_checkpoint(tmp_path / "run" / "last").tensors.values())
    assert "FloatingPointError: step 9" in (tmp_path / "run" / "train.log").read_text()


def test_a_step_that_counts_nothing():
    with pytest.raises(ValueError, match="step 1: loss_fn counted nothing"): make_trainer(loss_fn=lambda model, batch: (model(batch[0]).sum() * 0, 0)).fit()


def test_wrong_arguments_are_told_early():
    with pytest.raises(TypeError, match=r"\(loss_sum, count\)"): make_trainer(loss_fn=lambda model, batch: model(batch[0]).sum()).fit()
    with pytest.raises(TypeError, match=r"\(loss_sum, count\)"): make_trainer(loss_fn=lambda model, batch: (model(batch[0]), 1)).fit()
    with pytest.raises(ValueError, match="batches is empty"): make_trainer(batches=[])
    with pytest.raises(ValueError, match="needs an output_dir"): make_trainer(resume=True).fit()
    with pytest.raises(ValueError, match="mixed_precision is 'fp16'.*CPU"): make_trainer(mixed_precision="fp16")
    with pytest.raises(ValueError, match="best_metric is 'bleu', and validation gave valid_loss"): make_trainer(best_metric="bleu").fit()
    with pytest.raises(ValueError, match="no parameter that requires a gradient"): make_trainer(model=nn.Linear(4, 1).requires_grad_(False))


def test_bf16_trains_and_a_later_trainer_is_not_touched_by_it():
    half, full = make_trainer(mixed_precision="bf16"), make_trainer()
    dtypes = []
    half.engine.loss_fn = lambda model, batch: (dtypes.append(model(batch[0]).dtype), squared_error(model, batch))[1]
    half.fit()
    assert set(dtypes) == {torch.bfloat16} and all(p.dtype == torch.float32 for p in half.model.parameters())
    full.fit()
    again = make_trainer()
    again.fit()
    assert torch.equal(weights(full), weights(again)) and not torch.equal(weights(full), weights(half))


def test_a_run_is_not_trained_over_by_accident(tmp_path):
    first = make_trainer(tmp_path / "run")
    first.fit()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = (tmp_path / "run" / "last" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="holds a run already: resume=True continues it, overwrite=True replaces it"): make_trainer(tmp_path / "run", seed=1).fit()
    assert (tmp_path / "run" / "last" / "model.safetensors").read_bytes() == before
    make_trainer(tmp_path / "run", seed=1, overwrite=True).fit()
    assert (tmp_path / "run" / "last" / "model.safetensors").read_bytes() != before
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "run" / "train.log").read_text().count("started") == 1


def test_resume_of_a_finished_run_returns_it(tmp_path):
    first = make_trainer(tmp_path / "run")
    history = first.fit()
    again = make_trainer(tmp_path / "run", resume=True)
    again.model[0].weight.data.zero_()
    assert again.fit() == history and torch.equal(weights(again), weights(first))


def test_resume_with_nothing_there_starts_anew(tmp_path):
    fresh, resumed = make_trainer(), make_trainer(tmp_path / "run", resume=True)
    fresh.fit(), resumed.fit()
    assert torch.equal(weights(fresh), weights(resumed))


@dataclass
class WiderConfig(TrainingConfig):
    width: int = 8 # of the hidden layer
    sizes: tuple[int, ...] = (1, 2) # JSON gives back a list
    data_path: str = changeable("a.tsv") # where it lies today


def test_resume_says_what_differs(tmp_path):
    def trainer(**changes): return make_trainer(tmp_path / "run", config=WiderConfig, **({"files": {"words.json": ["a"]}} | changes))
    trainer().fit()
    def message(**changes):
        with pytest.raises(CheckpointError) as caught: trainer(resume=True, **changes).fit()
        return str(caught.value).replace(str(tmp_path / "run" / "last") + os.sep, "")
    assert message(width=9) == "config.json: field 'width' came with 8, expected 9"
    assert message(learning_rate=0.5) == "config.json: field 'learning_rate' came with 0.02, expected 0.5"
    assert message(batches=make_batches(6)) == "state.json: the run was started with 6 batches, this one has 4"
    assert message(files={"words.json": ["b"]}) == "words.json: is not the same as in the run that resumes"
    assert message(model=nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 1))) == "model.safetensors: tensor '0.weight' came with shape (8, 4), expected (9, 4)"
    trainer(resume=True, num_epochs=3, patience=7, data_path="b.tsv", log_every=2).fit()


@pytest.mark.parametrize("damage", [lambda s: s.pop("optimizer"), lambda s: s.update(progress=3), lambda s: s["progress"].update(unknown=1),
                                    lambda s: s.update(streams=[]), lambda s: s["optimizer"].update(param_groups=[])])
def test_a_damaged_state_is_a_checkpoint_error(tmp_path, damage):
    make_trainer(tmp_path / "run").fit()
    path = tmp_path / "run" / "last" / "state.json"
    state = json.loads(path.read_text())
    damage(state)
    path.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="state.json"): make_trainer(tmp_path / "run", resume=True).fit()


def test_patience_best_and_the_checkpoint_agree(tmp_path):
    scores = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    trainer = make_trainer(tmp_path / "run", evaluate=lambda model: {"bleu": next(scores)}, best_metric="bleu", best_is="highest", patience=2, num_epochs=9)
    history = trainer.fit()
    assert [row["bleu"] for row in history if "bleu" in row] == [0.1, 0.5, 0.4, 0.3]
    assert (trainer.progress.best, trainer.progress.best_step, trainer.stop_reason) == (0.5, 12, "no better bleu in 2 validations")
    last = weights(trainer)
    trainer.load_best()
    assert not torch.equal(weights(trainer), last)


def test_without_validation_the_latest_is_best(tmp_path):
    trainer = make_trainer(tmp_path / "run", valid=False)
    trainer.fit()
    assert all(torch.equal(t, trainer.model.state_dict()[name]) for name, t in load_checkpoint(tmp_path / "run" / "best").tensors.items())


def test_minutes_and_steps_end_a_run_with_validation_and_checkpoint(tmp_path):
    for name, limit in {"minutes": {"max_minutes": 1e-9}, "steps": {"max_steps": 1}}.items():
        trainer = make_trainer(tmp_path / name, num_epochs=50, **limit)
        history = trainer.fit()
        assert trainer.progress.step == 1 and "valid_loss" in history[-1] and (tmp_path / name / "best").is_dir()


def test_batch_norm_and_modes(tmp_path):
    seen = []
    def loss_fn(model, batch):
        seen.append((model.training, torch.is_grad_enabled()))
        return squared_error(model, batch)
    trainer = make_trainer(model=nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)), loss_fn=loss_fn, num_epochs=1)
    trainer.fit()
    assert seen == [(True, True)] * 6 + [(False, False)] * 6 and trainer.model.training


def test_the_history_mean_is_over_what_counts():
    totals = []
    def loss_fn(model, batch):
        total, count = squared_error(model, batch)
        if model.training: totals.append((total.item(), count.item()))
        return total, count
    history = make_trainer(loss_fn=loss_fn, valid=False, num_epochs=1).fit()
    assert history[-1]["loss"] == pytest.approx(sum(t for t, _ in totals) / sum(c for _, c in totals), rel=1e-6)


def test_tensorboard_is_written_and_not_needed(tmp_path, monkeypatch):
    make_trainer(tmp_path / "with", tensorboard=True, num_epochs=1).fit()
    assert list((tmp_path / "with" / "tensorboard").iterdir())
    monkeypatch.setattr("stage_modules.toolkit.training.find_spec", lambda name: None)
    make_trainer(tmp_path / "without", tensorboard=True, num_epochs=1).fit()
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_an_output_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"): make_trainer(tmp_path / "file" / "run").fit()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_epoch_alone(workers):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self): return 12
        def __getitem__(self, i): return i + torch.rand(())
    loader = DataLoader(Noisy(), batch_size=3, shuffle=True, num_workers=workers)
    first = torch.stack(list(epoch_batches(loader, 1, 2)))
    torch.rand(7)
    assert torch.equal(torch.stack(list(epoch_batches(loader, 1, 2, skip=2))), first[2:])
    assert not torch.equal(torch.stack(list(epoch_batches(loader, 2, 2))), first)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(0, 20), st.integers(1, 6))
def test_windows_lose_nothing(n, size):
    cut = list(windows(range(n), size))
    assert [item for window, _ in cut for item in window] == list(range(n))
    assert all(len(window) == size for window, _ in cut[:-1]) and [ends for _, ends in cut] == [False] * (len(cut) - 1) + [True] * bool(cut)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.integers(0, 500), st.sampled_from(["constant", "linear", "cosine", "inverse_sqrt"]), st.integers(0, 100), st.integers(1, 400))
def test_the_factor_is_between_zero_and_one(step, schedule, warmup, total):
    factor = learning_rate_factor(step, schedule, warmup, total)
    assert 0 <= factor <= 1 and (factor > 0 or step >= total)


def test_to_device_keeps_the_kind_of_a_batch():
    @dataclass
    class Pair:
        x: torch.Tensor
        name: str
    moved = to_device([Pair(torch.ones(1), "a"), None, 3], torch.device("meta"))
    assert moved[0].x.is_meta and moved[0].name == "a" and moved[1:] == [None, 3]
