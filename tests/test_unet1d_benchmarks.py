"What the benchmarks of stage 3 make of their measurements, on numbers that were made up so that the answer is known."
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import importlib

    yield importlib.import_module
    for name in "common", "unet1d_comparison", "unet1d_lengths", "unet1d_rates": sys.modules.pop(name, None)


def test_convergence_is_read_between_two_rows(benchmark):
    module = benchmark("unet1d_comparison")
    history = [{"step": s, "cpu_seconds": 2 * s, "valid_loss": loss} for s, loss in ((10, 1.), (20, .6), (30, .7), (40, .2))]
    assert module.steps_until(history, .8) == pytest.approx(15) and module.steps_until(history, .8, "cpu_seconds") == pytest.approx(30)
    assert module.steps_until(history, 2.) == 10 and module.steps_until(history, .1) is None


def test_every_run_reaches_the_level_and_the_spread_is_over_seeds(benchmark):
    module = benchmark("unet1d_comparison")
    history = lambda last: [{"step": 1, "cpu_seconds": 1., "valid_loss": 1.}, {"step": 2, "cpu_seconds": 2., "valid_loss": last}]
    rows = [{"variant": v, "seed": s, "frechet": f, "samples": 10, "history": history(last)} for v, s, f, last in (("a", 0, 1., .5), ("a", 1, 3., .4), ("b", 0, 7., .2))]
    a, b = module.summary(rows)
    assert (a["frechet"], round(a["frechet_sd"], 3), a["runs"]) == (2., 1.414, 2) and b["frechet_sd"] is None and "samples" not in a
    assert a["level"] == pytest.approx(.51) and a["step_to_level"] > b["step_to_level"]


def test_lengths_count_and_cross_where_they_must(benchmark):
    module = benchmark("unet1d_lengths")
    rows = [{"width": 64, "length": n, "part": part, "seconds": module.multiplications(part, 64, n), "bytes": n, "multiplications": module.multiplications(part, 64, n)}
            for n in module.LENGTHS for part in (module.CONV, module.FUSED, module.ASKED, *module.PARTS)]
    for row in module.crossings(rows): # a clock that shows nothing but multiplications crosses where they do, as near as straight lines go
        assert row["by the clock"] == pytest.approx(row["by multiplications"], rel=.05)
    found = {(row["part"], row["lengths"]): row["seconds"] for row in module.slopes(rows)}
    assert found["two convolutions", "long"] == pytest.approx(1) and found["products, fused", "short"] == pytest.approx(2)
    assert 1.3 < found[module.FUSED, "long"] < 2


def test_multiplications_are_those_of_the_blocks(benchmark):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from stage_modules.unet1d.blocks import ResBlock1D, SelfAttention1D

    module = benchmark("unet1d_lengths")
    for part, block in (module.CONV, ResBlock1D(16, 16, 32)), (module.FUSED, SelfAttention1D(16, 32, 4)):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad(): block.eval()(torch.zeros(1, 16, 40), torch.zeros(1, 32))
        assert counter.get_total_flops() / 2 == module.multiplications(part, 16, 40) + 16 * 32 * 1 # and the time's projection, once


def test_no_crossing_where_there_is_none(benchmark):
    crossing = benchmark("unet1d_lengths").crossing
    assert crossing({1: 1., 2: 1.}, {1: 2., 2: 2.}) is None and crossing({1: 3., 2: 3.}, {1: 2., 2: 2.}) is None
    assert crossing({1: 1., 4: 4.}, {1: 2., 4: 2.}) == pytest.approx(2)
    assert crossing({1: 9., 2: 1., 4: 4.}, {1: 2., 2: 2., 4: 2.}) == pytest.approx(2 * 2 ** .5) # the last time counts


def test_spikes_stand_out_from_what_came_before(benchmark):
    spikes = benchmark("unet1d_rates").spikes
    calm = [1. + .1 * (i % 5) for i in range(200)]
    assert spikes(calm) == 0 and spikes([*calm[:100], 9., *calm[100:]]) == 1 and spikes([9., *calm]) == 0 # the first steps do not count
    assert spikes([*calm, float("nan")]) == 1
