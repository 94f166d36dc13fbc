"""A labeler that has seen simulations only, on a real recording of another marker set: 62 markers, from lying face down to running; then after a short transfer to one part of the recording, on the other.

    python benchmarks/labeler_pronto.py                     about ten minutes on two cores
    python benchmarks/labeler_pronto.py --steps 200         a look

Training: simulated people with the recording's own marker set (OpenSim XML). Test: PronetoRun01, all names taken away, whole trajectories; `frames` is the share of samples named right before the vote, `vote` after it, in per cent.
There is one labelled recording of this marker set. So transfer learns from a part of it: the first two fifths, with a test on the last two; the other way round; or every other fifth, with a test on the two between, which is nearer to what a laboratory does. Each transfer once with nothing but those frames, once with half of the windows still showing the simulated people.
Writes results/labeler_pronto.json."""
import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import save, table

from stage_modules.labeler.label import Labeler
from stage_modules.labeler.markers import Recording, load_pronto, opensim_markers, write_c3d
from stage_modules.labeler.recordings import shares_right
from stage_modules.labeler.train import TrainConfig, train
from stage_modules.labeler.transfer import TransferConfig, transfer
from stage_modules.toolkit.datasets import fetch

NEEDS_DATA = "auto-marker-label/PronetoRun01.c3d"


def score(labeler: Labeler, recordings: list[Recording], markers: tuple[str, ...]) -> dict[str, float]:
    "Names taken away, and given back by the labeler; samples count alike."
    index, right, samples = {name: i for i, name in enumerate(markers)}, np.zeros(2), 0
    for recording in recordings:
        nameless, order = recording.shuffled(0)
        labelling = labeler.label(nameless)
        truth = np.where(nameless.visible, [index[recording.labels[i]] for i in order], -1)
        seen = int((truth >= 0).sum())
        right += seen * np.array(shares_right(labelling.frame_labels, np.array([index.get(name, -1) for name in labelling.labels]), truth))
        samples += seen
    return {"frames": round(100 * right[0] / samples, 2), "vote": round(100 * right[1] / samples, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1800, help="of training on simulations")
    parser.add_argument("--transfer_steps", type=int, default=200, help="of each transfer")
    parser.add_argument("--subjects", type=int, default=40, help="simulated people, five trials each")
    parser.add_argument("--model_type", default="hybrid", choices=["hybrid", "lstm", "transformer"])
    parser.add_argument("--keep", help="folder for the net that has seen simulations only; a later call takes what is there")
    args = parser.parse_args()
    marker_set = opensim_markers()
    whole = load_pronto().select(marker_set.markers).resample(100.)
    fifth = len(whole.points) // 5
    cut = lambda first, last: [whole.cut((first - 1) * fifth, last * fifth)]
    cases = {"the first two fifths": (cut(1, 2), cut(4, 5)), "the last two fifths": (cut(4, 5), cut(1, 2)), "every other fifth": (cut(1, 1) + cut(3, 3) + cut(5, 5), cut(2, 2) + cut(4, 4))}
    with tempfile.TemporaryDirectory() as place:
        first = Path(args.keep or place, "simulated")
        facts = first / "facts.json"
        if not facts.exists():
            trained = train(TrainConfig(marker_set=str(fetch("auto-marker-label/MarkerSet.xml")), subjects=args.subjects, model_type=args.model_type, output_dir=str(first.parent), exp_name=first.name, num_epochs=1000,
                                        max_steps=args.steps, device="cpu", tensorboard=False, progress=False))
            facts.write_text(json.dumps({"steps": trained.history[-1]["step"], "valid_accuracy": round(trained.accuracy, 5), "minutes": round(trained.seconds / 60, 1)}), encoding="utf-8")
        labeler = Labeler.load(first)
        rows = [{"labeler": "simulations only", "tested on": "everything", **score(labeler, [whole], marker_set.markers)}]
        rows += [{"labeler": "simulations only", "tested on": f"what is not {name}", **score(labeler, tested, marker_set.markers)} for name, (_, tested) in cases.items()]
        for rehearse in 0., .5:
            for name, (learned, tested) in cases.items():
                Path(place, name).mkdir(exist_ok=True)
                for i, part in enumerate(learned): write_c3d(replace(part, name=f"part {i}"), Path(place, name, f"part {i}.c3d"), overwrite=True)
                moved = transfer(TransferConfig(str(first), str(Path(place, name)), output_dir=place, exp_name=f"{name} {rehearse}", num_epochs=1000, max_steps=args.transfer_steps, rehearse=rehearse, progress=False))
                rows.append({"labeler": f"transfer to {name}" + (", half simulated" if rehearse else ", nothing else"), "tested on": f"what is not {name}", **score(moved.labeler, tested, marker_set.markers)})
        known = json.loads(facts.read_text(encoding="utf-8"))
    print(table(rows))
    save("labeler_pronto", rows, transfer_steps=args.transfer_steps, subjects=args.subjects, model_type=args.model_type, **known)


if __name__ == "__main__": main()
