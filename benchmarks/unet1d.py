"""Training steps per second and peak memory of the UNet with either middle, beside diffusers' UNet1DModel and denoising-diffusion-pytorch's Unet1D of about as many parameters.

    python benchmarks/unet1d.py --rivals .work/rivals          all of it (about fifteen minutes on two cores)
    python benchmarks/unet1d.py --batches 64 --repeats 3 --no-compile --no-half   a look

A step is the same for all: noisy poses of 72 numbers and times in, mean squared error against noise, backward, fused AdamW. The rivals of one batch size run in
turns, one step each a round; medians over the rounds, and the median of each round's own ratio. Bytes are the most tensor memory alive at once in a step beyond weights,
optimizer and batch (`stage_modules.attention.cost.peak_memory`). Ours also with all convolutions left to PyTorch, compiled (`torch.compile`), and in bfloat16 autocast, as lines of their own.
Widths of the rivals are chosen by parameters: theirs cannot be had with exactly ours. `--device cuda` for a GPU. Let nothing else run meanwhile.

denoising-diffusion-pytorch wants torchvision, which this needs not: without its dependencies, in a folder of its own,

    pip install --no-deps --target .work/rivals denoising-diffusion-pytorch==2.3.4 ema-pytorch

Without `--rivals` it is left out. Writes results/unet1d.json, on a GPU results/unet1d_cuda.json."""
import argparse
import importlib
import platform
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from importlib.metadata import version

import torch
from common import earlier_rows, save, table
from torch import Tensor, nn
from torch.nn import functional as F

from stage_modules.attention.cost import peak_memory, time_side_by_side
from stage_modules.unet1d import blocks
from stage_modules.unet1d.model import UNet1D

POSE, MIDDLES = 72, ("conv", "attention")


class Diffusers(nn.Module):
    "diffusers.UNet1DModel as it is made for sound, three levels, its widths chosen for 5.9 million parameters."

    def __init__(self):
        from diffusers import UNet1DModel

        super().__init__()
        widths = (48, 96, 192)
        self.net = UNet1DModel(sample_size=POSE, in_channels=1, out_channels=1, extra_in_channels=2 * widths[0], time_embedding_type="fourier", block_out_channels=widths,
                               down_block_types=("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"), up_block_types=("AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"))

    def forward(self, x: Tensor, time: Tensor) -> Tensor: return self.net(x.unsqueeze(1), time).sample.squeeze(1)


class DenoisingDiffusion(nn.Module):
    "denoising_diffusion_pytorch.Unet1D, three levels, its width chosen for 5.7 million parameters; the module of one dimension alone, without the package's images."

    def __init__(self, folder: str):
        super().__init__()
        if folder not in sys.path: sys.path.insert(0, folder)
        if "denoising_diffusion_pytorch" not in sys.modules:
            package = types.ModuleType("denoising_diffusion_pytorch")
            package.__path__ = [f"{folder}/denoising_diffusion_pytorch"]
            sys.modules[package.__name__] = package
        module = importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch_1d")
        self.net = module.Unet1D(dim=72, dim_mults=(1, 2, 4), channels=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor: return self.net(x.unsqueeze(1), time).squeeze(1)


class Step:
    "A training step of one network, to be called again and again."

    def __init__(self, model: nn.Module, batch: int, device: str, half: bool = False, compiled: bool = False, short: int | None = None):
        self.model, self.half, self.short, self.compiled = model.to(device), half, short, compiled
        self.net = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        generator = torch.Generator().manual_seed(0)
        self.x, self.noise = (torch.randn(batch, POSE, generator=generator).to(device) for _ in range(2))
        self.time = torch.randint(0, 1000, (batch,), generator=generator).float().to(device)
        self.device = device

    def __call__(self) -> None:
        usual = blocks.SHORT
        if self.short is not None: blocks.SHORT = self.short
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half): loss = F.mse_loss(self.net(self.x, self.time).float(), self.noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        blocks.SHORT = usual


def rivals(args: argparse.Namespace) -> dict[str, Callable[..., Step]]:
    "A maker for each line of the table."
    def ours(middle: str, **how): return lambda batch: Step(UNet1D(mid_structure=middle), batch, args.device, **how)
    made = {f"ours, {middle}": ours(middle) for middle in MIDDLES}
    made["diffusers"] = lambda batch: Step(Diffusers(), batch, args.device)
    if args.rivals: made["denoising-diffusion-pytorch"] = lambda batch: Step(DenoisingDiffusion(args.rivals), batch, args.device)
    if args.device == "cpu": made |= {f"ours, {middle}, PyTorch's convolution throughout": ours(middle, short=0) for middle in MIDDLES}
    if args.half: made |= {f"ours, {middle}, bfloat16": ours(middle, half=True) for middle in MIDDLES}
    if args.compile: made |= {f"ours, {middle}, compiled": ours(middle, compiled=True) for middle in MIDDLES}
    return made


def measure(batch: int, args: argparse.Namespace) -> list[dict]:
    "A row for each rival at one batch size."
    steps, first, failed = {}, {}, {}
    for name, make in rivals(args).items():
        torch.manual_seed(0)
        step, start = make(batch), time.perf_counter()
        try: step()
        except Exception as error: # no compiler for torch.compile, no bfloat16: a line that says so
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            continue
        steps[name], first[name] = step, time.perf_counter() - start
    peaks = {name: peak_memory(step, args.device) for name, step in steps.items()}
    seconds = time_side_by_side(steps, repeats=args.repeats, device=args.device)
    theirs = [name for name in steps if not name.startswith("ours")]
    fastest = [min(seconds[name][n] for name in theirs) for n in range(args.repeats)]
    rows = []
    for name, step in steps.items():
        rows.append({"network": name, "batch": batch, "parameters": sum(p.numel() for p in step.model.parameters()), "steps_per_second": round(1 / statistics.median(seconds[name]), 4),
                     "over_faster_rival": round(statistics.median(f / s for f, s in zip(fastest, seconds[name])), 3), "peak_mib": round(peaks[name] / 2**20, 1),
                     "first_step_seconds": round(first[name], 2)})
    return rows + [{"network": name, "batch": batch, "failed": why} for name, why in failed.items()]


def driver() -> str | None:
    "The version of the GPU's driver."
    try: return subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError): return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512], help="poses in a step")
    parser.add_argument("--repeats", type=int, default=9, help="rounds")
    parser.add_argument("--rivals", help="folder with denoising-diffusion-pytorch; left out if not given")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where")
    parser.add_argument("--half", action=argparse.BooleanOptionalAction, default=True, help="also in bfloat16, which is slow where a processor has no instructions for it")
    parser.add_argument("--add", action="store_true", help="keep the lines of an earlier call, and add those that it lacks")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="also compiled")
    args = parser.parse_args()
    name = "unet1d" if args.device == "cpu" else "unet1d_cuda"
    rows = earlier_rows(name, fresh=not args.add)
    for batch in args.batches:
        found = measure(batch, args)
        done = [row for row in found if "failed" not in row]
        print(table(done), flush=True)
        for row in found:
            if "failed" in row: print(f"{row['network']}: {row['failed']}", flush=True)
        there = {(row["network"], row["batch"]) for row in rows}
        rows += [row for row in found if (row["network"], row["batch"]) not in there]
        more = {"driver": driver()} if args.device == "cuda" else {"bf16_instructions": bool(torch.cpu.get_capabilities().get("avx512_bf16"))}
        save(name, rows, repeats=args.repeats, device=args.device, diffusers=version("diffusers"), compiler=platform.python_compiler(), **more)


if __name__ == "__main__": main()
