"""C3D files and marker sets: what is written comes back, what is broken is told, and nothing is harmed.

Broken on purpose to see each test fail: LABELS alone, an empty unit always mm, the end of a description unchecked, a move onto a file that is there, no look at what was written."""
import hashlib
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import ezc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stage_modules.labeler.markers import (
    BIOMECHZOO,
    SEGMENTS,
    MarkerSet,
    Recording,
    corrections,
    is_unlabelled,
    load_biomechzoo,
    put_in_place,
    read_c3d,
    read_c3d_with_report,
    read_marker_set,
    resample_points,
    write_c3d,
)
from stage_modules.toolkit.datasets import available, fetch
from stage_modules.toolkit.errors import DataError, ShapeError

ROOT = Path(__file__).resolve().parent.parent
ZOO = [name for name in available("biomechzoo/") if name.endswith(".c3d")]
WALK = "biomechzoo/HC030A/Straight/HC030A05.c3d"


def steady(examples: int) -> settings: return settings(derandomize=True, deadline=None, max_examples=examples)


def body(frames: int = 20, count: int = 10, seed: int = 0) -> Recording:
    points = np.random.default_rng(seed).uniform([-300, -300, 0], [300, 300, 1800], (frames, count, 3))
    points[3:5, 2] = np.nan
    return Recording(points, [f"M{i}" for i in range(count)], 100.)


@pytest.fixture
def small(tmp_path) -> Path: return write_c3d(body(), tmp_path / "small.c3d")


def make(path: Path, points: np.ndarray, labels: list[str] | None = None, residuals: np.ndarray | None = None, **parameters) -> Path:
    "A C3D file by ezc3d alone, (F, N, 3), so that the reader is not tested by our own writer."
    file, point = ezc3d.c3d(), np.ones((4, points.shape[1], len(points)))
    point[:3] = points.T
    file["parameters"]["POINT"]["RATE"]["value"] = [100.]
    for key, value in {"UNITS": ["mm"], "LABELS": labels or [f"M{i}" for i in range(points.shape[1])]}.items(): file["parameters"]["POINT"][key]["value"] = value
    for key, value in parameters.items(): file.add_parameter("POINT", key, value)
    file["data"]["points"] = point
    if residuals is not None: file["data"]["meta_points"] = {"residuals": residuals.T[None], "camera_masks": np.zeros((7, *residuals.T.shape), bool)}
    file.write(str(path))
    return path


# ------------------------------------------------------------------ files that are not what they should be


def careful(code: str, *arguments: object) -> str:
    "What a child process prints, with no more than 3 GB and 40 seconds: a bad reader crashes, or never comes back."
    limits = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n" if sys.platform == "linux" else ""
    done = subprocess.run([sys.executable, "-c", limits + code, *map(str, arguments)], capture_output=True, text=True, timeout=40, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-300:]}\n{done.stderr[-2000:]}"
    return done.stdout


READ_ALL = """
import sys
from pathlib import Path
from stage_modules.labeler.markers import read_c3d
from stage_modules.toolkit.errors import DataError
for path in sorted(Path(sys.argv[1]).glob("bad*.c3d")):
    print(path.name, file=sys.stderr, flush=True)
    try: print(path.name, "read", read_c3d(path).points.shape)
    except DataError as error: print(path.name, error)
"""


def test_every_file_that_was_cut_short_is_told_apart(small, tmp_path):
    whole = small.read_bytes()
    for size in [*range(0, len(whole), 83), len(whole) - 1]: (tmp_path / f"bad{size:05}.c3d").write_bytes(whole[:size])
    needed = 512 * 3 + 20 * 10 * 4 * 4 # blocks before the data, then frames x points x 4 numbers of 4 bytes
    for line in careful(READ_ALL, tmp_path).splitlines():
        size, path = int(line[3:8]), tmp_path / line.split()[0]
        if size >= needed: continue # only the filling of the last block is cut off
        assert f"{path}: " in line and any(why in line for why in ("is not a C3D file", "is cut short", "is corrupt", "cannot be read")), line


def test_wrong_bytes_never_crash_or_hang_the_reader(small, tmp_path):
    "Of 379 such files one hung and seven asked for gigabytes, before the ends of descriptions were looked at."
    whole, luck = small.read_bytes(), random.Random(1)
    for k in range(150):
        bad = bytearray(whole)
        for _ in range(luck.choice([1, 3, 10])): bad[luck.randrange(1200)] = luck.randrange(256)
        (tmp_path / f"bad{k:03}.c3d").write_bytes(bad)
    lines = careful(READ_ALL, tmp_path).splitlines()
    assert len(lines) == 150
    assert sum("is corrupt" in line for line in lines) > 50, "most changes are to parameters and must be seen"


@pytest.mark.parametrize("content, why", [(b"", "is not a C3D file"), (b"frame,x,y,z\n" * 200, "is not a C3D file"), (b"\x89PNG\r\n\x1a\n" + bytes(3000), "parameters are not where"), (bytes(5000), "is not a C3D file"),
                                          (b"\x02\x50" + bytes(5000), "is cut short or corrupt"), (b"\xff\x50" + bytes(5000), "is cut short or corrupt")])
def test_what_is_no_c3d_file_is_named(tmp_path, content, why):
    (tmp_path / "x.c3d").write_bytes(content)
    with pytest.raises(DataError, match=why) as caught: read_c3d(tmp_path / "x.c3d")
    assert str(tmp_path / "x.c3d") in str(caught.value)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="there is no such file"): read_c3d(tmp_path / "x.c3d")
    with pytest.raises(DataError, match="is a folder"): read_c3d(tmp_path) # ezc3d alone would never come back


def test_nothing_to_read(tmp_path):
    empty = make(tmp_path / "none.c3d", np.zeros((5, 0, 3)))
    with pytest.raises(DataError, match="has 0 points"): read_c3d(empty)
    gone = make(tmp_path / "gone.c3d", np.zeros((5, 3, 3)), residuals=np.full((5, 3), -1.))
    with pytest.raises(DataError, match="gone.c3d: has 3 markers, and none is seen in any of 5 frames"): read_c3d(gone)
    angles = make(tmp_path / "angles.c3d", np.ones((5, 2, 3)), ["LKneeAngles", "RKneeAngles"], ANGLES=["LKneeAngles", "RKneeAngles"])
    with pytest.raises(DataError, match="has 2 points, and all of them are model outputs"): read_c3d(angles)
    assert read_c3d(angles, markers_only=False).labels == ("LKneeAngles", "RKneeAngles")


def raw_c3d(values: np.ndarray, scale: float, order: str) -> bytes:
    "A C3D file made by hand: integers (F, N, 3) as old systems wrote them, Intel or MIPS bytes."
    F, N = values.shape[:2]
    def parameter(name, kind, axes, data, group=1):
        start = struct.pack("bb", len(name), group) + name.encode()
        rest = struct.pack("bB", kind, len(axes)) + bytes(axes) + data + b"\0"
        return start + struct.pack(order + "H", len(rest) + 2) + rest
    labels = [f"P{i}" for i in range(N)]
    section = struct.pack("bb", 5, -1) + b"POINT" + struct.pack(order + "H", 3) + b"\0"
    section += parameter("USED", 2, [], struct.pack(order + "H", N)) + parameter("FRAMES", 2, [], struct.pack(order + "H", F)) + parameter("DATA_START", 2, [], struct.pack(order + "H", 3))
    section += parameter("SCALE", 4, [], struct.pack(order + "f", scale)) + parameter("RATE", 4, [], struct.pack(order + "f", 50.))
    section += parameter("UNITS", -1, [2], b"mm") + parameter("LABELS", -1, [2, N], "".join(labels).encode())
    head = struct.pack(order + "HHHHH", N, 0, 1, F, 10) + struct.pack(order + "f", scale) + struct.pack(order + "HHf", 3, 0, 50.)
    data = np.concatenate([values, np.zeros((F, N, 1), int)], -1).astype(order + "i2").tobytes()
    block = lambda content: content.ljust(-(-len(content) // 512) * 512, b"\0")
    return block(b"\x02\x50" + head) + block(bytes([1, 0x50, 1, 84 if order == "<" else 86]) + section) + block(data)


@pytest.mark.parametrize("order", "<>")
def test_files_of_integers_and_of_both_byte_orders(tmp_path, order):
    values = np.random.default_rng(0).integers(100, 3000, (40, 6, 3))
    (tmp_path / "old.c3d").write_bytes(raw_c3d(values, .5, order))
    if order == ">": # ours finds its way through such a file, ezc3d says that it does not yet
        with pytest.raises(DataError, match="old.c3d: cannot be read: ezc3d says MIPS"): read_c3d(tmp_path / "old.c3d")
        return
    recording = read_c3d(tmp_path / "old.c3d")
    assert recording.rate == 50 and recording.labels == tuple(f"P{i}" for i in range(6)) and recording.first_frame == 1
    np.testing.assert_allclose(recording.points, values * .5)
    (tmp_path / "short.c3d").write_bytes(raw_c3d(values, .5, order)[:-1024])
    with pytest.raises(DataError, match="is cut short"): read_c3d(tmp_path / "short.c3d")


# ------------------------------------------------------------------ what a file says


@pytest.mark.parametrize("count", [255, 256, 300, 520])
def test_names_beyond_255_go_on_in_other_parameters(tmp_path, count):
    recording = body(4, count)
    path = write_c3d(recording, tmp_path / "many.c3d")
    assert len(ezc3d.c3d(str(path))["parameters"]["POINT"]["LABELS"]["value"]) == 255
    back = read_c3d(path)
    assert back.labels == recording.labels
    np.testing.assert_array_equal(back.points, recording.points)


@pytest.mark.parametrize("unit, factor", [("mm", 1), ("m", 1000), ("cm", 10), ("M", 1000), ("", 1), ("", 1000)])
def test_positions_come_in_millimetres(tmp_path, unit, factor):
    recording = body()
    path = make(tmp_path / "unit.c3d", np.nan_to_num(recording.points) / factor, UNITS=[unit] if unit else [""])
    back, report = read_c3d_with_report(path)
    np.testing.assert_allclose(back.points, recording.points, rtol=1e-6) # the zeros of the gap are missing
    assert report.unit_guessed == (unit == "")


def test_metres_stay_metres_when_a_file_is_written_like_another(tmp_path):
    like = make(tmp_path / "metres.c3d", body(seed=1).points[:, :3] / 1000, UNITS=["m"])
    recording = read_c3d(like)
    path = write_c3d(recording.rename({"M0": "HEAD"}), tmp_path / "out.c3d", like)
    assert np.nanmax(ezc3d.c3d(str(path))["data"]["points"][:3]) < 3
    np.testing.assert_allclose(read_c3d(path).points, recording.points, rtol=1e-6)


def test_an_unknown_unit_is_not_guessed(tmp_path):
    with pytest.raises(DataError, match="unit.c3d: the unit is 'furlong'"): read_c3d(make(tmp_path / "unit.c3d", body(seed=2).points[:, 3:], UNITS=["furlong"]))


def test_three_ways_to_be_missing(tmp_path):
    points, residuals = body(8, 4).points.copy(), np.zeros((8, 4))
    points[3:5] = 1. # no NaN from `body`
    residuals[1, 0] = -1
    points[2, 1] = 0
    points[3, 2] = np.nan
    seen = np.isfinite(read_c3d(make(tmp_path / "gaps.c3d", points, residuals=residuals)).points).all(-1)
    assert np.argwhere(~seen).tolist() == [[1, 0], [2, 1], [3, 2]]
    written = ezc3d.c3d(str(write_c3d(read_c3d(tmp_path / "gaps.c3d"), tmp_path / "again.c3d")))
    assert np.argwhere(written["data"]["meta_points"]["residuals"][0].T < 0).tolist() == [[1, 0], [2, 1], [3, 2]]
    assert np.isfinite(np.frombuffer((tmp_path / "again.c3d").read_bytes()[-512:], "<f4")).all(), "no NaN in the file: other programs do not know it"


def test_labels_that_are_twice_empty_or_too_few(tmp_path):
    points = body(5, 5, 3).points
    recording, report = read_c3d_with_report(make(tmp_path / "odd.c3d", points, ["Ada:LKNE", "Ada:LKNE", "Ada:RKNE", "*3", ""]))
    assert recording.labels == ("LKNE", "LKNE_2", "RKNE", "*3", "*0") and report.prefix == "Ada:" and report.renamed == {"LKNE_2": "LKNE", "*0": ""}
    assert [label for label in recording.labels if is_unlabelled(label)] == ["*3", "*0"]
    np.testing.assert_array_equal(recording.points, points)


def test_model_outputs_in_a_list_that_only_the_file_knows(tmp_path):
    path = make(tmp_path / "lists.c3d", body(5, 4, 3).points, ["LKNE", "Work", "LKneeAngles", "RKNE"], TYPE_GROUPS=["ENERGIES", "ENERGY"], ENERGIES=["Work"], ANGLES2=["LKneeAngles"], ANGLES=["x"])
    assert read_c3d(path).labels == ("LKNE", "RKNE")


# ------------------------------------------------------------------ writing


@steady(25)
@given(arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5), st.just(3)), elements=st.floats(-5000, 5000, width=32)), st.randoms(use_true_random=False), st.integers(1, 300), st.sampled_from([50., 100., 240.]))
def test_what_is_written_comes_back(tmp_path_factory, points, luck, first, rate):
    points = points.copy()
    points[(points == 0).all(-1)] = 1. # exactly zero is missing
    for f in range(len(points)):
        if luck.random() < .3: points[f, luck.randrange(points.shape[1])] = np.nan
    if not np.isfinite(points).any(): points[0, 0] = 7.
    recording = Recording(points, [f"*{i}" for i in range(points.shape[1])], rate, first_frame=first)
    path = write_c3d(recording, tmp_path_factory.mktemp("c3d") / "some.c3d")
    file = ezc3d.c3d(str(path))
    assert file["header"]["points"]["first_frame"] == first - 1 and file["parameters"]["POINT"]["UNITS"]["value"] == ["mm"]
    np.testing.assert_array_equal(file["data"]["points"][:3].T, points)
    assert file["parameters"]["POINT"]["RATE"]["value"][0] == rate


def test_nothing_takes_the_place_of_a_file(tmp_path, small):
    before = small.read_bytes()
    with pytest.raises(DataError, match="is there already"): write_c3d(body(seed=5), small)
    os.link(small, tmp_path / "other_name.c3d")
    (tmp_path / "link.c3d").symlink_to(small)
    for path in small, tmp_path / "other_name.c3d", tmp_path / "link.c3d":
        with pytest.raises(DataError, match="is the file that the recording comes from"): write_c3d(body(seed=5), path, like=small, overwrite=True)
    assert small.read_bytes() == before
    write_c3d(body(seed=5), small, overwrite=True)
    assert small.read_bytes() != before
    for path in tmp_path / "no" / "folder.c3d", small / "below_a_file.c3d", tmp_path:
        with pytest.raises(DataError): write_c3d(body(), path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.c3d", "other_name.c3d", "small.c3d"]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    def slow(beside):
        beside.write_text("mine")
        (tmp_path / "x.txt").write_text("somebody else's")
    with pytest.raises(DataError, match="is there already"): put_in_place(slow, tmp_path / "x.txt")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x.txt", "somebody else's")]


def test_a_recording_that_does_not_fit_is_refused(tmp_path, small):
    angles = make(tmp_path / "angles.c3d", body(seed=1).points[:, :2], ["LKNE", "Angle"], ANGLES=["Angle"])
    with pytest.raises(DataError, match="angles.c3d: has a model output that is called 'Angle'"): write_c3d(Recording(body().points[:, :1], ["Angle"], 100.), tmp_path / "out.c3d", angles)
    with pytest.raises(DataError, match="small.c3d: has 20 frames at 100 a second, and the recording 50 at 240"): write_c3d(body(50).resample(240).cut(0, 50), tmp_path / "out.c3d", small)
    with pytest.raises(DataError, match="nothing to write"): write_c3d(Recording(np.zeros((5, 0, 3)), [], 100.), tmp_path / "out.c3d")
    assert not (tmp_path / "out.c3d").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files, as a full disk")
def test_a_full_disk_leaves_nothing(tmp_path, small):
    code = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from stage_modules.labeler.markers import read_c3d, write_c3d
recording = read_c3d(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try: write_c3d(recording, sys.argv[2])
except Exception as error: print(type(error).__name__, error)
"""
    said = careful(code, small, tmp_path / "full.c3d")
    assert said.startswith(f"DataError {tmp_path / 'full.c3d'}: cannot be written"), said
    assert [path.name for path in tmp_path.iterdir()] == ["small.c3d"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_writer_leaves_no_half_file(tmp_path, how):
    code = """
import signal, sys, time
from pathlib import Path
from stage_modules.labeler import markers
signal.signal(signal.SIGINT, signal.default_int_handler) # whoever runs the tests in the background has it ignored
whole = markers.check_c3d
def slow(path): print("written", flush=True); time.sleep(30); whole(path)
markers.check_c3d = slow
markers.write_c3d(markers.Recording(markers.np.ones((50, 9, 3)), "ABCDEFGHI", 100.), sys.argv[1])
"""
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out.c3d")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert child.stdout.readline() == b"written\n"
    time.sleep(.2)
    child.send_signal(how)
    child.wait(20)
    left = [path.name for path in tmp_path.iterdir()]
    assert not [name for name in left if not name.startswith(".")] and (how == signal.SIGKILL or not left), left


@pytest.mark.needs_data(WALK)
def test_everything_else_of_the_file_stays(tmp_path):
    source = fetch(WALK)
    checksum, recording = hashlib.sha256(source.read_bytes()).hexdigest(), read_c3d(source)
    shuffled, order = recording.shuffled(3)
    path = write_c3d(shuffled.relabel([recording.labels[k] for k in order]), tmp_path / "out.c3d", like=source)
    was, now = ezc3d.c3d(str(source)), ezc3d.c3d(str(path))
    np.testing.assert_array_equal(now["data"]["analogs"], was["data"]["analogs"])
    assert now["header"]["points"] == was["header"]["points"]
    for group in was["parameters"]:
        for key, value in was["parameters"][group].items():
            if key == "__METADATA__" or (group == "POINT" and key.startswith(("LABELS", "DESCRIPTIONS", "DATA_START"))): continue
            np.testing.assert_array_equal(now["parameters"][group][key]["value"], value["value"], err_msg=f"{group}:{key}")
    every = read_c3d(source, markers_only=False)
    np.testing.assert_array_equal(read_c3d(path, markers_only=False).select(every.labels).points, every.points)
    assert hashlib.sha256(source.read_bytes()).hexdigest() == checksum


@pytest.mark.needs_data(*ZOO[::3])
def test_real_files_have_the_markers_and_no_model_outputs():
    for name in ZOO[::3]: # one of each person
        recording, report = read_c3d_with_report(fetch(name))
        lost, _ = BIOMECHZOO.compare(recording.labels)
        assert not lost and len(recording.labels) < 130 and not any("Angle" in label or "Power" in label for label in recording.labels), name
        assert sum(map(len, report.model_outputs.values())) + len(report.axes) + len(recording.labels) == report.points
        head = np.nanmedian(recording.select(["LBHD"]).points[..., 2])
        assert 1000 < head < 2000 and recording.rate == 100


# ------------------------------------------------------------------ recordings


@steady(60)
@given(st.integers(2, 40), st.sampled_from([30., 100., 120., 240.]), st.sampled_from([50., 100., 200.]), st.randoms(use_true_random=False))
def test_resampling_keeps_lines_and_gaps(frames, rate, wanted, luck):
    at = np.arange(frames)[:, None, None] / rate
    points = (at * [1000., -500, 20] + [5., 6, 7]).astype(np.float32)
    for f in range(frames):
        if luck.random() < .2: points[f] = np.nan
    new = resample_points(points, rate, wanted)
    when = np.arange(len(new)) / wanted
    assert len(new) == int((frames - 1) / rate * wanted + 1e-6) + 1
    seen = np.isfinite(points).all(-1)[:, 0]
    both = np.array([seen[int(np.floor(t * rate + 1e-5))] and seen[min(int(np.ceil(t * rate - 1e-5)), frames - 1)] for t in when])
    np.testing.assert_array_equal(np.isfinite(new).all(-1)[:, 0], both)
    np.testing.assert_allclose(new[both, 0], (when[:, None] * [1000., -500, 20] + [5., 6, 7])[both], atol=.05)


@steady(60)
@given(st.integers(1, 6), st.integers(1, 30), st.randoms(use_true_random=False))
def test_cut_into_pieces_and_joined_again(count, frames, luck):
    "Fragments in any order, named as what they are, give the trajectories back."
    whole = np.random.default_rng(luck.randrange(99)).normal(0, 500, (frames, count, 3)).astype(np.float32)
    pieces, names = [], []
    for n in range(count):
        cut = luck.randrange(frames + 1)
        for part in slice(0, cut), slice(cut, None):
            piece = np.full((frames, 3), np.nan, np.float32)
            piece[part] = whole[part, n]
            pieces.append(piece), names.append(f"M{n}")
    order = luck.sample(range(len(names)), len(names))
    recording = Recording(np.stack([pieces[k] for k in order], 1), [f"*{k}" for k in range(len(order))], 100.)
    again = recording.relabel([names[k] for k in order])
    np.testing.assert_array_equal(again.select([f"M{n}" for n in range(count)]).points, whole)
    if frames > 1 and count > 1:
        with pytest.raises(DataError, match="two trajectories are called 'M0'"): recording.relabel(["M0"] * len(names))


def test_nonsense_is_no_recording():
    points = body().points
    for wrong, labels, rate, kind in [(points[0], list("abcdefghij"), 100., ShapeError), (points, ["a"], 100., ShapeError), (points, ["a"] * 10, 100., ValueError),
                                      (points, list("abcdefghij"), 0., ValueError), (points, list("abcdefghij"), float("nan"), ValueError), (np.full_like(points, np.inf), list("abcdefghij"), 100., ValueError)]:
        with pytest.raises(kind): Recording(wrong, labels, rate)
    with pytest.raises(DataError, match="has no LKNE, Q"): body().select(["M1", "LKNE", "Q"])
    with pytest.raises(DataError, match="has no LKNE"): body().rename({"LKNE": "M1"})
    with pytest.raises(ShapeError): body().relabel(["a"])


# ------------------------------------------------------------------ marker sets


XML = "<OpenSimDocument>\n<MarkerSet>\n{}\n</MarkerSet>\n</OpenSimDocument>"


def marker(name: str, body: str = "<socket_parent_frame>/bodyset/torso</socket_parent_frame>", location: str = "0.1 0.2 -0.3") -> str:
    return f'<Marker name="{name}">{body}<location>{location}</location></Marker>'


@pytest.mark.parametrize("text, why", [
    (XML.format(marker("A")).replace("</OpenSimDocument>", ""), ":5: is not well-formed XML"), ("", ":1: is not well-formed XML"), ("<a/>", "has no <Marker>"),
    (XML.format(marker("A") + "\n" + marker("B", location="1 2")), ":4: marker 'B' has location '1 2'"), (XML.format(marker("A", location="x y z")), ":3: marker 'A' has location"),
    (XML.format(marker("A", location="nan 0 0")), ":3: marker 'A' has location"), (XML.format(marker("")), ":3: a marker has no name"), (XML.format(marker("A") + marker("A")), "'A' comes twice"),
    (XML.format('<Marker name="A"></Marker>'), ":3: marker 'A' has location None")])
def test_marker_sets_that_are_none(tmp_path, text, why):
    (tmp_path / "set.xml").write_text(text)
    with pytest.raises(DataError) as caught: read_marker_set(tmp_path / "set.xml")
    assert str(caught.value).startswith(str(tmp_path / "set.xml")) and why in str(caught.value)


def test_bodies_become_segments(tmp_path):
    rows = [marker("A", "<body>femur_r</body>"), marker("B", "<body> ulna_l </body>"), marker("LX"), marker("RX"), marker("C", "<body>tail</body>"), marker("D", "<body>toes_l</body>", "0 0 0"), marker("E", "")]
    (tmp_path / "set.xml").write_text(XML.format("".join(rows)))
    found = read_marker_set(tmp_path / "set.xml")
    assert found.segments == ("right_thigh", "left_forearm", "torso", "torso", "", "left_foot", "") and found.facing == ("LX", "RX")
    np.testing.assert_allclose(found.offsets[[0, 5]], [[100, 200, -300], [179, -2, 0]], rtol=1e-6)
    with pytest.raises(DataError, match="cannot be read"): read_marker_set(tmp_path / "none.xml")


@steady(40)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True), st.data())
def test_marker_sets_survive_json(names, data):
    segments = data.draw(st.lists(st.sampled_from(("", *SEGMENTS)), min_size=len(names), max_size=len(names)))
    offsets = data.draw(st.none() | arrays(np.float32, (len(names), 3), elements=st.integers(-300, 300)))
    facing = data.draw(st.none() | st.tuples(st.sampled_from(names), st.sampled_from(names)))
    one = MarkerSet(tuple(names), tuple(segments), offsets, facing)
    two = MarkerSet.from_json(json.loads(json.dumps(one.to_json())))
    assert (two.markers, two.segments, two.facing) == (one.markers, one.segments, one.facing)
    assert (two.offsets is None) == (offsets is None) and (offsets is None or np.array_equal(two.offsets, offsets))
    assert two.index([*names, "?" * 9]).tolist() == [*range(len(names)), -1]


@pytest.mark.parametrize("wrong", [None, [], {}, {"markers": ["A"]}, {"markers": ["A"], "segments": ["tail"]}, {"markers": ["A"], "segments": [""], "facing": ["B", "A"]}, {"markers": [], "segments": []},
                                   {"markers": ["A"], "segments": [""], "offsets": [[1, 2]]}, {"markers": 5, "segments": 6}])
def test_json_that_is_no_marker_set(wrong):
    with pytest.raises(DataError, match="not a marker set"): MarkerSet.from_json(wrong)


# ------------------------------------------------------------------ corrections


def test_the_table_in_data_is_the_one_that_is_installed():
    name = "biomechzoo_corrections.csv"
    assert (ROOT / "data" / name).read_bytes() == (ROOT / "stage_modules/labeler" / name).read_bytes()


def test_every_correction_is_half_of_an_exchange():
    rows = corrections()
    assert rows and len({(*row[:4], row.label) for row in rows}) == len(rows)
    for row in rows: assert (*row[:4], row.true_label, row.label) in {tuple(other[:6]) for other in rows} and row.reason


@pytest.mark.needs_data(*ZOO)
def test_corrections_touch_what_they_name_and_nothing_else():
    rows = corrections()
    some = {"subjects": ["HC030A", "HC032A", "HC039A"], "trials": ["Static", "Straight", "Turn"]}
    for raw, mended in zip(load_biomechzoo(**some, corrected=False), load_biomechzoo(**some)):
        changed = {label for k, label in enumerate(raw.labels) if not np.array_equal(raw.points[:, k], mended.points[:, k], equal_nan=True)}
        assert changed == {row.true_label for row in rows if f"{row.subject}/{row.trial}" == raw.name} & set(raw.labels), raw.name
    with pytest.raises(ValueError, match="trials: came 'Jump', there are Static, Straight, Turn"): load_biomechzoo(trials=["Jump"])
