"""The translator's speed on real sentences: training beside the tutorials' way and beside JoeyNMT, decoding, memory, and how near the machine's own limit it runs.

    python benchmarks/seq2seq.py                                  without JoeyNMT
    python benchmarks/seq2seq.py --joeynmt .work/joey/bin/python  with it, in an environment of its own (how to make one: benchmarks/README.md)

Tatoeba English-French pairs of every length, word vocabularies of about 6,000, batches of 128: the same sentences, sizes and optimizer for all
contestants, in turns within one run. Writes results/seq2seq.json."""
import argparse
import copy
import json
import os
import random
import re
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import save, table
from seq2seq_speed import TutorialLuong, TutorialModel, check_same, speed_of
from torch import nn
from torch.nn import functional as F

from stage_modules.seq2seq.data import BucketedBatches, build_tokenizers, encode_pairs, load_tatoeba, make_batch, split_pairs
from stage_modules.seq2seq.model import ModelConfig, build_model
from stage_modules.seq2seq.search import beam_search

NEEDS_DATA = "tatoeba/fra-eng.zip"
BATCH, WORDS = 128, 6000


def ways(hidden: int, sizes: dict) -> dict[str, ModelConfig]:
    "The models that are raced, by name."
    base = ModelConfig(embedding_dim=hidden, hidden_size=hidden, attention_dim=hidden, attention_method="general", **sizes)
    return {"bahdanau": replace(base, attention_type="bahdanau"), "luong": replace(base, attention_type="luong"),
            "luong, input feeding": replace(base, attention_type="luong", input_feeding=True)}


def matmul_rate(hidden: int) -> float:
    "Multiply-adds per second of one large product in the shape of the output layer, the most this machine gives."
    a, b = torch.randn(BATCH * 10, hidden), torch.randn(WORDS, hidden)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        for _ in range(5): F.linear(a, b)
        times.append((time.perf_counter() - start) / 5)
    return a.shape[0] * hidden * WORDS / statistics.median(times)


def multiply_adds(model: nn.Module, batch) -> int:
    "Multiply-adds of one training step as torch counts them (two operations each), forward and backward."
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        loss, count = model.loss(batch)
        (loss / count).backward()
    model.zero_grad()
    lstms = sum(p.numel() for m in model.modules() if isinstance(m, nn.LSTM) for n, p in m.named_parameters() if "weight" in n and type(m) is nn.LSTM)
    return counter.get_total_flops() // 2 + 3 * lstms * int(batch.source_mask.numel()) # the counter does not see inside torch's LSTM


def contestants(name: str, config: ModelConfig, encoded, steps: int) -> dict[str, tuple]:
    "Model, batches, optimizer and precision of each; all begin with the same weights."
    ours, tutorial = build_model(config), (TutorialModel if name == "bahdanau" else TutorialLuong)(config)
    ordered, mixed = (list(BucketedBatches(encoded, BATCH, seed=0, buckets=buckets))[:steps] for buckets in (True, False))
    check_same(ours, tutorial, mixed[0])
    alone = list(BucketedBatches(encoded, 1, seed=0, buckets=False))[:6 * steps]
    field = {"ours": (ours, ordered, False), "ours, bf16": (copy.deepcopy(ours), ordered, True), "tutorial": (tutorial, mixed, False),
             "tutorial, a pair at a time": (copy.deepcopy(tutorial), alone, False)}
    return {who: (model, batches, torch.optim.AdamW(model.parameters(), 1e-3, fused=True), bf16) for who, (model, batches, bf16) in field.items()}


def race(hidden: int, encoded, sizes: dict, steps: int, rounds: int) -> list[dict]:
    "Target tokens per second in training, ours and the tutorial's in turns; one row for each attention."
    rows = []
    for name, config in ways(hidden, sizes).items():
        torch.manual_seed(0)
        runs = contestants(name, config, encoded, steps)
        for model, batches, *rest in runs.values(): speed_of(model, batches[:1], *rest)
        speeds = {who: [] for who in runs}
        for _ in range(rounds):
            for who, run in runs.items(): speeds[who].append(speed_of(*run))
        middle = {who: statistics.median(values) for who, values in speeds.items()}
        over = {f"ours over {who}": round(statistics.median(a / b for a, b in zip(speeds["ours"], speeds[who])), 2) for who in ("tutorial", "tutorial, a pair at a time")}
        model, batches, *_ = runs["ours"]
        work = statistics.mean(multiply_adds(model, b) / int(b.target_mask.sum()) for b in batches[:4])
        rows.append({"attention": name, "hidden": hidden, **{who: round(speed) for who, speed in middle.items()}, **over,
                     "share of matmul rate": round(middle["ours"] * work / matmul_rate(hidden), 3), "rounds": {who: [round(v) for v in values] for who, values in speeds.items()}})
    return rows


JOEY = {"bahdanau": ("bahdanau", False), "luong": ("luong", False), "luong, input feeding": ("luong", True)}


def joeynmt(python: str, pairs, hidden: int, attention: str, steps: int) -> dict:
    "JoeyNMT's own training command and its own figure of tokens per second, over as many batches."
    kind, feeding = JOEY[attention]
    with tempfile.TemporaryDirectory() as folder:
        for name, part in ("train", pairs), ("dev", pairs[:50]):
            for side, lang in enumerate(("en", "fr")): Path(folder, f"{name}.{lang}").write_text("".join(" ".join(p[side]) + "\n" for p in part), encoding="utf-8")
        side = lambda lang: {"lang": lang, "level": "word", "lowercase": False, "max_length": 100, "voc_limit": WORDS, "voc_min_freq": 1}
        embed = {"embedding_dim": hidden, "scale": False, "dropout": 0.2}
        config = {"name": "speed", "joeynmt_version": "2.3.0", "model_dir": f"{folder}/model", "use_cuda": False, "fp16": False, "random_seed": 0,
                  "data": {"train": f"{folder}/train", "dev": f"{folder}/dev", "dataset_type": "plain", "src": side("en"), "trg": side("fr")},
                  "testing": {"n_best": 1, "beam_size": 1, "batch_size": 50, "batch_type": "sentence", "max_output_length": 5, "eval_metrics": []},
                  "training": {"optimizer": "adamw", "learning_rate": 0.001, "scheduling": "exponential", "decrease_factor": 0.99, "normalization": "tokens", "loss": "crossentropy",
                               "batch_size": BATCH, "batch_type": "sentence", "batch_multiplier": 1, "epochs": 1, "updates": steps, "logging_freq": max(1, steps // 3),
                               "validation_freq": 10**6 * max(1, steps // 3), "clip_grad_norm": 1.0, "shuffle": True, "overwrite": True, "print_valid_sents": [0], "early_stopping_metric": "loss"},
                  "model": {"initializer": "xavier_uniform", "embed_initializer": "normal", "embed_init_weight": 0.1, "tied_embeddings": False, "tied_softmax": False,
                            "encoder": {"type": "recurrent", "rnn_type": "lstm", "embeddings": embed, "hidden_size": hidden // 2, "bidirectional": True, "dropout": 0.2, "num_layers": 1},
                            "decoder": {"type": "recurrent", "rnn_type": "lstm", "embeddings": embed, "hidden_size": hidden, "dropout": 0.2, "hidden_dropout": 0.2, "num_layers": 1,
                                        "input_feeding": feeding, "init_hidden": "bridge", "attention": kind}}}
        Path(folder, "config.yaml").write_text(json.dumps(config), encoding="utf-8")
        ran = subprocess.run([python, "-m", "joeynmt", "train", f"{folder}/config.yaml"], capture_output=True, text=True, cwd=folder, check=False,
                             env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
        told = [float(x) for x in re.findall(r"Tokens per Sec:\s+(\d+)", ran.stdout + ran.stderr)]
        if len(told) < 2: raise RuntimeError(f"JoeyNMT told no speed:\n{(ran.stdout + ran.stderr)[-2000:]}")
        return {"tokens per second": statistics.median(told[1:]), "told": told} # the first holds the start


def peak_mib(config: ModelConfig, batch) -> float:
    "What a training step adds to the process's memory at its peak, measured by torch's profiler."
    from torch.profiler import ProfilerActivity, profile

    torch.manual_seed(0)
    model = build_model(config)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss, count = model.loss(batch)
        (loss / count).backward()
    held = most = 0
    for event in sorted((e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 2**20


def memory(hidden: int, sizes: dict, data) -> list[dict]:
    "Peak memory of a training step against the tokens in it."
    rows = []
    for name, config in ways(hidden, sizes).items():
        for count in 32, 64, 128, 256:
            batch = make_batch([data[i % len(data)] for i in range(count)])
            rows.append({"attention": name, "sentences": count, "target tokens": int(batch.target_mask.sum()), "MiB": round(peak_mib(config, batch), 1)})
    return rows


def decoding(hidden: int, sizes: dict, rows, seconds: float) -> list[dict]:
    "Sentences of about twelve words per second. Untrained weights write no <eos>, so each writes as many words as it read: the work of a real translation."
    found = []
    for name, config in ways(hidden, sizes).items():
        torch.manual_seed(0)
        model = build_model(config).eval()
        with torch.no_grad(): model.decoder.output.bias[model.eos_id] = -1e4
        for way, size, beam in ("greedy", 64, 1), ("greedy, one at a time", 1, 1), ("beam 5", 64, 5):
            done, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                batch = make_batch([(row, []) for row in rows[done % 512:done % 512 + size]])
                length = batch.source.shape[1]
                if beam == 1: model.greedy(batch.source, batch.source_mask, length)
                else: beam_search(model, batch.source, batch.source_mask, beam_size=beam, max_length=length)
                done += len(batch.source)
            found.append({"attention": name, "hidden": hidden, "way": way, "sentences/s": round(done / (time.perf_counter() - start), 1)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--joeynmt", metavar="PYTHON", help="python of an environment that has joeynmt 2.3.0")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--steps", type=int, default=12, help="batches in a round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    train = split_pairs(load_tatoeba(max_words=50), valid=1000, test=2000, seed=0).train
    tokenizers = build_tokenizers(train, "word", vocab_size=WORDS)
    encoded = encode_pairs(train[::len(train) // 20_000], *tokenizers, 100)
    chosen = train[::len(train) // 20_000]
    sizes = {"source_vocab_size": len(tokenizers[0]), "target_vocab_size": len(tokenizers[1])}
    twelve = [tokenizers[0].encode(s) for s, _ in train if 11 <= len(s.split()) <= 13][:600]
    speed = [row for hidden in args.hidden for row in race(hidden, encoded, sizes, args.steps, args.rounds)]
    print(table([{k: v for k, v in row.items() if k != "rounds"} for row in speed]), flush=True)
    if args.joeynmt:
        words = [tuple(t.tokens(text) for t, text in zip(tokenizers, pair)) for pair in chosen]
        for row in speed:
            told = joeynmt(args.joeynmt, words, row["hidden"], row["attention"], 3 * args.steps)
            row |= {"JoeyNMT": round(told["tokens per second"]), "ours over JoeyNMT": round(row["ours"] / told["tokens per second"], 2)}
    mixed = random.Random(0).sample(list(chosen), 256) # the file is sorted by length
    used = memory(256, sizes, [(tokenizers[0].encode(s), tokenizers[1].encode(t)) for s, t in mixed])
    decoded = decoding(256, sizes, twelve, 4.)
    for rows in speed, used, decoded: print(table([{k: v for k, v in row.items() if k != "rounds"} for row in rows]), end="\n\n")
    save("seq2seq", {"training": speed, "memory": used, "decoding": decoded}, batch=BATCH, joeynmt="2.3.0" if args.joeynmt else None)


if __name__ == "__main__": main()
