"""Is convolution more stable than attention? Both middles of the UNet at learning rates from 1e-4 to 1e-1: loss, divergence, spikes of the gradient.

    python benchmarks/unet1d_rates.py                              all of it (about a quarter of an hour on two cores)
    python benchmarks/unet1d_rates.py --data procedural --steps 60 --seeds 1 --rates 1e-3 1e-1 --name look   a look (seconds)

The same short runs for both: flow matching on real poses, base width 32, AdamW, a constant rate without warm-up, which is how to see what a rate does; once with the
gradient clipped to length 1 and once as it comes. A run has diverged when its loss is no longer a number, or its last steps are worse than answering zero to
everything. A spike is a step, after the first 50, whose gradient is over three times as long as the median of the 50 before it. The validation loss is measured at
the end in evaluation mode, with the running means of batch norm, on noise that is the same for all.
Writes results/unet1d_rates.json after each run and goes on where it was stopped (`--fresh` begins anew)."""
import argparse
import math
import statistics
from functools import cache

import torch
from common import earlier_rows, save, side_by_side, table

from stage_modules.toolkit.training import Engine, TrainingConfig, epoch_batches, new_stream, random_stream
from stage_modules.unet1d.flow import FlowMatching
from stage_modules.unet1d.model import UNet1D
from stage_modules.unet1d.poses import Normaliser, PoseBatches, load_cmu, make_poses, split_clips

NEEDS_DATA = "cmu-mocap/02.asf"
MIDDLES, BEFORE, TIMES, LAST = ("conv", "attention"), 50, 3, 50 # a spike is so many times the median of so many steps before; the final loss is the mean of the last ones


@cache
def load(data: str):
    "Split poses."
    return split_clips(load_cmu() if data == "cmu" else make_poses(seed=0))


def spikes(norms: list[float]) -> int:
    "Steps whose gradient is much longer than just before."
    return sum(not norms[i] <= TIMES * statistics.median(norms[i - BEFORE:i]) for i in range(BEFORE, len(norms)))


def losses(model: torch.nn.Module, values: torch.Tensor) -> tuple[float, float]:
    "Mean squared error per number in evaluation mode: of the model, and of answering zero."
    process, found = FlowMatching(), []
    model.eval()
    for network in model, lambda x, time: torch.zeros_like(x):
        with torch.no_grad(), random_stream(new_stream(0, 1)):
            loss, count = process.loss(network, values)
        found.append(float(loss) / float(count))
    return tuple(found)


def number(value: float) -> float | None:
    "Short enough to read; None, which JSON knows, for what is none."
    return float(f"{value:.5g}") if math.isfinite(value) else None


def one_run(middle: str, rate: float, clip: float | None, seed: int, args: argparse.Namespace) -> dict:
    "A short training at one rate, on one core."
    torch.set_num_threads(1)
    split = load(args.data)
    norm = Normaliser.fit(split.train)
    train, valid = (torch.as_tensor(norm.normalise(part), dtype=torch.float32) for part in (split.train, split.valid))
    torch.manual_seed(seed)
    model, batches = UNet1D(base_channels=args.base_channels, mid_structure=middle), PoseBatches(train, args.batch_size, seed=seed)
    engine = Engine(model, TrainingConfig(learning_rate=rate, gradient_clip_norm=clip, device="cpu"), FlowMatching().loss)
    means, norms, epoch = [], [], 0
    model.train()
    with random_stream(new_stream(seed, 2)):
        while len(means) < args.steps:
            for batch in epoch_batches(batches, seed, epoch):
                loss, count, gradient = engine.step([batch]).tolist()
                means.append(loss / count)
                norms.append(gradient)
                if len(means) == args.steps or not math.isfinite(loss): break
            if not math.isfinite(means[-1]): break
            epoch += 1
    final, (validated, idle) = statistics.mean(means[-LAST:]), losses(model, valid)
    row = {"middle": middle, "learning_rate": rate, "clip": clip, "seed": seed, "steps": len(means), "first_loss": number(means[0]), "final_loss": number(final),
           "highest_loss": number(max(means)), "valid_loss": number(validated), "zero_loss": number(idle), "diverged": not final < idle,
           "spikes": spikes(norms), "median_gradient": number(statistics.median(norms)), "longest_gradient": number(max(norms))}
    return row | {"history": [{"step": i + 1, "loss": number(means[i]), "gradient_norm": number(norms[i])} for i in range(0, len(means), max(1, args.steps // 60))]}


def summary(rows: list[dict]) -> list[dict]:
    "A row for each middle, rate and way of clipping: means over the seeds (of those runs that have the number), and how many diverged."
    out = []
    for key in dict.fromkeys((row["middle"], row["clip"], row["learning_rate"]) for row in rows):
        own = [row for row in rows if (row["middle"], row["clip"], row["learning_rate"]) == key]
        kept = {"middle": key[0], "clip": key[1], "learning_rate": key[2], "runs": len(own), "diverged": sum(row["diverged"] for row in own)}
        for name in "final_loss", "valid_loss", "spikes", "median_gradient", "longest_gradient":
            values = [row[name] for row in own if row[name] is not None]
            kept[name] = float(f"{statistics.mean(values):.5g}") if values else None
        out.append(kept)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["cmu", "procedural"], default="cmu", help="real clips, or the built-in walks, runs and jumps")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1], help="learning rates")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each")
    parser.add_argument("--base_channels", type=int, default=32, help="channels of the first level")
    parser.add_argument("--batch_size", type=int, default=64, help="poses in a step")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--name", default="unet1d_rates", help="of the file in results")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier, stopped call has measured")
    args = parser.parse_args()
    settings = {key: getattr(args, key) for key in ("data", "steps", "base_channels", "batch_size")}
    load(args.data) # once, before two processes want to download the same
    rows = earlier_rows(args.name, args.fresh, **settings)
    key = lambda row: (MIDDLES.index(row["middle"]), row["clip"] is None, row["learning_rate"], row["seed"])
    done = {key(row) for row in rows}
    todo = [(middle, rate, clip, seed, args) for seed in range(args.seeds) for rate in args.rates for clip in (1., None) for middle in MIDDLES
            if (MIDDLES.index(middle), clip is None, rate, seed) not in done]
    for row in side_by_side(one_run, todo, args.workers):
        rows = sorted([*rows, row], key=key)
        save(args.name, rows, **settings, spike={"times": TIMES, "steps_before": BEFORE}, final_steps=LAST, threads_per_run=1, summary=summary(rows))
    print(table(summary(rows)))


if __name__ == "__main__": main()
