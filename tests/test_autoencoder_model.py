"""The autoencoder of stage 5: any size, any mask, half precision, any setting, and what it says to what it cannot take."""

import copy
import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from stage_modules.autoencoder.blocks import EfficientMultiHeadAttention, PositionalEncoding, make_blocks, run_blocks, sinusoidal_2d
from stage_modules.autoencoder.images import draw_drops
from stage_modules.autoencoder.model import PRESETS, AutoencoderSettings, create_autoencoder, fill_settings, reconstruction_loss
from stage_modules.autoencoder.patches import cut_patches, join_patches, patch_grid, plane_waves, token_mask
from stage_modules.toolkit.errors import ShapeError

LITTLE = dict(preset="tiny", token_dim=16, num_heads=2, num_layers=2, patch_size=4, dropout=0.)
PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)


def model(size=(9, 13), seed=0, **overrides):
    torch.manual_seed(seed)
    return create_autoencoder(size, **LITTLE | overrides).eval()


def single(size=(9, 13), **overrides):
    torch.manual_seed(0)
    return create_autoencoder(size, "tiny", tokens="single", **dict(num_layers=2, dropout=0.) | overrides).eval()


@st.composite
def batches(draw):
    "Images of one height and their true widths, with whatever beyond."
    height, widths = draw(st.integers(1, 11)), draw(st.lists(st.integers(1, 17), min_size=1, max_size=4))
    x = torch.rand(len(widths), 1, height, max(widths), generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    mask = torch.arange(max(widths)) < torch.tensor(widths)[:, None]
    return x.masked_fill(~mask[:, None, None], draw(st.sampled_from([0., 1., 1e6, torch.nan, torch.inf]))), mask, widths


# ------------------------------------------------------------------ patches


@PROPERTY
@given(height=st.integers(1, 20), width=st.integers(1, 20), patch=st.integers(1, 24))
def test_what_is_cut_can_be_joined(height, width, patch):
    x = torch.rand(2, 1, height, width)
    patches = cut_patches(x, patch)
    rows, columns = patch_grid((height, width), patch)
    assert patches.shape == (2, rows * columns, patch**2)
    assert torch.equal(join_patches(patches, (height, width), patch), x)
    assert patches.sum().item() == pytest.approx(x.sum().item(), rel=1e-4) # what was filled up is zero


@PROPERTY
@given(mask=st.lists(st.booleans(), min_size=1, max_size=20), height=st.integers(1, 9), patch=st.integers(1, 7))
def test_a_token_is_real_where_one_of_its_columns_is(mask, height, patch):
    rows, columns = patch_grid((height, len(mask)), patch)
    expected = [any(mask[c * patch:(c + 1) * patch]) for _ in range(rows) for c in range(columns)]
    assert token_mask(torch.tensor([mask]), (height, len(mask)), patch).tolist() == [expected]


@PROPERTY
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), more=st.integers(0, 150), count=st.integers(1, 33))
def test_places_have_the_same_code_in_a_wider_grid(rows, columns, more, count):
    wide = plane_waves(rows, columns + more, count).view(rows, columns + more, count)
    assert (wide[:, :columns].flatten(0, 1) - plane_waves(rows, columns, count)).abs().max() < 1e-5
    grid = sinusoidal_2d(rows, columns + more, 8).view(rows, columns + more, 8)
    assert torch.equal(grid[:, :columns].flatten(0, 1), sinusoidal_2d(rows, columns, 8))


def test_no_two_places_of_a_long_strip_have_one_code():
    for codes in plane_waves(10, 80, 128), sinusoidal_2d(10, 80, 80):
        likeness = F.normalize(codes, dim=-1) @ F.normalize(codes, dim=-1).T
        assert likeness.fill_diagonal_(0.).max() < .999


def test_a_grid_longer_than_the_kept_codes_goes_on_where_they_end():
    net = model(token_dim=16)
    longer = torch.rand(1, 1, 4, 4 * net.encoder.read.positions.kept + 8)
    with torch.no_grad(): assert net(longer)[0].isfinite().all()
    positions = net.encoder.read.positions
    assert (positions(1, positions.kept + 2)[:positions.kept] - positions(1, positions.kept)).abs().max() < 1e-6


# ------------------------------------------------------------------ padding


@pytest.mark.parametrize("flash", [True, False])
@PROPERTY
@given(batch=batches())
def test_an_image_alone_is_what_it_is_in_a_batch(flash, batch):
    x, mask, widths = batch
    net = model(use_flash_attention=flash)
    with torch.no_grad():
        out, latent = net(x, pixel_mask=mask)[0], net.Embedding(x, mask)
        assert out.isfinite().all() and (out.masked_select(~mask[:, None, None]) == 0).all()
        for i, width in enumerate(widths):
            alone = x[i:i + 1, ..., :width]
            assert (net.Embedding(alone) - latent[i]).abs().max() < 1e-5
            assert (net(alone)[0] - out[i:i + 1, ..., :width]).abs().max() < 1e-5


@PROPERTY
@given(batch=batches())
def test_padding_reaches_neither_loss_nor_gradient(batch):
    x, mask, widths = batch
    net = model().train()
    x.requires_grad_()
    loss = reconstruction_loss(net(x, pixel_mask=mask)[0], x.detach(), mask)
    loss.backward()
    assert (x.grad.masked_select(~mask[:, None, None]) == 0).all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad(): parts = [(net(x[i:i + 1, ..., :w])[0] - x[i:i + 1, ..., :w]).square().flatten() for i, w in enumerate(widths)]
    assert loss.item() == pytest.approx(torch.cat(parts).mean().item(), rel=1e-4)


def test_an_image_without_a_real_column_gives_numbers_and_disturbs_nobody():
    net, x, mask = model(), torch.rand(2, 1, 9, 13), torch.ones(2, 13, dtype=torch.bool)
    mask[1] = False
    out = net(x, pixel_mask=mask)[0]
    out.sum().backward()
    assert (net.Embedding(x, mask)[1] == net.Embedding(1 - x, mask)[1]).all() # whatever it holds
    assert (out[1] == 0).all() and (out[0] - net(x[:1])[0][0]).abs().max() < 1e-5
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_a_full_mask_is_no_mask():
    net, x = model(), torch.rand(2, 1, 9, 13)
    with torch.no_grad(): assert (net(x, pixel_mask=torch.ones(2, 13, dtype=torch.bool))[0] - net(x)[0]).abs().max() < 1e-5


# ------------------------------------------------------------------ one function, several ways


@pytest.mark.parametrize("make", [model, single])
def test_fused_and_open_attention_are_one_function_in_training_too(make):
    x, outs = torch.rand(3, 1, 9, 13), []
    for flash, ask in (True, False), (True, True), (False, False):
        net = make(use_flash_attention=flash, dropout=.3).train()
        torch.manual_seed(5)
        out = net(x, return_attention=ask)[0]
        outs.append((out, *torch.autograd.grad(out.square().mean(), list(net.parameters()))))
    for other in outs[1:]:
        for a, b in zip(outs[0], other): assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("make", [model, single])
def test_checkpointing_changes_no_gradient(make):
    x, grads = torch.rand(3, 1, 9, 13), []
    for checkpointing in False, True:
        net = make(use_gradient_checkpointing=checkpointing, dropout=.3).train()
        torch.manual_seed(5)
        grads.append(torch.autograd.grad(net(x)[0].square().mean(), list(net.parameters())))
    for a, b in zip(*grads): assert (a - b).abs().max() < 1e-6


def test_checkpointing_runs_each_block_twice_in_training_alone():
    blocks, x, calls = make_blocks(3, 8, 2), torch.rand(1, 4, 8, requires_grad=True), []
    for block in blocks: block.register_forward_pre_hook(lambda *_: calls.append(1))
    for training, expected in (True, 6), (False, 3):
        calls.clear()
        run_blocks(blocks.train(training), x, use_gradient_checkpointing=True)[0].sum().backward()
        assert len(calls) == expected


@pytest.mark.parametrize("make", [model, single])
def test_half_precision_gives_about_the_same(make):
    net, x = make(), torch.rand(2, 1, 9, 13)
    with torch.no_grad():
        full = net(x)[0]
        with torch.autocast("cpu", torch.bfloat16): half = net(x)[0]
        low = make().to(torch.bfloat16)(x.bfloat16())[0]
    assert (full - half.float()).abs().max() < .1 and (full - low.float()).abs().max() < .1
    assert low.dtype == torch.bfloat16


def test_double_precision_goes_through():
    net, x = model(), torch.rand(1, 1, 9, 13)
    with torch.no_grad(): assert (net.double()(x.double())[0] - model()(x)[0]).abs().max() < 1e-5


def test_every_parameter_takes_part():
    x = torch.rand(4, 1, 9, 13)
    for net in model(), single():
        net(x)[0].sub(x).square().mean().backward()
        for name, p in net.named_parameters():
            pull = p.grad.abs().amax(-1)
            if net.settings.tokens == "single" and name.endswith("qkv.weight"):
                assert (pull[:2 * 128] == 0).all() and (pull[2 * 128:] > 0).all() # queries and keys, then values
            else: assert (pull > 0).any(), name


# ------------------------------------------------------------------ the interface


@pytest.mark.parametrize("make", [model, single])
def test_maps_leave_the_model_as_it_was(make):
    net, x = make(dropout=.5), torch.rand(2, 1, 9, 13)
    for training in True, False:
        net.train(training)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            a, b = net.get_attention_maps(x), net.get_attention_maps(x)
        assert net.training is training and all(m.training is training for m in net.modules())
        assert all(torch.equal(a[k], b[k]) and not a[k].requires_grad for k in a) and list(a) == ["layer_0", "layer_1", "average"]
    net.train()
    with pytest.raises(ShapeError): net.get_attention_maps(x[0])
    assert net.training


def test_maps_of_padding_are_empty():
    mask = torch.arange(13) < torch.tensor([[13], [5]])
    maps = model().get_attention_maps(torch.rand(2, 1, 9, 13), pixel_mask=mask)
    tokens = token_mask(mask, (9, 13), 4)
    assert (maps["average"][1][:, ~tokens[1]] == 0).all()
    assert (maps["average"].sum(-1) - 1).abs().max() < 1e-5


@PROPERTY
@given(preset=st.sampled_from(["tiny", "small"]), patch=st.integers(1, 9), latent=st.integers(128, 300), heads=st.sampled_from([None, 1, 2]), layers=st.sampled_from([1, 2]),
       width=st.sampled_from([8, 24]), size=st.tuples(st.integers(1, 30), st.integers(1, 30)), flash=st.booleans())
def test_a_configuration_in_json_builds_the_same_model(preset, patch, latent, heads, layers, width, size, flash):
    given_ = dict(patch_size=patch, latent=latent, num_heads=heads or 4, num_layers=layers, token_dim=width, use_flash_attention=flash)
    first = create_autoencoder(size, preset, **given_).eval()
    second = create_autoencoder(**json.loads(json.dumps(first.get_config()))).eval()
    second.load_state_dict(first.state_dict())
    with torch.no_grad(): assert torch.equal(first(x := torch.rand(1, 1, *size))[0], second(x)[0])
    assert first.settings == fill_settings(AutoencoderSettings(size, preset, **given_)) and first.Embedding(x).shape == (1, latent)


def test_a_copy_is_a_copy():
    net, x = model(), torch.rand(1, 1, 9, 13)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        before = twin(x)[0]
        for p in net.parameters(): p.zero_()
        assert torch.equal(twin(x)[0], before) and not torch.equal(net(x)[0], before)


def test_presets_of_patches_have_the_size_that_they_are_known_by_and_heads_of_whole_eights():
    for name, known in {"tiny": 5e5, "small": 2e6, "medium": 8e6, "large": 32e6, "xlarge": 128e6}.items():
        with torch.device("meta"): net = create_autoencoder(preset=name)
        assert abs(sum(p.numel() for p in net.parameters()) / known - 1) < .1
        assert net.settings.token_dim // net.settings.num_heads % 8 == 0 and net.settings.latent == PRESETS[name].latent
        assert len(net.encoder.blocks) == len(net.decoder.blocks) == PRESETS[name].num_layers


@pytest.mark.parametrize("overrides, message", [
    (dict(preset="huge"), "preset is 'huge', expected one of tiny, small, medium, large, xlarge"),
    (dict(tokens="words"), "tokens is 'words', expected patch or single"),
    (dict(heads=4), "unknown override 'heads', expected one of tokens, patch_size, latent, num_heads"),
    (dict(latent=127), "latent is 127, expected 128 to 8192"),
    (dict(latent=128.), "latent is 128.0, expected 128 to 8192"),
    (dict(latent=True), "latent is True"),
    (dict(num_heads=0), "num_heads is 0, expected a divisor of token_dim=80"),
    (dict(num_heads=3), "num_heads is 3, expected a divisor of token_dim=80"),
    (dict(tokens="single", num_heads=3), "num_heads is 3, expected a divisor of latent=128"),
    (dict(tokens="single", latent=130), "num_heads is 4, expected a divisor of latent=130"),
    (dict(tokens="single", latent=129, num_heads=3), "latent is 129, expected an even number with tokens='single'"),
    (dict(tokens="single", token_dim=80), "token_dim is 80, expected nothing with tokens='single'"),
    (dict(token_dim=90, num_heads=2), "token_dim is 90, expected a multiple of 4"),
    (dict(num_layers=0), "num_layers is 0"), (dict(patch_size=0), "patch_size is 0"), (dict(dropout=-.1), "dropout is -0.1"), (dict(dropout="0.1"), "dropout is '0.1'"),
    (dict(input_size=(152, 0)), "input_size is (152, 0), expected (height, width)"), (dict(input_size=201), "input_size is 201"), (dict(input_size=(1, 152, 640)), "input_size is (1, 152, 640)"),
])
def test_settings_that_cannot_work_are_named(overrides, message):
    with pytest.raises(ValueError) as error: create_autoencoder(**{"preset": "tiny"} | overrides)
    assert message in str(error.value)


@pytest.mark.parametrize("images, message", [
    (torch.rand(9, 13), "images has shape (9, 13)"), (torch.rand(1, 3, 9, 13), "images has shape (1, 3, 9, 13)"), (torch.rand(1, 1, 0, 13), "0 high and 13 wide"),
    (torch.rand(1, 1, 9, 0), "9 high and 0 wide"), (torch.zeros(1, 1, 9, 13, dtype=torch.uint8), "torch.uint8, expected floats"), ([[0.]], "images is of type list"),
])
def test_images_that_it_cannot_take_are_named(images, message):
    for ask in (model(), model().Embedding, model().get_attention_maps, single(), single().Embedding):
        with pytest.raises((ValueError, TypeError)) as error: ask(images)
        assert message in str(error.value)


def test_one_token_takes_one_size_and_says_so_when_it_came_transposed():
    net = single()
    for ask in net, net.Embedding, lambda x: net.decode(torch.zeros(1, 128), x.shape[-2:]):
        with pytest.raises(ShapeError, match=r"this is \(width, height\)"): ask(torch.rand(1, 1, 13, 9))
        with pytest.raises(ShapeError, match=r"came \(9, 12\).*\(9, 13\); tokens='patch' takes any size"): ask(torch.rand(1, 1, 9, 12))
    with pytest.raises(ValueError, match="leaves columns out"): net(torch.rand(1, 1, 9, 13), pixel_mask=torch.arange(13)[None] < 5)


def test_latents_and_sizes_that_do_not_fit_are_named():
    for net in model(), single():
        with pytest.raises(ShapeError, match="Z=128"): net.decode(torch.zeros(1, 127))
        with pytest.raises(ShapeError, match="z has shape"): net.decode(torch.zeros(128))
        assert net.decode(torch.zeros(3, 128)).shape == (3, 1, 9, 13)
    with pytest.raises(ValueError, match="at least 1 pixel"): model().decode(torch.zeros(1, 128), (0, 5))


def test_an_empty_batch_gives_an_empty_batch():
    for net in model(), single():
        assert net(torch.rand(0, 1, 9, 13))[0].shape == (0, 1, 9, 13) and net.Embedding(torch.rand(0, 1, 9, 13)).shape == (0, 128)


def test_attention_and_positions_refuse_what_cannot_be():
    with pytest.raises(ValueError, match="num_heads=3 does not divide dim=16"): EfficientMultiHeadAttention(16, 3)
    with pytest.raises(ValueError, match="even dim"): PositionalEncoding(5)
    with pytest.raises(ShapeError): PositionalEncoding(4)(torch.zeros(1, 1, 6))
    with pytest.raises(TypeError, match="boolean"): EfficientMultiHeadAttention(16, 2)(torch.zeros(1, 3, 16), torch.ones(1, 3))


# ------------------------------------------------------------------ it learns


def test_a_little_model_learns_where_the_drops_are():
    images = draw_drops((32, 32), count=320, seed=0).frames[:, 0]
    torch.manual_seed(0)
    net = create_autoencoder((32, 32), "tiny", token_dim=48, num_heads=3, num_layers=2, patch_size=8, dropout=0.).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(120):
        x = images[torch.randint(288, (16,))]
        optimizer.zero_grad()
        reconstruction_loss(net(x)[0], x).backward()
        optimizer.step()
    seen, fresh = images[:288], images[288:]
    with torch.no_grad(): left, guess = reconstruction_loss(net.eval()(fresh)[0], fresh), (fresh - seen.mean(0)).square().mean()
    assert left < .75 * guess, f"{left:.4f} left of {guess:.4f}" # a plain mean over tokens is at the guess then
