"Looking at attention as a user does: the command in a process, and pages made of sentences by anybody."
import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage_modules.seq2seq.translate import Translation, Translator
from stage_modules.seq2seq.visualize import (
    DEMO_FOLDER,
    DEMO_MODELS,
    DEMO_SENTENCES,
    attention_html,
    attention_page,
    demo_translator,
    explore_translations,
    interactive,
    main,
    make_demo,
    typed_lines,
)

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
VOID = {"meta", "img", "br", "hr", "link", "input"}


def command(*flags: str, folder: Path, typed: str | None = None) -> subprocess.CompletedProcess:
    "The command in a process of its own, in a folder that is not the checkout."
    return subprocess.run([sys.executable, "-m", "stage_modules.seq2seq.visualize", *flags], cwd=folder, env=ENVIRONMENT, input=typed or "",
                          capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)


# ------------------------------------------------------------------ the command


def test_the_demo_works_without_a_flag(tmp_path: Path) -> None:
    done = command(folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(sentence in done.stdout for sentence in DEMO_SENTENCES) and "<-" in done.stdout and "[EOS]" in done.stdout
    made = tmp_path / "runs/attention"
    assert {"1_attention.png", "3_coverage.png", "attention.html", "attention.json"} <= {p.name for p in made.iterdir()}
    assert done.stderr == ""


def test_analyze_writes_figures_and_numbers(tmp_path: Path) -> None:
    done = command("--mode", "analyze", "--model-path", str(DEMO_FOLDER / "bahdanau"), "--sentences", "We are old.", "", "She must go to my aunt's.",
                   "--output_dir", "out", "--beam-size", "3", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    made = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert made == ["1_attention.png", "1_coverage.png", "2_attention.png", "2_coverage.png", "attention.html", "attention.json"]
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in made if name.endswith("png"))
    written = json.loads((tmp_path / "out/attention.json").read_text(encoding="utf-8"))
    first, second = written["sentences"]
    assert set(written["metrics"]) == set(first["metrics"]) == {"spread_bits", "spread", "monotonic", "left_over", "over_attended"}
    assert first["source"] == "We are old." and first["read"][-1] == "[EOS]" and second["translation"]
    for record in first, second:
        weights = torch.tensor(record["weights"])
        assert weights.shape == (len(record["written"]), len(record["read"]))
        assert torch.allclose(weights.sum(1), torch.ones(len(weights)), atol=1e-3)
        assert torch.allclose(weights.sum(0), torch.tensor(record["coverage"]), atol=1e-2)


def test_heads_are_drawn_where_there_are_heads(tmp_path: Path) -> None:
    flags = ["--mode", "analyze", "--sentences", "We are old.", "--output-dir", str(tmp_path)]
    assert main([*flags, "--model_path", str(DEMO_FOLDER / "self")]) == 0
    assert {"1_attention.png", "1_coverage.png", "1_heads.png", "1_self.png"} <= {p.name for p in tmp_path.iterdir()}


def test_lines_from_a_pipe_are_translated_until_one_is_empty(tmp_path: Path) -> None:
    right = demo_translator().translate(["We are old.", "Louise is happy."])
    done = command("--mode", "interactive", folder=tmp_path, typed="We are old.\nLouise is happy.\n\nShe must go to my aunt's.")
    assert done.returncode == 0 and done.stderr == ""
    assert [line for line in done.stdout.splitlines() if "<-" not in line] == right # and no prompt
    assert not list(tmp_path.iterdir())


def test_a_translation_is_printed_before_the_next_line_is_asked_for(capsys: pytest.CaptureFixture) -> None:
    def lines():
        yield "We are old."
        assert "<-" in capsys.readouterr().out
        yield "Louise is happy."
    interactive(demo_translator(), lines())
    assert capsys.readouterr().out


@pytest.mark.parametrize("seen", [True, False])
def test_a_prompt_is_shown_to_a_person_only(seen: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    prompts = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: seen, raising=False)
    assert list(typed_lines(lambda prompt: prompts.append(prompt) or "")) == []
    assert bool(prompts[0]) == seen == bool(capsys.readouterr().out)


@pytest.mark.parametrize("flags, expected", [
    (["--mode", "analyze", "--model_path", "no/such/place", "--sentences", "x"], "no/such/place: there is no such folder"),
    (["--mode", "interactive", "--model_path", "no/such/place"], "no such folder"),
    (["--mode", "analyze", "--model_path", str(DEMO_FOLDER / "bahdanau")], "--sentences"),
    (["--mode", "analyze", "--sentences", "", "  "], "no sentence"),
    (["--beam_size", "0"], "beam_size is 0"),
])
def test_bad_input_is_one_line_and_exit_code_2(flags: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and expected in err, err
    assert not list(tmp_path.iterdir())


def test_the_process_says_the_same(tmp_path: Path) -> None:
    done = command("--model_path", "no/such/place", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no/such/place: there is no such folder\n")
    with pytest.raises(SystemExit) as left: main(["--mode", "dance"])
    assert left.value.code == 2


def test_a_model_without_attention_translates_and_draws_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pairs = [("We are old.", "Nous sommes vieux."), ("Louise is happy.", "Louise est heureuse."), ("Go.", "Va.")]
    make_demo(tmp_path, ["none"], pairs, num_epochs=1, progress=False)
    model = str(tmp_path / "none")
    assert "output_dir" not in json.loads((tmp_path / "none/config.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    assert main(["--mode", "analyze", "--model_path", model, "--sentences", "We are old.", "--output_dir", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "the model has no attention" in said and said.count("\n") == 1
    interactive(Translator.load(model), ["We are old."])
    assert "<-" not in capsys.readouterr().out


# ------------------------------------------------------------------ the models of the package


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_the_demo_models_translate_what_they_were_made_for(name: str) -> None:
    assert demo_translator(name).translate(["Louise is happy.", "We are old."]) == ["Louise est heureuse.", "Nous sommes vieux."]


def test_the_demo_models_are_small_and_of_no_particular_run() -> None:
    files = [p for p in DEMO_FOLDER.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 2**20
    assert {p.parent.name for p in files} == set(DEMO_MODELS)
    for config in DEMO_FOLDER.glob("*/config.json"): assert "output_dir" not in json.loads(config.read_text(encoding="utf-8"))


def test_the_demo_models_are_packaged(tmp_path: Path) -> None:
    "Whoever installs the package has them."
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path / "out"), "egg_info", "--egg-base", str(tmp_path)],
                          cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = {p.relative_to(DEMO_FOLDER).as_posix() for p in DEMO_FOLDER.rglob("*") if p.is_file()}
    folder = tmp_path / "out/stage_modules/seq2seq/demo"
    assert wanted and {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == wanted


# ------------------------------------------------------------------ the page


class Balanced(HTMLParser):
    "Notes elements and texts; fails where an end does not fit its beginning."
    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words, self.attributes = [], [], [], []
        self.feed(text); self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs
        if tag not in VOID: self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "bdi": self.words.append(data)


def made_up(read: list[str], written: list[str], text: str = "text") -> Translation:
    weights = torch.rand(len(written), len(read), generator=torch.Generator().manual_seed(0))
    return Translation(text, read, written, weights / weights.sum(1, keepdim=True))


ALLOWED = Balanced(attention_html(made_up(["a"], ["b"]))).elements


@given(st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=6), st.text(max_size=12), st.sampled_from(["<script>", "</script>", "\"><img src=x onerror=alert(1)>", "&lt;", "'", "]]>", "<!--"]))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_no_token_and_no_title_becomes_markup(tokens: list[str], title: str, nasty: str) -> None:
    view = attention_html(made_up([*tokens, nasty], [nasty, *tokens], nasty), title + nasty)
    found = Balanced(view)
    assert set(found.elements) == set(ALLOWED) and found.elements.count("script") == 1 == found.elements.count("style")
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("src", "href")]
    assert len(found.elements) - len(ALLOWED) == 4 * (2 * len(tokens)) # a button of four elements for each more word
    assert any(nasty in word for word in found.words)


def test_nothing_is_asked_of_a_network() -> None:
    page = attention_page([attention_html(made_up(["a", "b"], ["c"]))], "title")
    assert not re.search(r"https?:|//|url\(|@import|<link|src=", page)
    Balanced(page)


def test_the_weights_in_the_page_are_those_of_the_translation() -> None:
    translation = demo_translator().translate_with_attention([DEMO_SENTENCES[0]])[0]
    numbers = dict(Balanced(attention_html(translation)).attributes)["data-weights"]
    weights = torch.tensor([[float(n) for n in row.split(" ")] for row in numbers.split(";")])
    assert weights.shape == translation.weights.shape and torch.allclose(weights, translation.weights, atol=6e-4)


def test_two_views_on_one_page_share_no_name() -> None:
    view = attention_html(made_up(["a"], ["b"]))
    assert not [name for name, _ in Balanced(view).attributes if name in ("id", "for", "name")]


def test_the_explorer_says_what_went_wrong() -> None:
    explorer = explore_translations({"small": demo_translator()})
    shown = lambda: html.unescape(explorer.picture.outputs[0]["data"]["text/html"])
    explorer.controls["sentence"].value = "Louise is happy."
    assert "Louise est heureuse." in shown()
    explorer.controls["sentence"].value = " "
    assert shown() == "<pre>ValueError: there is nothing to draw: the sentence is empty</pre>"
    explorer.controls["sentence"].value = "<script>alert(1)</script> is happy."
    assert Balanced(explorer.picture.outputs[0]["data"]["text/html"]).elements.count("script") == 1
