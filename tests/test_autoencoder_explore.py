"Looking at attention as a user does: masks, odd shapes, files that cannot be written, sliders, and diagrams of every model."
import base64
import io
import itertools
import re

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

matplotlib.use("agg")
import matplotlib.pyplot as plt

from stage_modules.autoencoder.cnn import Autoencoder_CNN
from stage_modules.autoencoder.explore import (
    MOST_MAPS,
    AttentionMaps,
    architecture,
    attention_distance,
    attention_of,
    attention_rollout,
    cover_up,
    diagonal_share,
    draw_architecture,
    draw_heads,
    draw_query,
    even_weights,
    parts_of,
    parts_of_latent,
    patch_explorer,
    read_attention,
    save_figure,
    share_in_latent,
    trace_steps,
    undisturbed,
    visualize_attention_map,
)
from stage_modules.autoencoder.images import collate_images, draw_drops
from stage_modules.autoencoder.model import PRESETS, create_autoencoder
from stage_modules.toolkit.errors import DataError, ShapeError


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_autoencoder((32, 48), "tiny", patch_size=8, token_dim=32, num_heads=2, num_layers=2)


@pytest.fixture(scope="module")
def drops() -> torch.Tensor:
    return draw_drops((32, 48), 3, seed=1).frames[:, 0]


def random_weights(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(2).softmax(-1)


# ------------------------------------------------------------------ masks


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.integers(16, 60), min_size=2, max_size=3))
def test_a_narrow_image_is_read_the_same_in_a_batch(model, widths):
    images = [torch.rand(1, 20, width, generator=torch.Generator().manual_seed(i)) for i, width in enumerate(widths)]
    maps = attention_of(model, *collate_images(images))
    shares = share_in_latent(maps)
    for i, image in enumerate(images):
        alone, real = attention_of(model, image[None]), maps.real[i]
        assert torch.allclose(shares[i, real], share_in_latent(alone)[0], atol=1e-5)
        assert not shares[i, ~real].any()
        inside = AttentionMaps(maps.weights[:, i:i + 1], maps.real[i:i + 1], maps.images[i:i + 1], maps.patch)
        for ours, theirs in zip(read_attention(inside), read_attention(alone)): assert np.allclose(ours, theirs, atol=1e-4)


def test_numbers_of_masked_weights_by_hand():
    "Loops over real pairs, against the vectorised sums."
    weights, real, grid = random_weights(2, 6, 6), torch.tensor([[True] * 6, [True, True, False] * 2]), (2, 3)
    weights = weights * real[:, None] / (weights * real[:, None]).sum(-1, keepdim=True)
    for i in range(2):
        queries = [q for q in range(6) if real[i, q]]
        far = lambda a, b: np.hypot(a // 3 - b // 3, a % 3 - b % 3)
        distance = np.mean([sum(float(weights[i, q, k]) * far(q, k) for k in queries) for q in queries])
        assert float(attention_distance(weights, grid, real)[i]) == pytest.approx(distance, abs=1e-5)
        assert float(diagonal_share(weights, real)[i]) == pytest.approx(np.mean([float(weights[i, q, q]) for q in queries]), abs=1e-5)


def test_nothing_real_gives_zero_and_no_nan():
    nothing = torch.zeros(1, 6, dtype=torch.bool)
    even = even_weights(nothing)
    assert not even.any() and float(attention_distance(even, (2, 3), nothing)) == 0. and float(diagonal_share(even, nothing)) == 0.


def test_padding_gets_no_colour(model):
    images = [draw_drops((32, width), seed=i).frames[0, 0] for i, width in enumerate((48, 24))]
    maps = attention_of(model, *collate_images(images))
    for figure in draw_heads(maps, 1), draw_query(maps, 1, 1, None, 2):
        colour = [ax.images[1].get_array() for ax in figure.axes if len(ax.images) == 2]
        assert colour
        for layer in colour: assert not layer[:, 3:, 3].any() and layer[:, :3, 3].any()


# ------------------------------------------------------------------ roll-out


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 4), st.floats(0, 1))
def test_rollout_is_the_sum_over_all_paths(layers, L, residual):
    weights = random_weights(layers, 1, 2, L, L, seed=layers * 10 + L)
    steps = (1 - residual) * weights.mean(2)[:, 0] + residual * torch.eye(L)
    rolled = attention_rollout(weights, residual)[0]
    for start, end in itertools.product(range(L), repeat=2): # from the last layer's token down to the patch
        paths = ([start, *between, end] for between in itertools.product(range(L), repeat=layers - 1))
        total = sum(np.prod([float(steps[layers - 1 - n, path[n], path[n + 1]]) for n in range(layers)]) for path in paths)
        assert float(rolled[start, end]) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("residual", [-0.1, 1.1, float("nan")])
def test_a_share_of_the_short_cut_outside_is_told(residual):
    with pytest.raises(ValueError, match="residual is"): attention_rollout(torch.ones(1, 1, 1, 2, 2) / 2, residual)


# ------------------------------------------------------------------ what a model does when it is looked at


def test_covering_by_hand_gives_the_same(model, drops):
    "One patch after another, without masks; the image is no whole number of patches."
    image, found = drops[0, :, :29, :43], []
    with undisturbed(model):
        before = model.Embedding(image[None])
        for row, column in itertools.product(range(4), range(6)):
            other = image.clone()
            other[:, 8 * row:8 * row + 8, 8 * column:8 * column + 8] = 0.3
            found.append((model.Embedding(other[None]) - before).norm())
    for batch_size in 5, 64: assert torch.allclose(cover_up(model, image, 8, 0.3, batch_size), torch.stack(found), atol=1e-5)


@pytest.mark.parametrize("make", [lambda: create_autoencoder((32, 48), "tiny", patch_size=8), lambda: Autoencoder_CNN(128, (32, 48), (8, 16), (4, 2)), lambda: create_autoencoder((32, 48), "tiny", tokens="single")])
def test_parts_of_any_model_make_its_latent(make, drops):
    model = make().train() # in training mode, and it stays in it
    parts = parts_of_latent(model, drops)
    assert model.training and not model.encoder.pool._forward_pre_hooks
    with undisturbed(model): assert torch.allclose(parts.mean(1), model.Embedding(drops), atol=1e-5)
    with pytest.raises(ValueError): parts_of_latent(model, drops[:, :, :0])
    assert not model.encoder.pool._forward_pre_hooks


def test_a_look_leaves_every_module_as_it_was():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 3))
    net[0].eval() # somebody froze a part of it
    before = [module.training for module in net.modules()]
    with pytest.raises(RuntimeError, match="in between"), undisturbed(net):
        assert not any(module.training for module in net.modules()) and not torch.is_grad_enabled()
        net(torch.randn(4, 3))
        raise RuntimeError("in between")
    assert [module.training for module in net.modules()] == before and torch.is_grad_enabled()
    assert not net[1].num_batches_tracked, "a look moved the running statistics"


# ------------------------------------------------------------------ maps and files


@pytest.mark.parametrize("bad, error", [(torch.ones(3), ShapeError), (torch.ones(2, 3), ShapeError), (torch.ones(0, 2, 2), ShapeError), (torch.ones(1, 1, 1, 2, 2), ShapeError),
                                        (-torch.ones(2, 2), ValueError), (torch.ones(MOST_MAPS + 1, 2, 2), ValueError), (np.ones((2, 3)), ShapeError)])
def test_what_is_no_map_is_told(bad, error):
    with pytest.raises(error, match="attention "): visualize_attention_map(bad)
    assert not plt.get_fignums()


@pytest.mark.parametrize("shape, panels", [((1, 1), 1), ((5, 5), 1), ((1, 5, 5), 1), ((6, 5, 5), 6), ((2, 3, 5, 5), 6), ((1, 5, 5, 5), 5)])
def test_a_panel_for_each_map_in_order(shape, panels):
    weights = random_weights(*shape).requires_grad_()
    figure = visualize_attention_map(weights, title="What to see")
    shown = [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]
    assert np.allclose(shown, weights.detach().reshape(-1, *shape[-2:])) and len(shown) == panels
    assert len({ax.images[0].get_clim() for ax in figure.axes if ax.images}) == 1, "panels of different scales cannot be compared"


def test_what_is_no_number_stays_empty():
    weights = np.eye(3)
    weights[2] = np.nan
    shown = visualize_attention_map(weights).axes[0].images[0]
    assert shown.get_array().mask[2].all() and shown.get_clim() == (0., 1.)


def edges_are_free(figure) -> bool:
    memory = io.BytesIO()
    figure.draw_without_rendering()
    with plt.rc_context({"savefig.bbox": "standard"}): figure.savefig(memory, format="png", dpi=100)
    picture = np.asarray(Image.open(memory).convert("L"))
    return all((edge > 250).all() for edge in (picture[:, :1], picture[:, -1:], picture[:1], picture[-1:]))


@pytest.mark.parametrize("shape", [(1, 1), (169, 169), (5, 16, 16)])
def test_no_title_is_cut_off(shape):
    assert edges_are_free(visualize_attention_map(random_weights(*shape), title="A title that says what there is to see, at some length"))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "maps.png"
    visualize_attention_map(torch.eye(3), path)
    old = path.read_bytes()
    figure = plt.figure()
    def half(new, **_):
        with open(new, "wb") as file: file.write(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(figure, "savefig", half)
    with pytest.raises(DataError, match="maps.png: cannot be written: No space left"): save_figure(figure, path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["maps.png"]


def test_a_name_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"): visualize_attention_map(torch.eye(3), tmp_path / "file" / "maps.png")
    for name in "maps.jpg", "maps", "maps.png.txt":
        with pytest.raises(ValueError, match="ends in .png"): visualize_attention_map(torch.eye(3), tmp_path / name)


# ------------------------------------------------------------------ the explorer


def picture(shown) -> bytes:
    found = re.search(r'base64,([^"]+)', shown.picture.value)
    assert found, shown.picture.value[:300]
    return base64.b64decode(found[1])


def test_every_control_changes_the_picture(model, drops):
    shown = patch_explorer(model, drops)
    shown.redraw()
    seen = {picture(shown)}
    for name, value in {"image": 2, "layer": 1, "head": 1, "query_patch": 3, "mean_of_heads": True}.items():
        assert shown.controls[name].value != value, name
        shown.controls[name].value = value
        assert picture(shown) not in seen, f"{name} changed nothing"
        seen.add(picture(shown))
    assert not plt.get_fignums()


def test_no_corner_of_the_sliders_fails(model, drops):
    shown = patch_explorer(model, *collate_images([drops[0], drops[1, :, :, :20]]))
    names = "image", "layer", "head", "query_patch"
    ends = [(shown.controls[name].min, shown.controls[name].max) for name in names]
    for corner in (tuple(zip(*ends))[0], tuple(zip(*ends))[1], (ends[0][1], ends[1][0], ends[2][1], ends[3][0])):
        plt.close(shown.draw(mean_of_heads=False, **dict(zip(names, corner))))


def test_the_explorer_of_one_token_is_there_too(drops):
    with pytest.warns(UserWarning, match="number 1"): shown = patch_explorer(create_autoencoder((32, 48), "tiny", tokens="single"), drops)
    shown.redraw()
    picture(shown)


# ------------------------------------------------------------------ diagrams


@pytest.mark.parametrize("preset", [min(PRESETS, key=lambda name: PRESETS[name].latent), max(PRESETS, key=lambda name: PRESETS[name].latent)])
@pytest.mark.parametrize("tokens", ["patch", "single"])
def test_diagrams_hold_all_parameters_and_fit_together(preset, tokens):
    with torch.device("meta"): model = create_autoencoder(preset=preset, tokens=tokens)
    found = architecture(model, (201, 201))
    sides = found["encoder"] + found["decoder"]
    assert sum(step.times * step.parameters for step in sides) == sum(p.numel() for p in model.parameters())
    assert sides[0].came == sides[-1].went == (1, 201, 201)
    assert all(after.came == before.went for before, after in zip(sides, sides[1:]))
    block = model.encoder.blocks[0]
    assert sum(step.times * step.parameters for step in found["one block"]) == sum(p.numel() for p in block.parameters())


def texts_are_inside(figure) -> None:
    "Every text within the figure, and a box's text within its box."
    figure.draw_without_rendering()
    ax, whole = figure.axes[0], figure.bbox
    for text in [*ax.texts, *figure.texts]:
        extent = text.get_window_extent()
        assert whole.x0 <= extent.x0 and extent.x1 <= whole.x1 and whole.y0 <= extent.y0 and extent.y1 <= whole.y1, text.get_text()
        boxes = [box.get_window_extent() for box in ax.patches]
        home = [box for box in boxes if box.x0 < (extent.x0 + extent.x1) / 2 < box.x1 and box.y0 < (extent.y0 + extent.y1) / 2 < box.y1]
        for box in home: assert box.x0 <= extent.x0 and extent.x1 <= box.x1, f"{text.get_text()!r} is wider than its box"
        for box in boxes: assert box in home or not box.overlaps(extent), f"{text.get_text()!r} lies on a box"


@pytest.mark.parametrize("make, size", [(lambda: create_autoencoder(preset="xlarge"), (152, 1280)), (lambda: create_autoencoder(preset="xlarge", tokens="single"), (201, 201)), (lambda: Autoencoder_CNN(128), (152, 1280))])
def test_no_text_of_a_diagram_collides(make, size):
    with torch.device("meta"): model = make()
    texts_are_inside(draw_architecture(model, size, across=3))


def test_a_diagram_shows_what_is_called_and_not_what_is_written():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.second, self.first, self.never = nn.Linear(5, 2), nn.Linear(3, 5), nn.Linear(9, 9)
        def forward(self, x): return self.second(self.first(x))
    net = Backwards()
    steps = trace_steps(parts_of(net), lambda: net(torch.zeros(1, 3)))
    assert [(step.came, step.went) for step in steps] == [((3,), (5,)), ((5,), (2,))]
    with pytest.raises(RuntimeError): trace_steps(parts_of(net), lambda: net(torch.zeros(1, 4)))
    assert not any(module._forward_hooks for module in net.modules()), "an error left hooks behind"


def test_a_size_that_the_model_does_not_take_is_the_models_error():
    with pytest.raises(ShapeError, match="tokens='single'"): architecture(create_autoencoder((32, 48), "tiny", tokens="single"), (48, 32))
