"""Where the marker labeler gives in: more samples hidden, more ghosts, shorter recordings, fewer people to learn from; who is taken for whom, and where the nets look.

    python benchmarks/labeler_curves.py --keep FOLDER      with the nets of `labeler.py --keep FOLDER` (about half an hour on two cores); those that are not there are trained
    python benchmarks/labeler_curves.py --keep FOLDER --curves people     a part

biomechzoo, 56 markers, straight walks and turns with the corrected labels; every subject is named by a net that learned from the seven others (for `people`, from so many of the others, drawn at random).
Unless the curve says otherwise a fifth of the samples is hidden in gaps, each piece is a trajectory of its own, and there are two ghosts. Values are shares of samples of real markers in per cent, before (`frames`) and after
(`vote`) the vote over trajectories; `ghosts` is the share of ghost samples that got a marker's name. A run is one process with one thread, two side by side.
`confusion` counts samples before the vote by true and given name, all subjects together; `attention` is what a net that reads 30 frames of a window does with one of them.
Writes results/labeler_curves.json after each run and goes on where it was stopped (`--fresh` begins anew)."""
import argparse
import json
from argparse import Namespace

import numpy as np
import torch
from common import RESULTS, earlier_rows, save, side_by_side, table
from labeler import MARKERS, load, of, score, trained_on_others

from stage_modules.labeler.explore import confusion_table, look_at
from stage_modules.labeler.label import Labeler
from stage_modules.labeler.markers import BIOMECHZOO, Recording
from stage_modules.labeler.simulate import Spoiled, spoil
from stage_modules.labeler.train import TrainConfig, train

NEEDS_DATA = "biomechzoo/HC002D/Straight/HC002D06.c3d"
CURVES = {"occlusion": (0., .1, .2, .3, .4, .5, .6), "ghosts": (0, 2, 5, 10, 20), "length": (10, 25, 50, 100, 200), "people": (1, 2, 4, 7)} # share, number, frames, number
SEED = 100 # of the damage; the fold table of `labeler.py` has 0, 1, 2
LOOKED_AT = ("transformer", "hybrid") # the nets that have attention


def pieces(recording: Recording, length: int) -> list[Recording]:
    "Three pieces of so many frames, evenly spaced; one where the recording is not longer."
    starts = np.unique(np.linspace(0, max(0, len(recording.points) - length), 3).astype(int))
    return [recording.cut(int(start), int(start) + length) for start in starts]


def damaged(curve: str, value: float, recording: Recording) -> list[Spoiled]:
    "The recordings of a point of a curve."
    parts = pieces(recording, int(value)) if curve == "length" else [recording]
    how = {"occlusion": {"occlusion": value}, "ghosts": {"ghosts": int(value)}}.get(curve, {})
    return [spoil(part, BIOMECHZOO, seed=SEED, **how) for part in parts]


def named(labeler: Labeler, spoiled: Spoiled) -> tuple[np.ndarray, np.ndarray]:
    "Names before and after the vote."
    index = {name: i for i, name in enumerate(MARKERS)}
    labelling = labeler.label(spoiled.recording)
    return labelling.frame_labels, np.array([index.get(name, -1) for name in labelling.labels])


def point(labeler: Labeler, subject: str, curve: str, value: float) -> dict[str, float]:
    "Mean over the subject's recordings."
    scores = [score(*named(labeler, spoiled), spoiled, spoiled.truth) for recording in of(load("corrected"), subject) for spoiled in damaged(curve, value, recording)]
    means = {key: [s[key] for s in scores if s[key] is not None] for key in scores[0]}
    return {key: round(float(np.mean(values)), 3) if values else None for key, values in means.items()}


def confusion(labeler: Labeler, subject: str) -> list[list[int]]:
    "True marker (the last number: a ghost), given one (the last: none), samples."
    counts = np.zeros((len(MARKERS) + 1,) * 2, int)
    for recording in of(load("corrected"), subject):
        spoiled = spoil(recording, BIOMECHZOO, seed=SEED)
        names, there = named(labeler, spoiled)[0], spoiled.recording.visible
        counts += confusion_table(spoiled.truth[there], names[there], len(MARKERS))
    return [[int(true), int(given), int(counts[true, given])] for true, given in np.argwhere(counts)]


def people(net: str, subject: str, number: int, args: Namespace) -> dict:
    "Learned from so many people."
    others = sorted({r.name.split("/")[0] for r in load("corrected")} - {subject})
    chosen = np.random.default_rng(int(subject[2:5])).permutation(others)[:number]
    left_out = (subject, *(other for other in others if other not in chosen))
    trained = train(TrainConfig(data_path="biomechzoo", holdout=left_out, model_type=net, output_dir=None, max_steps=args.steps, num_epochs=-(-args.steps // 100), device="cpu", progress=False, tensorboard=False))
    return {"steps": args.steps, **point(trained.labeler, subject, "people", number)}


def looks(net: str, subject: str, args: Namespace, marker: str = "RTOE", frames: int = 120, read: int = 30) -> dict:
    "Weights of each attention layer for one marker in one window, mean over the heads; and where the marker was."
    config = TrainConfig(data_path="biomechzoo", holdout=(subject,), model_type=net, output_dir=None, frames_read=read, max_steps=args.look_steps, num_epochs=-(-args.look_steps // 100), device="cpu", progress=False, tensorboard=False)
    trained = train(config)
    recording = of(load("corrected"), subject)[0].resample(config.rate)
    start = (len(recording.points) - frames) // 2
    look = look_at(trained.labeler, recording, marker, start, frames)
    return {"recording": recording.name, "marker": marker, "steps": args.look_steps, "accuracy": round(trained.accuracy, 4), "probability": round(float(look.probabilities[MARKERS.index(marker)]), 4),
            "seconds": look.seconds.round(3).tolist(), "height_mm": look.height.round(1).tolist(), "weights": [layer.mean(0).numpy().round(4).tolist() for layer in look.weights]}


def one_run(net: str, subject: str, curve: str, args: Namespace) -> dict:
    "All points of a curve for a net and a subject."
    torch.set_num_threads(1)
    row = {"net": net, "subject": subject, "curve": curve}
    if curve == "people": return row | {"points": {str(number): people(net, subject, number, args) for number in CURVES[curve]}}
    if curve == "attention": return row | looks(net, subject, args)
    labeler, _ = trained_on_others(net, subject, args)
    if curve == "confusion": return row | {"counts": confusion(labeler, subject)}
    return row | {"points": {str(value): point(labeler, subject, curve, value) for value in CURVES[curve]}}


def summary(runs: list[dict]) -> list[dict]:
    "Means over subjects, a row for each point."
    out = []
    for net, curve in dict.fromkeys((run["net"], run["curve"]) for run in runs if "points" in run):
        own = [run["points"] for run in runs if (run["net"], run["curve"]) == (net, curve)]
        for value in own[0]:
            line = {"net": net, "curve": curve, "value": float(value), "subjects": len(own)}
            for key in "frames", "vote", "ghosts":
                values = [points[value][key] for points in own if points[value][key] is not None]
                line |= {key: round(float(np.mean(values)), 2) if values else None}
            out.append(line | {"vote worst": round(min(points[value]["vote"] for points in own), 2)})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", default="runs/labeler_folds", help="folder of nets, as `labeler.py --keep` makes it; the place for those that are not there")
    parser.add_argument("--curves", nargs="+", choices=(*CURVES, "confusion", "attention"), default=[*CURVES, "confusion", "attention"], help="which")
    parser.add_argument("--nets", nargs="+", choices=("hybrid", "lstm", "transformer"), default=["hybrid", "lstm"], metavar="NAME", help="which nets; `people` and `confusion` take the first")
    parser.add_argument("--subjects", nargs="+", default=sorted({r.name.split("/")[0] for r in load("corrected")}), help="who is held out, one after the other")
    parser.add_argument("--people_subjects", nargs="+", default=["HC032A", "HC038A"], help="who is held out where the number of people is the question, and the first where attention is")
    parser.add_argument("--steps", type=int, default=1000, help="of training for each number of people")
    parser.add_argument("--look_steps", type=int, default=500, help="of training for the nets whose attention is shown")
    parser.add_argument("--minutes", type=float, default=5., help="of training for a net that is not in the folder, at most")
    parser.add_argument("--seed", type=int, default=0, help="of training, as in `labeler.py`")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--name", default="labeler_curves", help="of the file in results")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier, stopped call has measured")
    args = parser.parse_args()
    runs = earlier_rows(args.name, args.fresh)
    done = {(run["net"], run["subject"], run["curve"]) for run in runs}
    todo = []
    for curve in args.curves:
        nets = {"people": args.nets[:1], "confusion": args.nets[:1], "attention": LOOKED_AT}.get(curve, args.nets)
        subjects = {"people": args.people_subjects, "attention": args.people_subjects[:1]}.get(curve, args.subjects)
        todo += [(net, subject, curve, args) for net in nets for subject in subjects if (net, subject, curve) not in done]
    for run in side_by_side(one_run, todo, args.workers):
        runs = sorted([*runs, run], key=lambda run: (run["curve"], run["net"], run["subject"]))
        save(args.name, runs, seed=SEED, markers=list(MARKERS), threads_per_run=1, summary=summary(runs))
    print(table(summary(runs)) if summary(runs) else json.dumps(runs)[:500])
    print(RESULTS / f"{args.name}.json")


if __name__ == "__main__": main()
