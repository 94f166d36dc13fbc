"""Pre-norm and post-norm, with and without warm-up, over depths, learning rates and seeds: the stored table of 06_norms.

    python benchmarks/attention_norms.py [--layers 6 12] [--learning-rates 0.001 0.003 0.012] [--seeds 3] [--output FILE]

Each run trains a fresh stack to reverse sequences; the row keeps the mean loss of its last 20 steps. Results go to
benchmarks/results/attention_norms.json, with the machine's name.
"""
import argparse
import itertools
import json
import time
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from stage_modules.attention.cost import describe_machine
from stage_modules.attention.norms import train_reversal


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 12], help="depths of the stack")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.001, 0.003, 0.012], help="after the warm-up")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=250, help="batches of 32 sequences")
    parser.add_argument("--warmup-steps", type=int, default=100, help="of the runs with warm-up")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "attention_norms.json", help="where the JSON goes")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    rows, start = [], time.perf_counter()
    grid = list(itertools.product(args.layers, args.learning_rates, (True, False), (0, args.warmup_steps), range(args.seeds)))
    for layers, rate, norm_first, warmup, seed in tqdm(grid):
        losses = train_reversal(norm_first, warmup, seed, rate, layers, args.steps)
        way = ("pre-norm" if norm_first else "post-norm") + (", warm-up" if warmup else "")
        rows.append({"layers": layers, "learning_rate": rate, "way": way, "seed": seed, "final_loss": round(fmean(losses[-20:]), 4)})
    settings = {k: v for k, v in vars(args).items() if k != "output"}
    result = {"machine": describe_machine(), "settings": settings, "took_seconds": round(time.perf_counter() - start, 1), "rows": rows}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print("{layers:3d} layers  rate {learning_rate:<6g} {way:20s} seed {seed}: {final_loss:.3f}".format(**row))
    print(f"wrote {args.output.name}")


if __name__ == "__main__":
    main()
