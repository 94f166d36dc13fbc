"""Memory of a training step of the autoencoder, computed by `stage_modules.autoencoder.memory` and measured, part by part.

    python benchmarks/autoencoder_memory.py                                   tiny, small and medium at 201 x 201, on a CPU
    python benchmarks/autoencoder_memory.py --device cuda                     all presets, also at 152 x 1280 and with a single token; under a minute
    python benchmarks/autoencoder_memory.py --presets tiny --batch 2 --dry    a look; writes nothing

For each preset: float32 and bfloat16 autocast, with and without checkpointing, attention fused and explicit; with a single token float32 and autocast. Computed: bytes of weights, gradients, AdamW's state, bfloat16 copies of weights and
activations. Measured: the same parts (what autograd keeps by `saved_tensors_hooks`, each storage once) and the peak of a step with AdamW (fused) as `stage_modules.attention.cost.peak_memory` sees it, with what stands added and the batch left out;
on a GPU also all that PyTorch's allocator had lent at the peak, batch and workspaces included. No dropout. The numbers depend on PyTorch's version and on the kernels that it chooses, not on the speed of the machine. After `--seconds` what is left is skipped, and said so.
Writes results/autoencoder_memory.json, on a GPU results/autoencoder_memory_cuda.json."""
import argparse
import gc
import subprocess
import time
from collections.abc import Iterator

import torch
from common import save, table

from stage_modules.autoencoder.memory import kept_bytes, measure_training, training_memory
from stage_modules.autoencoder.model import PRESETS, AutoencoderSettings

SMALL, STRIP = (201, 201), (152, 1280)
MIB = 2**20


def cases(args: argparse.Namespace) -> Iterator[tuple[AutoencoderSettings, str, bool]]:
    "Settings, precision, checkpointing; what matters most comes first."
    sizes = (SMALL, STRIP) if args.device == "cuda" else (SMALL,)
    for fused, size in [(True, size) for size in sizes] + [(False, size) for size in sizes]:
        if not fused and size == SMALL: yield from single_cases(args)
        for preset in args.presets:
            for precision, checkpointing in ("fp32", False), ("bf16", False), ("fp32", True), ("bf16", True):
                yield AutoencoderSettings(size, preset, dropout=0., use_flash_attention=fused), precision, checkpointing


def single_cases(args: argparse.Namespace) -> Iterator[tuple[AutoencoderSettings, str, bool]]:
    "With a single token there is little to checkpoint, and nothing to attend to."
    for preset in args.presets:
        for precision in "fp32", "bf16": yield AutoencoderSettings(SMALL, preset, "single", dropout=0.), precision, False


def measured(settings: AutoencoderSettings, precision: str, checkpointing: bool, args: argparse.Namespace) -> dict:
    "One row."
    how = (settings, None, args.batch, precision, checkpointing, args.device)
    row = {"preset": settings.preset, "tokens": settings.tokens, "size": list(settings.input_size), "batch": args.batch, "attention": "fused" if settings.use_flash_attention and settings.tokens == "patch" else "explicit",
           "precision": precision, "checkpointing": checkpointing}
    row["computed"], kept = training_memory(*how)._asdict(), kept_bytes(*how)
    row["computed"] |= {"total": sum(row["computed"].values()), "kept": kept.outside + kept.between + (0 if checkpointing else kept.inside), "again": kept.inside if checkpointing else 0}
    cuda = args.device == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    try:
        row["measured"] = measure_training(*how)._asdict()
        if cuda: row["measured"]["allocated"] = torch.cuda.max_memory_allocated() - before # the count began anew with the last step
    except torch.OutOfMemoryError: row["failed"] = "out of memory"
    gc.collect()
    if cuda: torch.cuda.empty_cache()
    return row


def shown(row: dict) -> dict:
    "A line of the table, MiB."
    c, m = row["computed"], row.get("measured")
    line = {"preset": row["preset"], "tokens": row["tokens"], "size": "x".join(map(str, row["size"])), "attention": row["attention"], "precision": row["precision"], "checkpointing": row["checkpointing"],
            "standing": round((c["weights"] + c["optimizer"]) / MIB), "gradients": round(c["gradients"] / MIB), "kept computed": round(c["kept"] / MIB, 1), "total computed": round(c["total"] / MIB)}
    if m is None: return line | {"kept measured": row["failed"], "copies": "", "peak": "", "peak / total": ""}
    return line | {"kept measured": round(m["kept"] / MIB, 1), "copies": round(m["copies"] / MIB, 1), "peak": round(m["peak"] / MIB), "peak / total": round(m["peak"] / c["total"], 3)}


def driver() -> str:
    "Version of the card's driver."
    try: return subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError): return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=None, help="all on a GPU; tiny, small and medium on a CPU")
    parser.add_argument("--batch", type=int, default=None, help="images in a step: 16 on a GPU, 4 on a CPU")
    parser.add_argument("--seconds", type=float, default=None, help="measure nothing new after this time: 42 on a GPU, 900 on a CPU")
    parser.add_argument("--dry", action="store_true", help="write no file")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    args.presets = args.presets or (list(PRESETS) if cuda else ["tiny", "small", "medium"])
    args.batch = args.batch or (16 if cuda else 4)
    args.seconds = args.seconds or (42. if cuda else 900.)
    if cuda: torch.backends.cuda.matmul.allow_tf32 = True # changes no size, and saves time
    rows, skipped, start = [], 0, time.perf_counter()
    for case in cases(args):
        if time.perf_counter() - start > args.seconds: skipped += 1; continue
        rows.append(measured(*case, args))
    print(table([shown(row) for row in rows]), f"{len(rows)} measured, {skipped} skipped, {time.perf_counter() - start:.0f} s", sep="\n", flush=True)
    if args.dry: return
    more = {"gpu": torch.cuda.get_device_name(), "driver": driver(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()} if cuda else {}
    save("autoencoder_memory_cuda" if cuda else "autoencoder_memory", rows, device=args.device, batch=args.batch, skipped=skipped, **more)


if __name__ == "__main__": main()
