"""The CNN autoencoder: any size, any mixture of widths, as many parameters as asked for.

Broken on purpose to see each test fail: no mask before a level's convolution on the way down, or up; a coarse mask that rounds down; a kernel of 2s in place of 2s - 1; places masked column
after column in place of row after row; always the wider one of two budgets."""
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from stage_modules.autoencoder.cnn import (Autoencoder_CNN, ModelSettings, build_model, cnn_for_budget, coarse_mask, count_parameters, fill_model_settings, larger, scaled_channels,
    smaller)
from stage_modules.autoencoder.images import collate_images
from stage_modules.autoencoder.model import PRESETS
from stage_modules.toolkit.errors import ShapeError

LAYERS = [((8,), (2,), 1), ((8, 12), (4, 4), 0), ((4, 8, 12), (2, 2, 2), 1), ((6, 8), (2, 6), 2)]


def model_of(layers, seed=0, **settings):
    torch.manual_seed(seed)
    channels, strides, depth = layers
    return Autoencoder_CNN(16, (20, 30), channels, strides, depth, **settings).eval()


def pictures(height, widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(1, height, width, generator=generator) for width in widths]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(layers=st.sampled_from(LAYERS), height=st.integers(1, 40), width=st.integers(1, 70))
def test_any_size_comes_back_in_its_size(layers, height, width):
    model = model_of(layers)
    with torch.no_grad():
        out, attention = model(torch.rand(2, 1, height, width))
        z = model.Embedding(torch.rand(2, 1, height, width))
    assert out.shape == (2, 1, height, width) and attention is None and z.shape == (2, 16)
    assert out.isfinite().all() and z.isfinite().all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layers=st.sampled_from(LAYERS), height=st.integers(1, 30), widths=st.lists(st.integers(1, 60), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_alone_is_as_in_a_batch(layers, height, widths, seed):
    model, images = model_of(layers, seed), pictures(height, widths, seed)
    batch = collate_images(images)
    with torch.no_grad():
        z, out = model.Embedding(*batch), model(batch.images, pixel_mask=batch.pixel_mask)[0]
        for i, image in enumerate(images):
            assert torch.allclose(z[i], model.Embedding(image[None])[0], atol=1e-5)
            assert torch.allclose(out[i, ..., :image.shape[2]], model(image[None])[0][0], atol=1e-5)
            assert not out[i, ..., image.shape[2]:].any()


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_filler_reaches_neither_results_nor_gradients(layers, checkpointing):
    model = model_of(layers, use_gradient_checkpointing=checkpointing).train()
    narrow, wide = pictures(17, (23, 41))
    batch = collate_images([narrow, wide])
    filled = batch.images.masked_fill(~batch.pixel_mask[:, None, None], torch.nan).requires_grad_()
    out, _ = model(filled, pixel_mask=batch.pixel_mask)
    out.square().sum().backward()
    assert out.isfinite().all() and filled.grad.isfinite().all() and not filled.grad[0, ..., 23:].any()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    plain = model_of(layers).train()
    plain(batch.images, pixel_mask=batch.pixel_mask)[0].square().sum().backward()
    for a, b in zip(model.parameters(), plain.parameters()): assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(stride=st.sampled_from([2, 4, 6, 8]), pixels=st.integers(1, 100), real=st.integers(1, 100))
def test_sizes_of_a_level(stride, pixels, real):
    places = -(-pixels // stride)
    assert smaller(1, 1, stride)(torch.zeros(1, 1, pixels, 1)).shape[2] == places
    assert larger(1, 1, stride)(torch.zeros(1, 1, places, 1)).shape[2] == stride * places
    mask = torch.arange(pixels)[None] < min(real, pixels)
    assert coarse_mask(mask, stride).sum() == -(-min(real, pixels) // stride) and coarse_mask(mask, stride).shape[1] == places


@settings(max_examples=25, deadline=None, derandomize=True)
@given(parameters=st.integers(5_000, 3_000_000), latent=st.sampled_from([1, 16, 128]), depth=st.integers(0, 2), strides=st.sampled_from([(4, 2, 2), (2, 2), (8,)]))
def test_a_budget_is_met(parameters, latent, depth, strides):
    if parameters > 200_000 and strides == (8,): return # steps of 4 channels are fine enough, but very wide
    with torch.device("meta"):
        try: found = cnn_for_budget(parameters, latent, strides=strides, depth=depth)
        except ValueError as error:
            assert f"embedding_dim={latent}" in str(error)
            return
        there = count_parameters(found)
        for factor in 1 / 1.1, 1.1: # neither a narrower nor a wider one is nearer
            width = found.config["channels"][0] * factor
            other = Autoencoder_CNN(latent, channels=scaled_channels(width, len(strides)), strides=strides, depth=depth)
            assert abs(there - parameters) <= abs(count_parameters(other) - parameters) + .02 * parameters


@pytest.mark.parametrize("preset", PRESETS)
def test_as_large_as_the_preset(preset):
    with torch.device("meta"): transformer, cnn = (count_parameters(build_model(ModelSettings(preset=preset, model_type=kind))) for kind in ("transformer", "cnn"))
    assert abs(cnn / transformer - 1) < .03


def test_settings_go_through_json():
    model = model_of(LAYERS[2])
    again = Autoencoder_CNN(**json.loads(json.dumps(model.get_config())))
    again.load_state_dict(model.state_dict())
    image = torch.rand(1, 1, 20, 30)
    assert torch.equal(again.eval().Embedding(image), model.Embedding(image)) and again.get_config() == model.get_config()
    assert model.decode(torch.zeros(3, 16)).shape == (3, 1, 20, 30), "the size that it was built for, where none is given"
    filled = fill_model_settings(ModelSettings(preset="tiny", model_type="cnn", latent=256))
    assert filled.latent == 256 and build_model(filled).config["embedding_dim"] == 256
    assert build_model(ModelSettings(preset="tiny", model_type="cnn", channels=(8, 12), strides=(4, 4), depth=0)).config["channels"] == (8, 12)


def test_half_precision():
    model, images = model_of(LAYERS[2]), pictures(33, (40, 21))
    batch = collate_images(images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16): z = model.Embedding(*batch), model.Embedding(images[1][None])
    with torch.no_grad(): exact = model.Embedding(*batch)
    assert torch.allclose(z[0][1], z[1][0], atol=2e-2) and torch.allclose(z[0].float(), exact, atol=5e-2)


@pytest.mark.parametrize("images, mask, error, says", [
    (torch.rand(2, 3, 8, 8), None, ShapeError, "which is colour"),
    (torch.rand(8, 8), None, ShapeError, "2 axes"),
    (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), None, TypeError, "as_images"),
    (torch.rand(1, 1, 8, 0), None, ValueError, "nothing to see"),
    (torch.rand(1, 1, 8, 8), torch.ones(1, 7, dtype=torch.bool), ShapeError, "width is 7, not 8"),
    (torch.rand(1, 1, 8, 8), torch.ones(1, 8), TypeError, "torch.bool")])
def test_bad_images(images, mask, error, says):
    with pytest.raises(error, match=says): model_of(LAYERS[0])(images, pixel_mask=mask)


@pytest.mark.parametrize("settings_, says", [
    (dict(embedding_dim=0), "embedding_dim is 0"), (dict(channels=(8, 16)), "2 even numbers"), (dict(strides=(4, 2, 3)), "even numbers"), (dict(channels=(8, 16, 30)), "multiple of 4"),
    (dict(depth=-1), "depth is -1"), (dict(channels=()), "channels is")])
def test_bad_settings(settings_, says):
    with pytest.raises(ValueError, match=says): Autoencoder_CNN(**{"embedding_dim": 16} | settings_)


def test_an_image_without_real_columns_is_zero_and_not_nan():
    model = model_of(LAYERS[2])
    mask = torch.tensor([[True] * 12, [False] * 12])
    with torch.no_grad(): out, z = model(torch.rand(2, 1, 9, 12), pixel_mask=mask)[0], model.Embedding(torch.rand(2, 1, 9, 12), mask)
    assert out.isfinite().all() and not out[1].any() and not z[1].any()


def test_padding_below_is_none_of_its_business():
    "Heights are the same in a batch: a taller image is another image."
    model, image = model_of(LAYERS[2]), torch.rand(1, 1, 16, 16)
    with torch.no_grad(): assert not torch.allclose(model.Embedding(F.pad(image, (0, 0, 0, 8))), model.Embedding(image), atol=1e-3)
