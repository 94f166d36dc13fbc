"""Bones and motions, against an arithmetic of their own, against geometry, and against files that are not what they should be.

Broken on purpose to see each test fail: turns applied in the other order, the bones' own axes left out, whole turns overlooked, a frame's end not checked."""
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from stage_modules.toolkit.datasets import fetch
from stage_modules.toolkit.errors import DataError, ShapeError
from stage_modules.unet1d import skeleton as module
from stage_modules.unet1d.skeleton import (
    JOINTS,
    POSE_DIM,
    Skeleton,
    bone_positions,
    continuous_rotations,
    default_skeleton,
    forward_kinematics,
    matrix_from_vector,
    read_amc,
    read_asf,
    vector_from_matrix,
)

BODY = default_skeleton()
CLIPS = [f"02_{n:02}" for n in range(1, 11)]
seeds = st.integers(0, 10**6)


def steady(examples: int) -> settings: return settings(derandomize=True, deadline=None, max_examples=examples)


def rodrigues(vector: np.ndarray) -> np.ndarray:
    "The matrix of one rotation vector, from the formula, without the library that the course uses."
    angle = math.sqrt(sum(v * v for v in vector))
    if angle < 1e-12: return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def about(axis: str, degrees: float) -> np.ndarray:
    "The matrix of a turn about one axis, written out."
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array({"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]], "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]]}[axis])


# ------------------------------------------------------------------ kinematics


@given(seeds)
@steady(20)
def test_kinematics_agree_with_matrices_multiplied_by_hand(seed):
    pose = np.random.default_rng(seed).normal(0, 1, POSE_DIM)
    points, world = np.zeros((len(BODY.bones), 3)), []
    for i, bone in enumerate(BODY.bones):
        local = rodrigues(pose.reshape(24, 3)[JOINTS.index(bone.name)]) if bone.name in JOINTS else np.eye(3)
        world.append(world[bone.parent] @ local if i else local)
        if i: points[i] = points[bone.parent] + world[i] @ np.array(bone.offset)
    np.testing.assert_allclose(forward_kinematics(pose[None], BODY)[0], points, atol=1e-4)


@given(seeds)
@steady(15)
def test_no_pose_changes_a_length_and_turning_the_root_turns_everything(seed):
    poses = np.random.default_rng(seed).normal(0, 1.5, (4, POSE_DIM))
    points = forward_kinematics(poses, BODY)
    lengths = np.linalg.norm(points[:, 1:] - points[:, BODY.parents[1:]], axis=-1)
    np.testing.assert_allclose(lengths, np.broadcast_to(np.linalg.norm(BODY.offsets[1:], axis=1), lengths.shape), atol=1e-3)
    turn = Rotation.random(random_state=seed)
    turned = poses.copy()
    turned[:, :3] = (turn * Rotation.from_rotvec(poses[:, :3])).as_rotvec()
    np.testing.assert_allclose(forward_kinematics(turned, BODY), points @ turn.as_matrix().T, atol=1e-3)


def test_what_kinematics_take():
    pose = np.random.default_rng(0).normal(size=(3, 72))
    points = forward_kinematics(pose, BODY)
    assert points.dtype == np.float32 and points.shape == (3, 27, 3) and not points[:, 0].any()
    np.testing.assert_allclose(forward_kinematics(torch.tensor(pose, requires_grad=True), BODY), points)
    np.testing.assert_allclose(forward_kinematics(torch.tensor(pose).bfloat16(), BODY), points, atol=3)
    np.testing.assert_allclose(forward_kinematics(pose.tolist(), BODY), points)
    assert forward_kinematics(np.zeros((0, 72)), BODY).shape == (0, 27, 3)
    for wrong in np.zeros(72), np.zeros((2, 24, 3)), np.zeros((2, 71)):
        with pytest.raises(ShapeError, match="poses"): forward_kinematics(wrong, BODY)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pose_that_is_not_finite_is_named(value):
    poses = np.zeros((4, 72)); poses[2:, 5] = value
    with pytest.raises(DataError, match=r"row 2 is not finite \(2 of 4 rows\)"): forward_kinematics(poses, BODY)


@given(seeds)
@steady(20)
def test_vectors_and_matrices(seed):
    vectors = np.random.default_rng(seed).normal(size=(7, 24, 3))
    vectors *= np.minimum(1, 3.1 / np.linalg.norm(vectors, axis=-1, keepdims=True))
    np.testing.assert_allclose(vector_from_matrix(matrix_from_vector(vectors)), vectors, atol=1e-9)


@given(seeds, st.floats(.02, .6))
@steady(25)
def test_continuous_rotations_are_the_same_and_no_other_choice_is_nearer(seed, step):
    walk = np.random.default_rng(seed).normal(0, step, (120, 3, 3)).cumsum(0)
    start = vector_from_matrix(matrix_from_vector(walk))
    smooth = continuous_rotations(start)
    np.testing.assert_allclose(matrix_from_vector(smooth), matrix_from_vector(walk), atol=1e-9)
    np.testing.assert_array_equal(smooth[0], start[0])
    length = np.linalg.norm(smooth[1:], axis=-1, keepdims=True)
    taken = np.linalg.norm(smooth[1:] - smooth[:-1], axis=-1)
    for turns in -1, 1:
        other = smooth[1:] * (1 + 2 * np.pi * turns / np.maximum(length, 1e-9))
        assert (taken <= np.linalg.norm(other - smooth[:-1], axis=-1) + 1e-9).all()


def test_a_body_that_turns_three_times_and_back_stays_continuous():
    angle = np.concatenate([np.linspace(0, 6 * np.pi, 200), np.linspace(6 * np.pi, -1, 200)])
    spin = np.zeros((400, 2, 3)); spin[:, 0, 1] = angle; spin[:, 1] = angle[:, None] * np.array([.6, 0, .8])
    np.testing.assert_allclose(continuous_rotations(vector_from_matrix(matrix_from_vector(spin))), spin, atol=1e-6)


def test_a_skeleton_survives_its_text():
    again = Skeleton.from_json(BODY.to_json())
    assert again == BODY and again.segments == BODY.segments and again.sides == BODY.sides
    for text in "", "null", "{", '{"unit": 1, "bones": [["root", -1, [0], [0, 0, 0]]]}', "[" * 100_000:
        with pytest.raises(DataError): Skeleton.from_json(text)


# ------------------------------------------------------------------ files


DOF = {"femur": "xyz", "tibia": "x", "foot": "xz", "clavicle": "yz", "wrist": "y", "hipjoint": "", "head": ""}


def tilted(seed: int) -> Skeleton:
    "Our body with bones whose own axes are turned at random, and with fewer degrees of freedom."
    luck = np.random.default_rng(seed)
    kind = lambda name: name[1:] if name[:1] in "lr" and name[1:] in DOF else name
    bones = [bone._replace(axis=tuple(luck.uniform(-180, 180, 3).round(3).tolist()) if i else (0., 0., 0.), dof=DOF.get(kind(bone.name), "xyz") if i else "XYZxyz")
             for i, bone in enumerate(BODY.bones)]
    return Skeleton(tuple(bones), 2.54 / .45)


def write_asf(path: Path, skeleton: Skeleton, end: str = "\r\n") -> Path:
    lines = ["# a remark", ":version 1.10", ":units", "  length 0.45", "  angle deg", ":root", "   order TX TY TZ RX RY RZ", "   axis XYZ", "   position 0 0 0", "   orientation 0 0 0",
             ":bonedata"]
    for i, bone in enumerate(skeleton.bones[1:], 1):
        length = np.linalg.norm(bone.offset)
        direction = " ".join(f"{v:.12e}" for v in np.array(bone.offset) / length)
        lines += ["begin", f"  id {i}", f"  name {bone.name}", f"  direction {direction}", f"  length {length / skeleton.unit:.12f}", f"  axis {' '.join(map(str, bone.axis))}  XYZ"]
        if bone.dof: lines += [f"  dof {' '.join('r' + letter for letter in bone.dof)}", "  limits (-160.0 20.0)", "         (-70.0 70.0)"]
        lines += ["end"]
    lines += [":hierarchy", "  begin"]
    for i, bone in enumerate(skeleton.bones):
        children = [b.name for b in skeleton.bones if b.parent == i]
        if children: lines.append(f"    {bone.name} {' '.join(children)}")
    path.write_bytes(end.join([*lines, "  end", ""]).encode())
    return path


def draw_frames(skeleton: Skeleton, frames: int, seed: int) -> list[dict[str, list[float]]]:
    luck = np.random.default_rng(seed)
    return [{bone.name: luck.uniform(-80, 80, len(bone.dof)).round(4).tolist() for bone in skeleton.bones if bone.dof} for _ in range(frames)]


def amc_lines(frames: list[dict[str, list[float]]], first: int = 1) -> list[str]:
    lines = ["#!OML:ASF somewhere.ASF", ":FULLY-SPECIFIED", ":DEGREES"]
    for number, frame in enumerate(frames, first): lines += [str(number), *(f"{name} {' '.join(map(str, values))}" for name, values in frame.items())]
    return lines


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_motion_agrees_with_the_format_computed_by_hand(tmp_path, seed, end):
    skeleton, (path, file) = tilted(seed), (tmp_path / "a.asf", tmp_path / "a.amc")
    read, frames = read_asf(write_asf(path, skeleton, end)), draw_frames(skeleton, 3, seed)
    file.write_bytes(end.join(amc_lines(frames, first=7)).encode())
    motion = read_amc(file, read)
    assert motion.frames.tolist() == [7, 8, 9] and motion.poses.shape == (3, 72) and motion.poses.dtype == np.float32
    points = bone_positions(motion.rotations, read)
    for f, frame in enumerate(frames):
        world, place = {}, {}
        for i, bone in enumerate(skeleton.bones):
            own, turn, values = np.eye(3), np.eye(3), frame.get(bone.name, [])
            for axis, degrees in zip("xyz", bone.axis): own = about(axis, degrees) @ own
            for letter, degrees in zip(bone.dof, values):
                if letter.islower(): turn = about(letter, degrees) @ turn
            parent = skeleton.names[bone.parent]
            world[bone.name] = (world[parent] if i else np.eye(3)) @ own @ turn @ own.T
            place[bone.name] = place[parent] + world[bone.name] @ np.array(bone.offset) if i else np.zeros(3)
            np.testing.assert_allclose(points[f, read.names.index(bone.name)], place[bone.name], atol=2e-3)
        np.testing.assert_allclose(motion.root_positions[f], np.array(frame["root"][:3]) * 2.54 / .45, rtol=1e-5)
    np.testing.assert_allclose(forward_kinematics(motion.poses, read), points, atol=1e-3)


def test_order_of_values_is_that_of_the_file(tmp_path):
    "`dof rz rx` is z first, in the values and in the turn; a root may tell its turn before its way."
    skeleton = read_asf(write_asf(tmp_path / "a.asf", tilted(0)))
    path = tmp_path / "b.asf"
    path.write_text((tmp_path / "a.asf").read_text().replace("dof rx rz", "dof rz rx").replace("order TX TY TZ RX RY RZ", "order RX RY RZ TX TY TZ"))
    other, frames = read_asf(path), draw_frames(skeleton, 1, 0)
    changed = [{name: values[::-1] if name in ("lfoot", "rfoot") else values[3:] + values[:3] if name == "root" else values for name, values in frames[0].items()}]
    for name, rows in (("a", frames), ("b", changed)): (tmp_path / f"{name}.amc").write_text("\n".join(amc_lines(rows)))
    one, two = read_amc(tmp_path / "a.amc", skeleton), read_amc(tmp_path / "b.amc", other)
    np.testing.assert_allclose(one.root_positions, two.root_positions)
    different = {JOINTS[i] for i in np.flatnonzero(np.abs(one.poses - two.poses).reshape(24, 3).max(1) > 1e-4)}
    assert different == {"lfoot", "rfoot"} # the same angles, the other one first


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Skeleton, list[str], list[str]]:
    folder = tmp_path_factory.mktemp("good")
    path = write_asf(folder / "a.asf", tilted(0), "\n")
    return read_asf(path), path.read_text().split("\n"), amc_lines(draw_frames(tilted(0), 3, 0))


BAD_MOTIONS = {
    "nothing": (lambda t: "", "the file is empty"),
    "only a head": (lambda t: ":FULLY-SPECIFIED\n:DEGREES\n", "no frames"),
    "radians": (lambda t: t.replace(":DEGREES", ":RADIANS"), r":3: angles in radians"),
    "another skeleton": (lambda t: t.replace("ltibia", "lshin", 1), "'lshin' is not a bone"),
    "a value too many": (lambda t: t.replace("ltibia ", "ltibia 1 ", 1), "ltibia: expected 1 number, got 2"),
    "no values": (lambda t: "\n".join("ltibia" if line.startswith("ltibia") else line for line in t.split("\n")), "ltibia: expected 1 number, got 0"),
    "a word": (lambda t: t.replace("ltibia ", "ltibia x", 1), "ltibia: not a number"),
    "NaN": (lambda t: "\n".join("ltibia nan" if line.startswith("ltibia") else line for line in t.split("\n")), "not finite"),
    "infinity": (lambda t: "\n".join("ltibia 1e999" if line.startswith("ltibia") else line for line in t.split("\n")), "not finite"),
    "a bone missing": (lambda t: "\n".join(line for line in t.split("\n") if not line.startswith("rfoot")), ":4: the frame that begins here has no rfoot"),
    "a bone twice": (lambda t: t.replace("\nltibia 0", "\nltibia 0").replace("\n2\n", "\nltibia 1\n2\n"), "ltibia a second time in frame 1"),
    "a frame left out": (lambda t: t.replace("\n2\n", "\n4\n"), "frame 4 after frame 1"),
    "a frame twice": (lambda t: t.replace("\n2\n", "\n1\n"), "frame 1 after frame 1"),
    "no frame number": (lambda t: t.replace("\n1\n", "\n", 1), "'root' before the first frame"),
    "breaks off": (lambda t: "\n".join(t.split("\n")[:-4]), "the frame that begins here has no"),
    "a rigid bone": (lambda t: t.replace("\n2\n", "\nhead 1 2 3\n2\n"), "'head' is not a bone of the skeleton that turns"),
    "a skeleton": (lambda t: ":version 1.10\n:units\n length 0.45\n", "'length' before the first frame"),
    "zeros": (lambda t: t.replace("2", "\0", 1), "binary"),
}


@pytest.mark.parametrize("name", BAD_MOTIONS)
def test_a_motion_that_does_not_fit_names_file_and_line(name, tmp_path, good):
    spoil, message = BAD_MOTIONS[name]
    path = tmp_path / "bad.amc"
    path.write_text(spoil("\n".join(good[2])))
    with pytest.raises(DataError, match=message) as caught: read_amc(path, good[0])
    assert str(caught.value).startswith(str(path))


BAD_SKELETONS = {
    "nothing": (lambda t: "", "the file is empty"),
    "a motion": (lambda t: ":FULLY-SPECIFIED\n:DEGREES\n1\nroot 0 0 0 0 0 0\n", "no :root section"),
    "no tree": (lambda t: t.split(":hierarchy")[0], "no :hierarchy section"),
    "a joint less": (lambda t: t.replace("ltoes", "lpaw"), "the skeleton has no ltoes"),
    "an unknown bone": (lambda t: t.replace("    lfoot ltoes", "    lfoot lpaw"), "lpaw, which no bone is called"),
    "a loose bone": (lambda t: t.replace("    lfoot ltoes\n", ""), "ltoes does not hang on the root"),
    "a bone on two": (lambda t: t.replace("    lfoot ltoes", "    lfoot ltoes rtoes"), "rtoes hangs on"),
    "a ring": (lambda t: t.replace("    root lowerback", "    ltoes lhipjoint\n    root lowerback").replace("lowerback lhipjoint rhipjoint", "lowerback rhipjoint"), "does not hang on the root"),
    "a bone twice": (lambda t: t.replace("name rtoes", "name ltoes"), "a second bone called ltoes"),
    "a bone without a name": (lambda t: t.replace("name rtoes", "name"), "a bone without a name"),
    "no direction": (lambda t: t.replace("direction", "dirction", 1), "has no direction"),
    "a crooked direction": (lambda t: t.replace("direction ", "direction 1", 1), "has length"),
    "no number": (lambda t: t.replace("  length ", "  length x", 2), "not a number"),
    "a number missing": (lambda t: "\n".join("  direction 1 0" if "direction" in line else line for line in t.split("\n")), "expected 3 numbers, got 2"),
    "another order": (lambda t: t.replace("XYZ\n  dof", "ZYX\n  dof", 1), "only XYZ is known"),
    "a bone that grows": (lambda t: t.replace("dof rx ry rz", "dof rx ry l", 1), "degrees of freedom"),
    "radians": (lambda t: t.replace("angle deg", "angle rad"), ":5: angles in 'rad'"),
    "no unit": (lambda t: t.replace("length 0.45", "length 0"), ":4: length of units is 0"),
}


@pytest.mark.parametrize("name", BAD_SKELETONS)
def test_a_skeleton_that_cannot_be_names_file_and_why(name, tmp_path, good):
    spoil, message = BAD_SKELETONS[name]
    path, text = tmp_path / "bad.asf", "\n".join(good[1])
    path.write_text(spoil(text))
    assert path.read_text() != text, "nothing was spoilt"
    with pytest.raises(DataError, match=message) as caught: read_asf(path)
    assert str(caught.value).startswith(str(path))


def test_missing_files_and_folders(tmp_path, good):
    for read in read_asf, lambda path: read_amc(path, good[0]):
        with pytest.raises(DataError, match="no such file"): read(tmp_path / "nowhere")
        with pytest.raises(DataError, match="a folder"): read(tmp_path)


@pytest.mark.parametrize("kind", ["amc", "asf"])
def test_damage_is_a_data_error_or_harmless(kind, tmp_path, good):
    "Lines lost, doubled, swapped, cut, words replaced: never another kind of error, never a motion with NaN."
    luck, path = random.Random(0), tmp_path / f"damaged.{kind}"
    for _ in range(150):
        lines = list(good[2] if kind == "amc" else good[1])
        for _ in range(luck.randint(1, 3)):
            at, other = luck.randrange(len(lines)), luck.randrange(len(lines))
            words = lines[at].split()
            lines[at:at + 1] = luck.choice([[], [lines[at]] * 2, [lines[other]], [lines[at][:luck.randint(0, 9)]], [" ".join(luck.sample(words, len(words)))],
                                            [lines[at].replace(luck.choice(words or ["?"]), luck.choice(["nan", "-", "begin", "end", ":", "root", "7", "1e400", "é"]))]])
            if not lines: break
        path.write_text("\n".join(lines), encoding="utf-8")
        try:
            found = read_amc(path, good[0]).poses if kind == "amc" else read_asf(path).offsets
            assert np.isfinite(found).all()
        except DataError as error: assert str(error).startswith(str(path))


# ------------------------------------------------------------------ real motion


def standing_foot_speed(skeleton: Skeleton, clip: str) -> float:
    "Of the slower ball of the foot, cm/s, median over a walk."
    motion = read_amc(fetch(f"cmu-mocap/{clip}.amc"), skeleton)
    points = bone_positions(motion.rotations, skeleton) + motion.root_positions[:, None]
    balls = points[:, [skeleton.names.index("lfoot"), skeleton.names.index("rfoot")]]
    return float(np.median(np.linalg.norm(np.diff(balls, axis=0), axis=-1).min(1)) * 120)


def other_ways() -> dict:
    "Ways to read the angles that look as good on paper."
    letters = lambda bone: "".join(letter for letter in bone.dof if letter.islower())
    turn = lambda order, angles: Rotation.from_euler(order, angles, degrees=True)
    own = lambda bone: turn("xyz", bone.axis)
    def way(rule): return lambda angles, bone: rule(angles, bone) if letters(bone) else Rotation.identity(len(angles))
    return {
        "own axes left out": way(lambda a, b: turn(letters(b), a)),
        "own axes the wrong way": way(lambda a, b: own(b).inv() * turn(letters(b), a) * own(b)),
        "the other order": way(lambda a, b: own(b) * turn(letters(b).upper(), a) * own(b).inv()),
    }


@pytest.mark.needs_data("cmu-mocap/02.asf", "cmu-mocap/02_01.amc", "cmu-mocap/02_02.amc")
@pytest.mark.parametrize("clip", ["02_01", "02_02"])
def test_standing_feet_stand_and_with_any_other_convention_they_skate(clip, monkeypatch):
    skeleton = read_asf(fetch("cmu-mocap/02.asf"))
    right = standing_foot_speed(skeleton, clip)
    assert right < 17 # the root moves at 120 to 160
    for name, way in other_ways().items():
        monkeypatch.setattr(module, "local_rotations", way)
        assert standing_foot_speed(skeleton, clip) > 1.8 * right, name


@pytest.mark.needs_data("cmu-mocap/02.asf", "cmu-mocap/02_01.amc")
def test_geometry_of_a_walk():
    skeleton = read_asf(fetch("cmu-mocap/02.asf"))
    motion = read_amc(fetch("cmu-mocap/02_01.amc"), skeleton)
    points, at = bone_positions(motion.rotations, skeleton) + motion.root_positions[:, None], skeleton.names.index
    way, across = points[-1, 0] - points[0, 0], points[:, at("lhipjoint")] - points[:, at("rhipjoint")]
    forward = np.cross(across, [0., 1., 0.])
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    assert 320 < way[2] < 350 and abs(way[0]) < 10 and abs(way[1]) < 10, "three metres forward, along z"
    assert (across[:, 0] > 15).all() and (forward[:, 2] > .9).all(), "left is left, and the body faces the way it goes"
    lowest = points[:, [at("ltoes"), at("rtoes")], 1].min(1)
    assert lowest.min() > -2 and lowest.max() < 9, "a foot is near the ground all the time"
    assert 150 < points[:, at("head"), 1].mean() < 170
    for side in "lr":
        hip, knee, ankle, toes = (points[:, at(side + name)] for name in ("hipjoint", "femur", "tibia", "toes"))
        ahead = ((knee - (hip + ankle) / 2) * forward).sum(1)
        assert ahead.min() > -1 and ahead.max() > 10, "knees bend one way only"
        assert (((toes - ankle) * forward).sum(1) > 0).all(), "toes are in front"
        elbow, shoulder, wrist = (points[:, at(side + name)] for name in ("humerus", "clavicle", "wrist"))
        assert (((elbow - (shoulder + wrist) / 2) * forward).sum(1) < 1).all(), "elbows bend the other way"
    lengths = np.linalg.norm(points[:, 1:] - points[:, skeleton.parents[1:]], axis=-1)
    assert np.ptp(lengths, axis=0).max() < 1e-3
    np.testing.assert_allclose(lengths[0], np.linalg.norm(skeleton.offsets[1:], axis=1), atol=1e-3)


@pytest.mark.needs_data("cmu-mocap/02.asf", *(f"cmu-mocap/{clip}.amc" for clip in CLIPS))
def test_ten_clips_72_numbers_give_the_joints_exactly_and_never_leap():
    skeleton, frames = read_asf(fetch("cmu-mocap/02.asf")), 0
    assert len(skeleton.names) == 31 and skeleton.sides.count("left") == skeleton.sides.count("right") == 12
    for clip in CLIPS:
        motion = read_amc(fetch(f"cmu-mocap/{clip}.amc"), skeleton)
        assert motion.frames.tolist() == list(range(1, len(motion.poses) + 1))
        exact, short = bone_positions(motion.rotations[::10], skeleton), forward_kinematics(motion.poses[::10], skeleton)
        off = np.linalg.norm(exact - short, axis=-1)
        assert off[:, skeleton.joint_indices].max() < 1e-4 and .3 < off.max() < 10 # thumbs and fingers turn, and are short
        assert np.abs(np.diff(motion.poses, axis=0)).max() < 1, clip
        assert np.abs(np.diff(motion.rotations, axis=0)).max() < math.pi, clip
        frames += len(motion.poses)
    assert frames == 12815
