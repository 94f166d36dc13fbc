"The UNet of 24 joints: its budget at any size, its order as mere bookkeeping, its checkpoint, and that nothing leaks or lies idle."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_modules.toolkit.checkpoints import load_weights, save_checkpoint
from stage_modules.toolkit.errors import CheckpointError, ShapeError
from stage_modules.unet1d.joints import LIMB_ORDER, JointUNet1D, joint_order, poses_of, tokens_of
from stage_modules.unet1d.model import UNet1D
from stage_modules.unet1d.skeleton import JOINTS

MIDDLES = ("conv", "attention")


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def inputs(batch: int = 3, width: int = 72) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, width), torch.linspace(0, 999, batch)


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("base", [16, 32, 64, 128])
@pytest.mark.parametrize("multipliers", [(1, 2, 4), (1, 2, 3), (1, 2, 4, 8)])
@pytest.mark.parametrize("time_emb_dim", [128, 256])
def test_the_budget_is_that_of_the_unet_within_two_in_a_hundred(middle, base, multipliers, time_emb_dim):
    with torch.device("meta"):
        ours, theirs = (count(kind(72, base, multipliers, time_emb_dim, middle, 8)) for kind in (JointUNet1D, UNet1D))
    assert abs(ours / theirs - 1) < .02


def test_the_budget_counts_what_takes_part():
    "Every parameter is reached by the gradient, so none is there to fill the budget."
    for middle in MIDDLES:
        model = JointUNet1D(base_channels=16, mid_structure=middle)
        model(*inputs()).square().sum().backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()]
        assert not [name for name in idle if not name.endswith(".bias")], idle # a bias before batch norm may well get nothing


@given(st.permutations(range(24)))
@settings(max_examples=30, deadline=None)
def test_any_order_comes_back(order):
    names = [JOINTS[i] for i in order]
    there, back = joint_order(names)
    tokens = tokens_of(inputs()[0])
    assert [JOINTS[i] for i in there] == names
    assert torch.equal(tokens[..., there][..., back], tokens)
    assert torch.equal(poses_of(tokens_of(inputs()[0])), inputs()[0])


@pytest.mark.parametrize("middle", MIDDLES)
@given(order=st.permutations(range(24)))
@settings(max_examples=5, deadline=None)
@torch.no_grad()
def test_turning_the_data_is_the_same_as_naming_the_order(middle, order):
    names = tuple(JOINTS[i] for i in order)
    named, plain = (JointUNet1D(base_channels=8, mid_structure=middle, mid_num_heads=4, names=n).eval() for n in (names, JOINTS))
    plain.load_state_dict(named.state_dict())
    (x, time), (there, back) = inputs(), joint_order(names)
    turned = poses_of(tokens_of(plain(poses_of(tokens_of(x)[..., there]), time))[..., back])
    torch.testing.assert_close(named(x, time), turned, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("middle", MIDDLES)
@torch.no_grad()
def test_a_pose_does_not_see_the_others_of_its_batch(middle):
    model, (x, time) = JointUNet1D(base_channels=16, mid_structure=middle).eval(), inputs(5)
    torch.testing.assert_close(model(x, time)[2:3], model(x[2:3], time[2:3]), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_near_the_input_a_joint_is_told_of_its_list_neighbours_only():
    "One block has two convolutions of kernel 3: what changes at a joint is felt two places away in the order of the limbs, and no further."
    model, (x, time) = JointUNet1D(base_channels=16).eval(), inputs(1)
    moved, elbow = x.clone(), LIMB_ORDER.index("lradius")
    moved[:, 3 * JOINTS.index("lradius")] += 1.
    first = lambda pose: model.down[0](model.tokens(pose), model.time(time))[0]
    felt = (first(moved) - first(x)).abs().amax(0) > 1e-6
    assert [LIMB_ORDER[i] for i in felt.nonzero()[:, 0]] == list(LIMB_ORDER[elbow - 2:elbow + 3]) == ["lclavicle", "lhumerus", "lradius", "lwrist", "lhand"]


def test_six_numbers_a_joint_make_six_channels():
    model = JointUNet1D(pose_dim=144, base_channels=16)
    x, time = inputs(width=144)
    assert model(x, time).shape == (3, 144) and model.tokens.widen.in_channels == 6


def test_attention_maps_are_in_the_networks_order():
    model, (x, time) = JointUNet1D(base_channels=16, mid_structure="attention", mid_num_heads=4).eval(), inputs()
    with torch.no_grad(): weights = model.mid_attention(x, time)
    assert weights.shape == (3, 4, 24, 24) and model.names == LIMB_ORDER
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, 24))
    with pytest.raises(ValueError, match="conv"): JointUNet1D(base_channels=16).mid_attention(x, time)


def test_checkpoints_come_back_and_do_not_fit_the_other_network(tmp_path):
    model, (x, time) = JointUNet1D(base_channels=16).eval(), inputs()
    save_checkpoint(tmp_path / "joints", model, {})
    fresh = JointUNet1D(base_channels=16).eval()
    load_weights(fresh, tmp_path / "joints")
    with torch.no_grad(): assert torch.equal(fresh(x, time), model(x, time))
    with pytest.raises(CheckpointError): load_weights(UNet1D(base_channels=16), tmp_path / "joints")


@pytest.mark.parametrize("settings, message", [({"pose_dim": 76}, "pose_dim=76 is not a multiple of 24"), ({"pose_dim": 0}, "pose_dim=0"), ({"mid_structure": "joint"}, "'joint'"),
    ({"mid_structure": "attention", "mid_num_heads": 7}, "512 is not a multiple of num_heads=7"), ({"names": JOINTS[1:]}, "root"), ({"names": ("root", *JOINTS[:-1])}, "rhand"),
    ({"names": ("head", *JOINTS[1:])}, "head")])
def test_settings_that_do_not_fit_are_named(settings, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message): JointUNet1D(**settings)


def test_a_wrong_width_is_named():
    model = JointUNet1D(base_channels=16)
    with pytest.raises(ShapeError, match="72"): model(torch.zeros(2, 48), torch.zeros(2))
