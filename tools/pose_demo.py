"""Train the small pose generators that come with the package, and keep them in stage_modules/unet1d/demo.

    python tools/pose_demo.py [NAME ...]

NAME is flow_conv, flow_attention, ddpm_conv or ddpm_attention, all of them without one. A few minutes each on one core."""
import sys
from pathlib import Path

import torch

from stage_modules.unet1d.sample import save_generator
from stage_modules.unet1d.train import TrainConfig, train

FOLDER = Path(__file__).resolve().parent.parent / "stage_modules/unet1d/demo"
NAMES = [f"{model_type}_{mid}" for model_type in ("flow", "ddpm") for mid in ("conv", "attention")]


def settings(name: str) -> TrainConfig:
    "Procedural poses, and a network of a tenth of a million weights: 200 KiB in 16 bits."
    model_type, mid = name.split("_")
    return TrainConfig(model_type=model_type, mid_structure=mid, mid_num_heads=4, base_channels=16, time_emb_dim=64,
                       batch_size=64, learning_rate=5e-3, num_epochs=50, tensorboard=False, output_dir=None)


def main(names: list[str]) -> None:
    unknown = sorted(set(names) - set(NAMES))
    if unknown: sys.exit(f"there is no demo model {unknown[0]!r}; there are {', '.join(NAMES)}")
    for name in names or NAMES:
        result = train(settings(name))
        if result.interrupted: sys.exit(f"{name}: interrupted, nothing was written")
        save_generator(result.generator, FOLDER / name, torch.float16)
        size = (FOLDER / name / "model.safetensors").stat().st_size
        print(f"{name}: {result.seconds:.0f} s, validation loss {[row["valid_loss"] for row in result.history if "valid_loss" in row][-1]:.3f}, {size / 2**10:.0f} KiB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
