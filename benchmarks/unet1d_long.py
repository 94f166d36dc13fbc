"""A longer training on real poses, by the commands that a reader types: how near to real its samples are, and what it took.

    python benchmarks/unet1d_long.py                    about ten minutes of training on two cores
    python benchmarks/unet1d_long.py --steps 300        a look

Runs `python -m stage_modules.unet1d.train --data_path cmu` with a number of steps, then `python -m stage_modules.unet1d.sample`, each in a process of its own, and measures the samples
against poses that training did not see (`stage_modules.unet1d.quality`), every figure beside what real poses score. Writes results/unet1d_long.json."""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from common import save

from stage_modules.unet1d.poses import cmu_skeleton, load_cmu, split_clips
from stage_modules.unet1d.quality import measure_quality

NEEDS_DATA = "cmu-mocap/02.asf"


def run(module: str, *flags: object) -> list[str]:
    "A command of the stage, as it is typed."
    command = ["python", "-m", f"stage_modules.unet1d.{module}", *map(str, flags)]
    subprocess.run([sys.executable, *command[1:]], check=True)
    return command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000, help="of training")
    parser.add_argument("--base_channels", type=int, default=32, help="channels of the first level")
    parser.add_argument("--mid_structure", choices=["conv", "attention"], default="attention", help="the middle")
    parser.add_argument("--batch_size", type=int, default=64, help="poses in a step")
    parser.add_argument("--num_samples", type=int, default=1000, help="poses that are measured")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="the highest")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--data_path", "cmu", "--model_type", "flow", "--mid_structure", args.mid_structure, "--base_channels", args.base_channels, "--batch_size", args.batch_size,
                 "--epochs", 1000, "--max_steps", args.steps, "--learning_rate", args.learning_rate, "--no-progress"]
        start = time.perf_counter()
        command = run("train", *flags, "--output_dir", folder, "--exp_name", "long")
        seconds = time.perf_counter() - start
        state = json.loads(Path(folder, "long/last/state.json").read_text(encoding="utf-8"))
        run("sample", "--ckpt", f"{folder}/long", "--num_samples", args.num_samples, "--save_numpy", f"{folder}/made.npy")
        made = np.load(f"{folder}/made.npy")
    split = split_clips(load_cmu())
    report = measure_quality(made, split.test, split.train, cmu_skeleton())
    print(report)
    command[command.index("--output_dir") + 1] = "runs/poses"
    rows = [{"name": "minutes of training", "value": round(seconds / 60, 2)}, {"name": "steps", "value": state["progress"]["step"]},
            {"name": "validation loss", "value": round(state["progress"]["best"], 4)}, {"name": "Frechet distance over its floor", "value": round(report.frechet_ratio, 4)},
            *({"name": key, "value": round(value, 5)} for key, value in asdict(report).items())]
    save("unet1d_long", rows, command=command, split=split.how)


if __name__ == "__main__": main()
