"""A labeler that has seen simulations only, on a real recording of another marker set: 62 markers, from lying face down to running; then after a short transfer to one part of the recording, on the other.

    python benchmarks/labeler_pronto.py                     about ten minutes on two cores
    python benchmarks/labeler_pronto.py --minutes 1         a look

Training: simulated people with the recording's own marker set (OpenSim XML). Test: PronetoRun01, all names taken away, whole trajectories; `frames` is the share of samples named right before the vote, `vote` after it, in per cent.
There is one labelled recording of this marker set. So transfer learns from the first two fifths and is tested on the last two, and the other way round; the fifth between belongs to neither. Each transfer once with nothing but those frames, once with half of the windows still showing the simulated people.
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


def score(labeler: Labeler, recording: Recording, markers: tuple[str, ...]) -> dict[str, float]:
    "Names taken away, and given back by the labeler."
    nameless, order = recording.shuffled(0)
    labelling, index = labeler.label(nameless), {name: i for i, name in enumerate(markers)}
    truth = np.where(nameless.visible, [index[recording.labels[i]] for i in order], -1)
    frames, vote = shares_right(labelling.frame_labels, np.array([index.get(name, -1) for name in labelling.labels]), truth)
    return {"frames": round(100 * frames, 2), "vote": round(100 * vote, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6., help="of training on simulations, at most")
    parser.add_argument("--transfer_minutes", type=float, default=1., help="of each transfer, at most")
    parser.add_argument("--subjects", type=int, default=40, help="simulated people, five trials each")
    parser.add_argument("--model_type", default="hybrid", choices=["hybrid", "lstm", "transformer"])
    parser.add_argument("--keep", help="folder for the net that has seen simulations only; a later call takes what is there")
    args = parser.parse_args()
    marker_set = opensim_markers()
    whole = load_pronto().select(marker_set.markers).resample(100.)
    fifth = len(whole.points) // 5
    parts = {"first two fifths": whole.cut(0, 2 * fifth), "last two fifths": whole.cut(3 * fifth)}
    with tempfile.TemporaryDirectory() as place:
        first = Path(args.keep or place, "simulated")
        facts = first / "facts.json"
        if not facts.exists():
            trained = train(TrainConfig(marker_set=str(fetch("auto-marker-label/MarkerSet.xml")), subjects=args.subjects, model_type=args.model_type, output_dir=str(first.parent), exp_name=first.name, num_epochs=1000,
                                        max_minutes=args.minutes, tensorboard=False, progress=False))
            facts.write_text(json.dumps({"steps": trained.history[-1]["step"], "valid_accuracy": round(trained.accuracy, 5)}), encoding="utf-8")
        labeler = Labeler.load(first)
        rows = [{"labeler": "simulations only", "tested on": name, **score(labeler, part, marker_set.markers)} for name, part in {"all": whole, **parts}.items()]
        for rehearse in 0., .5:
            for learned, tested in (list(parts), list(parts)[::-1]):
                write_c3d(replace(parts[learned], name=learned), Path(place, f"{learned}.c3d"), overwrite=True)
                moved = transfer(TransferConfig(str(first), str(Path(place, f"{learned}.c3d")), output_dir=place, exp_name=f"{learned} {rehearse}", num_epochs=1000, max_minutes=args.transfer_minutes, rehearse=rehearse, progress=False))
                rows.append({"labeler": f"transfer to {learned}" + (", half simulated" if rehearse else ", nothing else"), "tested on": tested, **score(moved.labeler, parts[tested], marker_set.markers)})
        known = json.loads(facts.read_text(encoding="utf-8"))
    print(table(rows))
    save("labeler_pronto", rows, minutes=args.minutes, transfer_minutes=args.transfer_minutes, subjects=args.subjects, model_type=args.model_type, **known)


if __name__ == "__main__": main()
