"""Time and peak memory of attention against length, beside convolution and recurrence: the stored table of 05_cost.

    python benchmarks/attention_cost.py [--device cuda] [--lengths 256 512 1024] [--embed-dim 256] [--output FILE]

Inference and training step, explicit and fused attention, at lengths at which the L x L part dominates. The same
functions measure on a CPU and on a GPU; results go to benchmarks/results/attention_cost.json (attention_cost_cuda.json
on a GPU), with the machine's name.
"""
import argparse
import json
import time
from pathlib import Path

import torch
from tqdm import tqdm

from stage_modules.attention.cost import describe_machine, fitted, measure_cost, sequence_layers

RESULTS = Path(__file__).parent / "results"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096], help="positions in the sequence")
    parser.add_argument("--embed-dim", type=int, default=256, help="features at each position")
    parser.add_argument("--num-heads", type=int, default=4, help="heads of the attention")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that the median is taken of")
    parser.add_argument("--fit-from", type=int, default=1024, help="shortest length that the fitted slopes use")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    layers = sequence_layers(args.embed_dim, args.num_heads, device=args.device)
    rows, laws, start = [], [], time.perf_counter()
    for mode in "inference", "training":
        found = []
        for length in tqdm(args.lengths, desc=mode):  # length by length, so that the bar moves
            found += measure_cost(layers, [length], args.embed_dim, args.batch, mode == "training", args.repeats, args.device)
        for value in "seconds", "bytes":
            for layer, law in fitted(found, value, args.fit_from).items():
                laws.append({"mode": mode, "value": value, "layer": layer, "slope": law.slope, "error": law.error})
                print(f"{mode:10s} {value:8s} {layer:20s} {law}")
        rows += [{"mode": mode, **row} for row in found]
    settings = {k: v for k, v in vars(args).items() if k != "output"}
    result = {"machine": describe_machine(args.device), "settings": settings, "took_seconds": round(time.perf_counter() - start, 1),
              "rows": rows, "laws": laws}
    suffix = "" if torch.device(args.device).type == "cpu" else f"_{torch.device(args.device).type}"
    output = args.output or RESULTS / f"attention_cost{suffix}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {output.name}")


if __name__ == "__main__":
    main()
