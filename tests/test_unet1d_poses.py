"""Poses: made ones that are bodies, splits that keep their distance, scaling that comes back, and files that are not what they should be.

Broken on purpose to see each test fail: no gap, a gap on one side only, the same luck for every person, knees and elbows the wrong way, a constant divided by its rounding, pickles let through."""
import itertools
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_modules.toolkit.errors import DataError, ShapeError
from stage_modules.unet1d.poses import (
    CMU_CLIPS,
    Clip,
    Normaliser,
    PoseBatches,
    block_parts,
    check_poses,
    cmu_skeleton,
    load_cmu,
    make_poses,
    pose_angles,
    read_poses,
    split_clips,
)
from stage_modules.unet1d.skeleton import JOINTS, default_skeleton, forward_kinematics, read_asf

BODY = default_skeleton()
CMU_FILES = ("cmu-mocap/02.asf", *(f"cmu-mocap/{name}.amc" for name in CMU_CLIPS))


def steady(examples: int) -> settings: return settings(derandomize=True, deadline=None, max_examples=examples)


@pytest.fixture(scope="module")
def made() -> list[Clip]: return make_poses(18, 240, seed=3)


# ------------------------------------------------------------------ made by formula


def test_made_people_have_bodies(made):
    at = BODY.names.index
    for clip in made:
        assert clip.poses.shape == (240, 72) and clip.poses.dtype == np.float32 and np.isfinite(clip.poses).all()
        points = forward_kinematics(clip.poses, BODY)
        across = points[:, at("lhipjoint")] - points[:, at("rhipjoint")]
        forward = np.cross(across, [0., 1., 0.])
        forward /= np.linalg.norm(forward, axis=1, keepdims=True)
        feet = points[:, [at("lfoot"), at("rfoot")], 1].min(1)
        assert (points[:, at("head"), 1] > 25).all() and (feet < -45).all(), f"{clip.name}: head up, feet down"
        for side in "lr":
            hip, knee, ankle = (points[:, at(side + name)] for name in ("hipjoint", "femur", "tibia"))
            shoulder, elbow, wrist = (points[:, at(side + name)] for name in ("clavicle", "humerus", "wrist"))
            assert (((knee - (hip + ankle) / 2) * forward).sum(1) > -3).all(), f"{clip.name}: knees bend one way"
            bend = np.degrees(np.arccos(np.clip(((elbow - shoulder) * (wrist - elbow)).sum(1) / np.linalg.norm(elbow - shoulder, axis=1) / np.linalg.norm(wrist - elbow, axis=1), -1, 1)))
            assert (bend < 160).all(), f"{clip.name}: no forearm inside its arm"
            flexed = (np.cross(elbow - shoulder, wrist - elbow) * across).sum(1) # down, then forward: about the axis to the right
            assert np.quantile(flexed, .95) < 0, f"{clip.name}: elbows bend one way"


def test_made_clips_are_smooth_varied_and_different_by_activity(made):
    everything = np.concatenate([clip.poses for clip in made])
    assert max(np.abs(np.diff(clip.poses, axis=0)).max() for clip in made) < .4
    assert everything.std(0).min() > np.radians(1), "every number moves"
    name = {activity: np.concatenate([c.poses for c in made if c.name.startswith(activity)]) for activity in ("walk", "run", "jump")}
    elbow, knee = (slice(3 * JOINTS.index(joint), 3 * JOINTS.index(joint) + 3) for joint in ("lradius", "ltibia"))
    bent = lambda activity, where: np.degrees(np.linalg.norm(name[activity][:, where], axis=1))
    assert np.median(bent("run", elbow)) > 2 * np.median(bent("walk", elbow))
    assert np.quantile(bent("run", knee), .95) > np.quantile(bent("walk", knee), .95) + 10
    opposite = lambda activity: np.corrcoef(name[activity][:, 3], name[activity][:, 6])[0, 1] # both thighs, about x
    assert opposite("walk") < -.5 and opposite("run") < -.5 and opposite("jump") > .8, "legs take turns, or jump together"


def test_people_differ_and_an_own_step_is_nearer_than_anothers(made):
    walkers = [clip.poses for clip in made if clip.name.startswith("walk")]
    own = np.median([pose_angles(w[:60:5], w[90:]).min(1).mean() for w in walkers]) # the next steps
    others = np.median([pose_angles(a[:60:5], b[90:]).min(1).mean() for a, b in itertools.pairwise(walkers)])
    assert others > 1.5 * own


def test_the_same_seed_is_the_same_people_in_another_process():
    digest = lambda clips: sha256(b"".join(np.round(c.poses, 4).tobytes() for c in clips)).hexdigest()
    code = ("from stage_modules.unet1d.poses import make_poses; import numpy as np, hashlib;"
            "print(hashlib.sha256(b''.join(np.round(c.poses, 4).tobytes() for c in make_poses(4, 50, seed=9))).hexdigest())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parent.parent), "PATH": ""})
    assert done.stdout.strip() == digest(make_poses(4, 50, seed=9)) != digest(make_poses(4, 50, seed=8))


@pytest.mark.parametrize("settings", [{"num_clips": 0}, {"frames": 0}, {"num_clips": -1}])
def test_no_clips_or_frames(settings):
    with pytest.raises(ValueError, match="must be at least 1"): make_poses(**settings)


# ------------------------------------------------------------------ splits


def numbered(lengths: list[int], fps: float) -> list[Clip]:
    "Clips whose first two numbers are the clip and the frame."
    clips = []
    for i, n in enumerate(lengths):
        poses = np.zeros((n, 72), np.float32); poses[:, 0] = i; poses[:, 1] = np.arange(n)
        clips.append(Clip(str(i), poses, fps))
    return clips


@given(st.lists(st.integers(1, 900), min_size=1, max_size=8), st.sampled_from([30., 59.94, 120.]), st.floats(.2, 3), st.floats(0, .95), st.integers(0, 9))
@steady(60)
def test_blocks_keep_their_distance_and_lose_nothing_else(lengths, fps, block, share, seed):
    clips, gap = numbered(lengths, fps), share * block
    parts = block_parts(clips, block, gap, (.15, .2), seed)
    for clip, part in zip(clips, parts):
        assert part.shape == (len(clip.poses),) and set(part) <= {-1, 0, 1, 2}
        kept = np.flatnonzero(part >= 0)
        for a, b in itertools.pairwise(kept): # neighbours are enough: parts that differ further away differ at some neighbours between
            if part[a] != part[b]: assert b - a > gap * fps
        dropped = np.flatnonzero(part < 0)
        if gap == 0: assert not len(dropped)
    try: split = split_clips(clips, block=block, gap=gap, valid=.15, test=.2, seed=seed)
    except DataError as error: assert "nothing is left for" in str(error); return
    whole = np.concatenate([clip.poses for clip in clips])
    for i, rows in enumerate((split.train, split.valid, split.test)): np.testing.assert_array_equal(rows, whole[np.concatenate(parts) == i])


@given(st.integers(3, 40), st.floats(0, .4), st.floats(0, .4), st.integers(0, 99))
@steady(60)
def test_whole_clips_stay_whole(count, valid, test, seed):
    clips = numbered(list(range(3, 3 + count)), 60.)
    split = split_clips(clips, "clips", valid=valid, test=test, seed=seed)
    owners = [set(rows[:, 0]) for rows in (split.train, split.valid, split.test)]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    assert sum(len(o) for o in owners) == count and len(split.train) + len(split.valid) + len(split.test) == sum(len(c.poses) for c in clips)
    assert len(owners[1]) == (max(1, round(valid * count)) if valid else 0)


def test_every_clip_of_three_blocks_gives_to_every_part():
    for seed in range(20):
        for part in block_parts(numbered([180, 200, 1000], 120.), .5, .25, (.15, .15), seed): assert {0, 1, 2} <= set(part)


def test_a_random_split_leaks_and_blocks_do_not():
    clips = make_poses(6, 480, seed=1, fps=120.)
    poses = np.concatenate([c.poses for c in clips])
    mixed, split = np.random.default_rng(0).permutation(poses), split_clips(clips)
    leak = np.median(pose_angles(mixed[:100], mixed[600:]).min(1))
    kept = np.median(pose_angles(split.test[::4], split.train).min(1))
    assert leak < 1.2 and kept > 2.5


@pytest.mark.parametrize("wrong, message", [
    ({"method": "frames"}, "method='frames'"), ({"gap": .5, "block": .5}, "gap=0.5 and block=0.5"), ({"gap": -1}, "gap=-1"), ({"block": 0}, "block=0"),
    ({"valid": .5, "test": .5}, "valid=0.5 and test=0.5"), ({"valid": -.1}, "valid=-0.1"), ({"block": float("nan")}, "block=nan")])
def test_settings_that_cannot_be(made, wrong, message):
    with pytest.raises(ValueError, match=message): split_clips(made, **wrong)


def test_too_little_to_split():
    with pytest.raises(DataError, match="no clips"): split_clips([])
    with pytest.raises(DataError, match="nothing is left for valid and test"): split_clips(numbered([20], 120.))
    with pytest.raises(DataError, match="nothing is left for valid and test"): split_clips(numbered([500, 500], 120.), "clips")
    assert len(split_clips(numbered([20], 120.), valid=0, test=0).train) == 20


# ------------------------------------------------------------------ scaling and batches


@given(st.integers(0, 999), st.integers(2, 40), st.integers(1, 80))
@steady(30)
def test_scaling_comes_back(seed, rows, width):
    luck = np.random.default_rng(seed)
    poses = (luck.normal(size=(rows, width)) * luck.uniform(.01, 3, width) + luck.normal(size=width)).astype(np.float32)
    poses[:, ::3] = luck.normal(size=poses[:, ::3].shape[1]).astype(np.float32) # constants
    normaliser = Normaliser.from_json(Normaliser.fit(poses).to_json())
    scaled = normaliser.normalise(poses)
    assert scaled.dtype == np.float32 and not scaled[:, ::3].any() and normaliser.constant[::3].all()
    np.testing.assert_allclose(scaled[:, ~normaliser.constant].std(0), 1, atol=1e-3)
    np.testing.assert_allclose(normaliser.denormalise(scaled), poses, atol=1e-5)
    np.testing.assert_array_equal(normaliser.denormalise(scaled + 9)[:, ::3], poses[:, ::3]) # whatever a model says there
    for dtype in torch.float32, torch.float64:
        tensor = normaliser.denormalise(normaliser.normalise(torch.tensor(poses, dtype=dtype)))
        assert tensor.dtype == dtype
        np.testing.assert_allclose(tensor.numpy(), poses, atol=1e-5)


def test_rounding_is_no_spread():
    poses = np.ones((50, 72), np.float32); poses[::2, 4] += 1e-7
    normaliser = Normaliser.fit(torch.tensor(poses))
    assert normaliser.constant.all() and np.abs(normaliser.normalise(poses + 1)).max() == 0


def test_gradients_pass_through_scaling():
    normaliser = Normaliser.fit(np.random.default_rng(0).normal(size=(20, 72)))
    values = torch.zeros(3, 72, requires_grad=True)
    normaliser.denormalise(values).sum().backward()
    np.testing.assert_allclose(values.grad[0], normaliser.std, rtol=1e-5)


def test_scaling_refuses():
    normaliser = Normaliser.fit(np.random.default_rng(0).normal(size=(20, 72)))
    for wrong in np.zeros(72), torch.zeros(2, 71):
        with pytest.raises(ShapeError, match="values"): normaliser.normalise(wrong)
    with pytest.raises(DataError, match="row 3"): Normaliser.fit(np.where(np.arange(5)[:, None] == 3, np.nan, np.ones((5, 72))))
    for text in "", "[]", "null", '{"mean": [1]}', '{"mean": [1], "std": [1, 2]}', '{"mean": [NaN], "std": [1]}', '{"mean": ["x"], "std": [1]}', '{"mean": 1, "std": 1}', "[" * 100_000:
        with pytest.raises(DataError): Normaliser.from_json(text)
    assert json.loads(normaliser.to_json()).keys() == {"mean", "std"}


@given(st.integers(2, 70), st.integers(2, 20), st.integers(0, 5), st.booleans())
@steady(40)
def test_batches_hold_every_row_once_but_a_lonely_last(rows, size, epoch, shuffle):
    values = torch.arange(rows)[:, None].repeat(1, 72)
    batches = PoseBatches(values, size, seed=2, shuffle=shuffle)
    batches.set_epoch(epoch)
    got = list(batches)
    assert len(got) == len(batches) and all(len(b) >= 2 and b.dtype == torch.float32 for b in got)
    seen = torch.cat(got)[:, 0].int().tolist()
    assert len(set(seen)) == len(seen) == rows - (rows % size == 1)
    if not shuffle: assert seen == sorted(seen)
    assert torch.equal(torch.cat(list(batches)), torch.cat(got)), "a second look at the same epoch"


def test_batches_depend_on_seed_and_epoch_alone():
    values = torch.arange(100.)[:, None].repeat(1, 72)
    def order(seed, epoch):
        torch.manual_seed(np.random.randint(1000)) # the world's luck does not matter
        batches = PoseBatches(values, 10, seed)
        batches.set_epoch(epoch)
        return tuple(torch.cat(list(batches))[:, 0].tolist())
    assert order(1, 2) == order(1, 2)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
    with pytest.raises(ValueError, match="batch_size=1"): PoseBatches(values, 1)
    with pytest.raises(DataError, match="1 poses"): PoseBatches(values[:1], 8)
    with pytest.raises(ShapeError): PoseBatches(torch.zeros(5, 2, 3), 4)


# ------------------------------------------------------------------ files


def nan_in(row: int, value: float = np.nan) -> np.ndarray:
    poses = np.zeros((20, 72)); poses[row, 3] = value
    return poses


BAD_ARRAYS = {
    "NaN": (nan_in(17), "row 17, column 3 is nan; 1 of 20 rows"),
    "infinity": (nan_in(5, -np.inf), "row 5, column 3 is -inf"),
    "too large": (nan_in(5, 1e300), r"row 5, column 3 is 1e\+300"),
    "width": (np.zeros((9, 75)), r"shape \(N, 72\), got \(9, 75\)"),
    "one pose flat": (np.zeros(72), r"got \(72,\)"),
    "joints apart": (np.zeros((9, 24, 3)), r"got \(9, 24, 3\)"),
    "no rows": (np.zeros((0, 72)), "no rows"),
    "text": (np.full((3, 72), "a"), "poses are numbers"),
    "complex": (np.zeros((3, 72), complex), "poses are numbers"),
    "a single number": (np.array(3.), r"got \(\)"),
}


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_no_poses(name, kind, tmp_path):
    array, message = BAD_ARRAYS[name]
    path = tmp_path / f"bad.{kind}"
    np.save(path, array) if kind == "npy" else np.savez(path, mine=array)
    with pytest.raises(DataError, match=message) as caught: read_poses(path)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(DataError, match=message): check_poses(array)


class Trap:
    "An object that leaves a mark if somebody unpickles it."
    def __reduce__(self): return open, (Trap.mark, "w")


def test_pickles_are_never_opened(tmp_path):
    Trap.mark = str(tmp_path / "mark")
    for name, save in {"a.npy": lambda p: np.save(p, np.array([Trap()], dtype=object), allow_pickle=True), "b.npz": lambda p: np.savez(p, x=np.array([Trap()], dtype=object)),
                       "c.npy": lambda p: p.write_bytes(__import__("pickle").dumps(Trap()))}.items():
        save(tmp_path / name)
        with pytest.raises(DataError, match="without pickle"): read_poses(tmp_path / name)
    assert not Path(Trap.mark).exists()


def test_damaged_files(tmp_path, made):
    whole = {}
    for kind, save in {"npy": lambda p: np.save(p, made[0].poses), "npz": lambda p: np.savez_compressed(p, a=made[0].poses, b=made[1].poses)}.items():
        save(tmp_path / f"whole.{kind}"); whole[kind] = (tmp_path / f"whole.{kind}").read_bytes()
    luck = np.random.default_rng(0)
    for kind, data in whole.items():
        path = tmp_path / f"cut.{kind}"
        for length in [0, 1, 5, 10, 60, 127, 128, *luck.integers(129, len(data), 12)]:
            path.write_bytes(data[:length])
            with pytest.raises(DataError) as caught: read_poses(path)
            assert str(caught.value).startswith(str(path))
        for _ in range(30): # a byte here and there
            damaged = bytearray(data); damaged[luck.integers(0, min(len(data), 400))] ^= int(luck.integers(1, 256))
            path.write_bytes(bytes(damaged))
            try: clips = read_poses(path)
            except DataError: continue
            assert all(np.isfinite(clip.poses).all() for clip in clips)
    for text in b"not numpy", b"PK\x03\x04", json.dumps([1]).encode():
        (tmp_path / "text.npy").write_bytes(text)
        with pytest.raises(DataError): read_poses(tmp_path / "text.npy")


def test_other_paths(tmp_path):
    with pytest.raises(DataError, match="no such file"): read_poses(tmp_path / "nowhere.npy")
    with pytest.raises(DataError, match="a folder without"): read_poses(tmp_path)
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match="expected .npy, .npz, .amc"): read_poses(tmp_path / "a.csv")
    np.savez(tmp_path / "empty.npz")
    with pytest.raises(DataError, match="an archive without arrays"): read_poses(tmp_path / "empty.npz")
    (tmp_path / "01_01.amc").write_text("1\nroot 0 0 0 0 0 0\n")
    with pytest.raises(DataError, match="its skeleton is not beside it: 01_01.asf or 01.asf"): read_poses(tmp_path / "01_01.amc")


ASF = """:units
 length 1
 angle deg
:root
 order TX TY TZ RX RY RZ
 position 0 0 0
 orientation 0 0 0
:bonedata
{bones}:hierarchy
 begin
{tree} end
"""


def write_motion(folder: Path, stem: str, skeleton: str, frames: int) -> Path:
    "A chain of the 24 joints, each a bone that turns about x."
    bone = lambda name: f" begin\n  name {name}\n  direction 0 1 0\n  length 1\n  axis 0 0 0 XYZ\n  dof rx\n end\n"
    text = ASF.format(bones="".join(map(bone, JOINTS[1:])), tree="".join(f"  {a} {b}\n" for a, b in itertools.pairwise(JOINTS)))
    (folder / skeleton).write_text(text)
    rows = "".join(f"{f + 1}\nroot 0 0 0 0 0 0\n" + "".join(f"{name} {f}\n" for name in JOINTS[1:]) for f in range(frames))
    (folder / f"{stem}.amc").write_text(rows)
    return folder / f"{stem}.amc"


@pytest.mark.parametrize("skeleton", ["07_01.asf", "07.asf", "other.asf"])
def test_a_motion_finds_its_skeleton(tmp_path, skeleton):
    clip, = read_poses(write_motion(tmp_path, "07_01", skeleton, 5), fps=30.)
    assert clip.name == "07_01" and clip.fps == 30. and clip.poses.shape == (5, 72)
    np.testing.assert_allclose(clip.poses[:, 3], np.radians(range(5)), atol=1e-6)


def test_a_folder_is_all_that_is_in_it(tmp_path):
    write_motion(tmp_path, "07_01", "07.asf", 5)
    np.save(tmp_path / "one.npy", np.zeros((3, 72)))
    np.savez(tmp_path / "more.npz", a=np.zeros((4, 72)), b=np.zeros((6, 72), int))
    (tmp_path / "README.txt").write_text("not mine to read")
    assert [(clip.name, len(clip.poses)) for clip in read_poses(tmp_path)] == [("07_01", 5), ("more/a", 4), ("more/b", 6), ("one", 3)]
    (tmp_path / "07_01.amc").write_text("1\nroot 0 0 0\n")
    with pytest.raises(DataError, match=r"07_01.amc:2: root: expected 6 numbers, got 3"): read_poses(tmp_path)


def test_nothing_of_a_file_is_kept_open_or_changed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones((3, 72)))
    before = path.read_bytes()
    read_poses(path)[0].poses[:] = 5
    assert path.read_bytes() == before
    path.unlink() # fails on some systems while a file is open


# ------------------------------------------------------------------ real poses


@pytest.mark.needs_data(*CMU_FILES)
def test_real_clips():
    clips = load_cmu()
    assert [clip.name for clip in clips] == list(CMU_CLIPS) and {clip.fps for clip in clips} == {120.}
    every = np.concatenate([clip.poses for clip in clips])
    assert every.shape == (12815, 72) and every.dtype == np.float32
    assert max(np.abs(np.diff(clip.poses, axis=0)).max() for clip in clips) < 1, "no whole turns between frames"
    split = split_clips(clips)
    normaliser = Normaliser.fit(split.train)
    assert normaliser.constant.sum() == 16 and {JOINTS[i // 3] for i in np.flatnonzero(normaliser.constant)} >= {"lclavicle", "rclavicle"}
    assert np.abs(normaliser.normalise(split.test)).max() < 15, "no division by rounding"
    for part in block_parts(clips, .5, .25, (.15, .15), 0): assert {0, 1, 2} <= set(part), "every clip gives to every part"
    random, near = np.random.default_rng(0).permutation(every), lambda test, train: np.median(pose_angles(test[:: len(test) // 60], train).min(1))
    assert near(random[9000:], random[:9000]) < .6 and near(split.test, split.train) > 4
    assert cmu_skeleton() is cmu_skeleton()
    with pytest.raises(DataError, match="'03_01'"): load_cmu(["03_01"])


@pytest.mark.needs_data(*CMU_FILES[:2])
def test_a_folder_of_real_files_gives_what_fetch_gives(tmp_path):
    from stage_modules.toolkit.datasets import fetch

    for name in CMU_FILES[:2]: (tmp_path / Path(name).name).write_bytes(fetch(name).read_bytes())
    clip, = read_poses(tmp_path)
    np.testing.assert_array_equal(clip.poses, load_cmu(["02_01"])[0].poses)
    assert read_asf(tmp_path / "02.asf") == cmu_skeleton()
