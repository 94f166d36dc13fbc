"""Review: edits lose no sample and can be undone, files are written only where names can be true, and clicks never raise.

Broken on purpose to see each test fail: both pieces of a split keep all samples, clashes not looked for, an error that leaves a button's callback."""
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ipywidgets import Dropdown

from stage_modules.labeler.markers import MarkerSet, Recording, read_c3d, write_c3d
from stage_modules.labeler.review import (
    COLOURINGS,
    Review,
    ReviewState,
    body_lines,
    clashes,
    doubtful,
    draw_frame,
    draw_review,
    draw_timeline,
    next_doubtful,
    rename,
    review_recording,
    review_tool,
    reviewed,
    split,
    swap,
    timeline_rows,
)
from stage_modules.labeler.simulate import default_markers, simulate
from stage_modules.toolkit.errors import DataError

SET = MarkerSet(("LSHO", "RSHO", "LWRA", "LWRB"), ("torso", "torso", "left_forearm", "left_forearm"))


def steady(examples: int) -> settings: return settings(derandomize=True, deadline=None, max_examples=examples)


def state_of(names: list[str], frames: int = 12, seed: int = 0, gaps: float = .2) -> ReviewState:
    random = np.random.default_rng(seed)
    points = random.normal(0, 300, (frames, len(names), 3)) + [0, 0, 1000]
    points[random.random((frames, len(names))) < gaps] = np.nan
    recording = Recording(points, [f"*{i}" for i in range(len(names))], 100.)
    confidence = random.uniform(.2, 1, len(names))
    return ReviewState(recording, SET, tuple(names), confidence, np.where(recording.visible, confidence, 0), np.zeros(len(names), bool))


@pytest.fixture
def state() -> ReviewState: return state_of(["LSHO", "RSHO", "LWRA", "LWRB", ""])


def fingerprint(state: ReviewState) -> tuple:
    return state.recording.points.tobytes(), state.recording.labels, state.names, state.confidence.tobytes(), state.frame_confidence.tobytes(), state.checked.tobytes(), state.edits


@steady(80)
@given(st.data(), st.integers(0, 99))
def test_any_edits_lose_no_sample_and_undo_comes_back(data, seed):
    review = Review(state_of(["LSHO", "RSHO", "LWRA", "LWRB", ""], seed=seed))
    start, prints = review.state, [fingerprint(review.state)]
    for _ in range(data.draw(st.integers(1, 6))):
        labels = st.sampled_from(review.state.recording.labels)
        edit, *arguments = data.draw(st.one_of(st.tuples(st.just(rename), labels, st.sampled_from(["", *SET.markers, "TAIL"])), st.tuples(st.just(split), labels, st.integers(-1, 13)),
                                               st.tuples(st.just(swap), labels, labels, st.integers(0, 12))))
        before = fingerprint(review.state)
        try: review.do(edit, *arguments)
        except ValueError: # DataError is one
            assert fingerprint(review.state) == before
            continue
        prints.append(fingerprint(review.state))
    state = review.state
    assert np.array_equal(np.sort(state.recording.points[state.recording.visible], 0), np.sort(start.recording.points[start.recording.visible], 0)), "a sample was lost, or is there twice"
    assert len(set(state.recording.labels)) == len(state.names) and (state.frame_confidence[~state.recording.visible] == 0).all()
    for expected in reversed(prints):
        assert fingerprint(review.state) == expected
        review.undo()
    assert review.state is start
    for expected in prints[1:]: assert fingerprint(review.redo()) == expected


@steady(40)
@given(st.integers(1, 11), st.integers(0, 30))
def test_a_swap_counts_from_its_frame_on(frame, seed):
    state = state_of(["LWRA", "LWRB"], seed=seed, gaps=.1)
    try: after = reviewed(swap(state, "*0", "*1", frame))
    except ValueError: return # one of them is not seen any more
    was = state.recording.points
    for name, mine, other in ("LWRA", 0, 1), ("LWRB", 1, 0):
        now = after.select([name]).points[:, 0]
        np.testing.assert_array_equal(now[:frame], was[:frame, mine])
        np.testing.assert_array_equal(now[frame:], was[frame:, other])


def test_pieces_get_the_mean_of_their_own_frames(state):
    frames = np.where(state.recording.visible, np.arange(12)[:, None] / 12, 0.)
    both = split(ReviewState(state.recording, SET, state.names, state.confidence, frames, state.checked), "*2", 6)
    seen = state.recording.visible[:, 2]
    np.testing.assert_allclose(both.confidence[2:4], [frames[:6, 2][seen[:6]].mean(), frames[6:, 2][seen[6:]].mean()])
    assert both.recording.labels == ("*0", "*1", "*2", "*5", "*3", "*4") and both.names == ("LSHO", "RSHO", "LWRA", "LWRA", "LWRB", "")


def test_clashes_are_those_that_an_export_refuses(tmp_path):
    random = np.random.default_rng(0)
    for seed in range(30):
        state = state_of(list(random.choice(["", *SET.markers], 5)), seed=seed, gaps=.7)
        found = clashes(state)
        for name, first, second, frame in found:
            a, b = (state.recording.labels.index(label) for label in (first, second))
            assert a != b and state.names[a] == state.names[b] == name and state.recording.visible[frame, [a, b]].all()
        path = tmp_path / f"{seed}.c3d"
        if found:
            with pytest.raises(DataError, match="two trajectories are called"): Review(state).export(path)
            assert not path.exists()
        elif state.recording.visible.any():
            Review(state).export(path)
            assert read_c3d(path).visible.sum() == state.recording.visible.sum()


def test_what_to_look_at_next():
    state = state_of(["LSHO", "RSHO", "LWRA", "LWRA", ""], gaps=0.)
    state.confidence[:] = .3, .8, .95, .97, .85
    order = []
    while (label := next_doubtful(state)) is not None:
        order.append(label)
        state = rename(state, label, "" if label == "*2" else state.names[state.recording.labels.index(label)])
    assert order == ["*2", "*0", "*1", "*4"], "the clash first, then the least sure; what is checked or sure is left alone"


def test_reviewing_a_file_of_a_laboratory(tmp_path):
    state = review_recording(Recording(state_of(["a"] * 4, gaps=0.).recording.points, ["LSHO", "*7", "TAIL", "LWRA"], 100.), SET)
    assert state.names == ("LSHO", "", "", "LWRA") and state.confidence.tolist() == [1, 0, 0, 1]
    source = write_c3d(state.recording, tmp_path / "in.c3d")
    before = source.read_bytes()
    path = Review(rename(state, "TAIL", "RSHO")).export(tmp_path / "out.c3d", like=source)
    assert set(read_c3d(path).labels) == {"LSHO", "RSHO", "LWRA", "*0"} and source.read_bytes() == before
    with pytest.raises(DataError, match="is there already"): Review(state).export(path)


# ------------------------------------------------------------------ pictures


@pytest.mark.parametrize("by", COLOURINGS)
def test_pictures_of_sparse_moments(by):
    state = state_of(["LSHO", "RSHO", "LWRA", "LWRB", ""])
    points = state.recording.points.copy()
    points[0], points[1, 1:] = np.nan, np.nan # nobody, and one
    sparse = ReviewState(Recording(points, state.recording.labels, 100.), SET, state.names, state.confidence, np.where(np.isfinite(points[..., 0]), .5, 0), state.checked)
    for frame in 0, 1, 11:
        figure = draw_frame(sparse, frame, by, "*1", True).figure
        figure.draw_without_rendering()
        plt.close(figure)
    assert body_lines(sparse, 0).shape == (0, 2, 3)
    plt.close(draw_timeline(sparse, 3, "*4").figure)
    with pytest.raises(ValueError, match="by='mood'"): draw_review(sparse, 3, by="mood")
    plt.close("all")


def test_nothing_is_left_open_by_a_wrong_name(state):
    plt.close("all")
    with pytest.raises(DataError): draw_frame(state, 3, selected="*99")
    with pytest.raises(ValueError, match="frame=12"): draw_frame(state, 12)
    assert not plt.get_fignums()


# ------------------------------------------------------------------ clicks


def test_a_review_by_clicks(state, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("stage_modules.labeler.review.draw_review", lambda state, frame, **rest: drawn.append((frame, rest["trajectory"])) or plt.figure(figsize=(1, 1)))
    tool = review_tool(state, tmp_path)
    controls = tool.explorer.controls
    controls["trajectory"].value = ""
    tool.buttons["rename"].click()
    assert "choose a trajectory first" in tool.message.value and len(tool.review.states) == 1
    controls["trajectory"].value, tool.name.value = "*4", "LWRA"
    tool.buttons["rename"].click()
    assert tool.review.state.names[4] == "LWRA" and "1 name given twice at once: LWRA" in tool.message.value and tool.chosen == "*4"
    tool.buttons["export"].click()
    assert "DataError" in tool.message.value and not list(tmp_path.iterdir())
    tool.buttons["undo"].click()
    tool.buttons["export"].click(), tool.buttons["export"].click()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recording_reviewed.c3d", "recording_reviewed_2.c3d"]
    controls["frame"].value = 6
    tool.buttons["split"].click()
    assert len(tool.review.state.names) == 6 and "split at frame 6" in tool.message.value
    assert len(controls["trajectory"].options) == len(tool.other.options) == 7, "the new piece can be chosen in both lists"
    tool.buttons["swap"].click()
    assert "choose whom to exchange with" in tool.message.value
    tool.buttons["undo"].click()
    assert "undone: *4 split at frame 6" in tool.message.value
    assert tool.explorer.picture.value.startswith("<img") and len(tool.review.state.names) == 5 and drawn[-1] == (6, "*4")
    before = len(drawn)
    tool.buttons["next"].click()
    assert len(drawn) == before + 1, "one click, one drawing"


def test_what_is_told_is_text_not_html(state, tmp_path):
    recording = state.recording
    odd = Recording(recording.points, ["<b>*0</b>", *recording.labels[1:]], recording.rate)
    tool = review_tool(ReviewState(odd, SET, state.names, state.confidence, state.frame_confidence, state.checked), tmp_path)
    tool.explorer.controls["trajectory"].value = "<b>*0</b>"
    assert "&lt;b&gt;*0&lt;/b&gt; is called LSHO" in tool.message.value and "<b>" not in tool.message.value


def test_names_are_chosen_and_stand_where_the_trajectory_is(state, tmp_path):
    "A typed name reaches the kernel later than the click behind it; a chosen one does not. And *rename* without a choice must not take a name away."
    tool = review_tool(state, tmp_path)
    assert isinstance(tool.name, Dropdown) and isinstance(tool.other, Dropdown)
    for label, name in zip(state.recording.labels, state.names):
        tool.explorer.controls["trajectory"].value = label
        assert tool.name.value == name and f"{label} is called {name or 'nothing'}" in tool.message.value
        tool.buttons["rename"].click()
        assert f"{label} stays {name or 'nothing'}" in tool.message.value
    assert tool.review.state.names == state.names and tool.review.state.checked.all()


def test_next_goes_round_and_says_who(tmp_path):
    state = state_of(["LSHO", "RSHO", "LWRA", "LWRA"], gaps=0.)
    state.confidence[:] = .5, .95, .99, .99
    tool = review_tool(state, tmp_path)
    assert tool.chosen == "*2" and "so is *3, together from frame 0 on" in tool.message.value, "told before the first click"
    seen = [tool.chosen]
    for _ in range(3):
        tool.buttons["next"].click()
        seen.append(tool.chosen)
    assert seen == ["*2", "*3", "*0", "*2"]
    tool.buttons["keep"].click()
    assert tool.review.state.checked.tolist() == [False, False, True, False] and doubtful(tool.review.state) == ["*3", "*0"]
    tool.buttons["undo"].click(), tool.buttons["undo"].click()
    assert "there is nothing to undo" in tool.message.value and tool.review.state is state


def test_a_move_of_the_slider_paints_no_strips(state, tmp_path, monkeypatch):
    painted = []
    monkeypatch.delenv("STAGE_STATIC", raising=False)
    monkeypatch.setattr("stage_modules.labeler.review.draw_timeline", lambda *a, **k: painted.append(a[0]) or draw_timeline(*a, **k))
    tool = review_tool(state, tmp_path)
    controls, pictures = tool.explorer.controls, set()
    tool.explorer.redraw()
    for controls["frame"].value in 2, 3, 4, 5: pictures.add(tool.explorer.picture.value)
    assert len(painted) == 1 and len(pictures) == 4
    controls["trajectory"].value = "*4"
    tool.buttons["rename"].click()
    assert len(painted) == 3, "another choice and an edit do"


def test_rows_are_shared_by_pieces_that_follow_each_other():
    state = state_of(["LSHO", "RSHO", "LSHO", "", ""], gaps=0.)
    points = state.recording.points.copy()
    points[6:, 0], points[:6, 2] = np.nan, np.nan
    apart = ReviewState(Recording(points, state.recording.labels, 100.), SET, state.names, state.confidence, state.frame_confidence, state.checked)
    assert timeline_rows(apart).tolist() == [0, 1, 0, 2, 3]
    assert timeline_rows(state).tolist() == [0, 2, 1, 3, 4], "together they need two"
    points[:] = np.nan
    assert len(timeline_rows(ReviewState(Recording(points, state.recording.labels, 100.), SET, state.names, state.confidence, state.frame_confidence, state.checked))) == 5


def edges(figure) -> np.ndarray:
    "The outermost pixels on all four sides."
    figure.canvas.draw()
    pixels = np.array(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


@pytest.mark.parametrize("azimuth", [-60, -20, 30, 135])
def test_no_label_is_cut_off(azimuth):
    state = review_recording(simulate(default_markers(), seconds=.3, seed=1), default_markers())
    assert (edges(draw_review(state, 6, "LKNE", "segment", azimuth=azimuth, live=True)) == 255).all()
    if azimuth == -60: assert (edges(draw_review(state, 6, "LKNE")) == 255).all()


def test_the_tool_draws_what_it_shows(state, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STAGE_STATIC", "1")
    tool = review_tool(state, tmp_path)
    tool._ipython_display_()
    assert "Run this cell in JupyterLab to move: frame, trajectory" in capsys.readouterr().out
    tool.explorer.redraw()
    assert tool.explorer.picture.value.startswith("<img"), tool.explorer.picture.value[:300]
