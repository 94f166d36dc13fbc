"""Memory of a training step: the formulas against what autograd keeps and what the allocator lends, for sizes nobody chose by hand, and what is refused."""
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stage_modules.attention.cost import peak_memory
from stage_modules.autoencoder.exercises import check_training_bytes
from stage_modules.autoencoder.memory import (
    TrainingStep, block_bytes, kept_bytes, largest_batch, measure_training,
    memory_curve, saved_tensors, step_moments, training_memory,
)
from stage_modules.autoencoder.model import AutoencoderSettings

ROOT = Path(__file__).resolve().parent.parent
LITTLE = AutoencoderSettings((9, 13), "tiny", token_dim=16, num_heads=2, num_layers=2, patch_size=4, dropout=0.)


@st.composite
def ways(draw):
    "Settings, size, batch, precision, checkpointing."
    single, dim, heads = draw(st.booleans()), draw(st.sampled_from([8, 16, 24])), draw(st.sampled_from([1, 2, 4]))
    size = draw(st.integers(1, 21)), draw(st.integers(1, 33))
    both = dict(num_heads=heads, num_layers=draw(st.integers(1, 3)), dropout=draw(st.sampled_from([0., .2])), use_flash_attention=draw(st.booleans()))
    parts = dict(tokens="single", latent=draw(st.sampled_from([128, 136]))) if single else dict(token_dim=dim, patch_size=draw(st.integers(2, 8)))
    return AutoencoderSettings(size, "tiny", **both, **parts), None, draw(st.integers(1, 3)), draw(st.sampled_from(["fp32", "bf16"])), draw(st.booleans())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(way=ways())
def test_what_is_kept_is_what_the_formula_says(way):
    step, checkpointing = TrainingStep(*way), way[-1]
    saved = saved_tensors(step.model, step.loss, [step.images])
    kept, parts = kept_bytes(*way), training_memory(*way)
    assert sum(t.nbytes for t in saved if not t.copy) == kept.outside + kept.between + (0 if checkpointing else kept.inside)
    assert parts.activations == sum(kept)
    if not checkpointing: assert sum(t.nbytes for t in saved if t.copy) == parts.copies
    else: assert sum(t.nbytes for t in saved if t.copy) <= parts.copies # those of one block come later
    assert parts.weights == sum(p.nbytes for p in step.model.parameters())


@pytest.mark.parametrize("change", [{}, {"use_flash_attention": False}, {"tokens": "single"}, {"patch_size": 8, "num_layers": 1}])
@pytest.mark.parametrize("precision, checkpointing", [("fp32", False), ("fp32", True), ("bf16", False)])
def test_the_peak_is_at_one_of_three_moments(change, precision, checkpointing):
    way = replace(AutoencoderSettings((72, 120), "tiny", dropout=0., num_layers=2), **change), None, 2, precision, checkpointing
    real, parts = measure_training(*way), training_memory(*way)
    assert .9 < real.peak / step_moments(*way).peak < 1.1
    assert (real.weights, real.gradients) == (parts.weights, parts.gradients)
    assert 0 <= real.optimizer - parts.optimizer < 8 * 100 # a count of steps with each parameter


def test_nothing_is_allocated_to_know_what_would_be():
    assert peak_memory(lambda: training_memory(AutoencoderSettings((301, 301), "xlarge", "single"))) < 10**6
    assert training_memory(AutoencoderSettings(preset="xlarge", tokens="single"))[:3] == (4 * 1_378_184_657, 4 * 1_378_184_657, 8 * 1_378_184_657)


def test_the_formula_of_the_exercise_is_this_one():
    def mine(parameters, blocks, between, inside, batch, half=False, checkpointing=False): return 16 * parameters + 4 * batch * blocks * between + (2 if half else 4) * batch * inside * (1 if checkpointing else blocks)
    assert check_training_bytes(mine)
    L, D, blocks = 12, 16, 4
    for checkpointing in False, True:
        parts, kept = training_memory(LITTLE, batch=3, checkpointing=checkpointing), kept_bytes(LITTLE, batch=3, checkpointing=checkpointing)
        assert parts.total - kept.outside == mine(parts.weights // 4, blocks, L * D, block_bytes(L, D, 2) // 4 - L * D, 3, checkpointing=checkpointing)


# ------------------------------------------------------------------ the hook


class Twice(nn.Module):
    "Keeps two views of one storage, and a parameter."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x): return (x[:2] * self.weight).sum() + (x[2:].exp() * self.weight).sum()


def test_a_storage_counts_once_and_a_parameter_never():
    model, x = Twice(), torch.rand(4, 4)
    assert [t.nbytes for t in saved_tensors(model, lambda: model(x))] == [64, 32] # all of x, and exp of its half
    assert [t.nbytes for t in saved_tensors(model, lambda: model(x), given=[x])] == [32]
    assert {t.where for t in saved_tensors(nn.Sequential(model), lambda: model(x))} == {"0"}


def test_hooks_are_gone_after_an_error():
    def fails(): raise RuntimeError("no")
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="no"): saved_tensors(model, fails)
    assert not model[0]._forward_hooks and not model[0]._forward_pre_hooks


def test_gradients_are_right_under_the_watch():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1)), torch.rand(5, 3)
    losses = []
    saved_tensors(model, lambda: losses.append(model(x).sum()))
    watched, plain = torch.autograd.grad(losses[0], list(model.parameters())), torch.autograd.grad(model(x).sum(), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(watched, plain))


def test_stages_of_a_curve_follow_each_other():
    kept = []
    curve, begins = memory_curve({"one": lambda: kept.append(torch.ones(100)), "nothing": lambda: None, "two": lambda: kept.append(torch.ones(50))})
    assert curve.tolist() == [400, 600] and begins == {"one": 0, "nothing": 1, "two": 1}


# ------------------------------------------------------------------ what fits


@settings(max_examples=25, deadline=None, derandomize=True)
@given(memory=st.integers(10**5, 10**8), precision=st.sampled_from(["fp32", "bf16"]), checkpointing=st.booleans(), fused=st.booleans())
def test_the_largest_batch_fits_and_one_more_does_not(memory, precision, checkpointing, fused):
    s = replace(LITTLE, use_flash_attention=fused)
    n = largest_batch(s, None, memory, precision, checkpointing)
    def needs(batch): return step_moments(s, None, batch, precision, checkpointing).peak + 4 * batch * 9 * 13
    assert n == 0 or needs(n) <= memory
    assert needs(n + 1) > memory


def test_a_gpu_keeps_the_softmax_in_float32():
    same = {"tokens": 40, "dim": 16, "num_heads": 2}
    assert block_bytes(**same, device="cuda") == block_bytes(**same, device="cpu")
    extra = block_bytes(**same, fused=False, precision="bf16", device="cuda") - block_bytes(**same, fused=False, precision="bf16")
    assert extra == 4 * 2 * 40 * 40
    assert block_bytes(**same, dropout=True, device="cuda") - block_bytes(**same, device="cuda") == 40 * 2 * 16 # a byte each


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("function", [training_memory, kept_bytes, step_moments, measure_training, TrainingStep])
@pytest.mark.parametrize("wrong, says", [({"batch": 0}, "batch is 0"), ({"batch": 2.}, "batch is 2.0"), ({"batch": True}, "batch is True"), ({"precision": "fp16"}, "precision is 'fp16', expected fp32 or bf16"),
                                        ({"device": "tpu"}, "device is 'tpu'"), ({"size": (0, 5)}, "size is"), ({"size": (5,)}, "size is"), ({"size": (5, 5.)}, "size is")])
def test_a_wrong_setting_is_named(function, wrong, says):
    with pytest.raises(ValueError, match=says.replace("(", r"\(")): function(LITTLE, **wrong)


def test_settings_that_no_model_takes_are_refused():
    for wrong, says in ((replace(LITTLE, preset="huge"), "one of tiny"), (replace(LITTLE, num_heads=3), "divisor"), (AutoencoderSettings(preset="tiny", tokens="single", patch_size=8), "no patches")):
        with pytest.raises(ValueError, match=says): training_memory(wrong)
    with pytest.raises(ValueError, match="input_size"): training_memory(AutoencoderSettings(preset="tiny", tokens="single"), size=(152, 640))
    assert training_memory(AutoencoderSettings([9, 13], "tiny")) == training_memory(AutoencoderSettings((9, 13), "tiny")) # as JSON gives it


# ------------------------------------------------------------------ the benchmark


def test_a_row_of_the_benchmark_holds_both(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import argparse
    import importlib

    module = importlib.import_module("autoencoder_memory")
    args = argparse.Namespace(device="cpu", batch=2, presets=["tiny"])
    row = module.measured(LITTLE, "fp32", True, args)
    assert row["computed"]["kept"] == row["measured"]["kept"] and row["computed"]["again"] > 0
    assert row["computed"]["total"] == training_memory(LITTLE, None, 2, "fp32", True).total
    assert module.shown(row)["preset"] == "tiny" and len(list(module.cases(args))) == 10
    def out_of_memory(*_): raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(module, "measure_training", out_of_memory)
    assert module.measured(LITTLE, "fp32", False, args)["failed"] == "out of memory"
    for name in "common", "autoencoder_memory": sys.modules.pop(name, None)
