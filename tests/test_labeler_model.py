"""Nets of stage 4: any mask, any length, half precision, and files that are not what they say."""

import pickle
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_modules.labeler.model import NETS, LabelerSettings, build_labeler, load_published, masked_pool, net_from, put_back, real_first, settings_from
from stage_modules.toolkit.errors import CheckpointError, ShapeError

SMALL = dict(nLSTMcells=16, nLSTMlayers=2, FCnodes=8, nAttentionHeads=2, nTransformerLayers=2, transformerDim=16, transformerFFDim=32, max_len=16)
STILL = dict(SMALL, LSTMdropout=0., attentionDropout=0.)


def net(kind, head="pool", **more):
    torch.manual_seed(0)
    return build_labeler(5, kind, head=head, **(STILL | more)).eval()


@st.composite
def masks(draw):
    B, T = draw(st.integers(1, 4)), draw(st.integers(1, 14))
    rows = [draw(st.lists(st.booleans(), min_size=T, max_size=T)) for _ in range(B)]
    return torch.tensor(rows)


@pytest.mark.parametrize("head", ["pool", "flatten"])
@pytest.mark.parametrize("kind", NETS)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(mask=masks(), seed=st.integers(0, 99))
def test_what_stands_at_padding_does_not_matter(kind, head, mask, seed):
    features = torch.randn(*mask.shape, 20, generator=torch.Generator().manual_seed(seed))
    model = net(kind, head)
    with torch.no_grad():
        batch = model(features.masked_fill(~mask[..., None], 1e4), mask)
        for i, row in enumerate(mask):
            if row.any(): alone = model(features[i:i + 1, row], torch.ones(1, int(row.sum()), dtype=torch.bool))
            else: alone = model(torch.zeros(1, 1, 20), torch.zeros(1, 1, dtype=torch.bool))
            assert (batch[i] - alone[0]).abs().max() < 1e-5
    assert batch.isfinite().all()


@pytest.mark.parametrize("kind", NETS)
def test_gradients_come_from_real_frames_alone(kind):
    features = torch.randn(3, 8, 20, requires_grad=True)
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[0, 2:6] = mask[1, [0, 7]] = True # the third row has nothing
    net(kind)(features, mask).sum().backward()
    assert features.grad.isfinite().all()
    assert (features.grad[~mask] == 0).all() and (features.grad[mask].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("kind", NETS)
def test_training_and_evaluation_agree_on_padded_samples(kind):
    model, features = net(kind), torch.randn(4, 10, 20)
    mask = torch.arange(10) < torch.tensor([10, 7, 2, 5])[:, None]
    with torch.no_grad(): assert (model.train()(features, mask) - model.eval()(features, mask)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", NETS)
def test_half_precision_gives_about_the_same(kind):
    model, features = net(kind), torch.randn(4, 10, 20)
    mask = torch.arange(10) < torch.tensor([10, 7, 2, 5])[:, None]
    with torch.no_grad():
        full = model(features, mask)
        with torch.autocast("cpu", torch.bfloat16): half = model(features, mask)
    assert (full - half.float()).abs().max() < .1


@settings(max_examples=30, deadline=None, derandomize=True)
@given(mask=masks())
def test_real_first_keeps_order_and_put_back_undoes_it(mask):
    number = torch.arange(mask.shape[1]).float().expand(mask.shape)[..., None]
    front, kept, order = real_first(number, mask)
    for i, row in enumerate(mask): assert front[i, kept[i], 0].tolist() == torch.nonzero(row)[:, 0].tolist()
    weights = torch.rand(len(mask), 2, kept.shape[1], kept.shape[1]) * (kept[:, None, :, None] & kept[:, None, None])
    full = put_back(weights, order)
    for i, row in enumerate(mask):
        assert torch.equal(full[i][:, row][:, :, row], weights[i][:, kept[i]][:, :, kept[i]])
        assert full[i][:, ~row].eq(0).all() and full[i][:, :, ~row].eq(0).all()


@pytest.mark.parametrize("kind", NETS)
def test_a_root_of_the_features_is_the_same_as_features_that_are_roots(kind):
    mask, features = torch.rand(3, 6) < .8, torch.randn(3, 6, 20)
    rooted, plain = net(kind, input_power=.5), net(kind)
    with torch.no_grad(): assert (rooted(features, mask) - plain(features.sign() * features.abs().sqrt(), mask)).abs().max() < 1e-5
    for power in 0., 1.5:
        with pytest.raises(ValueError, match="input_power"): net(kind, input_power=power)


def test_pool_takes_the_largest_also_where_all_are_negative():
    states = torch.tensor([[[-3.], [-1.], [0.]]])
    assert masked_pool(states, torch.tensor([[True, True, False]])).tolist() == [[-2., -1.]]


@pytest.mark.parametrize("width, M", [(19, 5), (0, 5), (20, 6)])
def test_width_names_both_numbers(width, M):
    torch.manual_seed(0)
    with pytest.raises(ShapeError, match=rf"{width} wide, expected .* = {5 * (M - 1)}"):
        build_labeler(M, **SMALL)(torch.zeros(1, 3, width), torch.ones(1, 3, dtype=torch.bool))


def test_names_that_are_no_settings_are_refused():
    with pytest.raises(TypeError, match="nLSTMCells"): build_labeler(5, nLSTMCells=3)
    with pytest.raises(ValueError, match="nLSTMlayers is 0"): build_labeler(5, nLSTMlayers=0)
    with pytest.raises(ValueError, match="head is 'mean'"): build_labeler(5, head="mean")


class Evil:
    def __reduce__(self): return (exec, ("import pathlib; pathlib.Path('evil').touch()",))


def test_published_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"lstm.weight_hh_l0": Evil()}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Evil()))
    for name in "a.ckpt", "b.ckpt":
        with pytest.raises(CheckpointError, match=name): load_published(tmp_path / name)
    assert not (tmp_path / "evil").exists()


def test_published_file_that_is_damaged(tmp_path):
    whole = build_labeler(5, "lstm", head="flatten", **SMALL).state_dict()
    torch.save(whole, tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    for name, part in {"cut": content[:-100], "head": content[:50], "empty": b"", "text": b"PK not really" * 20}.items():
        (tmp_path / name).write_bytes(part)
        with pytest.raises(CheckpointError, match=name): load_published(tmp_path / name)
    with pytest.raises(CheckpointError): load_published(tmp_path) # a folder
    short = {key: value for key, value in whole.items() if key != "lstm.bias_hh_l1"}
    for bad in short, whole | {"more": torch.zeros(1)}, whole | {"fc.0.weight": torch.zeros(3)}, [1, 2], whole | {"lstm.weight_ih_l0": torch.zeros(3, 4)}:
        torch.save(bad, tmp_path / "bad.ckpt")
        with pytest.raises(CheckpointError, match="bad.ckpt"): load_published(tmp_path / "bad.ckpt")
    assert load_published(tmp_path / "whole.ckpt").num_markers == 5


@pytest.mark.parametrize("name, value", [("model_type", 3), ("head", None), ("nLSTMcells", "256"), ("nLSTMcells", True), ("LSTMdropout", "0.1"), ("ghost_class", 1)])
def test_configuration_of_the_wrong_kind(name, value):
    with pytest.raises(CheckpointError, match=name): settings_from(asdict(LabelerSettings()) | {name: value}, "config.json")


@pytest.mark.parametrize("change, message", [({"model_type": "gru"}, "model_type"), ({"nLSTMcells": 2**30}, "nLSTMcells"), ({"nAttentionHeads": 3}, "nAttentionHeads"), ({"FCnodes": 9}, "fc.0")])
def test_configuration_that_does_not_fit_the_weights(change, message):
    model = net("hybrid")
    with pytest.raises(CheckpointError, match=message): net_from(model.state_dict(), asdict(model.settings) | change, 5, "place")


def test_weights_that_are_not_numbers():
    model = net("lstm")
    tensors = model.state_dict() | {"fc.0.bias": torch.full((8,), torch.nan)}
    with pytest.raises(CheckpointError, match="not finite"): net_from(tensors, asdict(model.settings), 5, "place")
