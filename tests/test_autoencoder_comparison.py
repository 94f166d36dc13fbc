"Races of two nets: what a notebook does not show well."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stage_modules.autoencoder.comparison import (
    Racer,
    end_loss,
    in_turns,
    next_factors,
    operations,
    pick_factor,
    read_labels,
    try_rates,
)
from stage_modules.autoencoder.model import create_autoencoder


class Scale(nn.Module):
    "A net of one number."

    def __init__(self): super().__init__(); self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x): return self.weight * x, None


losses = st.one_of(st.floats(1e-6, 10), st.just(math.inf))


@given(st.dictionaries(st.integers(-4, 6), losses, min_size=11, max_size=11))
def test_search_ends_and_picks_something_tried(of_power):
    tried = {}
    for _ in range(3):
        for factor in next_factors(tried): tried[factor] = of_power[round(math.log2(factor))]
    assert 3 <= len(tried) <= 4
    best, chosen = min(tried.values()), tried[pick_factor(tried)]
    assert chosen == best or chosen <= 1.1 * best
    assert all(loss > 1.1 * best for factor, loss in tried.items() if factor < pick_factor(tried))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 5)), min_size=1, max_size=12))
def test_end_loss_lies_between_its_turns(turns):
    steps, curve = 0, []
    for more, loss in turns: steps += more; curve.append((steps, float(steps), loss))
    last = [loss for (step, _, loss) in curve if step > .75 * steps]
    assert min(last) - 1e-9 <= end_loss(curve) <= max(last) + 1e-9


def test_eight_bits_and_floats_are_the_same_images():
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    racers = [Racer(Scale(), x, .1, 4, steps=20) for x in (images, images / 255)]
    in_turns(racers, .01)
    assert racers[0].net.weight.item() == pytest.approx(racers[1].net.weight.item(), abs=1e-5) and racers[0].net.weight.item() > .3


def test_the_clock_stands_between_turns():
    racer = Racer(Scale(), torch.rand(4, 1, 8, 8), .1, 2, seconds=.2)
    assert racer.advance(.05) and .05 <= racer.elapsed < .2
    before = racer.elapsed
    torch.randn(500, 500) @ torch.randn(500, 500)
    assert racer.elapsed == before
    while racer.advance(.05): pass
    assert racer.elapsed >= .2 and [step for step, *_ in racer.curve][-1] == racer.step and not racer.advance(.05)


def test_a_net_that_bursts_has_the_highest_loss():
    class Bursts(Scale):
        def forward(self, x): return self.weight / 0 * x, None
    tried = try_rates(lambda name, rate: Racer(Scale() if name == "fine" else Bursts(), torch.rand(4, 1, 8, 8), rate, 2, steps=3), ("fine", "bursts"), .1)
    assert all(math.isinf(loss) for loss in tried["bursts"].values()) and all(math.isfinite(loss) for loss in tried["fine"].values())


def test_operations_leave_the_net_as_it_was():
    with torch.device("meta"): net = create_autoencoder((32, 32), "tiny")
    fused = [module for module in net.modules() if hasattr(module, "use_flash_attention")]
    small, large = operations(net, (32, 32)), operations(net, (32, 64))
    assert all(module.use_flash_attention for module in fused) and small < large
    with pytest.raises(ValueError): operations(net, (0, 32))
    assert all(module.use_flash_attention for module in fused)


def test_probes_do_not_hang_on_scale_or_order_of_features():
    torch.manual_seed(0)
    z = torch.randn(90, 6)
    y = z[:, :2] + .1 * torch.randn(90, 2)
    plain, moved = read_labels(z, y), read_labels((z * torch.tensor([1, 10, .1, 3, 7, 2]) + 4).flip(1), y)
    torch.testing.assert_close(plain.linear, moved.linear, atol=1e-3, rtol=0)
    torch.testing.assert_close(plain.near, moved.near, atol=1e-3, rtol=0)
    assert (plain.linear > .9).all()


def test_probes_of_noise_find_nothing():
    torch.manual_seed(0)
    found = read_labels(torch.randn(600, 4), torch.randn(600, 1))
    assert found.linear.item() < .1 and found.near.item() < .1
