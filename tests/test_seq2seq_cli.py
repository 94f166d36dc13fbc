"The commands as a user runs them: processes, signals, broken files."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from stage_modules.seq2seq.evaluate import main as evaluate_main
from stage_modules.seq2seq.train import main as train_main
from stage_modules.seq2seq.translate import Translator
from stage_modules.toolkit.checkpoints import load_checkpoint

NOUNS = {"cat": "chat", "dog": "chien", "bird": "oiseau", "friend": "ami", "boy": "garçon", "book": "livre"}
ADJECTIVES = {"small": "petit", "big": "grand", "tired": "fatigué", "black": "noir", "red": "rouge", "old": "vieux"}
VERBS = {"sees": "voit", "knows": "connaît", "likes": "aime", "finds": "trouve"}
SMALL = ["--tokenizer", "word", "--embedding_dim", "24", "--hidden-size", "24", "--attention_dim", "16", "--batch_size", "32", "--dropout", "0",
         "--device", "cpu", "--no-progress", "--no-tensorboard"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def sentences() -> list[tuple[str, str]]:
    return [(f"This {a} {n} {v} that {m}.", f"Ce {n2} {a2} {v2} ce {m2}.") for a, a2 in ADJECTIVES.items() for n, n2 in NOUNS.items()
            for v, v2 in VERBS.items() for m, m2 in NOUNS.items() if m != n]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    rows = [f"{s}\t{t}" for s, t in sentences()]
    (folder / "train.tsv").write_text("\n".join(rows[::2]), encoding="utf-8")
    (folder / "test.tsv").write_text("\n".join(rows[1:200:2]), encoding="utf-8")
    return {"train": folder / "train.tsv", "test": folder / "test.tsv", "folder": folder}


def command(module: str, *flags: object) -> list[str]:
    return [sys.executable, "-m", f"stage_modules.seq2seq.{module}", *map(str, flags)]


def weights(folder: Path) -> dict[str, torch.Tensor]: return load_checkpoint(folder / "last").tensors


def steps_of(folder: Path) -> int: return json.loads((folder / "last/state.json").read_text())["progress"]["step"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool: return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole(files: dict[str, Path]) -> Path:
    "A run that nobody disturbed, through the real command, with both spellings of flags."
    out = files["folder"] / "whole"
    done = subprocess.run(command("train", "--data_path", files["train"], "--output-dir", out, "--num_epochs", 16, "--save-every", 20, "--learning-rate", .01, *SMALL),
                          env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "best checkpoint in" in done.stdout
    return out


def test_train_then_evaluate_then_translate(files: dict[str, Path], whole: Path) -> None:
    out = files["folder"] / "evaluation"
    done = subprocess.run(command("evaluate", "--model_path", whole, "--test-data", files["test"], "--beam_size", 3, "--save-translations", "--output_dir", out),
                          env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    bleu, chrf = (float(line.split()[1]) for line in done.stdout.splitlines()[:2])
    assert min(bleu, chrf) > 90, done.stdout
    assert "nrefs:1|case:mixed" in done.stdout and "nc:6" in done.stdout and "sentences/s" in done.stdout
    kept = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert abs(kept["bleu"]["value"] - bleu) < .01 and abs(kept["chrf"]["value"] - chrf) < .01 and kept["settings"]["beam_size"] == 3
    assert kept["sentences_per_second"] > 0 and "version:" in kept["bleu"]["signature"] and "version:" in kept["chrf"]["signature"]
    rows = [line.split("\t") for line in (out / "translations.tsv").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 100 and all(len(row) == 3 for row in rows)
    assert Translator.load(whole).translate([rows[7][0], "", rows[3][0]]) == [rows[7][1], "", rows[3][1]]


def test_config_records_every_decision(whole: Path) -> None:
    config = load_checkpoint(whole / "best").config
    assert config["num_epochs"] == 16 and config["attention_type"] == "bahdanau" and config["source_vocab_size"] > 10
    assert isinstance(config["warmup_steps"], int)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_stopped_run_resumes_to_the_same_weights(files: dict[str, Path], whole: Path, kind: signal.Signals) -> None:
    out = files["folder"] / kind.name
    flags = ["--data_path", files["train"], "--output_dir", out, "--num_epochs", 16, "--save_every", 20, "--learning_rate", .01, *SMALL]
    process = subprocess.Popen(command("train", *flags), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "last").is_dir() and process.poll() is None and time.monotonic() < deadline: time.sleep(.02)
    process.send_signal(kind)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}[kind], said
    assert "Traceback" not in said
    assert 0 < steps_of(out) < steps_of(whole)
    assert train_main([*map(str, flags), "--resume"]) == 0
    assert steps_of(out) == steps_of(whole) and same(weights(out), weights(whole))


def test_a_run_of_so_many_minutes_keeps_its_plan_when_it_resumes(files: dict[str, Path], tmp_path: Path) -> None:
    flags = ["--data_path", str(files["train"]), "--output_dir", str(tmp_path / "run"), "--max_minutes", "0.02", "--save_every", "1", *SMALL]
    assert train_main(flags) == 0
    planned = load_checkpoint(tmp_path / "run/last").config
    assert 1 < planned["max_steps"] < 60 * 16 # planned by the clock, short of what the epochs would be
    assert train_main([*flags, "--resume", "--max_minutes", "0.04"]) == 0
    resumed = load_checkpoint(tmp_path / "run/last").config
    assert (resumed["max_steps"], resumed["warmup_steps"]) == (planned["max_steps"], planned["warmup_steps"])


BAD = {"one column": (b"Go.\nStop.\n", "one column"), "a line without a tab": (b"Go.\tVa !\nStop.\n", "bad.tsv:2: "), "empty": (b"", "empty"),
       "binary": (bytes(range(256)) * 4, "binary"), "not UTF-8": ("Go.\tÇa va\n".encode("latin-1"), "bad.tsv:1: "), "one pair": (b"Go.\tVa !\n", "distinct source")}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_one_line_and_exit_code_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture, whole: Path) -> None:
    content, expected = BAD[name]
    (tmp_path / "bad.tsv").write_bytes(content)
    assert train_main(["--data_path", str(tmp_path / "bad.tsv"), "--output_dir", str(tmp_path / "run"), *SMALL]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and expected in said, said
    assert not (tmp_path / "run").exists()
    if name != "one pair":
        assert evaluate_main(["--model_path", str(whole), "--test_data", str(tmp_path / "bad.tsv")]) == 2
        assert expected in capsys.readouterr().err


def test_bad_lines_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [f"{s}\t{t}" for s, t in sentences()[:60]]
    (tmp_path / "some.tsv").write_text("\n".join([*rows[:30], "no tab", "", "\tnothing before", *rows[30:]]), encoding="utf-8")
    assert train_main(["--data_path", str(tmp_path / "some.tsv"), "--output_dir", str(tmp_path / "run"), "--num_epochs", "1", "--skip-bad-lines", *SMALL]) == 0
    assert "skipped 2 malformed lines" in capsys.readouterr().err


@pytest.mark.parametrize("flags, expected", [(["--attention_type", "bahdanu"], "known: none, bahdanau"), (["--hidden_size", "7"], "hidden_size"),
    (["--dropout", "1.5"], "dropout"), (["--learning_rate", "0"], "learning_rate"), (["--data_path", "nowhere.tsv"], "no such file")])
def test_a_wrong_setting_is_one_line(flags: list[str], expected: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train_main(["--data_path", str(files["train"]), "--output_dir", str(tmp_path / "run"), *flags]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1
    with pytest.raises(SystemExit) as left: train_main(["--no_such_flag", "1"])
    assert left.value.code == 2


def test_a_run_is_not_overwritten_and_another_one_not_resumed(files: dict[str, Path], whole: Path, capsys: pytest.CaptureFixture) -> None:
    before, base = weights(whole), ["--data_path", str(files["train"]), "--output_dir", str(whole), "--num_epochs", "16", "--save_every", "20", "--learning_rate", "0.01", *SMALL]
    assert train_main(base) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert train_main([*base, "--resume", "--num_layers", "2"]) == 2
    assert "field 'num_layers' came with 1, expected 2" in capsys.readouterr().err
    assert same(before, weights(whole))


@pytest.mark.parametrize("name, damage, expected", [
    ("model.safetensors", lambda b: b[:len(b) // 2], "model.safetensors"), ("config.json", lambda b: b"{", "config.json"),
    ("config.json", lambda b: b.replace(b'"hidden_size": 24', b'"hidden_size": 32'), "model.safetensors"),
    ("config.json", lambda b: b.replace(b'"hidden_size": 24', b'"hidden_size": "24"'), "'hidden_size' came with '24'"),
    ("config.json", lambda b: b.replace(b'"attention_type": "bahdanau"', b'"attention_type": "none"'), "came"),
    ("source_tokenizer.json", lambda b: b.replace(b'"This"', b'"These", "This"'), "source vocabulary has"),
    ("target_tokenizer.json", None, "target_tokenizer.json is missing")])
def test_a_damaged_checkpoint_is_named(name: str, damage, expected: str, whole: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for path in (whole / "best").iterdir(): (tmp_path / path.name).write_bytes(path.read_bytes())
    if damage: (tmp_path / name).write_bytes(damage((whole / "best" / name).read_bytes()))
    else: (tmp_path / name).unlink()
    if damage: assert (tmp_path / name).read_bytes() != (whole / "best" / name).read_bytes(), "the damage did not happen"
    assert evaluate_main(["--model_path", str(tmp_path), "--test_data", str(files["test"])]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1, said


def test_awkward_sentences(whole: Path) -> None:
    translator = Translator.load(whole)
    strange = ["", "   ", "🙂 e\u0301 \u200f", "zebra " * 5, "\t", "A" * 3000]
    out = translator.translate(strange)
    assert len(out) == len(strange) and out[0] == out[1] == out[4] == ""
    with pytest.warns(UserWarning, match="1 of 1 sentences were cut to 250"): long = translator.translate(["cat " * 5000], max_length=5)
    assert len(long) == 1
    with pytest.raises(TypeError, match="one string"): translator.translate("This cat.")
