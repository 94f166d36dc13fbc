"""Marker features with loops, with half of the loops, and without: the table of stage 4's page on features.

    python benchmarks/labeler_features.py [--frames 120] [--markers 56] [--repeats 20]

One window of random trajectories, one thread. Results go to benchmarks/results/labeler_features.json, with the machine's name.
"""
import argparse
import time
from statistics import median

import numpy as np
import torch
from common import save, table

from stage_modules.labeler.features import acceleration, marker_features, velocity


def loops(points: np.ndarray, rate: float, num_others: int) -> np.ndarray:
    "Target by target, neighbour by neighbour, frame by frame."
    T, N = points.shape[:2]
    v, a = velocity(points, rate), acceleration(points, rate)
    out = np.zeros((N, T, num_others, 5), np.float32)
    for i in range(N):
        offset = {j: np.linalg.norm(np.nanmean(points[:, j] - points[:, i], axis=0)) for j in range(N) if j != i}
        for place, j in enumerate(sorted(offset, key=offset.get)[:num_others]):
            for t in range(T):
                five = [*(points[t, j] - points[t, i]), np.linalg.norm(v[t, j] - v[t, i]), np.linalg.norm(a[t, j] - a[t, i])]
                if np.isfinite(five).all(): out[i, t, place] = five
    return out.reshape(N, T, -1)


def frame_by_frame(points: np.ndarray, rate: float, num_others: int) -> np.ndarray:
    "Target by target and frame by frame; numpy for all others at once."
    T, N = points.shape[:2]
    v, a = velocity(points, rate), acceleration(points, rate)
    out = np.zeros((N, T, num_others, 5), np.float32)
    for i in range(N):
        others = np.delete(np.arange(N), i)
        offset = np.linalg.norm(np.nanmean(points[:, others] - points[:, i, None], axis=0), axis=1)
        order = others[np.argsort(offset, kind="stable")][:num_others]
        for t in range(T):
            out[i, t, : len(order), :3] = points[t, order] - points[t, i]
            out[i, t, : len(order), 3] = np.linalg.norm(v[t, order] - v[t, i], axis=1)
            out[i, t, : len(order), 4] = np.linalg.norm(a[t, order] - a[t, i], axis=1)
    return np.nan_to_num(out).reshape(N, T, -1)


def seconds(run, repeats: int) -> float:
    "Median of the processor time."
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=120, help="of the window")
    parser.add_argument("--markers", type=int, default=56, help="trajectories in it")
    parser.add_argument("--repeats", type=int, default=20, help="of the quick form; the others run fewer times")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    walk = rng.normal(0, 300, (1, given.markers, 3)) + np.cumsum(rng.normal(0, 3, (given.frames, given.markers, 3)), 0)
    points, others = walk.astype(np.float32), given.markers - 1
    fast = marker_features(points, 100.0, others)[0].numpy()
    for slow in loops, frame_by_frame:
        error = np.abs(slow(points, 100.0, others) - fast).max()
        assert error < 1, f"{slow.__name__} differs by {error}"
    forms = {"three loops": (lambda: loops(points, 100.0, others), 1), "loops over targets and frames": (lambda: frame_by_frame(points, 100.0, others), 3),
             "no loops": (lambda: marker_features(points, 100.0, others), given.repeats),
             "no loops, holes closed (packed)": (lambda: marker_features(points, 100.0, others, packed=True), given.repeats)}
    rows = [{"form": name, "seconds": seconds(run, repeats)} for name, (run, repeats) in forms.items()]
    for row in rows: row["times as long"] = row["seconds"] / rows[2]["seconds"]
    print(table(rows))
    save("labeler_features", rows, frames=given.frames, markers=given.markers, repeats=given.repeats)


if __name__ == "__main__":
    main()
