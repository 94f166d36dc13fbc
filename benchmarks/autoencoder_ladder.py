"""The speed ladder of the patch autoencoder at lengths from 64 to 4,096 tokens, on a GPU to 16,384; and the ways to bring images to it.

    python benchmarks/autoencoder_ladder.py                        on a CPU, preset tiny; about ten minutes
    python benchmarks/autoencoder_ladder.py --device cuda          on a GPU, preset medium and 65,536 tokens a step; about four minutes

`ladder`: `stage_modules.autoencoder.speed.climb` for each length: all rungs are timed in turns, speed and peak memory beside the rung below, and how far off the gradient is. Images are squares of whole patches of 16 pixels; each length has as many tokens in a step as the
others (`--tokens`); 169 tokens are 201x201 pixels at a small batch of preset small, where telling a GPU what to do takes longer than doing it.
`loading`: one pass through drops that are drawn when they are wanted, and through PNG files, with several numbers of worker processes, pinned memory, and copies ahead of the step.
Writes results/autoencoder_ladder.json, on a GPU results/autoencoder_ladder_<card>.json; parts and lengths that are not asked for keep what an earlier call has measured. Let nothing else run meanwhile."""
import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import RESULTS, card, save, table

from stage_modules.autoencoder.images import DropImages, ImageFolder, draw_drops
from stage_modules.autoencoder.speed import Loading, Step, climb, measure_loading, own_ladder

SIDES = {169: 201, 64: 128, 256: 256, 1024: 512, 4096: 1024, 16384: 2048} # pixels along a square of so many patches; 169 are the small batch


def driver() -> str:
    "Version of the card's driver."
    try: return subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError): return "unknown"


def rounded(row: dict) -> dict:
    "Four significant digits."
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def ladders(args: argparse.Namespace) -> Iterator[list[dict]]:
    "A ladder for each length; what there is after each."
    found, cuda = [one for one in args.earlier if one["tokens"] not in args.lengths], args.device == "cuda"
    for length in args.lengths:
        side, start = SIDES[length], time.perf_counter()
        batch, preset, overhead = (4 if cuda else 8, "small", cuda) if length == 169 else (max(1, args.tokens // length), args.preset, False)
        images = torch.rand(batch, 1, side, side, generator=torch.Generator().manual_seed(0)).to(args.device)
        rows = climb(own_ladder(args.device, overhead), images, preset, args.repeats if length <= 4096 else min(3, args.repeats))
        found.append({"tokens": length, "size": [side, side], "batch": batch, "preset": preset, "rungs": [rounded(row) for row in rows]})
        print(f"\n{length} tokens, batch {batch}, {preset}, {time.perf_counter() - start:.0f} s\n{table([rounded(row) for row in rows])}", flush=True)
        found.sort(key=lambda one: (one["preset"] == args.preset, one["tokens"])) # the small batch first
        yield found
        del images
        if cuda: torch.cuda.empty_cache()


def write_files(folder: Path, count: int) -> None:
    "Drops as PNG files."
    from PIL import Image

    for i, image in enumerate(draw_drops(count=count).frames[:, 0, 0]): Image.fromarray((255 * image).round().byte().numpy()).save(folder / f"{i:04}.png")


def loading(args: argparse.Namespace) -> Iterator[list[dict]]:
    "Ways to bring images, with the fastest rung; what there is after each."
    cuda = args.device == "cuda"
    counts = (0, 2, 4, 12) if cuda else (0, 1, 2)
    ways = [Loading(f"{workers} worker processes" if workers else "the process that trains", workers) for workers in counts]
    if cuda: ways += [Loading("12 worker processes, pinned memory", 12, True), Loading("12 worker processes, pinned memory, copied ahead", 12, True, True)]
    rung = next(r for r in reversed(own_ladder(args.device)) if r.name in ("torch.compile", "fused AdamW"))
    batch, count = (64, args.files) if cuda else (8, args.files // 4)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), args.files // 4)
        files = ImageFolder(folder, check="headers")
        many = torch.utils.data.ConcatDataset([files] * (count // len(files)))
        for kind, dataset in ("PNG files", many), ("drawn drops", DropImages(count // 2)):
            images = torch.stack([dataset[i] for i in range(batch)]).to(args.device)
            step = Step(rung, images, "small" if cuda else "tiny")
            for _ in range(3): step()
            resident = Timer(args.device)
            for _ in range(20 if cuda else 5): step()
            bound = batch * (20 if cuda else 5) / resident.stop()
            for way in ways:
                rows.append({"images": kind, "rung": rung.name, "batch": batch, **rounded(measure_loading(way, dataset, step, batch)), "per_second_in_memory": round(bound, 1)})
                print(rows[-1], flush=True)
                yield rows


class Timer:
    "Seconds, with what a GPU has still to do."
    def __init__(self, device: str):
        self.device, self.start = device, None
        self.start = self.now()

    def now(self) -> float:
        if self.device == "cuda": torch.cuda.synchronize()
        return time.perf_counter()

    def stop(self) -> float: return self.now() - self.start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("ladder", "loading"), default=["ladder", "loading"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", default=None, help="tiny on a CPU, medium on a GPU")
    parser.add_argument("--lengths", nargs="+", type=int, choices=SIDES, default=None, help="tokens of an image; all, on a CPU to 4,096")
    parser.add_argument("--tokens", type=int, default=None, help="tokens in a step: 4,096 on a CPU, 65,536 on a GPU")
    parser.add_argument("--repeats", type=int, default=7, help="rounds that count")
    parser.add_argument("--files", type=int, default=2048, help="images in a pass of `loading`; a CPU takes a quarter")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    args.preset = args.preset or ("medium" if cuda else "tiny")
    args.lengths = args.lengths or [length for length in SIDES if cuda or length <= 4096]
    args.tokens = args.tokens or (65536 if cuda else 4096)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    name = f"autoencoder_ladder_{card()}" if cuda else "autoencoder_ladder"
    path = RESULTS / f"{name}.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    args.earlier = results.get("ladder", [])
    more = {"driver": driver(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if cuda else {}
    for part in args.parts:
        for results[part] in {"ladder": ladders, "loading": loading}[part](args): save(name, results, preset=args.preset, tokens=args.tokens, repeats=args.repeats, **more)


if __name__ == "__main__": main()
