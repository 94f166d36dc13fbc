"The UNet of stage 3: sizes, both ways through the attention, what padding does not exist for (every pose is whole), and sizes that do not fit."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from stage_modules.toolkit.errors import ShapeError
from stage_modules.unet1d import blocks
from stage_modules.unet1d.blocks import Conv3, ResBlock1D, SelfAttention1D, TimeEmbedding, convolve_by_product, time_features
from stage_modules.unet1d.model import UNet1D

EXACT = {"conv": 5_767_169, "attention": 5_242_881}
PARTS = {"time": 98_816, "down.0": 83_456, "down.1": 395_264, "down.2": 1_445_888, "up.0": 1_312_768, "up.1": 345_088, "up.2": 214_016, "widen.0": 131_328, "widen.1": 32_896, "out": 129}


def count(module: torch.nn.Module) -> int: return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("mid", EXACT)
def test_the_sizes_that_readers_may_count_on(mid):
    model = UNet1D(mid_structure=mid)
    assert count(model) == EXACT[mid] and count(model.mid) == {"conv": 1_707_520, "attention": 1_183_232}[mid]
    assert {name: count(model.get_submodule(name)) for name in PARTS} == PARTS


@settings(max_examples=25, deadline=None, derandomize=True)
@given(batch=st.integers(1, 5), channels=st.integers(1, 20), out=st.integers(1, 20), length=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_product_over_windows_is_a_convolution(batch, channels, out, length, seed):
    torch.manual_seed(seed)
    layer, x = Conv3(channels, out).double(), torch.randn(batch, channels, length, dtype=torch.float64, requires_grad=True)
    expected = F.conv1d(x, layer.weight, layer.bias, padding=1)
    found = convolve_by_product(x, layer.weight, layer.bias)
    torch.testing.assert_close(found, expected)
    wish = torch.randn_like(expected)
    wanted, came = (torch.autograd.grad((y * wish).sum(), [x, layer.weight, layer.bias]) for y in (expected, found))
    for a, b in zip(wanted, came): torch.testing.assert_close(b, a)


@pytest.mark.parametrize("mid", EXACT)
def test_both_ways_through_the_network_agree(mid, monkeypatch):
    "Products for short rows or convolutions throughout: outputs and gradients are the same to 1e-5."
    torch.manual_seed(0)
    model, x, time = UNet1D(base_channels=16, mid_structure=mid).eval(), torch.randn(3, 72), torch.tensor([0., 400.5, 999.])
    results = []
    for short in 0, 24, 100:
        monkeypatch.setattr(blocks, "SHORT", short)
        model.zero_grad()
        y = model(x, time)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
    for other in results[1:]:
        for a, b in zip(results[0], other): torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(heads=st.sampled_from([1, 2, 4, 8]), length=st.integers(1, 30), batch=st.integers(1, 4), seed=st.integers(0, 99))
def test_attention_with_and_without_weights_agree(heads, length, batch, seed):
    torch.manual_seed(seed)
    block, x, told = SelfAttention1D(16, 8, heads), 3 * torch.randn(batch, 16, length), torch.randn(batch, 8)
    out, weights = block(x, told, need_weights=True)
    torch.testing.assert_close(block(x, told), out, rtol=1e-5, atol=1e-5)
    assert weights.shape == (batch, heads, length, length)
    torch.testing.assert_close(weights.sum(-1), torch.ones(batch, heads, length), rtol=1e-5, atol=1e-5)


def test_attention_is_what_pytorch_s_own_module_computes():
    torch.manual_seed(0)
    block, x, told = SelfAttention1D(32, 8, 4), torch.randn(2, 32, 18), torch.randn(2, 8)
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = block.qkv.weight.squeeze(-1), block.qkv.bias
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = block.proj.weight.squeeze(-1), block.proj.bias
    hidden = (block.norm(x) + block.time(told).unsqueeze(-1)).transpose(1, 2)
    context, weights = theirs(hidden, hidden, hidden, average_attn_weights=False)
    out, ours = block(x, told, need_weights=True)
    torch.testing.assert_close(out, x + context.transpose(1, 2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mid", EXACT)
@pytest.mark.parametrize("dim, multipliers", [(72, (1, 2, 4)), (128, (1, 2)), (8, (1, 1, 2, 2)), (5, (2,))])
def test_other_sizes_go_in_and_out(mid, dim, multipliers):
    model = UNet1D(dim, 8, multipliers, 12, mid, 4)
    assert model(torch.randn(2, dim), torch.zeros(2)).shape == (2, dim)
    assert model.eval()(torch.randn(0, dim), torch.zeros(0)).shape == (0, dim)


@pytest.mark.parametrize("wrong, says", [
    ({"pose_dim": 70}, "pose_dim=70 is not a multiple of 4"), ({"pose_dim": 0}, "pose_dim=0"), ({"mid_num_heads": 7, "mid_structure": "attention"}, "channels=512 is not a multiple of num_heads=7"),
    ({"mid_num_heads": 0, "mid_structure": "attention"}, "num_heads=0"), ({"mid_structure": "lstm"}, "mid_structure='lstm'"), ({"base_channels": 0}, "base_channels=0"), ({"base_channels": 9}, "base_channels=9"),
    ({"channel_multipliers": ()}, "channel_multipliers is ()"), ({"channel_multipliers": (1, 0)}, "channel_multipliers is (1, 0)")])
def test_sizes_that_do_not_fit_are_refused_by_name(wrong, says):
    with pytest.raises(ValueError) as error: UNet1D(**wrong)
    assert says in str(error.value)


def test_shapes_that_do_not_fit_are_refused_by_name():
    model = UNet1D(base_channels=8, time_emb_dim=8)
    for x, time, says in (torch.zeros(2, 71), torch.zeros(2), "x has shape (2, 71)"), (torch.zeros(2, 72), torch.zeros(3), "time has shape (3,)"), (torch.zeros(72), torch.zeros(1), "x has shape (72,)"):
        with pytest.raises(ShapeError) as error: model(x, time)
        assert says in str(error.value)


@pytest.mark.parametrize("mid", EXACT)
def test_in_evaluation_no_pose_sees_another(mid):
    torch.manual_seed(0)
    model, x, time = UNet1D(base_channels=8, mid_structure=mid), torch.randn(6, 72), torch.arange(6) * 150.
    for _ in range(3): model(torch.randn(16, 72), torch.rand(16) * 999) # the norms have seen something
    model.eval()
    torch.testing.assert_close(torch.cat([model(x[i:i + 1], time[i:i + 1]) for i in range(6)]), model(x, time), rtol=1e-5, atol=1e-5)


def test_the_time_matters_everywhere_and_integers_are_times_too():
    torch.manual_seed(0)
    model, x = UNet1D(base_channels=8).eval(), torch.randn(1, 72).expand(2, -1)
    early, late = model(x, torch.tensor([0., 999.]))
    assert (early - late).abs().max() > 1e-3
    torch.testing.assert_close(model(x, torch.tensor([3, 700])), model(x, torch.tensor([3., 700.])))
    whole = time_features(torch.tensor([5, 6]), 16)
    assert (time_features(torch.tensor([5.5]), 16) - whole.mean(0)).abs().max() < .2 and TimeEmbedding(16, 4)(torch.tensor([5])).shape == (1, 4)


@pytest.mark.parametrize("mid", EXACT)
def test_bfloat16_autocast_and_float64_go_through(mid):
    torch.manual_seed(0)
    model, x, time = UNet1D(base_channels=8, mid_structure=mid).eval(), torch.randn(2, 72), torch.tensor([1., 900.])
    exact = model(x, time)
    with torch.autocast("cpu", torch.bfloat16): rough = model(x, time)
    assert (rough.float() - exact).abs().max() < .1 * exact.abs().max() + .05
    torch.testing.assert_close(model.double()(x.double(), time).float(), exact, rtol=1e-4, atol=1e-4)


def test_attention_without_positions_commutes_with_any_shuffle_and_a_convolution_does_not():
    torch.manual_seed(0)
    x, told, order = torch.randn(2, 16, 18), torch.randn(2, 8), torch.randperm(18)
    look, work = SelfAttention1D(16, 8, 4), ResBlock1D(16, 16, 8).eval()
    torch.testing.assert_close(look(x[..., order], told), look(x, told)[..., order], rtol=1e-5, atol=1e-5)
    assert (work(x[..., order], told) - work(x, told)[..., order]).abs().max() > .1
