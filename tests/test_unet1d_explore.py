"Looking at poses as a user does: files of every kind, any skeleton, the explorer's callbacks, and the models of the package."
import base64
import io
import json
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt

from stage_modules.toolkit.checkpoints import load_checkpoint
from stage_modules.toolkit.errors import CheckpointError, ShapeError
from stage_modules.unet1d.explore import (
    COLOURS,
    DEMO_FOLDER,
    NEW_PEOPLE,
    Animation,
    animate,
    attention_parts,
    compare_poses,
    demo_generator,
    denoise,
    draw_mid_attention,
    draw_pose,
    draw_poses,
    far_off,
    input_reach,
    mid_weights,
    mix_noise,
    plot_points,
    pose_explorer,
    positions_of,
    start_time,
)
from stage_modules.unet1d.poses import make_poses
from stage_modules.unet1d.sample import PoseGenerator
from stage_modules.unet1d.skeleton import JOINTS, default_skeleton

ROOT = Path(__file__).resolve().parent.parent
BODY = default_skeleton()
DEMOS = [(kind, mid) for kind in ("flow", "ddpm") for mid in ("conv", "attention")]


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def people() -> np.ndarray:
    return np.stack([clip.poses[-1] for clip in make_poses(30, 61, NEW_PEOPLE)])


# ------------------------------------------------------------------ figures


def inside(figure) -> None:
    "Nothing is drawn up to the edge: what is cut off by it would be."
    figure.draw_without_rendering() # as in a notebook, the layout settles in two passes
    memory = io.BytesIO()
    with plt.rc_context({"savefig.bbox": "standard"}): figure.savefig(memory, format="png", dpi=100)
    picture = np.asarray(Image.open(memory).convert("L"))
    for name, edge in {"left": picture[:, :2], "right": picture[:, -2:], "top": picture[:2], "bottom": picture[-2:]}.items():
        assert (edge == 255).all(), f"something is cut off at the {name}"
    assert (picture < 200).any()


def test_what_is_cut_off_is_found(people):
    figure = draw_pose(people[0], BODY).figure
    figure.suptitle("far too long a title " * 5)
    with pytest.raises(AssertionError, match="cut off"): inside(figure)


@pytest.mark.parametrize("count, columns", [(1, 6), (2, 6), (7, 3), (12, 6)])
def test_nothing_is_cut_off(people, count, columns):
    with warnings.catch_warnings():
        warnings.simplefilter("error") # a layout that cannot be made is only a warning
        inside(draw_poses(people[:count], BODY, [f"person {n}" for n in range(count)], "What to see", columns=columns))
        inside(draw_pose(people[0], BODY, title="One").figure)
    inside(compare_poses(people[:4], people[4:8], BODY, "Two rows"))


def test_a_body_is_as_large_in_the_figure_as_on_paper(people):
    "Projected by matplotlib itself, a metre forward, left and up has the same length in data units of the box."
    ax = draw_pose(people[0], BODY)
    box = np.array(ax.get_box_aspect())
    scales = box / [np.ptp(lim) for lim in (ax.get_xlim(), ax.get_ylim(), ax.get_zlim())]
    assert np.allclose(scales, scales[0])


def test_left_and_right_have_their_colours(people):
    ax = draw_pose(people[0], BODY)
    points = plot_points(positions_of(people[:1], BODY))[0]
    for side, colour in COLOURS.items():
        line = next(c for c in ax.collections if matplotlib.colors.to_hex(c.get_color()[0]).upper() == colour.upper())
        drawn = {tuple(np.round(end, 3)) for segment in line._segments3d for end in np.asarray(segment)[1:]}
        wanted = {tuple(np.round(points[i], 3)) for i, s in enumerate(BODY.sides) if s == side and i}
        assert drawn == wanted, side


def test_another_skeleton_is_drawn_too(tmp_path, people):
    "One with other bones and without a head: what counts is what the skeleton says."
    bones = tuple(bone for bone in BODY.bones if bone.name != "head")
    names = [bone.name for bone in bones]
    moved = tuple(bone._replace(parent=names.index(BODY.names[bone.parent]) if bone.parent >= 0 else -1) for bone in bones)
    inside(draw_poses(people[:2], type(BODY)(moved)))


@given(st.integers(1, 3), st.integers(0, 2**31), st.floats(0.1, 3.))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_every_body_stands_on_the_ground(count, seed, spread):
    poses = np.random.default_rng(seed).normal(0, spread, (count, 72))
    points = plot_points(positions_of(poses, BODY))
    assert np.allclose(points[..., 2].min(-1), 0) and np.allclose(points[:, 0, :2], 0)
    where = positions_of(poses, BODY)
    apart = lambda p: np.linalg.norm(p[:, :, None] - p[:, None], axis=-1)
    assert np.allclose(apart(points), apart(where), atol=1e-3), "putting a body on the ground moved its joints apart"
    handed = lambda p, order: np.linalg.det((p[:, 1:4] - p[:, :1])[..., order]) # a mirror image has the other sign
    assert np.allclose(handed(points, [0, 1, 2]), handed(where, [2, 0, 1]), rtol=1e-2, atol=1.)
    assert np.allclose(np.linalg.det(np.eye(3)[[2, 0, 1]]), 1)


@pytest.mark.parametrize("bad", [np.zeros((3, 71)), np.zeros(72), np.zeros((2, 26, 3)), np.zeros((2, 27, 2)), np.zeros((1, 2, 3, 4))])
def test_what_is_no_pose_is_turned_away(bad):
    with pytest.raises(ShapeError, match="poses has shape"): draw_poses(bad, BODY)


# ------------------------------------------------------------------ animations


def frames_of(content: bytes) -> list[np.ndarray]:
    with Image.open(io.BytesIO(content)) as image:
        found = []
        for n in range(image.n_frames):
            image.seek(n)
            found.append(np.asarray(image.convert("RGB")))
        return found


@pytest.fixture(scope="module")
def moving(people) -> Animation:
    return animate(np.stack([people[:2] * share for share in (0., 0.3, 0.6, 1.)]), BODY, titles=list("abcd"))


@pytest.mark.parametrize("kind", ["png", "gif", "webp"])
def test_every_frame_comes_back_as_it_was_drawn(moving, kind):
    "Kept as differences, the frames still are the frames."
    found = frames_of(moving.encode(kind))
    assert len(found) == 4
    for came, drawn in zip(found, moving.frames): assert np.array_equal(came, np.asarray(drawn.convert("RGB")))


def test_a_file_by_its_ending(moving, tmp_path):
    for ending, magic in {"gif": b"GIF89a", "png": b"\x89PNG", "PNG": b"\x89PNG"}.items():
        moving.save(tmp_path / f"x.{ending}")
        assert (tmp_path / f"x.{ending}").read_bytes().startswith(magic)
    with pytest.raises(ValueError, match="'mp4'"): moving.save(tmp_path / "y.mp4")
    with pytest.raises(ValueError, match="came ''"): moving.save(tmp_path / "y")
    assert not list(tmp_path.glob("y*"))


def test_an_animation_survives_what_pages_go_through(moving, tmp_path):
    "Saved in a notebook, cleaned by nbdev, exported by nbconvert: the same bytes play without a kernel and without a script."
    data = base64.b64encode(moving.encode()).decode()
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": 1, "source": ["#| fig-alt: a body\n", "moving"],
            "outputs": [{"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"image/png": data, "text/plain": [repr(moving)]}}]}
    book = {"cells": [{"cell_type": "markdown", "id": "t", "metadata": {}, "source": ["# T"]}, cell], "nbformat": 4, "nbformat_minor": 5,
            "metadata": {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}}
    path = tmp_path / "page.ipynb"
    path.write_text(json.dumps(book), encoding="utf-8")
    scripts = Path(sys.executable).parent
    subprocess.run([scripts / "nbdev_clean", "--fname", path], check=True, cwd=tmp_path)
    subprocess.run([sys.executable, "-m", "jupyter", "nbconvert", "--log-level=ERROR", "--to=html", path], check=True, cwd=tmp_path)
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(found) == 1
    assert len(frames_of(base64.b64decode(found[0].replace("&#10;", "").replace("\n", "")))) == 4


def test_a_figure_is_closed_also_when_drawing_fails(people, monkeypatch):
    from stage_modules.unet1d import explore
    monkeypatch.setattr(explore.Body, "move", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError): animate(people[None, :2], BODY)
    assert not plt.get_fignums()


# ------------------------------------------------------------------ the models of the package


def test_the_demo_models_are_small_and_of_no_particular_run():
    files = [p for p in DEMO_FOLDER.rglob("*") if p.is_file()]
    assert {p.parent.name for p in files} == {f"{kind}_{mid}" for kind, mid in DEMOS}
    assert sum(p.stat().st_size for p in files) < 3 * 2**20
    for kind, mid in DEMOS:
        checkpoint = load_checkpoint(DEMO_FOLDER / f"{kind}_{mid}")
        assert checkpoint.config["model_type"] == kind and checkpoint.config["mid_structure"] == mid
        assert not {"output_dir", "data_path", "seed"} & set(checkpoint.config), "settings of a run are no part of a model"
        assert not [name for name in checkpoint.tensors if "average" in name], "two sets of weights where one is used"


@pytest.mark.parametrize("kind, mid", DEMOS)
def test_the_demo_models_make_bodies(kind, mid):
    "Nearer to people than what has each angle right by itself; numbers of the page, for each of the four."
    from stage_modules.unet1d.quality import frechet_distance
    real = np.concatenate([clip.poses[::4] for clip in make_poses()])
    rows = lambda poses: positions_of(poses, BODY).reshape(len(poses), -1).astype(float)
    samples = demo_generator(mid, kind).sample(128, num_steps=15)
    independent = real.mean(0) + real.std(0) * np.random.default_rng(0).standard_normal((128, 72))
    ours, theirs = (frechet_distance(rows(poses), rows(real)) for poses in (samples, independent))
    assert ours < theirs / 2.5, f"{ours:.0f} is not much less than {theirs:.0f} cm2"


def test_the_other_mid_block_is_told():
    with pytest.raises(CheckpointError, match="this checkpoint has mid_structure='conv', asked for 'attention'"): PoseGenerator.load(DEMO_FOLDER / "flow_conv", "attention")
    with pytest.raises(ValueError, match="there are ddpm_attention"): demo_generator("attention", "gan")


# ------------------------------------------------------------------ noise in, noise out


@pytest.mark.parametrize("kind, mid", DEMOS)
@pytest.mark.parametrize("level", [0.3, 0.6])
def test_a_model_takes_noise_out(people, kind, mid, level):
    found = denoise(demo_generator(mid, kind), people, level, {"flow": "euler", "ddpm": "ddim"}[kind]) # ddpm adds noise of its own on the way
    assert far_off(found.denoised, people, BODY).mean() < 0.8 * far_off(found.noised, people, BODY).mean()


def test_levels_mean_the_same_to_both_processes(people):
    "At one level, poses of both kinds have the same share of noise: scaled alike, they are as far off in z-scores."
    seen = {}
    for kind in "flow", "ddpm":
        model = demo_generator("conv", kind)
        values, t = mix_noise(model, people, 0.4)
        signal, noise = model.process.levels(t)
        clean = torch.from_numpy(model.normaliser.normalise(people))
        seen[kind] = float((values / signal - clean).std())
        assert noise / (signal + noise) == pytest.approx(0.4, abs=0.005)
    assert seen["flow"] == pytest.approx(seen["ddpm"], rel=0.03)


@pytest.mark.parametrize("level", [0, -0.5, 1.01, float("nan")])
def test_a_level_outside_is_told(level):
    with pytest.raises(ValueError, match="level is"): start_time(demo_generator().process, level)


# ------------------------------------------------------------------ the explorer


def test_every_control_changes_the_picture_or_says_why():
    shown = pose_explorer()
    shown.redraw()
    seen = {shown.picture.value}
    for name, value in {"pose": 4, "noise_level": 0.8, "noise": 7, "steps": 2, "mid_block": "attention", "solver": "rk4"}.items():
        assert shown.controls[name].value != value, name
        shown.controls[name].value = value
        assert shown.picture.value.startswith("<img alt="), shown.picture.value[:300]
        assert shown.picture.value not in seen, f"{name} changed nothing"
        seen.add(shown.picture.value)
    assert not plt.get_fignums()


@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4", "ddpm", "ddim"])
def test_no_corner_of_the_sliders_fails(solver):
    shown = pose_explorer()
    ends = {name: (shown.controls[name].min, shown.controls[name].max) for name in ("pose", "noise_level", "steps", "noise")}
    for at in 0, 1:
        figure = shown.draw(solver=solver, mid_block=("conv", "attention")[at], **{name: both[at] for name, both in ends.items()})
        points = [line._segments3d for ax in figure.axes for line in ax.collections]
        assert len(figure.axes) == 3 and all(np.isfinite(np.array(p)).all() for p in points)


def test_a_model_that_is_not_there_is_told(people):
    shown = pose_explorer([demo_generator("conv", "flow"), demo_generator("attention", "ddpm")], people[:3])
    assert list(shown.controls["solver"].options) == ["euler", "midpoint", "rk4", "ddpm", "ddim"]
    shown.controls["mid_block"].value = "attention"
    assert "there is no model for the solver" in shown.picture.value


def test_the_redraw_is_quick():
    "The best of three, in seconds of the processor, which a busy machine stretches less than those of the clock."
    shown, took = pose_explorer(), []
    for n in range(3):
        started = time.process_time()
        shown.controls["noise"].value = n + 1
        took.append(time.process_time() - started)
    assert min(took) < 1


# ------------------------------------------------------------------ the middle


def test_what_a_position_hears_of_by_changing_each_number(people):
    "The gradient's answer, by the plainest means: change one number at a time, and see which positions change."
    model = demo_generator("attention").model
    x, _ = mix_noise(demo_generator("attention"), people[:8], 0.5)
    times = torch.full((len(x),), 500.)
    reach = input_reach(model, x, times) > 0
    changed = np.zeros((18, 72), bool)
    with torch.no_grad():
        before = model.encode(x, model.time(times))[-1]
        for number in range(72):
            other = x.clone()
            other[:, number] += 1.
            after = model.encode(other, model.time(times))[-1]
            changed[:, number] = ((after - before).abs() > 1e-6).any(0).any(0).numpy()
    assert np.array_equal(reach, changed)


def test_the_size_of_the_reach_is_that_of_the_whole_jacobian(people):
    "Random signs in place of one backward pass for each channel: the same within a few per cent where many poses are averaged."
    model = demo_generator("conv").model
    x, _ = mix_noise(demo_generator("conv"), people, 0.5)
    times = torch.full((len(x),), 500.)
    k = 9
    inputs = x.clone().requires_grad_()
    hidden = model.encode(inputs, model.time(times))[-1][:, :, k]
    squares = sum(torch.autograd.grad(hidden[:, c].sum(), inputs, retain_graph=True)[0].square() for c in range(hidden.shape[1]))
    exact = squares.mean(0).sqrt().numpy()
    guess = np.sqrt(np.mean([input_reach(model, x, times, seed)[k] ** 2 for seed in range(8)], 0))
    heard = exact > 0.1 * exact.max()
    assert np.allclose(guess[heard], exact[heard], rtol=0.2)


def test_weights_of_the_middle_are_those_that_the_model_uses(people):
    model = demo_generator("attention")
    x, t = mix_noise(model, people, 0.5)
    weights = mid_weights(model, people, 0.5)
    assert weights.shape == (model.config.mid_num_heads, 18, 18) and np.allclose(weights.sum(-1), 1, atol=1e-5)
    with torch.no_grad(): expected = model.model.mid_attention(x, torch.full((len(x),), 1000. * t)).mean(0)
    assert np.allclose(weights, expected)
    inside(draw_mid_attention(weights, "What to see"))
    with pytest.raises(ShapeError): draw_mid_attention(weights[0])


def test_parts_name_every_joint():
    assert {name for part in attention_parts() for name in part.split(", ")} == set(JOINTS)
    assert attention_parts()[0] == "root, lfemur" and attention_parts()[17] == "lhand, rhand" and len(attention_parts()) == 18
