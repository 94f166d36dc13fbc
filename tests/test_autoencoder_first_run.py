"""What the first run leans on: Muon stops and goes on as AdamW does, for either model, and drops that are drawn once are those that would have been drawn.

Broken on purpose to see each test fail: momentum that is not stored, matrices that AdamW moves too, drops kept from another seed."""
from dataclasses import replace

import pytest
import torch

from stage_modules.autoencoder.cnn import build_model
from stage_modules.autoencoder.train import Muon, TrainConfig, decide, inner_matrices, pick_optimizer, read_data, train

SMALL = TrainConfig(preset="tiny", input_size=(24, 24), patch_size=8, num_layers=1, images=32, valid_images=8, batch_size=8, num_epochs=2, draw_first=True, muon=True,
                    progress=False, tensorboard=False, device="cpu")
KINDS = {"transformer": {}, "cnn": {"model_type": "cnn", "channels": (8, 12), "strides": (4, 2)}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_two_parts_is_the_run_in_one(kind, tmp_path):
    config = replace(SMALL, **KINDS[kind], output_dir=str(tmp_path), schedule="constant", warmup_steps=0)
    whole = train(replace(config, exp_name="whole"))
    train(replace(config, exp_name="parts", num_epochs=1))
    parts = train(replace(config, exp_name="parts", resume=True))
    assert [row["step"] for row in parts.history if "mse" in row] == [4, 8]
    for (name, a), b in zip(whole.model.state_dict().items(), parts.model.state_dict().values(), strict=True): assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_moved_by_one_of_the_two(kind):
    config = decide(replace(SMALL, **KINDS[kind]))
    model = build_model(config)
    optimizer = pick_optimizer(model, config)
    inner = {id(p) for p in inner_matrices(model)}
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert isinstance(optimizer, Muon) and inner and sorted(held) == sorted(id(p) for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters(): p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    optimizer.step()
    for p, old in zip(model.parameters(), before):
        assert not torch.equal(p, old)
        assert ("momentum" in optimizer.state[p]) == (id(p) in inner) == ("exp_avg" not in optimizer.state[p])
        assert (p - old).square().mean().sqrt() < 2 * config.learning_rate # a step of usual length


@pytest.mark.parametrize("widths", [(), (24, 40)])
def test_drops_drawn_first_are_the_same(widths):
    first, later = (read_data(replace(SMALL, draw_first=draw, widths=widths, noise=.02)) for draw in (True, False))
    for a, b in (first.train, later.train), (first.valid, later.valid):
        assert len(a) == len(b) and a.widths == b.widths
        for i in range(len(a)): assert torch.equal(a[i], b[i])
    assert first.widest == later.widest
