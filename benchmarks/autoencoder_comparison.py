"""Patch transformer and CNN of equal parameters and equal latent, on drawn drops: cost, copies at equal seconds and at equal steps, what a linear map reads from the embeddings, few images, other sizes.

    python benchmarks/autoencoder_comparison.py                  two cores: tiny and small, about twelve minutes
    python benchmarks/autoencoder_comparison.py --device cuda    a GPU: tiny to large, bfloat16 autocast for both nets, less than 200 seconds
    python benchmarks/autoencoder_comparison.py --quick          tiny alone, 3 seconds each

`cost`: parameters, operations, peak memory of a training step (beyond weights, optimizer and batch), latency of one image and images per second, all nets in turns. The CNN is timed in both memory layouts, and has the faster one from there on.
`rates`: for each preset every net looks for its learning rate: short runs with a cosine to zero at two rates, then a factor of 2 on into the better direction, twice at most; the training loss at the end decides. Short runs like high rates, so that the lowest rate within a tenth of the best loss is taken.
`training`: both nets train in turns, half a second each, so that slow moments of the machine fall on both; a net's clock runs only in its own turns. AdamW with betas (.9, .95), warm-up over a twentieth, cosine to zero, gradients clipped at norm 1. Equal steps: the net that took more
steps in equal seconds trains anew with as many steps as the other one took. Held-out figures are means over 128 drops. Probes are fitted on embeddings of 1,000 drops and tested on 500 others: R2 (1 is perfect, 0 is the mean) of a linear map, its ridge chosen on a fifth of the 1,000, and of
the mean of five nearest neighbours; strips have half as many, and on a CPU the runs of equal steps have none. `muon`: the race once more, with Muon for the matrices inside either net, and rates that were looked for with it. `floors`: the mean image; probes of nets with fresh weights and of the pixels themselves, 8 by 8 of them averaged.
Writes results/autoencoder_comparison.json, on a GPU results/autoencoder_comparison_cuda.json, after each row; what would not end within --limit seconds is left out, and named."""
import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from common import cores, save, table
from torch import Tensor, nn
from torch.nn import functional as F

from stage_modules.attention.cost import peak_memory, time_side_by_side
from stage_modules.autoencoder.cnn import ModelSettings, build_model, count_parameters
from stage_modules.autoencoder.comparison import (
    Racer,
    end_loss,
    in_turns,
    operations,
    pick_factor,
    read_labels,
    try_rates,
)
from stage_modules.autoencoder.images import DropImages, real_images
from stage_modules.autoencoder.model import PRESETS

try:
    from stage_modules.autoencoder.train import Muon, image_figures, inner_matrices
except ImportError as missing: # a bare machine: the module also reads command lines and data from the web
    print(f"no SSIM and no Muon: {missing}")
    Muon = None
    def image_figures(output: Tensor, images: Tensor) -> dict[str, Tensor]: return {"mse": (output - images).square().flatten(1).mean(1), "l1": (output - images).abs().flatten(1).mean(1)}

BEGUN = time.perf_counter()
NETS = ("transformer", "cnn")
SIZE, STRIP = (201, 201), (152, 640)
LABELS = ("radius", "row", "column", "speed")
STRIDES = {"cnn, strides 2 2 2 2": (2, 2, 2, 2), "cnn, strides 8 2": (8, 2)} # the other ways to a sixteenth


def draw_some(count: int, size: tuple[int, int], seed: int, items: range) -> np.ndarray:
    "Drops as 8-bit numbers, in a process of its own."
    torch.set_num_threads(1)
    return torch.stack(DropImages(count, size, seed=seed).__getitems__(list(items))).mul(255).round().byte().numpy()


def draw(pool: ProcessPoolExecutor, count: int, size: tuple[int, int], seed: int) -> Callable[[], Tensor]:
    "Begins to draw; what is returned waits for the images, uint8 (count, 1, h, w)."
    parts = [pool.submit(draw_some, count, size, seed, range(i, min(i + 64, count))) for i in range(0, count, 64)]
    return lambda: torch.from_numpy(np.concatenate([part.result() for part in parts]))


def labels(count: int, size: tuple[int, int], seed: int) -> Tensor:
    "What is true of the drops, (count, 4): pixels, and for the speed, which the shape tells, pixels a frame."
    scenes = DropImages(count, size, seed=seed).scenes
    return torch.stack([getattr(scenes, name) for name in LABELS], -1).float()


def draw_all(args: argparse.Namespace) -> dict[str, dict[str, Tensor]]:
    "Everything that is drawn: images to train on, held-out ones, and some with labels, for both sizes."
    sets, start = {}, time.perf_counter()
    counts = {"square": (SIZE, args.images, 1500), "strip": (STRIP, args.images // 4, 750)}
    context = get_context("fork" if sys.platform == "linux" else "spawn") # nothing has run on several threads yet
    with ProcessPoolExecutor(cores(), mp_context=context) as pool:
        begun = {name: (draw(pool, count, size, 1), draw(pool, 128, size, 2), draw(pool, known, size, 3)) for name, (size, count, known) in counts.items()}
        for name, waiting in begun.items(): sets[name] = dict(zip(("train", "valid", "probe"), (wait() for wait in waiting)))
    for name, (size, _, known) in counts.items(): sets[name]["labels"] = labels(known, size, 3)
    print(f"drawn in {time.perf_counter() - start:.1f} s with {cores()} processes", flush=True)
    return {name: {key: value.to(args.device) for key, value in found.items()} for name, found in sets.items()}


def real_set(args: argparse.Namespace) -> dict[str, Tensor]:
    "Pieces of photographs, every fifth held out; no labels."
    images = real_images(SIZE).images.mul(255).round().byte().to(args.device)
    held = torch.arange(len(images)) % 5 == 4
    return {"train": images[~held], "valid": images[held]}


def floats(images: Tensor) -> Tensor:
    "From 8-bit numbers."
    return images.float().div_(255)


def make(name: str, preset: str, seed: int, args: argparse.Namespace) -> nn.Module:
    "A net by its name, with fresh weights."
    torch.manual_seed(seed)
    kind = name.split(",")[0]
    net = build_model(ModelSettings(model_type=kind, preset=preset, dropout=0., **({"strides": STRIDES[name]} if name in STRIDES else {})))
    last = kind == "cnn" and ("channels last" in name or args.channels_last)
    return net.to(args.device, memory_format=torch.channels_last if last else torch.contiguous_format)


def half(args: argparse.Namespace) -> torch.autocast:
    "bfloat16 on a GPU, float32 on a CPU, for both nets."
    return torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda")


def train_step(net: nn.Module, images: Tensor, args: argparse.Namespace) -> Callable[[], None]:
    "Forward, backward and AdamW."
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with half(args): output = net(images)[0]
        F.mse_loss(output.float(), images).backward()
        optimizer.step()
    return run


def without_gradient(call: Callable[[Tensor], object], images: Tensor, args: argparse.Namespace) -> Callable[[], None]:
    "A call in use."
    @torch.no_grad()
    def run() -> None:
        with half(args): call(images)
    return run


def cost(preset: str, size: tuple[int, int], batch: int, names: tuple[str, ...], args: argparse.Namespace) -> list[dict]:
    "A row for each net."
    images = torch.rand(batch, 1, *size, device=args.device)
    nets = {name: make(name, preset, 0, args) for name in names}
    flops = {name: operations(net, size) for name, net in nets.items()}
    steps = {name: train_step(net, images, args) for name, net in nets.items()}
    seconds = {"train": time_side_by_side(steps, args.repeats, 2, args.device)} # warms up: then memory is what it always is
    peaks = {name: peak_memory(step, args.device) for name, step in steps.items()}
    for net in nets.values(): net.eval().zero_grad(set_to_none=True)
    calls = {"embed": ("Embedding", images, args.repeats), "one": ("forward", images[:1], 2 * args.repeats), "one_embed": ("Embedding", images[:1], 2 * args.repeats)}
    for kind, (method, some, repeats) in calls.items():
        seconds[kind] = time_side_by_side({name: without_gradient(getattr(net, method), some, args) for name, net in nets.items()}, repeats, 2, args.device)
    middle = {kind: {name: statistics.median(values) for name, values in found.items()} for kind, found in seconds.items()}
    rows = []
    for name, net in nets.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["train"]["transformer"], seconds["train"][name]))
        rows.append({"preset": preset, "size": list(size), "net": name, "parameters": count_parameters(net), "gflop": round(flops[name] / 1e9, 3), "batch": batch, "peak_mib": round(peaks[name] / 2**20, 1),
                     "latency_ms": round(1000 * middle["one"][name], 3), "latency_embed_ms": round(1000 * middle["one_embed"][name], 3), "train_per_s": round(batch / middle["train"][name], 2),
                     "embed_per_s": round(batch / middle["embed"][name], 2), "train_speed_by_transformer": round(ratio, 3)})
    return rows


def muon(net: nn.Module, rate: float) -> torch.optim.Optimizer:
    "Muon for the matrices inside, AdamW for the rest, as `train --muon` has it."
    inner = inner_matrices(net)
    chosen = {id(p) for p in inner}
    return Muon([{"params": inner, "muon": True}, {"params": [p for p in net.parameters() if id(p) not in chosen]}], lr=rate, betas=(.9, .95))


def racer(name: str, preset: str, seed: int, images: Tensor, rate: float, args: argparse.Namespace, optimizer: Callable | None = None, **budget: float) -> Racer:
    "Either kind of net, at the start."
    return Racer(make(name, preset, seed, args), images, rate, args.batch, args.device == "cuda", seed, optimizer, **budget)


def find_rates(preset: str, images: Tensor, args: argparse.Namespace, optimizer: Callable | None = None) -> tuple[dict[str, float], list[dict]]:
    "A rate for each net, and all that was tried."
    base = .24 / PRESETS[preset].token_dim
    tried = try_rates(lambda name, rate: racer(name, preset, 100, images, rate, args, optimizer, seconds=args.trial), NETS, base, args.trial / 8)
    rates = {name: base * pick_factor(found) for name, found in tried.items()}
    return rates, [{"preset": preset, "net": name, "optimizer": "muon" if optimizer else "adamw", "rate": rates[name], "at_the_edge": min(found, key=found.get) in (min(found), max(found)), "tried": [[base * factor, number(loss)] for factor, loss in sorted(found.items())]} for name, found in tried.items()]


def number(value: float) -> float | None:
    "Six significant digits; None for what is no number, which JSON has no word for."
    return float(f"{value:.6g}") if math.isfinite(value) else None


@torch.no_grad()
def figures(net: nn.Module, images: Tensor, args: argparse.Namespace) -> dict[str, float | None]:
    "Means over held-out images."
    found, net = [], net.eval()
    for some in images.split(args.batch):
        x = floats(some)
        with half(args): output = net(x)[0]
        found.append(image_figures(output.float(), x))
    return {name: number(torch.cat([row[name] for row in found]).mean().item()) for name in found[0]}


@torch.no_grad()
def embed(net: nn.Module, images: Tensor, args: argparse.Namespace) -> Tensor:
    "float32 (N, Z), on the CPU."
    rows, net = [], net.eval()
    for some in images.split(args.batch):
        with half(args): rows.append(net.Embedding(floats(some)).float().cpu())
    return torch.cat(rows)


def probe(z: Tensor, y: Tensor) -> dict[str, float | None]:
    "R2 of each label from a linear map and from neighbours, and how far the linear map misses size and place, in pixels."
    if not z.isfinite().all(): return {}
    found = read_labels(z, y.cpu())
    scores = {f"{kind}_{name}": number(value) for kind in ("linear", "near") for name, value in zip(LABELS, getattr(found, kind).tolist())}
    return scores | {"rmse_radius_px": number(found.rmse[0].item()), "rmse_column_px": number(found.rmse[2].item()), "ridge": found.ridge}


def agreement(net: nn.Module, images: Tensor) -> dict[str, float | None]:
    "Do maps say what matters? Mean rank correlation over patches with how far the latent moves when a patch is covered, of the attention's roll-out and of the gradient's length. Nothing without ipywidgets, which `explore` needs."
    try:
        from stage_modules.autoencoder.explore import (
            attention_of,
            cover_up,
            share_in_latent,
        )
    except ImportError: return {}
    x = floats(images).requires_grad_()
    covered = torch.stack([cover_up(net, image.detach()) for image in x])
    power = torch.zeros_like(x)
    chance = torch.Generator(x.device).manual_seed(0)
    for _ in range(8): # random signs in place of a backward pass for each number of the latent
        z = net.Embedding(x)
        power += torch.autograd.grad((z * torch.randint(0, 2, z.shape, device=z.device, generator=chance).mul(2).sub(1)).sum(), x)[0].square()
    steep = F.avg_pool2d(power, 16, ceil_mode=True).flatten(1)
    maps = {"gradient": steep} | ({"rollout": share_in_latent(attention_of(net, x.detach()))} if hasattr(net, "get_attention_maps") else {})
    ranks = lambda values: values.argsort(-1).argsort(-1).float()
    return {f"{name}_and_covering": number(torch.stack([torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(ranks(values), ranks(covered))]).mean().item()) for name, values in maps.items()}


def looks(net: nn.Module, sets: dict[str, dict[str, Tensor]], maps: int, args: argparse.Namespace) -> dict[str, float | None]:
    "What else a trained net is asked: strips, which it has never seen, and whether maps of some images say what matters."
    return {"mse_on_strips": figures(net, sets["strip"]["valid"][:32], args)["mse"]} | (agreement(net, sets["square"]["valid"][:maps]) if maps else {})


class Report:
    "What was measured, written after each row."

    def __init__(self, args: argparse.Namespace):
        self.args, self.rows = args, {"cost": [], "rates": [], "floors": [], "training": [], "left_out": []}
        self.more = {key: getattr(args, key) for key in ("seconds", "trial", "batch", "images", "presets", "seeds", "extra")} | driver(args.device)

    def add(self, part: str, *rows: dict, shown: tuple[str, ...] = ()) -> None:
        self.rows[part] += rows
        self.write()
        print(f"{time.perf_counter() - BEGUN:6.1f} s  {part}\n{table([{key: row.get(key) for key in shown or row} for row in rows])}", flush=True)

    def write(self) -> None:
        save(self.args.name, self.rows, **self.more, channels_last=self.args.channels_last, half=self.args.device == "cuda", seconds_in_all=round(time.perf_counter() - BEGUN, 1))

    def room(self, what: str, seconds: float) -> bool:
        "Whether there is time for it; if not, that is noted."
        fits = time.perf_counter() - BEGUN + seconds <= self.args.limit
        if not fits: self.rows["left_out"].append(what); print(f"left out: {what}", flush=True)
        return fits


def attempt(report: Report, what: str, call: Callable[..., None], *given, **named) -> None:
    "What fails, for want of memory say, is noted, and the rest goes on."
    try: call(*given, **named)
    except RuntimeError as error:
        report.rows["left_out"].append(f"{what}: {type(error).__name__}, {str(error).splitlines()[0][:120]}")
        print(report.rows["left_out"][-1], flush=True)


def driver(device: str) -> dict[str, str]:
    "What has to be known beside a timing on a GPU."
    if device == "cpu": return {}
    try: version = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False).stdout.strip()
    except OSError: version = ""
    return {"card": torch.cuda.get_device_name(0), "driver": version or "unknown", "cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}


SHOWN = ("part", "preset", "net", "seed", "budget", "images", "steps", "elapsed", "mse", "ssim", "linear_radius", "linear_column", "linear_speed", "near_column")


def result(name: str, run: Racer, part: str, preset: str, seed: int, budget: str, data: dict[str, Tensor], args: argparse.Namespace, **more) -> dict:
    "The row of a net that has been trained."
    row = {"part": part, "preset": preset, "net": name, "seed": seed, "budget": budget, "images": len(run.images), "size": list(run.images.shape[-2:]), "rate": number(run.rate), "parameters": count_parameters(run.net),
           "steps": run.step, "elapsed": round(run.elapsed, 2), "train_mse": number(end_loss(run.curve)), **figures(run.net, data["valid"], args)}
    if "labels" in data and (budget == "seconds" or args.device == "cuda"): row |= probe(embed(run.net, data["probe"], args), data["labels"])
    every = max(1, len(run.curve) // 30)
    return row | more | {"curve": [[step, round(seconds, 2), number(loss)] for step, seconds, loss in run.curve[::every]]}


def race(report: Report, part: str, preset: str, seed: int, *given, **named) -> None:
    "A race that may fail."
    attempt(report, f"{part}, {preset}, seed {seed}", run_race, report, part, preset, seed, *given, **named)


def run_race(report: Report, part: str, preset: str, seed: int, data: dict[str, Tensor], rates: dict[str, float], names: tuple[str, ...] = NETS, equal_steps: bool = True, images: Tensor | None = None, optimizer: Callable | None = None, more: Callable[[nn.Module], dict] = lambda net: {}) -> None:
    "Equal seconds, and equal steps of the net that got farther."
    args, images = report.args, data["train"] if images is None else images
    if not report.room(f"{part}, {preset}, seed {seed}, {len(images)} images", len(names) * args.seconds + 2): return
    runs = {name: racer(name, preset, seed, images, rates[name], args, optimizer, seconds=args.seconds) for name in names}
    in_turns(list(runs.values()))
    rows = {name: result(name, run, part, preset, seed, "seconds", data, args, **more(run.net)) for name, run in runs.items()}
    report.add("training", *rows.values(), shown=SHOWN)
    fewest, most = (choose(runs, key=lambda name: runs[name].step) for choose in (min, max))
    need = args.seconds * runs[fewest].step / runs[most].step
    if not equal_steps or runs[fewest].step == runs[most].step or not report.room(f"{part}, {preset}, seed {seed}, equal steps", need + 1): return
    again = racer(most, preset, seed, images, rates[most], args, optimizer, steps=runs[fewest].step)
    in_turns([again])
    same = {key: value for key, value in rows[fewest].items() if key != "curve"} | {"budget": "steps"}
    report.add("training", same, result(most, again, part, preset, seed, "steps", data, args), shown=SHOWN)


def floors(data: dict[str, Tensor], name: str, preset: str, args: argparse.Namespace) -> list[dict]:
    "What has to be beaten."
    valid, mean = floats(data["valid"]), floats(data["train"]).mean(0, keepdim=True)
    rows = [{"set": name, "what": "mean image", **{key: number(value.mean().item()) for key, value in image_figures(mean.expand_as(valid), valid).items()}}]
    if "labels" not in data: return rows
    coarse = F.avg_pool2d(floats(data["probe"]), 8, ceil_mode=True).flatten(1).cpu()
    rows.append({"set": name, "what": "pixels, 8 by 8 averaged", "numbers": coarse.shape[1], **probe(coarse, data["labels"])})
    for net in NETS if name == "square" else (): rows.append({"set": name, "what": f"{net}, fresh weights", "preset": preset, **probe(embed(make(net, preset, 0, args), data["probe"], args), data["labels"])})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny alone, 3 seconds each, for a look")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=None, help="tiny and small, on a GPU medium and large too")
    parser.add_argument("--seconds", type=float, default=None, help="of each training: 25 on a CPU, 5 on a GPU")
    parser.add_argument("--trial", type=float, default=None, help="seconds for each rate that is tried: 4 on a CPU, 0.8 on a GPU")
    parser.add_argument("--seeds", type=int, default=2, help="of the smaller presets: tiny, on a GPU small too; all else has one")
    parser.add_argument("--images", type=int, default=None, help="drops to train on: 2,048, on a GPU 8,192")
    parser.add_argument("--batch", type=int, default=None, help="images in a step: 4 on a CPU, 64 on a GPU")
    parser.add_argument("--repeats", type=int, default=None, help="rounds of timing that count: 5 on a CPU, 15 on a GPU")
    parser.add_argument("--limit", type=float, default=None, help="seconds in all: 840 on a CPU, 185 on a GPU")
    parser.add_argument("--name", default=None, help="of the file in results")
    args = parser.parse_args()
    gpu = args.device == "cuda"
    defaults = {"presets": ["tiny", "small", "medium", "large"] if gpu else ["tiny", "small"], "seconds": 5. if gpu else 25., "trial": .8 if gpu else 4., "images": 8192 if gpu else 2048, "batch": 64 if gpu else 4, "repeats": 15 if gpu else 5, "limit": 185. if gpu else 840.,
                "name": "autoencoder_comparison" + "_cuda" * gpu + "_quick" * args.quick}
    if args.quick: defaults |= {"presets": ["tiny"], "seconds": 3., "trial": 1., "images": 256, "repeats": 2}
    for key, value in defaults.items(): setattr(args, key, value if getattr(args, key) is None else getattr(args, key))
    args.extra = "small" if gpu and "small" in args.presets else args.presets[0] # the preset of all that is not about size
    args.channels_last = False
    sets = draw_all(args) # before anything wakes a GPU or threads, which a fork would not have
    if gpu: torch.backends.cudnn.benchmark = True # cuDNN tries its kernels for each shape, which helps the CNN
    report = Report(args)
    try: measure(report, sets, args)
    finally: report.write()


def measure(report: Report, sets: dict[str, dict[str, Tensor]], args: argparse.Namespace) -> None:
    "All of it, what matters most first."
    gpu, both = args.device == "cuda", ("transformer", "cnn", "cnn, channels last")
    first = cost(args.extra, SIZE, 2 * args.batch, both, args)
    args.channels_last = first[2]["train_per_s"] > first[1]["train_per_s"]
    report.add("cost", *({**row, "why": "layout"} for row in first))
    for preset in args.presets:
        for size in SIZE, STRIP:
            names = (*NETS, *STRIDES) if preset == args.extra and size == SIZE else NETS
            attempt(report, f"cost of {preset} at {size}", lambda: report.add("cost", *({**row, "why": "strides" if row["net"] in STRIDES else "size"} for row in cost(preset, size, 2 * args.batch if size == SIZE else args.batch, names, args)))) # noqa: B023
    square, rates = sets["square"], {}
    report.add("floors", *floors(square, "square", args.extra, args), *floors(sets["strip"], "strip", args.extra, args), shown=("set", "what", "mse", "ssim", *(f"linear_{name}" for name in LABELS), "near_column"))
    for preset in args.presets:
        if not report.room(f"size, {preset}", 8 * args.trial + 2 * args.seconds): continue
        rates[preset], tried = find_rates(preset, square["train"], args)
        report.add("rates", *tried)
        race(report, "size", preset, 0, square, rates[preset], more=partial(looks, sets=sets, maps=(16 if gpu else 4) * (preset == args.extra), args=args))
    extra = rates.get(args.extra)
    if extra is None: return
    race(report, "strip", args.extra, 0, sets["strip"], extra, equal_steps=False)
    race(report, "data", args.extra, 0, square, extra, equal_steps=False, images=square["train"][:128])
    for seed in range(1, args.seeds):
        for preset in ("tiny", "small") if gpu else ("tiny",):
            if preset in rates: race(report, "size", preset, seed, square, rates[preset])
    if Muon and report.room(f"muon, {args.extra}", 8 * args.trial + 2 * args.seconds):
        rates, tried = find_rates(args.extra, square["train"], args, muon)
        report.add("rates", *tried)
        race(report, "muon", args.extra, 0, square, rates, equal_steps=False, optimizer=muon)
    race(report, "strides", args.extra, 0, square, dict.fromkeys(STRIDES, extra["cnn"]), tuple(STRIDES), equal_steps=False)
    if gpu: race(report, "data", args.extra, 0, square, extra, equal_steps=False, images=square["train"][:1024])
    else:
        try: photographs = real_set(args)
        except ImportError as error: print(f"left out: {error}")
        else:
            report.add("floors", *floors(photographs, "photographs", args.extra, args))
            race(report, "photographs", args.extra, 0, photographs, extra, equal_steps=False)


if __name__ == "__main__": main()
