"""LSTM, transformer and hybrid on simulated recordings: accuracy, cost, how much data they need, and the usual advice about their settings, tried.

    python benchmarks/labeler_comparison.py                          all of it (an evening on two cores)
    python benchmarks/labeler_comparison.py --steps 200 --seeds 1 --only lstm hybrid --name look   a look

The simulator's own marker set; the people of the test are none of those of the training. Everything is as in `stage_modules.labeler.train` but what the name of a variant says, and every run takes the same number of
steps (twice as many where it says so). Accuracy is the share of marker frames of damaged windows that get their name, before any vote; the same windows for all. A run is one process with one thread, two side by side; minutes are
of one core's work (`time.process_time`). Memory is the most bytes of tensors alive at once in one step, beyond weights, optimizer and batch (`stage_modules.attention.cost.peak_memory`). A run whose loss is no longer a
number counts as failed, and stays in the table. Writes results/labeler_comparison.json after each run and goes on where it was stopped (`--fresh` begins anew)."""
import argparse
import statistics
import time
from functools import cache

import torch
from common import earlier_rows, save, side_by_side, table

from stage_modules.attention.cost import peak_memory
from stage_modules.labeler.features import FeatureScale
from stage_modules.labeler.train import (
    SCALE,
    TrainConfig,
    WindowBatches,
    WindowSettings,
    frame_accuracy,
    make_source,
    pick,
    prepare,
    read_data,
)

NETS = ("lstm", "transformer", "hybrid")
SGD = {"optimizer": "sgd", "learning_rate": .078, "momentum": .65, "schedule": "constant", "warmup_steps": 0}


def variants() -> dict[str, dict]:
    "What each differs in from the defaults."
    made = {net: {"model_type": net} for net in NETS}
    made |= {f"{net}, flatten head": {"model_type": net, "head": "flatten"} for net in NETS}
    made |= {f"{net}, published SGD": {"model_type": net, **SGD} for net in NETS}
    made |= {f"{net}, {trials} trials": {"model_type": net, "subjects": trials // 5} for net in NETS for trials in (25, 50, 200)}
    made |= {f"hybrid, {heads} heads": {"nAttentionHeads": heads} for heads in (4, 16)}
    made |= {f"hybrid, width {width}": {"transformerDim": width, "nLSTMcells": width} for width in (128, 512)}
    made |= {"hybrid, LSTM 128 in attention 256": {"nLSTMcells": 128}, "hybrid, no dropout": {"LSTMdropout": 0., "attentionDropout": 0.}, "hybrid, dropout 0.3": {"LSTMdropout": .3, "attentionDropout": .3}}
    made |= {f"{net}, twice the steps": {"model_type": net, "steps": 2} for net in NETS}
    made |= {"transformer, a quarter of the rate": {"model_type": "transformer", "learning_rate": 5e-4}}
    return made


def setting(name: str, seed: int, args: argparse.Namespace) -> TrainConfig:
    "The configuration of one run."
    own = {"subjects": args.trials // 5, **variants()[name]}
    steps = args.steps * own.pop("steps", 1)
    return TrainConfig(**own, trials_each=5, output_dir=None, seed=seed, max_steps=steps, num_epochs=-(-steps // 100), valid_share=0., device="cpu", progress=False, tensorboard=False)


@cache
def test_sources(args_seed: int = 10_000):
    "People whom no net has seen."
    config = TrainConfig(subjects=8, trials_each=5, data_seed=args_seed)
    recordings, marker_set = read_data(config)
    return [make_source(recording, marker_set, pick(WindowSettings, config)) for recording in recordings], len(marker_set)


def one_run(name: str, seed: int, args: argparse.Namespace) -> dict:
    "Train, and ask about the same damaged windows as all others."
    torch.set_num_threads(1)
    config = setting(name, seed, args)
    row = {"variant": name, "seed": seed, "trials": 5 * config.subjects, "steps": config.max_steps}
    try: trainer = prepare(config)
    except ValueError as error: return {**row, "failed": str(error)}
    row["parameters"] = sum(p.numel() for p in trainer.model.model.parameters())
    row["peak_mib"] = round(peak_memory(lambda: trainer.engine.loss(next(iter(trainer.batches)))[0].backward()) / 2**20, 1)
    trainer.model.zero_grad()
    start = time.process_time()
    try: history = trainer.fit()
    except ArithmeticError as error: return {**row, "failed": str(error)}
    spent = time.process_time() - start
    sources, markers = test_sources()
    test = list(WindowBatches(sources, pick(WindowSettings, config), FeatureScale.from_json(trainer.files[SCALE]), 200, 20, seed=1))
    found = frame_accuracy(test, markers)(trainer.model.eval())
    return {**row, "accuracy": round(found["accuracy"], 5), "minutes": round(spent / 60, 3), "seconds_per_100_steps": round(100 * spent / config.max_steps, 2),
            "history": [{key: round(float(value), 5) for key, value in entry.items() if key in ("step", "loss", "accuracy")} for entry in history]}


def summary(rows: list[dict]) -> list[dict]:
    "Mean and standard deviation over the seeds, a row for each variant."
    out = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name and "failed" not in row]
        line = {"variant": name, "runs": len(own), "failed": sum(row["variant"] == name for row in rows) - len(own)}
        for key in ("accuracy", "seconds_per_100_steps", "peak_mib", "parameters", "trials"):
            values = [row[key] for row in own]
            line |= {key: round(statistics.mean(values), 5) if values else None}
            if key == "accuracy": line["accuracy_sd"] = round(statistics.stdev(values), 5) if len(values) > 1 else None
        out.append(line)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=variants(), default=list(variants()), metavar="NAME", help="which variants")
    parser.add_argument("--steps", type=int, default=500, help="training steps")
    parser.add_argument("--trials", type=int, default=100, help="simulated recordings to train on, five of each person")
    parser.add_argument("--seeds", type=int, default=3, help="runs of the three nets; all else has one")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--name", default="labeler_comparison", help="of the file in results")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier, stopped call has measured")
    args = parser.parse_args()
    settings = {"steps": args.steps, "trials": args.trials}
    rows = earlier_rows(args.name, args.fresh, **settings)
    done = {(row["variant"], row["seed"]) for row in rows}
    todo = [(name, seed, args) for name in args.only for seed in range(args.seeds if name in NETS else 1) if (name, seed) not in done]
    for row in side_by_side(one_run, todo, args.workers):
        rows = sorted([*rows, row], key=lambda row: (list(variants()).index(row["variant"]), row["seed"]))
        save(args.name, rows, **settings, threads_per_run=1, summary=summary(rows))
    print(table(summary(rows)))


if __name__ == "__main__": main()
