"Properties of stage 1's attention over many shapes, masks and values; the pages show single cases of each."
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from stage_modules.attention import (
    LearnedPositions,
    MultiHeadAttention,
    RotaryMultiHeadAttention,
    RotaryPositions,
    SinusoidalPositions,
    additive_score,
    causal_mask,
    dot_score,
    general_score,
    masked_softmax,
    padding_mask,
    scaled_dot_product_attention,
    scaled_dot_score,
    sinusoidal_positions,
)
from stage_modules.toolkit.errors import ShapeError

quick = settings(max_examples=60, deadline=None, derandomize=True)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
dtypes = st.sampled_from(list(TOLERANCE))
size = st.integers(1, 7)


@st.composite
def problems(draw):
    "Queries, keys, values and a mask (or None) of matching random shapes; some rows are masked throughout."
    front = draw(st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)]))
    T, S, D, Dv = draw(size), draw(size), draw(size), draw(size)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2 ** 20)))
    dtype, scale = draw(dtypes), draw(st.sampled_from([.01, 1., 5.]))
    query, key, value = (torch.randn(*front, *shape, generator=generator, dtype=dtype) for shape in ((T, D), (S, D), (S, Dv)))
    kind = draw(st.sampled_from(["none", "full", "keys", "queries", "flat", "causal", "nothing"]))
    shapes = {"full": (*front, T, S), "keys": (*[1] * len(front), 1, S), "queries": (T, 1), "flat": (S,)}
    mask = None
    if kind in shapes: mask = torch.rand(shapes[kind], generator=generator) < draw(st.sampled_from([.2, .5, .9]))
    elif kind == "causal": mask = torch.ones(T, S, dtype=torch.bool).tril()
    elif kind == "nothing": mask = torch.zeros(T, S, dtype=torch.bool)
    return query * scale, key, value, mask


def by_hand(query, key, value, mask):
    "Query by query, over real keys only, in float64: nothing is shared with the code under test."
    front, T, S = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2]), query.shape[-2], key.shape[-2]
    mask = torch.ones(T, S, dtype=torch.bool) if mask is None else mask
    mask = mask.expand(*front, T, S).reshape(-1, T, S)
    query, key, value = (x.double().expand(*front, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (query, key, value))
    context = torch.zeros(len(query), T, value.shape[-1], dtype=torch.float64)
    for b in range(len(query)):
        for t in range(T):
            real = mask[b, t]
            if not real.any(): continue
            e = (key[b, real] * query[b, t]).sum(-1) / math.sqrt(query.shape[-1])
            share = (e - e.max()).exp()
            context[b, t] = (share[:, None] * value[b, real]).sum(0) / share.sum()
    return context.reshape(*front, T, -1)


def gradients(attend, *tensors):
    leaves = [x.clone().requires_grad_() for x in tensors]
    context = attend(*leaves)
    towards = torch.randn(context.shape, generator=torch.Generator().manual_seed(0), dtype=context.dtype)
    return context.detach(), torch.autograd.grad((context * towards).sum(), leaves)


@quick
@given(problems(), st.booleans())
def test_context_is_what_the_definition_says(problem, need_weights):
    query, key, value, mask = problem
    context, weights = scaled_dot_product_attention(query, key, value, mask, need_weights=need_weights)
    torch.testing.assert_close(context.double(), by_hand(query, key, value, mask), rtol=0, atol=TOLERANCE[query.dtype])
    assert (weights is not None) == need_weights


@quick
@given(problems(), st.booleans())
def test_agrees_with_torch_forward_and_backward(problem, need_weights):
    query, key, value, mask = problem
    theirs_mask = None if mask is None else torch.atleast_2d(mask)
    empty = torch.tensor(False) if mask is None else ~theirs_mask.any(-1, keepdim=True)
    ours, our_gradients = gradients(lambda *x: scaled_dot_product_attention(*x, mask, need_weights=need_weights)[0], query, key, value)
    theirs, their_gradients = gradients(
        lambda *x: F.scaled_dot_product_attention(*x, attn_mask=None if mask is None else theirs_mask | empty).masked_fill(empty, 0.), query, key, value)
    largest = max(1., *(g.abs().max().item() for g in their_gradients)) # gradients of large queries are large
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE[query.dtype])
    for mine, other in zip(our_gradients, their_gradients):
        torch.testing.assert_close(mine, other, rtol=0, atol=TOLERANCE[query.dtype] * largest)


@quick
@given(problems())
def test_weights_are_shares_of_what_is_real(problem):
    query, key, value, mask = problem
    _, weights = scaled_dot_product_attention(query, key, value, mask)
    mask = torch.ones_like(weights, dtype=torch.bool) if mask is None else mask.expand_as(weights)
    assert weights.min() >= 0 and (weights[~mask] == 0).all()
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).to(weights.dtype))


@quick
@given(problems(), st.booleans())
def test_masked_positions_have_no_say(problem, need_weights):
    "Whatever stands at a masked key, the context is the same, and no gradient reaches it."
    query, key, value, mask = problem
    if mask is None: return
    nobody = ~mask.expand(*query.shape[:-1], key.shape[-2]).any(-2) # (..., S): keys that no query may look at
    loud = [x.masked_fill(nobody[..., None], 1e3) for x in (key, value)]
    before, _ = scaled_dot_product_attention(query, key, value, mask, need_weights=need_weights)
    after, (_, *at_loud) = gradients(lambda *x: scaled_dot_product_attention(*x, mask, need_weights=need_weights)[0], query, *loud)
    torch.testing.assert_close(after, before, rtol=0, atol=TOLERANCE[query.dtype])
    assert all((g[nobody] == 0).all() for g in at_loud)


@quick
@given(problems(), st.booleans())
def test_a_query_that_may_look_nowhere_is_silent(problem, need_weights):
    query, key, value, _ = problem
    mask = torch.rand(query.shape[-2], key.shape[-2], generator=torch.Generator().manual_seed(1)) > .3
    mask[0] = False
    context, grads = gradients(lambda *x: scaled_dot_product_attention(*x, mask, need_weights=need_weights)[0], query, key, value)
    assert (context[..., 0, :] == 0).all() and (grads[0][..., 0, :] == 0).all()
    assert all(g.isfinite().all() for g in grads)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", [torch.zeros(3, 4, dtype=torch.bool), torch.tensor([[True], [False], [True]]), torch.tensor(False)])
def test_no_nan_is_made_on_the_way_either(mask, need_weights):
    "Anomaly mode raises where any backward step makes a NaN, also one that a later step would cover up."
    query, key = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 4, 5, requires_grad=True)
    with torch.autograd.detect_anomaly(check_nan=True):
        scaled_dot_product_attention(query, key, key, mask, need_weights=need_weights)[0].sum().backward()


def test_the_fused_kernel_is_never_asked_about_an_empty_row(monkeypatch):
    "What it answers has changed between versions and differs between devices."
    seen, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *x, attn_mask=None, **more: (seen.append(attn_mask), kernel(*x, attn_mask=attn_mask, **more))[1])
    query, mask = torch.randn(2, 3, 4), torch.rand(2, 3, 3) > .3
    mask[1, 2] = False
    scaled_dot_product_attention(query, query, query, mask, need_weights=False)
    assert len(seen) == 1 and seen[0].any(-1).all()


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("mask", ["none", "random", "empty row", "all empty", "causal"])
def test_gradcheck(mask, need_weights):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (4, 3), (4, 2)))
    masks = {"none": None, "random": torch.rand(2, 1, 4, 4) > .4, "all empty": torch.zeros(4, 4, dtype=torch.bool), "causal": causal_mask(4)}
    masks["empty row"] = masks["random"].clone()
    masks["empty row"][0, 0, 2] = False
    assert torch.autograd.gradcheck(lambda q, k, v: scaled_dot_product_attention(q, k, v, masks[mask], need_weights=need_weights)[0], (query, key, value))


@pytest.mark.parametrize("score, parameters", [
    (dot_score, []), (scaled_dot_score, []), (general_score, [(3, 3)]), (additive_score, [(5, 3), (5, 3), (5,)])])
def test_scores_pass_gradcheck_and_treat_each_pair_alone(score, parameters):
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in parameters]
    assert torch.autograd.gradcheck(score, (query, key, *weights))
    together = score(query, key, *weights)
    for b, t, s in [(0, 0, 0), (1, 3, 2), (0, 2, 4)]:
        torch.testing.assert_close(together[b, t, s], score(query[b, t:t + 1], key[b, s:s + 1], *weights)[0, 0])


def test_softmax_gradcheck_and_large_scores():
    torch.manual_seed(0)
    scores, mask = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.rand(3, 4) > .5
    mask[1] = False
    assert torch.autograd.gradcheck(lambda e: masked_softmax(e, mask), scores)
    assert masked_softmax(torch.tensor([[1e30, -1e30, 0.]]), torch.tensor([[False, True, True]])).tolist() == [[0., 0., 1.]]


@pytest.mark.parametrize("need_weights", [True, False])
def test_nan_in_real_input_is_not_hidden(need_weights):
    query, key, value = torch.randn(3, 2, 4, 8)
    key[0, 1] = math.nan
    context, _ = scaled_dot_product_attention(query, key, value, torch.tensor([True, True, False, True]), need_weights=need_weights)
    assert context[0].isnan().all() and not context[1].isnan().any()


@pytest.mark.parametrize("bad", [torch.ones(3, 5), torch.ones(3, 5, dtype=torch.long), torch.zeros(3, 5, dtype=torch.uint8)])
@pytest.mark.parametrize("need_weights", [True, False])
def test_masks_of_other_types_are_refused(bad, need_weights):
    query, key = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    with pytest.raises(TypeError, match="attn_mask.*boolean"): scaled_dot_product_attention(query, key, key, bad, need_weights=need_weights)
    with pytest.raises(TypeError, match="boolean"): masked_softmax(query @ key.mT, bad)


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (3,), (4, 3, 5), (7, 2, 3, 5), (1, 2, 3, 5), (0,)])
def test_masks_of_other_shapes_are_refused(shape, need_weights):
    "Also one that would broadcast, but enlarge the result."
    query, key = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    with pytest.raises(ShapeError, match="attn_mask"):
        scaled_dot_product_attention(query, key, key, torch.ones(shape, dtype=torch.bool), need_weights=need_weights)


def test_dropout_is_right_on_average_and_spares_the_returned_weights():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 6, 8)
    plain, weights = scaled_dot_product_attention(query, key, value)
    for need_weights in (True, False):
        draws = torch.stack([scaled_dot_product_attention(query, key, value, dropout_p=.4, need_weights=need_weights)[0] for _ in range(3000)])
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - plain).abs() < 5 * error).all() and (draws.std(0) > .01).all()
    torch.testing.assert_close(scaled_dot_product_attention(query, key, value, dropout_p=.4)[1], weights)


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 3))
@quick
def test_padding_mask_counts(lengths, more):
    mask = padding_mask(lengths, max(lengths, default=0) + more)
    assert mask.shape == (len(lengths), max(lengths, default=0) + more) and mask.sum(-1).tolist() == lengths
    assert (mask[:, :-1] >= mask[:, 1:]).all() # real positions come first
    if max(lengths, default=0): # a longest one to be too long
        with pytest.raises(ValueError, match="max_length"): padding_mask(lengths, max(lengths) - 1)


# Multi-head attention

def twins(embed_dim, num_heads, bias, dtype=torch.float32):
    "PyTorch's module and ours, with the same weights; biases are drawn, because both begin with zeros."
    theirs = nn.MultiheadAttention(embed_dim, num_heads, bias=bias, batch_first=True, dtype=dtype)
    if bias: nn.init.normal_(theirs.in_proj_bias), nn.init.normal_(theirs.out_proj.bias)
    ours = MultiHeadAttention(embed_dim, num_heads, bias=bias).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@quick
@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), size, size, size, st.booleans(), st.booleans(), st.booleans(), dtypes, st.integers(0, 2 ** 20))
def test_multihead_agrees_with_torch(H, d, B, T, S, bias, use_attn_mask, need_weights, dtype, seed):
    torch.manual_seed(seed)
    theirs, ours = twins(H * d, H, bias, dtype)
    query, key, value = (torch.randn(B, L, H * d, dtype=dtype) for L in (T, S, S))
    key_mask = padding_mask(torch.randint(1, S + 1, (B,)), S)
    attn_mask = torch.rand(T, S) > .4 if use_attn_mask else None
    if use_attn_mask: attn_mask[:, 0] = True # PyTorch's module gives NaN for a row with nothing in it
    hidden = None if attn_mask is None else ~attn_mask
    ours_out = gradients(lambda *x: ours(*x, key_mask, attn_mask, need_weights)[0], query, key, value)
    theirs_out = gradients(lambda *x: theirs(*x, key_padding_mask=~key_mask, attn_mask=hidden, need_weights=need_weights)[0], query, key, value)
    for mine, other in zip([ours_out[0], *ours_out[1]], [theirs_out[0], *theirs_out[1]]):
        torch.testing.assert_close(mine, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    if need_weights:
        _, expected = theirs(query, key, value, ~key_mask, attn_mask=hidden, average_attn_weights=False)
        torch.testing.assert_close(ours(query, key, value, key_mask, attn_mask, True)[1], expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_agrees_with_torch_when_tensors_are_shared(need_weights):
    "Keys and values of one tensor are projected together; queries too may be the same tensor."
    torch.manual_seed(0)
    theirs, ours = twins(12, 3, True)
    x, memory = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    for query, key in (x, x), (x, memory):
        torch.testing.assert_close(ours(query, key, key, need_weights=need_weights)[0], theirs(query, key, key)[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(ours(query, key, key)[0], ours(query, key, key.clone())[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_multihead_parameters_are_those_of_torch(bias):
    theirs, ours = twins(12, 3, bias)
    theirs.load_state_dict(ours.state_dict()) # and back
    shapes = {name: p.shape for name, p in ours.named_parameters()}
    assert shapes == {name: p.shape for name, p in theirs.named_parameters()}
    with pytest.raises(RuntimeError, match="in_proj_weight"): MultiHeadAttention(24, 3, bias=bias).load_state_dict(theirs.state_dict())


@quick
@given(st.integers(1, 4), size, st.integers(0, 7), st.booleans(), st.integers(0, 2 ** 20))
def test_multihead_paths_agree_also_with_nothing_to_attend_to(B, T, S, causal, seed):
    torch.manual_seed(seed)
    attention = MultiHeadAttention(8, 2)
    S = T if causal else S
    query, memory = torch.randn(B, T, 8), torch.randn(B, S, 8)
    key_mask = padding_mask(torch.randint(0, S + 1, (B,)), S) # some sentences are empty
    masks = key_mask, causal_mask(T) if causal else None
    def run(need_weights): return gradients(lambda *x: attention(x[0], x[1], x[1], *masks, need_weights)[0], query, memory)
    runs = run(True), run(False)
    for explicit, fused in zip([runs[0][0], *runs[0][1]], [runs[1][0], *runs[1][1]]):
        torch.testing.assert_close(explicit, fused, rtol=1e-5, atol=1e-5)
        assert fused.isfinite().all()
    empty = ~key_mask.any(-1)
    torch.testing.assert_close(runs[1][0][empty], attention.out_proj.bias.detach().expand(int(empty.sum()), T, 8))


@quick
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 4), st.booleans(), st.booleans(), st.integers(0, 2 ** 20))
def test_padding_never_changes_a_result(lengths, more, causal, need_weights, seed):
    torch.manual_seed(seed)
    attention = MultiHeadAttention(8, 2)
    L = max(lengths) + more
    batch = 100 * torch.randn(len(lengths), L, 8) # garbage in the filler
    for b, n in enumerate(lengths): batch[b, :n] /= 100
    context, weights = attention(batch, batch, batch, padding_mask(lengths, L), causal_mask(L) if causal else None, need_weights)
    for b, n in enumerate(lengths):
        one = batch[b:b + 1, :n]
        alone, alone_weights = attention(one, one, one, None, causal_mask(n) if causal else None, need_weights)
        torch.testing.assert_close(context[b, :n], alone[0], rtol=0, atol=1e-5)
        if need_weights: torch.testing.assert_close(weights[b, :, :n, :n], alone_weights[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [[1, 1, 1, 1, 1], [2, 3], [5]])
def test_cached_decoding_equals_the_causal_mask(steps):
    torch.manual_seed(0)
    attention, words, cache, outputs = MultiHeadAttention(12, 3), torch.randn(2, 5, 12), [], []
    for piece in words.split(steps, 1):
        cache.append(attention.project_keys_values(piece))
        keys, values = (torch.cat(parts, 2) for parts in zip(*cache))
        visible = causal_mask(keys.shape[2])[-piece.shape[1]:] # the last rows: what these queries may see
        outputs.append(attention.attend(attention.project_query(piece), keys, values, attn_mask=visible)[0])
    torch.testing.assert_close(torch.cat(outputs, 1), attention(words, words, words, attn_mask=causal_mask(5))[0], rtol=0, atol=1e-5)


def test_multihead_dropout_is_for_training_only():
    torch.manual_seed(0)
    attention, x = MultiHeadAttention(8, 2, dropout=.5), torch.randn(2, 5, 8)
    plain = MultiHeadAttention(8, 2)
    plain.load_state_dict(attention.state_dict())
    for need_weights in (True, False):
        assert not torch.allclose(attention.train()(x, x, x, need_weights=need_weights)[0], plain(x, x, x)[0])
        torch.testing.assert_close(attention.eval()(x, x, x, need_weights=need_weights)[0], plain(x, x, x)[0])


def test_multihead_names_what_does_not_fit():
    attention, x = MultiHeadAttention(8, 2), torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match="num_heads=3"): MultiHeadAttention(8, 3)
    with pytest.raises(ShapeError, match="query"): attention(x[0], x, x)
    with pytest.raises(ShapeError, match="key"): attention(x, x[:1], x[:1])
    with pytest.raises(ShapeError, match="value"): attention(x, x, x[:, :3])
    with pytest.raises(ShapeError, match="key_mask"): attention(x, x, x, key_mask=causal_mask(5))
    with pytest.raises(ShapeError, match="attn_mask"): attention(x, x, x, attn_mask=torch.ones(2, 5, 5, 5, 5, dtype=torch.bool))
    with pytest.raises(ShapeError, match="attn_mask"): attention(torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.randn(3, 5, 8), attn_mask=torch.ones(3, 5, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match="key_mask"): attention(x, x, x, key_mask=torch.ones(2, 5))
    for key_mask in (None, padding_mask([5, 3])):
        with pytest.raises(TypeError, match="attn_mask"): attention(x, x, x, key_mask=key_mask, attn_mask=torch.zeros(5, 5))


# Positions

@quick
@given(st.integers(1, 40), st.integers(0, 100_000), st.integers(1, 300))
def test_sinusoids_are_sines_of_the_published_angles(half, position, base):
    import numpy as np
    row = sinusoidal_positions(torch.tensor([position]), 2 * half, float(base))[0]
    angles = position / float(base) ** (2 * np.arange(half) / (2 * half)) # in numpy, as the paper writes it
    np.testing.assert_allclose(row[0::2], np.sin(angles), atol=1e-5)
    np.testing.assert_allclose(row[1::2], np.cos(angles), atol=1e-5)


@quick
@given(st.integers(1, 16), st.integers(0, 5_000), st.integers(0, 5_000), st.integers(-500, 500), st.integers(0, 2 ** 20))
def test_rotary_scores_depend_on_the_difference_only(half, p, s, shift, seed):
    torch.manual_seed(seed)
    query, key, rotary = torch.randn(1, 2 * half).double(), torch.randn(1, 2 * half).double(), RotaryPositions()
    shift = max(shift, -min(p, s))
    score = rotary(query, p) @ rotary(key, s).T
    torch.testing.assert_close(rotary(query, p + shift) @ rotary(key, s + shift).T, score, rtol=0, atol=1e-8)
    pairs = (torch.view_as_complex(x.unflatten(-1, (-1, 2))) for x in (query, key)) # the same with complex numbers
    speeds = 10_000. ** (-torch.arange(half, dtype=torch.float64) / half)
    q, k = pairs
    torch.testing.assert_close((q * k.conj() * torch.polar(torch.ones(half).double(), (p - s) * speeds)).real.sum(), score.squeeze(), rtol=0, atol=1e-8)
    torch.testing.assert_close(rotary(query, p).norm(), query.norm())


@pytest.mark.parametrize("positions", [SinusoidalPositions(), LearnedPositions(12, 8), RotaryPositions()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pieces_of_a_sentence_stand_where_they_stood(positions, dtype):
    x = torch.randn(2, 12, 8, dtype=dtype)
    positions = positions.to(dtype)
    whole = positions(x)
    assert whole.dtype == dtype and whole.shape == x.shape
    torch.testing.assert_close(torch.cat([positions(x[:, :5]), positions(x[:, 5:6], start=5), positions(x[:, 6:], start=6)], 1), whole)
    assert not list(positions.buffers()) and set(positions.state_dict()) <= {"table"} # nothing to save but what is learned


def test_rotary_attention_decodes_step_by_step_and_moves_freely():
    torch.manual_seed(0)
    attention, x = RotaryMultiHeadAttention(16, 2), torch.randn(2, 6, 16)
    at_once, _ = attention(x, x, x, attn_mask=causal_mask(6))
    for origin in (0, 300):
        cache, outputs = [], []
        for t in range(6):
            cache.append(attention.project_keys_values(x[:, t:t + 1], start=origin + t))
            keys, values = (torch.cat(parts, 2) for parts in zip(*cache))
            outputs.append(attention.attend(attention.project_query(x[:, t:t + 1], start=origin + t), keys, values)[0])
        torch.testing.assert_close(torch.cat(outputs, 1), at_once, rtol=0, atol=1e-5)
    plain = MultiHeadAttention(16, 2)
    plain.load_state_dict(attention.state_dict()) # the same parameters
    assert not torch.allclose(plain(x, x, x)[0], attention(x, x, x)[0], atol=1e-3)
