"""What people, disks and strangers hand to the translator: every command answers in one line, and nothing that was there is harmed.

Broken on purpose to see each test fail: half characters let through, a zip's error not caught, sizes not compared, numbers of pieces not checked."""
import copy
import json
import random
import shutil
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stage_modules.seq2seq.data import UNK, BPETokenizer, Pairs, WordTokenizer, build_tokenizers, normalise, read_pairs, tokenizer_from_json
from stage_modules.seq2seq.evaluate import main as evaluate_main
from stage_modules.seq2seq.model import ModelConfig, build_model
from stage_modules.seq2seq.train import main as train_main
from stage_modules.seq2seq.translate import TOKENIZER_FILES, Translator
from stage_modules.seq2seq.visualize import main as visualize_main
from stage_modules.toolkit import checkpoints
from stage_modules.toolkit.checkpoints import load_checkpoint, save_checkpoint
from stage_modules.toolkit.errors import CheckpointError, DataError

TEXTS = [("This cat sleeps.", "Ce chat dort."), ("That dog eats.", "Ce chien mange."), ("This dog sees that cat.", "Ce chien voit ce chat.")]


def steady(examples: int) -> settings: return settings(derandomize=True, deadline=None, max_examples=examples)


def digest(folder: Path) -> dict[str, bytes]: return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def save_tiny(folder: Path, kind: str, attention: str = "bahdanau") -> Path:
    torch.manual_seed(0)
    tokenizers = build_tokenizers(TEXTS, kind, min_freq=1)
    config = ModelConfig(attention, 4, 4, 4, dropout=0., num_heads=2, source_vocab_size=len(tokenizers[0]), target_vocab_size=len(tokenizers[1]))
    save_checkpoint(folder, build_model(config), asdict(config), {file: t.to_json() for file, t in zip(TOKENIZER_FILES.values(), tokenizers)}, state={"step": 3})
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    return {kind: save_tiny(folder / kind, kind) for kind in ("word", "bpe")} | {"self": save_tiny(folder / "self", "word", "self")}


# ------------------------------------------------------------------ the reader


def read_both_ways(path: Path) -> None:
    "Pairs of sentences, or a DataError with the file in it; skipping loses only what it counts."
    try: strict = read_pairs(path)
    except DataError as error: strict = None; assert str(error).startswith(str(path)) and error.line != 0
    try: kept = read_pairs(path, skip_bad_lines=True)
    except DataError as error: kept = None; assert strict is None and str(error).startswith(str(path))
    for pairs in strict, kept:
        for side in (text for pair in pairs or () for text in pair):
            assert isinstance(side, str) and side and side == side.strip()
            side.encode("utf-8") # it can be written down again
    if strict is not None: assert kept == strict and not strict.skipped == kept.skipped != 0
    elif kept is not None: assert kept.skipped == len(kept.problems) > 0


def test_what_is_kept_and_what_is_skipped_is_all_there_was(tmp_path: Path) -> None:
    lines = ["Go.\tVa !", "no tab", "\tx", "Stop.\tStop !", "half\t", "a\tb"]
    for chosen in range(1, 2 ** len(lines)):
        rows = [line for n, line in enumerate(lines) if chosen >> n & 1]
        (tmp_path / "p.tsv").write_text("\n".join(rows), encoding="utf-8")
        try: pairs = read_pairs(tmp_path / "p.tsv", skip_bad_lines=True)
        except DataError: assert not {"Go.\tVa !", "Stop.\tStop !", "a\tb"} & set(rows)
        else: assert len(pairs) + pairs.skipped == len(rows)


fragments = st.lists(st.sampled_from(["\t", "|||", "\n", "\r\n", "\r", "[", "]", "{", "}", '"', ",", ":", '"\\ud800"', '["a","b"]', '{"source":"a","target":"b"}', "a", "é\u0301",
    "\ufeff", "\u2028", "\x85", "\x0b", "\u200b", "\U0001f642", "NaN", "1" * 5000, "null", " ", "\ufffd"]), max_size=14).map("".join)


@steady(120)
@given(fragments | st.text(max_size=40), st.sampled_from(["p.tsv", "p.json", "p.jsonl", "p.zip"]), st.sampled_from(["p.tsv", "p.json", "p.jsonl"]))
@example('["a","\\ud800"]\n["c","d"]', "p.jsonl", "p.tsv")
@example('[["a","\\udfff"],["c","d"]]', "p.json", "p.tsv")
@example('[["a","b"], ' + "1" * 5000 + "]", "p.json", "p.tsv")
@example('[["a","b"]]\n[["c","d"]]', "p.json", "p.tsv")
@example('["a","b"]\n["c","d"]', "p.zip", "p.jsonl")
def test_any_text_is_read_or_refused_with_its_file(tmp_path_factory: pytest.TempPathFactory, text: str, name: str, inside: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    if name != "p.zip": path.write_bytes(text.encode())
    else:
        with zipfile.ZipFile(path, "w") as archive: archive.writestr(inside, text.encode())
    read_both_ways(path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("zip") / "p.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made: made.writestr("p.tsv", "Go.\tVa !\nStop.\tStop !\n" * 4)
    return path.read_bytes()


@steady(150)
@given(st.integers(0, 10**6), st.integers(0, 255))
@example(6, 1) # says that it is encrypted
@example(8, 99) # packed in a way that nobody knows
@example(40, 255) # the packed bytes themselves
def test_a_damaged_archive_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, archive: bytes, place: int, value: int) -> None:
    path, place = tmp_path_factory.getbasetemp() / "damaged.zip", place % len(archive)
    path.write_bytes(archive[:place] + bytes([value]) + archive[place + 1:])
    read_both_ways(path)
    for n in (1, 7): # the same flag in both places that have it
        path.write_bytes(archive.replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00" + bytes([n])).replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00" + bytes([n])))
        with pytest.raises(DataError, match="not a zip archive that can be read"): read_pairs(path)


def test_an_archive_is_read_as_its_file_would_be(tmp_path: Path) -> None:
    for name, text in {"p.jsonl": '["Go.", "Va !"]\n["Stop.", "Stop !"]', "p.json": '[["Go.", "Va !"],["Stop.", "Stop !"]]', "p.tsv": "Go.\tVa !\nbad\nStop.\tStop !"}.items():
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as made: made.writestr(name, text)
        assert read_pairs(tmp_path / "p.zip", skip_bad_lines=True) == [("Go.", "Va !"), ("Stop.", "Stop !")]
    with pytest.raises(DataError, match=r"p\.zip/p\.tsv:2: no tab"): read_pairs(tmp_path / "p.zip")
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as made: made.writestr("p.tsv", b"Go.\tVa !\nVoil\xe0\tx\n")
    assert read_pairs(tmp_path / "p.zip", skip_bad_lines=True).skipped == 1


def test_nothing_behind_a_list_is_lost_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('[["a", "b"]]\n\n[["c", "d"]]', encoding="utf-8")
    with pytest.raises(DataError, match=r"p\.json:1: broken JSON: more behind the end"): read_pairs(tmp_path / "p.json")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_line_is_right_whatever_ends_it(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    for rows, expected in ([b"Go.\tVa !", b"Stop.\tStop !", b"Voil\xe0\tx"], "not UTF-8"), ([b"Go.\tVa !", b"Stop.\tStop !", b"no tab"], "no tab"), ([b"a\tb", b"c\td", b"e\0\tf"], "binary"):
        path.write_bytes(end.join(rows))
        with pytest.raises(DataError, match=expected) as caught: read_pairs(path)
        assert caught.value.line == 3


# ------------------------------------------------------------------ tokenizers

any_text = st.text(max_size=30) | st.text(st.characters(categories=["Lu", "Ll", "Mn", "Cs", "Cc", "So", "Zs"]), max_size=30)
BPE, WORDS = BPETokenizer.train([side for pair in TEXTS for side in pair], vocab_size=300), WordTokenizer.train([side for pair in TEXTS for side in pair])


@steady(150)
@given(any_text)
@example("caf\udce9") # a terminal in another encoding
@example("\ud800")
def test_any_text_at_all_has_numbers_and_its_vocabulary_comes_back(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == normalise(text)
    assert len(WORDS.encode(text)) == len(WORDS.tokens(text)) and set(WORDS.encode("\U0001f642 zebra")) == {UNK}
    own = WordTokenizer.train([text])
    again = tokenizer_from_json(json.loads(json.dumps(own.to_json())), len(own))
    assert again.decode(again.encode(text)) == normalise(text)
    normalise(text).encode("utf-8")


def places(value: Any, here: tuple = ()) -> list[tuple]:
    "Every place in a JSON value."
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(p for key, part in inner for p in places(part, (*here, key)))]


def put(value: Any, place: tuple, new: Any) -> Any:
    "A copy with something else in one place."
    if not place: return new
    value = copy.deepcopy(value)
    part = value
    for key in place[:-1]: part = part[key]
    part[place[-1]] = new
    return value


strange = st.sampled_from([None, True, False, 0, -1, 3, 2**40, 10**30, .5, float("nan"), float("inf"), "", "x", " ", "\ud800", "<pad>", "zzz", [], ["a"], [[]], {}, {"a": 1}])
WRITTEN = {"word": WORDS.to_json(), "bpe": BPE.to_json()}
PLACES = {kind: places(data) for kind, data in WRITTEN.items()}


@steady(250)
@given(st.sampled_from(["word", "bpe"]), st.integers(0, 10**6), strange)
@example("word", -1, "") # the last token: `join_tokens` would look at its first letter
@example("word", PLACES["word"].index(("kind",)), ["word"]) # not hashable
@example("bpe", PLACES["bpe"].index(("model", "model", "vocab", "a")), 2**40) # no row of the embedding
@example("bpe", PLACES["bpe"].index(("model", "padding")), {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 99999, "pad_type_id": 0, "pad_token": "x"})
@example("bpe", PLACES["bpe"].index(("model", "truncation")), {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}) # the library panics
def test_a_changed_tokenizer_works_or_is_refused(kind: str, number: int, new: Any) -> None:
    data = put(WRITTEN[kind], PLACES[kind][number % len(PLACES[kind])], new)
    try: tokenizer = tokenizer_from_json(data, side="source")
    except DataError as error: assert str(error).startswith("the source vocabulary"); return
    ids = tokenizer.encode("This cat sees a zebra \U0001f642 \u0301.")
    assert all(0 <= i < len(tokenizer) for i in ids) and isinstance(tokenizer.decode(range(len(tokenizer))), str)
    assert len(tokenizer.id_tokens(range(len(tokenizer)))) == len(tokenizer)


# ------------------------------------------------------------------ the checkpoint


def load_or_refuse(folder: Path) -> Translator | None:
    "A translator that translates, or an error that a person can read; the folder as it was."
    before = digest(folder)
    try:
        load_checkpoint(folder, with_state=True)
        translator = Translator.load(folder)
    except (CheckpointError, DataError) as error:
        translator = None
        assert str(error)
    else: assert len(translator.translate(["This cat \U0001f642 zebra.", ""], max_length=5)) == 2
    assert digest(folder) == before
    return translator


FILES = ["config.json", "model.safetensors", "source_tokenizer.json", "target_tokenizer.json", "state.json", "state.safetensors"]


@steady(250)
@given(st.sampled_from(["word", "bpe"]), st.sampled_from(FILES), st.sampled_from(["flip", "cut", "insert", "remove", "append"]), st.integers(0, 2**32), st.binary(min_size=1, max_size=4))
def test_damaged_bytes_load_or_are_refused(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, kind: str, file: str, damage: str, seed: int, new: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tiny[kind], folder)
    content = (folder / file).read_bytes()
    at = random.Random(seed).randrange(min(len(content), random.Random(seed + 1).choice([64, len(content)]))) # headers are short, and worth a second visit
    (folder / file).write_bytes({"flip": content[:at] + new[:1] + content[at + 1:], "cut": content[:at], "insert": content[:at] + new + content[at:],
                                 "remove": content[:at] + content[at + len(new):], "append": content + new}[damage])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore") # of torch, about odd sizes
        load_or_refuse(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_gone_or_of_another_kind(file: str, tiny: dict[str, Path], tmp_path: Path) -> None:
    for content in b"[" * 100_000, b"1" * 5000, b"NaN", b"\xef\xbb\xbf{}", b"\0" * 100, b"\xff\xfe{", b"", b"[1]", b'{"a": "\\ud800"}', b"not JSON":
        shutil.copytree(tiny["word"], tmp_path / "c", dirs_exist_ok=True)
        (tmp_path / "c" / file).write_bytes(content)
        assert load_or_refuse(tmp_path / "c") is None or file == "state.json"
    (tmp_path / "c" / file).unlink()
    assert load_or_refuse(tmp_path / "c") is None
    (tmp_path / "c" / file).mkdir()
    with pytest.raises(CheckpointError): load_checkpoint(tmp_path / "c", with_state=True)


CONFIG = asdict(ModelConfig())


@steady(150)
@given(st.sampled_from(["word", "self"]), st.sampled_from(sorted(CONFIG)), strange | st.sampled_from(["none", "luong", "coverage", "self", "conv", "transformer", "dot"]))
@example("word", "hidden_size", 10**9) # would fill the memory
@example("word", "num_layers", 10**9) # would never end
@example("word", "attention_dim", 10**9)
@example("word", "dropout", float("nan")) # not seen before the first sentence
@example("self", "num_heads", 0) # a division by zero
def test_a_changed_configuration_loads_or_is_refused(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, kind: str, name: str, new: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed translator"
    shutil.copytree(tiny[kind], folder, dirs_exist_ok=True)
    config = json.loads((tiny[kind] / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {name: new}), encoding="utf-8")
    load_or_refuse(folder)


@pytest.mark.parametrize("header", [b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}', b'{"x":' + b"[" * 100_000, b'{"x":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}',
    b'{"__metadata__":{"tied":"{\\"a\\": [1]}"},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b'{"x":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', b"[]", b"{}", b"\xff"])
def test_a_header_that_lies(header: bytes, tiny: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(tiny["word"], tmp_path / "c")
    (tmp_path / "c/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert load_or_refuse(tmp_path / "c") is None


def test_weights_that_are_no_numbers_are_named(tiny: dict[str, Path], tmp_path: Path) -> None:
    found = Translator.load(tiny["word"])
    with torch.no_grad(): found.model.decoder.output.bias[0] = torch.nan
    save_checkpoint(tmp_path / "c", found.model, load_checkpoint(tiny["word"]).config, load_checkpoint(tiny["word"]).files)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'decoder\.output\.bias' holds numbers that are not finite"): Translator.load(tmp_path / "c")


# ------------------------------------------------------------------ the commands


def said_once(code: int, capsys: pytest.CaptureFixture) -> str:
    "What a refused command says: exit code 2, one line."
    said = capsys.readouterr().err
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, (code, said)
    return said


@pytest.mark.parametrize("content, expected", [(b'["a \\ud800 b", "c"]\n', "the source is not UTF-8"), (b'[["a", "b"], ' + b"1" * 5000 + b"]", "broken JSON"), (b"\t\t\n\t\n", "the file is empty"),
    ("\u200b\tx\n".encode("utf-16"), "UTF-16"), (b"Go.\tVa\0\n", "zero byte"), (b"Go.\xff\tVa\n", "not UTF-8")])
def test_test_data_that_is_no_text_is_one_line(content: bytes, expected: str, tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for kind in "word", "bpe":
        (tmp_path / "t.json").write_bytes(content) if content[:2] == b"[[" else (tmp_path / "t.jsonl").write_bytes(content) if content[:1] == b"[" else (tmp_path / "t.tsv").write_bytes(content)
        name = next(p for p in tmp_path.iterdir())
        assert expected in said_once(evaluate_main(["--model_path", str(tiny[kind]), "--test_data", str(name), "--no-progress"]), capsys)


@pytest.mark.parametrize("content, expected", [(b"[1, 2]", "is none of ours"), (b"not JSON", "broken JSON"), (b"[" * 100_000, "broken JSON"), (b"", "is empty"), (b"\0\1", "zero byte"), (b'{"kind": ["word"]}', "is none of ours")])
def test_a_vocabulary_that_is_none_is_one_line(content: bytes, expected: str, tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for file in TOKENIZER_FILES.values(): (tmp_path / file).write_bytes(content)
    (tmp_path / "t.tsv").write_text("This cat.\tCe chat.", encoding="utf-8")
    flags = ["--test_data", str(tmp_path / "t.tsv"), "--no-progress", "--model_path", str(tiny["word"])]
    assert expected in said_once(evaluate_main([*flags, "--vocab_path", str(tmp_path)]), capsys)
    assert "does not fit the checkpoint" in said_once(evaluate_main([*flags, "--vocab_path", str(tiny["bpe"])]), capsys)


@pytest.mark.parametrize("flags, expected", [(["--sentences", "caf\udce9"], "is not UTF-8"), (["--sentences", "\t\t"], "no sentence"), (["--sentences", "a", "--device", "abacus"], "device is 'abacus'"),
    (["--sentences", "a", "--device", "cuda:99"], "device is 'cuda:99'")])
def test_looking_at_what_is_not_there_is_one_line(flags: list[str], expected: str, tiny: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert expected in said_once(visualize_main(["--mode", "analyze", "--model_path", str(tiny["bpe"]), "--output_dir", str(tmp_path / "out"), *flags]), capsys)
    assert not (tmp_path / "out").exists()


def test_one_word_of_any_length_is_a_sentence(tiny: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match="1 of 2 sentences were cut to 250 tokens"): out = Translator.load(tiny["bpe"]).translate(["\U0001f469\u200d\U0001f467" * 5000, "e\u0301"], max_length=3)
    assert len(out) == 2 and len(Translator.load(tiny["word"]).translate(["a" * 10**6], max_length=3)) == 1


TRAIN = ["--tokenizer", "word", "--attention_type", "bahdanau", "--embedding_dim", "8", "--hidden_size", "8", "--attention_dim", "8", "--num_epochs", "2", "--batch_size", "8", "--device", "cpu",
         "--no-progress", "--no-tensorboard"]


def everything(folder: Path) -> dict[str, bytes]: return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".log"}


def test_another_architecture_and_a_full_disk_leave_the_run_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "p.tsv").write_text("".join(f"This {a} {b}.\tCe {b} {a}.\n" for a in "abcdef" for b in ("cat", "dog", "bird")), encoding="utf-8")
    flags = [*TRAIN, "--data_path", str(tmp_path / "p.tsv"), "--output_dir", str(tmp_path / "run")]
    assert train_main(flags) == 0
    before = everything(tmp_path / "run")
    capsys.readouterr()
    for name, value in {"attention_type": "luong", "encoder_type": "conv", "hidden_size": "16", "tokenizer": "bpe"}.items():
        assert f"field '{name}' came with" in said_once(train_main([*flags, "--resume", f"--{name}", value]), capsys)
        assert everything(tmp_path / "run") == before
    assert "holds a run already" in said_once(train_main(flags), capsys)
    written = checkpoints._write_tensors
    def full(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        written(path, tensors)
        path.write_bytes(path.read_bytes()[:100]) # half of it is there when the disk says no
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(checkpoints, "_write_tensors", full)
    assert "No space left on device" in said_once(train_main([*flags, "--resume", "--num_epochs", "3"]), capsys)
    assert everything(tmp_path / "run") == before
    assert Translator.load(tmp_path / "run").translate(["This a cat."])


def test_an_evaluation_can_be_stopped(tiny: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "t.tsv").write_text("This cat.\tCe chat.", encoding="utf-8")
    def press(*_: Any, **__: Any) -> Pairs: raise KeyboardInterrupt
    monkeypatch.setattr("stage_modules.seq2seq.evaluate.read_pairs", press)
    assert evaluate_main(["--model_path", str(tiny["word"]), "--test_data", str(tmp_path / "t.tsv")]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flags, expected", [(["--seed", "-1"], "seed is -1"), (["--num_epochs", "0"], "num_epochs is 0"), (["--data_path", ""], "data_path is ''"),
    (["--min_freq", "100000"], "min_freq 100000"), (["--hidden_size", "1000000000"], "")])
def test_a_training_that_cannot_be_is_one_line(flags: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "pairs.tsv").write_text("".join(f"a {n}\tun {n}\n" for n in range(40)), encoding="utf-8")
    asked = ["--data_path", str(tmp_path / "pairs.tsv"), "--tokenizer", "word", "--output_dir", str(tmp_path / "run"), "--no-progress", "--no-tensorboard", *flags]
    assert train_main(asked) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and expected in said
    assert not (tmp_path / "run").exists()


def test_held_out_sentences_with_tabs_inside_stay_a_file_of_pairs(tmp_path: Path) -> None:
    pairs = [{"source": f"a\tb {n}", "target": f"un\n{n}"} for n in range(40)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    assert train_main(["--data_path", str(tmp_path / "pairs.json"), "--tokenizer", "word", "--output_dir", str(tmp_path / "run"), "--no-progress", "--no-tensorboard",
                       "--hidden_size", "8", "--embedding_dim", "8", "--max_steps", "1", "--test_sentences", "5"]) == 0
    assert len(read_pairs(tmp_path / "run/test.tsv")) == 5
