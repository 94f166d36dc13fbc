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
import tyro

from stage_modules.seq2seq.evaluate import EvaluateConfig
from stage_modules.seq2seq.evaluate import main as evaluate_main
from stage_modules.seq2seq.train import TrainConfig, prepare, train
from stage_modules.seq2seq.train import main as train_main
from stage_modules.seq2seq.translate import Translator
from stage_modules.toolkit.checkpoints import load_checkpoint
from stage_modules.toolkit.training import Callback

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
    assert config["num_epochs"] == 16 and config["attention_type"] == "luong" and config["source_vocab_size"] > 10
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


BAD = {"one column": (b"Go.\nStop.\n", "one column"), "a line without a tab": (b"Go.\tVa !\nStop.\n", "bad.tsv:2: "), "empty": (b"", "empty"), "empty lines": (b"\n \n\r\n", "the file is empty"),
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
    ("config.json", lambda b: b.replace(b'"attention_type": "luong"', b'"attention_type": "none"'), "came"),
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


# ------------------------------------------------------------------ flags


TRAIN_FLAGS = {"data_path": "a.tsv", "output_dir": "out", "tokenizer": "word", "vocab_size": 900, "min_freq": 3, "max_length": 40, "attention_type": "coverage",
    "attention_method": "concat", "attention_dim": 32, "attention_regularization": .1, "encoder_type": "conv", "embedding_dim": 48, "hidden_size": 64,
    "num_layers": 2, "dropout": .25, "batch_size": 16, "num_epochs": 3, "max_minutes": 1.5, "learning_rate": .002, "teacher_forcing_ratio": .8,
    "label_smoothing": .05, "gradient_clip_norm": .5, "gradient_accumulation_steps": 4, "mixed_precision": "bf16", "save_every": 7, "seed": 3, "resume": True,
    "teacher_forcing_schedule": "linear", "coverage_weight": .5, "tied_embeddings": True, "schedule": "cosine", "warmup_steps": 9, "input_feeding": True,
    "local_window": 4, "num_heads": 2}
EVALUATE_FLAGS = {"model_path": "run", "test_data": "b.tsv", "vocab_path": "other", "beam_size": 3, "save_translations": True, "output_dir": "out", "compare_with": "c"}


@pytest.mark.parametrize("config, flags, needed", [(TrainConfig, TRAIN_FLAGS, {}), (EvaluateConfig, EVALUATE_FLAGS, {"model_path": "run", "test_data": "b.tsv"})])
def test_every_flag_exists_in_both_spellings(config: type, flags: dict[str, object], needed: dict[str, str]) -> None:
    for name, value in flags.items():
        for spelt in {name, name.replace("_", "-")}:
            args = [word for flag, text in (needed | {name: value}).items() for word in ([f"--{spelt if flag == name else flag}"] + ([] if text is True else [str(text)]))]
            got = getattr(tyro.cli(config, args=args), name)
            assert got == value and type(got) is type(value), (spelt, got)
            assert name in needed or got != config.__dataclass_fields__[name].default, f"{name}: its default proves nothing"


def test_without_arguments_it_trains_on_the_built_in_sentences(tmp_path: Path) -> None:
    "Stopped by Ctrl-C as soon as it is under way: the whole run takes minutes."
    place = tmp_path / "here"
    place.mkdir()
    with open(tmp_path / "screen", "w+", encoding="utf-8") as screen:
        watched = {k: v for k, v in ENVIRONMENT.items() if k != "STAGE_STATIC"} # which switches the progress bar off
        process = subprocess.Popen(command("train"), env=watched, cwd=place, stdout=subprocess.PIPE, stderr=screen)
        deadline = time.monotonic() + 120
        while "items/s" not in (tmp_path / "screen").read_text() and process.poll() is None and time.monotonic() < deadline: time.sleep(.05)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    assert process.returncode == 130, (tmp_path / "screen").read_text()
    config = load_checkpoint(place / "runs/translator/last").config
    assert config["data_path"] is None and config["num_epochs"] > 1 and config["target_vocab_size"] > 500
    assert [p.name for p in place.iterdir()] == ["runs"]


# ------------------------------------------------------------------ what training leaves


SCHEDULED = ["--num_epochs", "2", "--dropout", "0.1", "--teacher_forcing_ratio", "0.3", "--teacher_forcing_schedule", "inverse_sigmoid",
             "--attention_regularization", "0.05", "--label_smoothing", "0.1"]


def test_the_same_seed_gives_the_same_weights_in_another_process(files: dict[str, Path], tmp_path: Path) -> None:
    "With everything on that throws dice: dropout, batches, first weights, forcing."
    flags = [*SMALL, *SCHEDULED, "--data_path", str(files["train"])]
    done = subprocess.run(command("train", *flags, "--output_dir", tmp_path / "a", "--seed", 5), env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    torch.rand(7) # what was drawn before must not matter
    for name, seed in ("b", "5"), ("c", "6"): assert train_main([*flags, "--output_dir", str(tmp_path / name), "--seed", seed]) == 0
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "b"), weights(tmp_path / "c"))


def test_a_scheduled_run_resumes_with_the_ratio_it_had(files: dict[str, Path], tmp_path: Path) -> None:
    config = tyro.cli(TrainConfig, args=[*SMALL, *SCHEDULED, "--data_path", str(files["train"]), "--output_dir", str(tmp_path / "whole")])
    train(config)
    broken = tyro.cli(TrainConfig, args=[*SMALL, *SCHEDULED, "--data_path", str(files["train"]), "--output_dir", str(tmp_path / "broken")])
    seen = {"on_start": [], "on_step": []}

    class Watch(Callback):
        "Notes how far the loss believes the run to be, and presses Ctrl-C once."
        def on_start(self, trainer): seen["on_start"].append(trainer.engine.loss_fn.progress)

        def on_step(self, trainer):
            seen["on_step"].append(trainer.engine.loss_fn.progress)
            if len(seen["on_step"]) == trainer.total_steps * 2 // 3: trainer.stop("interrupted")

    for broken.resume in False, True:
        trainer, _ = prepare(broken)
        trainer.callbacks.append(Watch())
        trainer.fit()
        if not broken.resume: stopped_at = seen["on_step"][-1]
    assert seen["on_start"] == [0, stopped_at] and 0 < stopped_at < 1 == seen["on_step"][-1]
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_the_log_has_a_line_for_every_row(whole: Path) -> None:
    log = (whole / "train.log").read_text(encoding="utf-8")
    history = json.loads((whole / "last/state.json").read_text())["progress"]["history"]
    rows = [line for line in log.splitlines() if " step " in line and " loss " in line]
    assert len(rows) == len(history)
    assert all("learning_rate" in row and "items/s" in row for row in rows) and sum("valid_loss" in row for row in rows) == 16


@pytest.mark.parametrize("flags", [["--attention_type", "coverage", "--encoder_type", "conv"], ["--attention_type", "self", "--encoder-type", "transformer", "--num_heads", "2"],
    ["--attention_type", "luong", "--attention_method", "dot", "--tied_embeddings"], ["--attention_type", "none"]])
def test_other_models_train_and_evaluate_from_the_command_line(flags: list[str], files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train_main([*SMALL, *flags, "--data_path", str(files["train"]), "--output_dir", str(tmp_path), "--max_steps", "4"]) == 0
    assert evaluate_main(["--model_path", str(tmp_path), "--test_data", str(files["test"]), "--beam_size", "2", "--bootstrap_samples", "10", "--no-progress"]) == 0
    assert capsys.readouterr().out.count("nrefs:1") == 2


# ------------------------------------------------------------------ evaluation


def evaluation(whole: Path, files: dict[str, Path], *flags: object) -> int:
    return evaluate_main(["--model_path", str(whole), "--test_data", str(files["test"]), "--bootstrap_samples", "20", "--no-progress", *map(str, flags)])


def test_tokenizers_of_another_place_have_to_fit(whole: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert evaluation(whole, files, "--vocab_path", whole) == 0
    assert evaluation(whole, files, "--vocab-path", whole / "best/source_tokenizer.json") == 0
    good = capsys.readouterr().out.splitlines()
    assert good[0] == good[len(good) // 2] # the same BLEU
    for name in "source_tokenizer.json", "target_tokenizer.json": (tmp_path / name).write_bytes((whole / "best" / name).read_bytes())
    swapped = (tmp_path / "target_tokenizer.json").read_text(encoding="utf-8").replace('"chat"', '"X"').replace('"chien"', '"chat"').replace('"X"', '"chien"')
    (tmp_path / "target_tokenizer.json").write_text(swapped, encoding="utf-8")
    assert evaluation(whole, files, "--vocab_path", tmp_path) == 2
    said = capsys.readouterr().err
    assert "the target vocabulary does not fit the checkpoint: token" in said and "target_tokenizer.json" in said and said.count("\n") == 1
    (tmp_path / "source_tokenizer.json").unlink()
    assert evaluation(whole, files, "--vocab_path", tmp_path) == 2
    assert "source_tokenizer.json" in capsys.readouterr().err


def test_two_checkpoints_are_compared(whole: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weak = tmp_path / "weak"
    assert train_main([*SMALL, "--data_path", str(files["train"]), "--output_dir", str(weak), "--max_steps", "10"]) == 0
    assert evaluation(whole, files, "--compare_with", weak, "--output_dir", tmp_path / "out", "--attention_metrics", "--bootstrap_samples", "200") == 0
    kept = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    found, interval = kept["comparison"], kept["bleu_interval"]
    assert found["second"] == pytest.approx(kept["bleu"]["value"]) and found["low"] > 0 and found["p_value"] < .05
    assert interval["low"] <= kept["bleu"]["value"] <= interval["high"]
    assert sum(group["sentences"] for group in kept["bleu_by_length"]) == kept["bleu"]["sentences"]
    assert 0 < kept["attention"]["spread"] < 1
    assert (tmp_path / "out/bleu_by_length.png").read_bytes()[:4] == b"\x89PNG" and not (tmp_path / "out/translations.tsv").exists()
    assert "p = 0.0" in capsys.readouterr().out
    assert evaluation(whole, files, "--compare_with", tmp_path / "nowhere") == 2


AWKWARD = "This small cat sees that dog.\tCe petit chat voit ce chien.\r\n\r\n" + "cat " * 5000 + "\tchat\n\U0001f642 e\u0301 \u200f!\t\U0001f642 !\n  \nzebra zebra\tzèbre\r\n"


def test_awkward_lines_are_translated_and_what_is_cut_is_counted(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "awkward.tsv").write_bytes(AWKWARD.encode())
    assert evaluation(whole, {"test": tmp_path / "awkward.tsv"}, "--save-translations", "--output_dir", tmp_path / "out") == 0
    said = capsys.readouterr().err
    assert said == "warning: 1 of 4 sentences were cut to 250 tokens\n"
    rows = [line.split("\t") for line in (tmp_path / "out/translations.tsv").read_text(encoding="utf-8").splitlines()]
    assert [row[2] for row in rows] == ["Ce petit chat voit ce chien.", "chat", "\U0001f642 !", "zèbre"]
    assert [row[1] for row in rows[::2]] == Translator.load(whole).translate([row[0] for row in rows[::2]])


def test_a_long_line_in_training_is_cut_and_counted(files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "train.tsv").write_text(files["train"].read_text(encoding="utf-8") + "\n" + "cat " * 5000 + "\tchat", encoding="utf-8")
    assert train_main([*SMALL, "--data_path", str(tmp_path / "train.tsv"), "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1 and said[0].startswith("warning: 1 of ") and said[0].endswith("were cut to 100 tokens")


@pytest.mark.parametrize("flags, expected", [(["--beam_size", "0"], "beam_size is 0"), (["--batch_size", "0"], "batch_size is 0"),
    (["--beam_size", "3", "--length_penalty", "-1"], "length_penalty is -1"), (["--output_dir", "{file}"], "is a file; results need a folder")])
def test_a_wrong_evaluation_setting_is_one_line(flags: list[str], expected: str, whole: Path, files: dict[str, Path], capsys: pytest.CaptureFixture) -> None:
    assert evaluation(whole, files, *(flag.format(file=files["test"]) for flag in flags)) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1, said


@pytest.mark.parametrize("flags, expected", [(["--attention_regularization", "-1"], "attention_regularization"), (["--teacher_forcing_ratio", "2"], "teacher_forcing_ratio"),
    (["--attention_type", "none", "--attention_regularization", "0.1"], "gives no weights"), (["--encoder_type", "gru"], "known: lstm"),
    (["--attention_type", "self", "--num_heads", "5"], "num_heads")])
def test_a_setting_that_no_model_has_is_one_line(flags: list[str], expected: str, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train_main(["--data_path", str(files["train"]), "--output_dir", str(tmp_path / "run"), *SMALL, *flags]) == 2
    said = capsys.readouterr().err
    assert expected in said and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()
