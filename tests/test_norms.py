"""The encoder layer against PyTorch's, over shapes, masks and both orders; what padding must not do; what peak memory must see."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stage_modules.attention import TransformerEncoder, TransformerEncoderLayer, causal_mask, padding_mask, peak_memory


@settings(derandomize=True, deadline=None, max_examples=40)
@given(batch=st.integers(1, 3), length=st.integers(1, 7), heads=st.sampled_from([1, 2, 4]), norm_first=st.booleans(),
       activation=st.sampled_from(["relu", "gelu"]), masked=st.booleans(), causal=st.booleans(), seed=st.integers(0, 99))
def test_layer_agrees_with_torch_forward_and_backward(batch, length, heads, norm_first, activation, masked, causal, seed):
    torch.manual_seed(seed)
    theirs = nn.TransformerEncoderLayer(8, heads, 16, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first, dtype=torch.double)
    ours = TransformerEncoderLayer(8, heads, 16, activation=activation, norm_first=norm_first).double()
    ours.load_state_dict(theirs.state_dict())
    for parameter in theirs.parameters(): nn.init.normal_(parameter)  # also the biases and norms, which start at 0 and 1
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, length, 8, dtype=torch.double)
    real = padding_mask(torch.randint(1, length + 1, (batch,)), length) if masked else torch.ones(batch, length, dtype=torch.bool)
    seen = causal_mask(length) if causal else None
    pull = torch.randn_like(x) * real[..., None]
    results = []
    for layer, call in (ours, lambda m, h: m(h, key_mask=real, attn_mask=seen)[0]), (theirs, lambda m, h: m(h, src_mask=None if seen is None else ~seen, src_key_padding_mask=~real)):
        h = x.clone().requires_grad_()
        out = call(layer, h)
        results.append((out[real], *torch.autograd.grad((out * pull).sum(), [h, *layer.parameters()])))
    names = ["output", "input", *(name for name, _ in ours.named_parameters())]
    theirs_by_name = dict(zip(["output", "input", *(name for name, _ in theirs.named_parameters())], results[1]))
    for name, mine in zip(names, results[0]): torch.testing.assert_close(mine, theirs_by_name[name], atol=1e-8, rtol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("norm_first", [True, False])
def test_stack_padding_never_changes_a_result(norm_first):
    torch.manual_seed(0)
    stack, lengths = TransformerEncoder(4, 16, 4, norm_first=norm_first).eval(), [7, 1, 4]
    real, x = padding_mask(lengths), torch.randn(3, 7, 16)
    for filler in 0.0, 1e4, -1e4:
        together, _ = stack(x.masked_fill(~real[..., None], filler), key_mask=real)
        for i, n in enumerate(lengths): torch.testing.assert_close(together[i, :n], stack(x[i:i + 1, :n])[0][0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_sequence_of_nothing_but_padding_is_finite_forward_and_backward(norm_first):
    torch.manual_seed(0)
    stack, x = TransformerEncoder(2, 8, 2, norm_first=norm_first), torch.randn(2, 3, 8, requires_grad=True)
    out, weights = stack(x, key_mask=padding_mask([3, 0], 3), need_weights=True)
    out.square().sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()
    assert all((w[1] == 0).all() for w in weights)


def test_dropout_is_silent_in_evaluation_and_heard_in_training():
    torch.manual_seed(0)
    layer, x = TransformerEncoderLayer(8, 2, dropout=0.5), torch.randn(1, 4, 8)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    assert torch.equal(layer.eval()(x)[0], layer(x)[0])


def test_peak_memory_sees_what_is_gone_at_the_end():
    n = 1000 * 1000
    assert peak_memory(lambda: torch.ones(n).sum()) >= 4 * n  # the big tensor does not outlive the call
    assert peak_memory(lambda: None) == 0
    kept = torch.ones(n)  # was there before
    assert peak_memory(lambda: kept.sum()) < 1000
