"""Names of markers on real recordings: the three nets and two labelers without learning, each subject named by what it learned from the seven others.

    python benchmarks/labeler.py                                   hybrid and LSTM, eight subjects each (about an hour on two cores)
    python benchmarks/labeler.py --nets hybrid --subjects HC031A --minutes 2   a look

biomechzoo, 56 markers, straight walks and turns. Labels are the corrected ones; the clean recordings are marked against the published ones too. Three conditions: `clean`, whole trajectories in
random order; `damaged`, a fifth of the samples hidden in gaps of 0.05 to 0.5 s, each piece a trajectory of its own, two ghosts, several draws. Shares are of the samples of real markers:
`frames` before the vote and everything else that labelling does with whole trajectories, `vote` after it. `ghosts` is the share of ghost samples that got a marker's name. A run is one process with one thread, two side by side.
What the nets and the published names disagree about goes into the results as `doubts`. Writes results/labeler.json after each run and goes on where it was stopped (`--fresh` begins anew)."""
import argparse
import json
import statistics
import time
from functools import cache

import numpy as np
import torch
from common import earlier_rows, save, side_by_side, table

from stage_modules.labeler.label import Labeler
from stage_modules.labeler.markers import BIOMECHZOO, Recording, load_biomechzoo
from stage_modules.labeler.recordings import example_poses, label_by_poses, majority, shares_right
from stage_modules.labeler.simulate import Spoiled, spoil
from stage_modules.labeler.train import TrainConfig, train

NEEDS_DATA = "biomechzoo/HC002D/Straight/HC002D06.c3d"
MARKERS = BIOMECHZOO.markers
NETS, BASELINES = ("hybrid", "lstm", "transformer"), ("standing pose", "walking poses")


@cache
def load(kind: str) -> list[Recording]:
    "Walks as corrected or as published; `static` are the standing people."
    return load_biomechzoo(trials=("Static",)) if kind == "static" else load_biomechzoo(corrected=kind == "corrected")


def of(recordings: list[Recording], subject: str, without: bool = False) -> list[Recording]:
    "One subject's recordings, or everybody else's."
    return [r for r in recordings if r.name.startswith(subject) != without]


def conditions(recording: Recording, draws: int) -> dict[str, Spoiled]:
    "The recording as the cameras deliver it."
    clean = spoil(recording, BIOMECHZOO, occlusion=0, ghosts=0, fragments=False)
    return {"clean": clean, **{f"damaged {seed}": spoil(recording, BIOMECHZOO, seed=seed) for seed in range(draws)}}


def published_truth(truth: np.ndarray, corrected: Recording, published: Recording) -> np.ndarray:
    "The same samples by their published names, (F, N)."
    same = np.isclose(corrected.points[:, :, None], published.points[:, None], equal_nan=False).all(-1) # (F, M true, M published)
    name = np.where(same.any(-1), same.argmax(-1), -1)
    return np.where(truth >= 0, np.take_along_axis(name, truth.clip(0).astype(int), 1), -1)


def score(found: np.ndarray, voted: np.ndarray, spoiled: Spoiled, truth: np.ndarray) -> dict[str, float]:
    "Shares in per cent."
    frames, vote = shares_right(found, voted, truth)
    ghost = spoiled.recording.visible & (spoiled.truth < 0)
    return {"frames": round(100 * frames, 3), "vote": round(100 * vote, 3), "ghosts": round(100 * float((np.broadcast_to(voted, ghost.shape) >= 0)[ghost].mean()), 2) if ghost.any() else None}


def name_all(namer, subject: str, args: argparse.Namespace, more: dict) -> list[dict]:
    "A row for each recording and condition. `namer` gives names of samples and of trajectories."
    rows = []
    for corrected, published in zip(of(load("corrected"), subject), of(load("published"), subject)):
        for condition, spoiled in conditions(corrected, args.draws).items():
            start = time.process_time()
            found, voted = namer(spoiled.recording)
            spent = {"cpu_seconds": round(time.process_time() - start, 2), "seconds_recorded": round(corrected.seconds, 2)}
            row = {**more, "recording": corrected.name, "condition": condition, **score(found, voted, spoiled, spoiled.truth), **spent}
            if condition == "clean":
                theirs = published_truth(spoiled.truth, corrected, published)
                row |= {f"{key}_published": value for key, value in score(found, voted, spoiled, theirs).items() if key != "ghosts"}
            rows.append(row)
    return rows


def baseline(name: str, subject: str, args: argparse.Namespace) -> dict:
    "Poses of the seven others, standing or walking."
    torch.set_num_threads(1)
    examples = load("static") if name == "standing pose" else [r for r in load("corrected") if "Straight" in r.name]
    poses = example_poses(of(examples, subject, without=True), BIOMECHZOO)
    def namer(recording: Recording):
        found = label_by_poses(recording, poses)
        return found, majority(found, len(MARKERS))
    return {"net": name, "subject": subject, "rows": name_all(namer, subject, args, {})}


def doubts(labeler, subject: str) -> list[dict]:
    "Trajectories, as published, that the net gives another name."
    out = []
    for recording in of(load("published"), subject):
        labelling = labeler.label(recording.shuffled(0)[0])
        order = recording.shuffled(0)[1]
        for column, label in enumerate(labelling.labels):
            was = recording.labels[order[column]]
            if label != was: out.append({"recording": recording.name, "published": was, "net": label, "confidence": round(float(labelling.confidence[column]), 3)})
    return out


def trained_on_others(net: str, subject: str, args: argparse.Namespace):
    "A labeler that has learned from the seven others, and how long that took; from the folder of an earlier call where there is one."
    config = TrainConfig(data_path="biomechzoo", holdout=(subject,), model_type=net, output_dir=args.keep, exp_name=f"{net}-{subject}-{args.seed}", max_minutes=args.minutes, num_epochs=1000,
                         seed=args.seed, device="cpu", progress=False, tensorboard=False)
    facts = config.folder and config.folder / "facts.json"
    if not (facts and facts.exists()):
        start, trained = time.process_time(), train(config)
        found = {"minutes": round(trained.seconds / 60, 2), "cpu_minutes": round((time.process_time() - start) / 60, 2), "steps": trained.history[-1]["step"],
                 "parameters": sum(p.numel() for p in trained.net.parameters()), "valid_accuracy": round(trained.accuracy, 5), "interrupted": trained.interrupted}
        if not facts: return trained.labeler, found
        facts.write_text(json.dumps(found), encoding="utf-8")
    return Labeler.load(config.folder), json.loads(facts.read_text(encoding="utf-8"))


def fold(net: str, subject: str, args: argparse.Namespace) -> dict:
    "Train on seven, name the eighth."
    torch.set_num_threads(1)
    labeler, facts = trained_on_others(net, subject, args)
    index = {name: i for i, name in enumerate(MARKERS)}
    def namer(recording: Recording):
        labelling = labeler.label(recording)
        return labelling.frame_labels, np.array([index.get(name, -1) for name in labelling.labels])
    return {"net": net, "subject": subject, "seed": args.seed, **facts, "rows": name_all(namer, subject, args, {}), "doubts": doubts(labeler, subject)}


def one_run(net: str, subject: str, args: argparse.Namespace) -> dict:
    "A labeler and a subject."
    return (baseline if net in BASELINES else fold)(net, subject, args)


def summary(runs: list[dict]) -> list[dict]:
    "Means over subjects (each counts once), and the worst subject."
    out = []
    for net in dict.fromkeys(run["net"] for run in runs):
        own = [run for run in runs if run["net"] == net]
        row = {"net": net, "subjects": len(own)}
        for condition in "clean", "damaged":
            for key in ("frames", "vote", *(["frames_published", "vote_published"] if condition == "clean" else ["ghosts"])):
                means = [statistics.mean(r[key] for r in run["rows"] if r["condition"].startswith(condition)) for run in own]
                row |= {f"{condition} {key}": round(statistics.mean(means), 2), f"{condition} {key} worst": round(max(means) if key == "ghosts" else min(means), 2)}
        if "cpu_minutes" in own[0]: row |= {"minutes": round(statistics.mean(run["minutes"] for run in own), 2), "minutes longest": max(run["minutes"] for run in own), "steps": round(statistics.mean(run["steps"] for run in own))}
        out.append(row)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=(*BASELINES, *NETS), default=[*BASELINES, "hybrid", "lstm"], metavar="NAME", help="which labelers")
    parser.add_argument("--subjects", nargs="+", default=sorted({r.name.split("/")[0] for r in load("corrected")}), help="who is held out, one after the other")
    parser.add_argument("--minutes", type=float, default=8., help="of training a fold, at most")
    parser.add_argument("--draws", type=int, default=3, help="of damage for each recording")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--name", default="labeler", help="of the file in results")
    parser.add_argument("--keep", help="folder for the trained nets; a later call takes what is there instead of training again")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier, stopped call has measured")
    args = parser.parse_args()
    settings = {"draws": args.draws, "seed": args.seed}
    runs = earlier_rows(args.name, args.fresh, **settings)
    done = {(run["net"], run["subject"]) for run in runs}
    todo = [(net, subject, args) for net in args.nets for subject in args.subjects if (net, subject) not in done]
    order = (*BASELINES, *NETS)
    for run in side_by_side(one_run, todo, args.workers):
        runs = sorted([*runs, run], key=lambda run: (order.index(run["net"]), run["subject"]))
        save(args.name, runs, **settings, threads_per_run=1, summary=summary(runs))
    wide = ("net", "subjects", "clean frames", "clean vote", "clean vote_published", "damaged frames", "damaged vote", "damaged vote worst", "damaged ghosts")
    print(table([{key: row[key] for key in wide} for row in summary(runs)]))


if __name__ == "__main__": main()
