"""Convolution against attention in the middle of the UNet, and joints against numbers as tokens: loss, convergence, quality, time, memory, size; three seeds each.

    python benchmarks/unet1d_comparison.py                          all of it (about half an hour on two cores)
    python benchmarks/unet1d_comparison.py --seeds 1 --steps 200 --samples 200 --name look   a look (three minutes)
    python benchmarks/unet1d_comparison.py --data procedural        without a download
    python benchmarks/unet1d_comparison.py --model_type ddpm        noise prediction and DDIM in place of flow matching

Real clips, split by blocks; everything is the same for all but what the name of a variant says: widths, steps, batches and their order, learning rate, average of the
weights, noise of the validation. Each run is one process with one thread, two side by side; times are seconds of one core's work (`time.process_time`) without
validations. Memory is the most bytes of tensors alive at once in one training step, beyond weights, optimizer and batch
(`stage_modules.attention.cost.peak_memory`). The checkpoint is the model's weights alone as safetensors. Losses and samples are those of the averaged weights.
Writes results/unet1d_comparison.json after each run and goes on where it was stopped (`--fresh` begins anew)."""
import argparse
import math
import statistics
import time
from dataclasses import asdict
from functools import cache

import torch
from common import earlier_rows, save, side_by_side, table
from safetensors.torch import save as to_bytes
from torch.optim.swa_utils import AveragedModel

from stage_modules.attention.cost import peak_memory
from stage_modules.toolkit.training import Callback, Trainer, TrainingConfig, new_stream, random_stream
from stage_modules.unet1d.flow import make_process
from stage_modules.unet1d.joints import JointUNet1D
from stage_modules.unet1d.model import UNet1D
from stage_modules.unet1d.poses import Normaliser, PoseBatches, cmu_skeleton, load_cmu, make_poses, split_clips
from stage_modules.unet1d.quality import measure_quality
from stage_modules.unet1d.skeleton import JOINTS, default_skeleton

NEEDS_DATA = "cmu-mocap/02.asf"
VARIANTS = {"convolution": (UNet1D, {"mid_structure": "conv"}),
            **{f"attention, {heads} heads": (UNet1D, {"mid_structure": "attention", "mid_num_heads": heads}) for heads in (4, 8, 16)},
            "joints, convolution": (JointUNet1D, {"mid_structure": "conv"}),
            "joints, attention, 8 heads": (JointUNet1D, {"mid_structure": "attention", "mid_num_heads": 8}),
            "joints, convolution, in the data's order": (JointUNet1D, {"mid_structure": "conv", "names": JOINTS})}
DECAY, POSES, DRAWS = .999, 512, 2 # of the averaged weights, in the end; validation poses in each row of the history, with so many noises and times each
COUNTS = ("seed", "samples", "held_out", "train", "floor_samples", "k", "neighbour_poses") # numbers of a row that are no results


@cache
def load(data: str):
    "Split poses and the skeleton that they belong to."
    clips, skeleton = (load_cmu(), cmu_skeleton()) if data == "cmu" else (make_poses(seed=0), default_skeleton())
    return split_clips(clips), skeleton


def averaged(averages: list, values: list, seen) -> None:
    "A running average that starts fast: of the first few steps it keeps little."
    for average, value in zip(averages, values):
        if average.is_floating_point(): average.lerp_(value, 1 - min(DECAY, (1 + int(seen)) / (10 + int(seen))))
        else: average.copy_(value)


class Watch(Callback):
    "Averages the weights, and validates them on noise that never changes."

    def __init__(self, process, values: torch.Tensor, model: torch.nn.Module):
        self.process, self.values = process, values[torch.linspace(0, len(values) - 1, min(POSES, len(values))).long()].repeat(DRAWS, 1) # spread over all clips
        self.average = AveragedModel(model, multi_avg_fn=averaged, use_buffers=True).requires_grad_(False)
        self.rows, self.spent, self.started = [], 0., 0.

    def on_start(self, trainer) -> None: self.started = time.process_time()

    def on_step(self, trainer) -> None: self.average.update_parameters(trainer.model)

    def on_row(self, trainer, row: dict) -> None:
        start = time.process_time()
        kept = {"loss": row["loss"], "gradient_norm": row["gradient_norm"], "valid_loss": self.score(self.average.module)}
        self.rows.append({"step": row["step"], "cpu_seconds": round(start - self.started - self.spent, 2), **{key: round(value, 5) for key, value in kept.items()}})
        self.spent += time.process_time() - start

    @torch.no_grad()
    def score(self, model: torch.nn.Module) -> float:
        "Mean squared error per number."
        was, total = model.training, torch.zeros(2, dtype=torch.float64)
        model.eval()
        with random_stream(new_stream(0, 1)):
            for part in self.values.split(512): total += torch.tensor([float(v) for v in self.process.loss(model, part)], dtype=torch.float64)
        model.train(was)
        return float(total[0] / total[1])


def one_run(name: str, seed: int, args: argparse.Namespace) -> dict:
    "Train one variant with one seed, on one core, and measure everything."
    torch.set_num_threads(1)
    (split, skeleton), process, (kind, what) = load(args.data), make_process(args.model_type), VARIANTS[name]
    norm = Normaliser.fit(split.train)
    train, valid = (torch.as_tensor(norm.normalise(part), dtype=torch.float32) for part in (split.train, split.valid))
    torch.manual_seed(seed)
    model, batches = kind(base_channels=args.base_channels, **what), PoseBatches(train, args.batch_size, seed=seed)
    config = TrainingConfig(num_epochs=math.ceil(args.steps / len(batches)), max_steps=args.steps, learning_rate=args.learning_rate, schedule="cosine",
                            warmup_steps=min(100, args.steps // 10), log_every=max(1, args.steps // args.rows), seed=seed, device="cpu", progress=False, tensorboard=False)
    watch = Watch(process, valid, model)
    trainer = Trainer(model, config, batches, process.loss, callbacks=[watch])
    trainer.fit()
    spent, ema = time.process_time() - watch.started - watch.spent, watch.average.module.eval()
    size = len(to_bytes({key: value.contiguous() for key, value in ema.state_dict().items()}))
    start = time.process_time()
    drawn = process.sample(ema, args.samples, num_steps=50, solver={"flow": "euler", "ddpm": "ddim"}[args.model_type], generator=torch.Generator().manual_seed(seed))
    sampling = time.process_time() - start
    report = measure_quality(norm.denormalise(drawn), split.test, split.train, skeleton, seed=seed)
    peak = peak_memory(lambda: trainer.engine.step([train[:args.batch_size]])) # last, since it changes the weights
    quality = {key: round(value, 5) for key, value in (asdict(report) | {"frechet_ratio": report.frechet_ratio}).items()}
    return {"variant": name, "seed": seed, "parameters": sum(p.numel() for p in model.parameters()), "final_loss": round(statistics.mean(r["loss"] for r in watch.rows[-3:]), 5),
            "final_valid_loss": watch.rows[-1]["valid_loss"], "final_valid_loss_unaveraged": round(watch.score(trainer.model), 5), **quality,
            "cpu_milliseconds_per_step": round(1000 * spent / args.steps, 2), "sampling_cpu_seconds": round(sampling, 2), "peak_bytes": peak, "checkpoint_bytes": size,
            "history": watch.rows}


def steps_until(history: list[dict], level: float, key: str = "step") -> float | None: # None: never
    "When the validation loss falls to the level for the first time, on a straight line between two rows; in steps, or in `cpu_seconds`."
    before = None
    for row in history:
        if row["valid_loss"] <= level:
            if before is None: return row[key]
            share = (before["valid_loss"] - level) / (before["valid_loss"] - row["valid_loss"])
            return before[key] + share * (row[key] - before[key])
        before = row
    return None


def fixed_level(rows: list[dict]) -> float:
    "A validation loss that every run reached: two in a hundred above the best one of the worst run."
    return round(1.02 * max(min(row["valid_loss"] for row in run["history"]) for run in rows), 4)


def summary(rows: list[dict]) -> list[dict]:
    "Mean and standard deviation over the seeds, a row for each variant."
    level, out = fixed_level(rows), []
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        kept = {"variant": name, "runs": len(own), "level": level}
        columns = {key: [row[key] for row in own] for key, value in own[0].items() if isinstance(value, int | float) and key not in COUNTS}
        columns |= {f"{key}_to_level": [steps_until(row["history"], level, key) for row in own] for key in ("step", "cpu_seconds")}
        for key, values in columns.items(): kept |= {key: round(statistics.mean(values), 5), f"{key}_sd": round(statistics.stdev(values), 5) if len(values) > 1 else None}
        out.append(kept)
    return out


def shown(rows: list[dict]) -> str:
    "The summary as a table that fits on a screen."
    digits = {"final_valid_loss": 4, "step_to_level": 0, "frechet": 1, "frechet_floor": 1, "precision": 3, "recall": 3, "nearest": 2, "cpu_milliseconds_per_step": 1}
    spread = lambda mean, sd, n: f"{mean:.{n}f}" if sd is None else f"{mean:.{n}f} ± {sd:.{n}f}"
    return table([{"variant": row["variant"], **{key: spread(row[key], row[f"{key}_sd"], n) for key, n in digits.items()}} for row in summary(rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["cmu", "procedural"], default="cmu", help="real clips, or the built-in walks, runs and jumps")
    parser.add_argument("--model_type", choices=["flow", "ddpm"], default="flow", help="what is learned")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="which of them", metavar="NAME")
    parser.add_argument("--steps", type=int, default=1200, help="training steps")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--base_channels", type=int, default=32, help="channels of the first level")
    parser.add_argument("--batch_size", type=int, default=64, help="poses in a step")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="highest value of the cosine schedule")
    parser.add_argument("--samples", type=int, default=1000, help="poses drawn for the quality")
    parser.add_argument("--rows", type=int, default=25, help="validations in a run")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--name", help="of the file in results; unet1d_comparison with what differs from the default behind it, if not given")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier, stopped call has measured")
    args = parser.parse_args()
    name = args.name or "_".join(["unet1d_comparison", *(["procedural"] if args.data != "cmu" else []), *(["ddpm"] if args.model_type != "flow" else [])])
    settings = {key: getattr(args, key) for key in ("data", "model_type", "steps", "base_channels", "batch_size", "learning_rate", "samples", "rows")}
    split = load(args.data)[0] # once, before two processes want to download the same
    rows = earlier_rows(name, args.fresh, **settings)
    done = {(row["variant"], row["seed"]) for row in rows}
    todo = [(variant, seed, args) for seed in range(args.seeds) for variant in args.variants if (variant, seed) not in done]
    for row in side_by_side(one_run, todo, args.workers):
        rows = sorted([*rows, row], key=lambda row: (list(VARIANTS).index(row["variant"]), row["seed"]))
        save(name, rows, **settings, split=split.how, decay=DECAY, validation_poses=POSES, validation_draws=DRAWS, threads_per_run=1, summary=summary(rows))
    print(shown(rows))
    print(f"the level to reach: {fixed_level(rows)}")


if __name__ == "__main__": main()
