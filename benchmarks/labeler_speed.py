"""Labelling from file to file: how many seconds of recording a second of work gets through, where the time goes, and how busy the net keeps the processor.

    python benchmarks/labeler_speed.py --ckpt FOLDER            a labeler of biomechzoo's 56 markers (one of those of `labeler.py --keep`); with all cores
    python benchmarks/labeler_speed.py --ckpt FOLDER --threads 1

The sixteen recordings of biomechzoo, as they are and damaged (a fifth of the samples hidden, pieces, two ghosts), and a simulated walk of a minute. Each is a C3D file without names; `label_file` reads it, names its trajectories and writes the labelled file and
the report. Times are of the clock, the median of `--repeats` passes after one that warms up. `share of the machine's rate` is the net's multiplications and additions (counted by `torch.utils.flop_counter` with oneDNN's LSTM switched off, which it cannot see into), by the time that
`Labeler.evidence` takes in all (smoothing, facing and features are in it), against a product of two matrices of 2048 x 2048 measured in the same run. Writes results/labeler_speed.json."""
import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import save, table
from torch.utils.flop_counter import FlopCounterMode

from stage_modules.labeler.label import LabelConfig, Labeler, label_file, name_frames, name_trajectories
from stage_modules.labeler.markers import BIOMECHZOO, Recording, load_biomechzoo, read_c3d, write_c3d
from stage_modules.labeler.simulate import simulate, spoil

NEEDS_DATA = "biomechzoo/HC002D/Straight/HC002D06.c3d"


def clock(work: Callable, repeats: int) -> float:
    "Median seconds, after a pass that warms up."
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def rate(repeats: int, size: int = 2048) -> float:
    "Multiplications and additions a second in a product of two large matrices."
    a = torch.randn(size, size)
    return 2 * size**3 / clock(lambda: a @ a, repeats)


def operations(labeler: Labeler, recordings: list[Recording]) -> float:
    "Multiplications and additions of the net: those of one frame of a trajectory, times the frames that it is given."
    encode, frames = labeler.net.encode, []
    def counting(x, mask, need_weights=False):
        frames.append(len(x) * x.shape[1])
        return encode(x, mask, need_weights)
    labeler.net.encode = counting
    for recording in recordings: labeler.evidence(recording)
    del labeler.net.encode
    sample, shape = torch.zeros(8, 6, 5 * (len(labeler.marker_set) - 1)), (8, 6)
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter: labeler.net(sample, torch.ones(shape, dtype=torch.bool))
    return counter.get_total_flops() / 48 * sum(frames)


def parts(labeler: Labeler, recordings: list[Recording], repeats: int) -> dict[str, float]:
    "Seconds of what `Labeler.label` does."
    found = [labeler.evidence(recording) for recording in recordings]
    window = labeler.settings["window"]
    return {"net and features": clock(lambda: [labeler.evidence(r) for r in recordings], repeats),
            "names of frames": clock(lambda: [name_frames(e, r.visible) for e, r in zip(found, recordings)], repeats),
            "names of trajectories": clock(lambda: [name_trajectories(e.totals(window), r.visible, r.points, labeler.distances) for e, r in zip(found, recordings)], repeats)}


def measured(name: str, recordings: list[Recording], labeler: Labeler, peak: float, args: argparse.Namespace) -> dict:
    "A row of the table."
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{i}.c3d") for i in range(len(recordings))]
        for recording, file in zip(recordings, files): write_c3d(recording, file)
        config, seconds = LabelConfig(tuple(files), output_dir=Path(folder, "out"), overwrite=True), sum(r.seconds for r in recordings)
        whole = clock(lambda: [label_file(labeler, file, config) for file in files], args.repeats)
        read = [read_c3d(file) for file in files]
        inside = parts(labeler, read, args.repeats)
        done = operations(labeler, read)
    return {"files": name, "recorded": round(seconds, 2), "work": round(whole, 2), "times real time": round(seconds / whole, 2), **{key: round(value, 3) for key, value in inside.items()},
            "reading and writing": round(whole - sum(inside.values()), 3), "gflop a second of recording": round(done / seconds / 1e9, 2), "share of the machine's rate": round(done / inside["net and features"] / peak, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="a labeler of biomechzoo's marker set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60., help="of the simulated walk")
    parser.add_argument("--threads", type=int, help="of torch; all cores if not given")
    args = parser.parse_args()
    if args.threads: torch.set_num_threads(args.threads)
    labeler, peak = Labeler.load(args.ckpt, marker_set=BIOMECHZOO), rate(args.repeats)
    walks = load_biomechzoo()
    walk = simulate(BIOMECHZOO, "walk", seconds=args.seconds, seed=0)
    sets = {"16 walks": [r.shuffled(0)[0] for r in walks], "16 walks, damaged": [spoil(r, BIOMECHZOO, seed=0).recording for r in walks],
            "a long walk": [walk.shuffled(0)[0]], "a long walk, damaged": [spoil(walk, BIOMECHZOO, seed=0).recording]}
    rows = [measured(name, recordings, labeler, peak, args) for name, recordings in sets.items()]
    print(table(rows), f"\nmatrices: {peak / 1e9:.1f} GFLOP/s")
    save("labeler_speed", rows, repeats=args.repeats, matrix_gflops=round(peak / 1e9, 1), model_type=labeler.net.settings.model_type)


if __name__ == "__main__": main()
