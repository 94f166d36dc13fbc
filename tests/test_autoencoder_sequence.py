"Films of any length and width, alone and in a batch; what padding must never do; and masks that make no sense."
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stage_modules.autoencoder.cnn import Autoencoder_CNN
from stage_modules.autoencoder.images import draw_drops
from stage_modules.autoencoder.model import create_autoencoder
from stage_modules.autoencoder.sequence import (
    LSTMModel,
    collate_sequences,
    embed_sequence,
    fit_readout,
    line_speed,
    rmse,
    sequence_lengths,
)
from stage_modules.toolkit.errors import ShapeError

shapes = st.lists(st.tuples(st.integers(1, 5), st.integers(16, 60)), min_size=1, max_size=4) # frames, width


@pytest.fixture(scope="module")
def models() -> list[nn.Module]:
    torch.manual_seed(0)
    transformer = create_autoencoder((24, 48), "tiny", patch_size=8, token_dim=32, num_heads=2, num_layers=1, dropout=0.5)
    return [transformer.train(), Autoencoder_CNN(128, (24, 48), (8, 16), (4, 2)).train()] # in training mode, as somebody forgot


class Counting(nn.Module):
    "Mean and spread of each image as its embedding; keeps how many images came together."
    def __init__(self):
        super().__init__()
        self.came, self.scale = [], nn.Parameter(torch.ones(()))
    def Embedding(self, x, pixel_mask=None):
        self.came.append(len(x))
        return self.scale * torch.stack([x.flatten(1).mean(1), x.flatten(1).std(1)], -1)


def make_films(sizes) -> list[torch.Tensor]:
    return [draw_drops((24, width), frames=frames, seed=i).frames[0] for i, (frames, width) in enumerate(sizes)]


# ------------------------------------------------------------------ batches


@settings(max_examples=15, deadline=None, derandomize=True)
@given(shapes)
def test_a_film_has_the_same_embeddings_alone_and_in_a_batch(models, sizes):
    films = make_films(sizes)
    batch = collate_sequences(films)
    for model in models:
        together = embed_sequence(model, *batch)
        for i, film in enumerate(films):
            assert torch.allclose(together[i, :len(film)], embed_sequence(model, film[None])[0], atol=1e-5)
            assert not together[i, len(film):].any()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(shapes)
def test_nothing_of_a_film_is_lost_in_a_batch(sizes):
    films = make_films(sizes)
    frames, frame_mask, pixel_mask = collate_sequences(films)
    B, T, _, _, W = frames.shape
    frame_mask = torch.ones(B, T, dtype=torch.bool) if frame_mask is None else frame_mask
    pixel_mask = torch.ones(B, W, dtype=torch.bool) if pixel_mask is None else pixel_mask
    for i, film in enumerate(films): assert torch.equal(frames[i][frame_mask[i]][..., pixel_mask[i]], film)
    real = frame_mask[:, :, None, None, None] & pixel_mask[:, None, None, None]
    assert not frames.masked_fill(real, 0.).any()


def test_what_is_no_batch_of_films_is_told():
    film = draw_drops((24, 30), frames=2).frames[0]
    with pytest.raises(ValueError, match="no films"): collate_sequences([])
    with pytest.raises(ShapeError, match="film 1 has shape"): collate_sequences([film, film[:, 0]])
    with pytest.raises(ShapeError, match="film 0 has shape"): collate_sequences([film.expand(-1, 3, -1, -1)])
    with pytest.raises(ValueError, match="film 1 is 12 high, film 0 is 24"): collate_sequences([film, film[:, :, :12]])


# ------------------------------------------------------------------ embeddings


def test_padding_is_not_computed():
    "It may hold anything, and costs nothing."
    frames, mask, model = torch.rand(3, 4, 1, 24, 30), torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] + [False] * 3]), Counting()
    frames[~mask] = torch.nan
    z = embed_sequence(model, frames, mask)
    assert model.came == [7] and z.isfinite().all()


@pytest.mark.parametrize("batch_size, came", [(1, [1] * 6), (4, [4, 2]), (6, [6]), (100, [6])])
def test_no_more_frames_at_once_than_allowed(batch_size, came):
    frames, model = torch.rand(2, 3, 1, 24, 30), Counting()
    z = embed_sequence(model, frames, batch_size=batch_size)
    assert model.came == came
    assert torch.allclose(z[..., 0], frames.mean((2, 3, 4)))


def test_the_encoder_learns_only_where_it_is_asked_to(models):
    frames = torch.rand(2, 2, 1, 24, 48)
    frozen, learning = Counting(), Counting()
    assert not embed_sequence(frozen, frames).requires_grad
    embed_sequence(learning, frames, torch.tensor([[True, True], [True, False]]), train_encoder=True).sum().backward()
    assert frozen.scale.grad is None and learning.scale.grad is not None
    with torch.no_grad(): assert not embed_sequence(learning, frames, train_encoder=True).requires_grad
    model = models[0]
    assert torch.equal(embed_sequence(model, frames), embed_sequence(model, frames)), "dropout in an embedding"
    assert not torch.equal(embed_sequence(model, frames, train_encoder=True), embed_sequence(model, frames, train_encoder=True)), "no dropout in training"
    assert model.training


def test_an_error_leaves_the_model_in_its_mode(models):
    with pytest.raises(TypeError, match="uint8"): embed_sequence(models[0], torch.zeros(1, 2, 1, 24, 48, dtype=torch.uint8))
    assert models[0].training and torch.is_grad_enabled()


@pytest.mark.parametrize("name, mask, error", [("frame_mask", torch.ones(2, 2).bool(), ShapeError), ("frame_mask", torch.ones(2, 3), TypeError), ("frame_mask", torch.tensor([[1, 1, 0]] * 2), TypeError),
                                               ("frame_mask", torch.zeros(2, 3).bool(), ValueError), ("pixel_mask", torch.ones(2, 29).bool(), ShapeError), ("pixel_mask", torch.ones(2, 3, 30).bool(), ShapeError),
                                               ("pixel_mask", torch.ones(2, 30).long(), TypeError)])
def test_masks_that_make_no_sense_are_told(name, mask, error):
    with pytest.raises(error, match="mask|no real frame"): embed_sequence(Counting(), torch.rand(2, 3, 1, 24, 30), **{name: mask})


@pytest.mark.parametrize("shape", [(0, 3, 1, 24, 30), (2, 0, 1, 24, 30)])
def test_nothing_to_embed_is_told(shape):
    with pytest.raises(ValueError, match="no real frame"): embed_sequence(Counting(), torch.zeros(shape))


# ------------------------------------------------------------------ the LSTM


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 3))
def test_padding_changes_no_prediction_and_gets_no_gradient(lengths, layers):
    torch.manual_seed(0)
    model, lengths, T = LSTMModel(5, 7, layers, 2).eval(), torch.tensor(lengths), 6
    mask = torch.arange(T) < lengths[:, None]
    x = torch.randn(len(lengths), T, 5, requires_grad=True)
    model.scale.fit(x.detach(), mask)
    together = model(x, mask)
    assert together.shape == (len(lengths), 2)
    for i, n in enumerate(lengths): assert torch.allclose(together[i], model(x[i:i + 1, :n])[0], atol=1e-5)
    assert torch.allclose(model(x.detach().masked_fill(~mask[..., None], 1e4), mask), together, atol=1e-5)
    together.sum().backward()
    assert not x.grad[~mask].any() and x.grad[mask].any(-1).all()


def test_scale_is_that_of_real_frames_and_is_saved():
    x, mask = torch.randn(4, 6, 5) * 3 + 7, torch.arange(6) < torch.tensor([6, 3, 1, 2])[:, None]
    x[..., 4] = 2. # the same in all frames
    model = LSTMModel(5)
    model.scale.fit(x.masked_fill(~mask[..., None], 1e6), mask)
    rows = x[mask].numpy()
    assert np.allclose(model.scale.mean, rows.mean(0), atol=1e-4) and np.allclose(model.scale.std[:4], rows.std(0)[:4], atol=1e-4)
    assert model(x, mask).isfinite().all()
    other = LSTMModel(5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x, mask), model.eval()(x, mask))


def test_dropout_of_one_layer_warns_nobody_and_works():
    with warnings.catch_warnings():
        warnings.simplefilter("error") # torch warns of dropout between the layers of a single one
        model = LSTMModel(5, 8, 1, 1, 0.5)
    x = torch.randn(2, 3, 5)
    assert not torch.equal(model.train()(x), model(x)) and torch.equal(model.eval()(x), model(x))


def test_names_and_order_of_the_arguments_are_those_of_the_design():
    by_place, by_name = LSTMModel(5, 7, 2, 3, 0.1), LSTMModel(LSTMEmbdSize=5, hidden_dim=7, num_layers=2, output_dim=3, dropout=0.1)
    assert str(by_place) == str(by_name) and by_place(torch.zeros(1, 2, 5)).shape == (1, 3)


def test_half_precision_works_on_any_processor():
    model, x = LSTMModel(5), torch.randn(2, 3, 5)
    with torch.autocast("cpu", torch.bfloat16): found = model(x)
    assert found.isfinite().all() and torch.allclose(found.float(), model(x), atol=0.05)


@pytest.mark.parametrize("x, mask, error", [(torch.zeros(2, 3, 4), None, ShapeError), (torch.zeros(2, 5), None, ShapeError), (torch.zeros(2, 0, 5), None, ShapeError),
                                            (torch.zeros(2, 3, 5), torch.ones(2, 4).bool(), ShapeError), (torch.zeros(2, 3, 5), torch.ones(2, 3), TypeError),
                                            (torch.zeros(2, 3, 5), torch.tensor([[True] * 3, [False] * 3]), ValueError), (torch.zeros(1, 3, 5), torch.tensor([[True, False, True]]), ValueError)])
def test_sequences_that_cannot_be_read_are_told(x, mask, error):
    with pytest.raises(error, match="embeddings|frame_mask"): LSTMModel(5)(x, mask)


def test_an_lstm_can_learn_a_difference():
    "The last number less the first, of sequences of any length: what it takes to see a speed."
    torch.manual_seed(0)
    lengths = torch.randint(2, 7, (256,))
    x, mask = torch.randn(256, 6, 2), torch.arange(6) < lengths[:, None]
    y = x[torch.arange(256), lengths - 1, 0] - x[:, 0, 0]
    model = LSTMModel(2, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(150):
        loss = (model(x, mask)[:, 0] - y).square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    assert loss < 0.1 * y.var()


def test_lengths():
    assert sequence_lengths(torch.tensor([[True, False], [True, True]])).tolist() == [1, 2]


# ------------------------------------------------------------------ lines


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(2, 8), min_size=1, max_size=4), st.floats(-5, 5), st.floats(-5, 5), st.floats(-100, 100))
def test_the_speed_of_a_straight_line_is_exact(lengths, down, across, start):
    step = torch.tensor([down, across], dtype=torch.float64)
    mask = torch.arange(8) < torch.tensor(lengths)[:, None]
    positions = (start + torch.arange(8, dtype=torch.float64)[:, None] * step).expand(len(lengths), -1, -1)
    spoiled = positions.masked_fill(~mask[..., None], 1e3)
    assert torch.allclose(line_speed(spoiled, mask), step.norm().expand(len(lengths)), atol=1e-6)


def test_the_line_is_that_of_least_squares():
    positions = torch.randn(3, 7, 2, dtype=torch.float64)
    slopes = [np.polyfit(np.arange(7), film.numpy(), 1)[0] for film in positions]
    assert np.allclose(line_speed(positions), np.linalg.norm(slopes, axis=-1))


def test_drops_have_the_speed_that_their_label_says():
    drops = draw_drops((24, 80), count=20, frames=5, seed=4)
    assert torch.allclose(line_speed(drops.positions), drops.speed, atol=1e-3)


def test_a_readout_without_ridge_is_least_squares():
    x, y = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([1., 10., 0.1, 3.]) + 5, torch.randn(50, 2, dtype=torch.float64)
    design = np.column_stack([x, np.ones(50)])
    weight = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
    assert np.allclose(fit_readout(x, y, 0.)(x), design @ weight)


def test_a_readout_of_more_features_than_rows_is_finite():
    x = torch.randn(5, 128)
    x[:, 3] = 1. # the same everywhere
    found = fit_readout(x, torch.randn(5, 2))
    assert found.weight.isfinite().all() and found.bias.isfinite().all()


def test_the_error_of_nothing_wrong_is_zero():
    assert rmse(torch.tensor([1., 2.]), torch.tensor([1., 2.])) == 0. and rmse(torch.tensor([3.]), torch.tensor([1.])) == 2.
