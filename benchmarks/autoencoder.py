"""The patch autoencoder beside one of `torch.nn.TransformerEncoder` layers; images per second, peak memory and use of the processor for every preset; the largest batch that fits into 8 GB.

    python benchmarks/autoencoder.py                                   what two cores can do (about twenty minutes)
    python benchmarks/autoencoder.py --parts rival --repeats 5         a look
    python benchmarks/autoencoder.py --device cuda                     on a GPU: all presets, bfloat16 for use of the card; about eight minutes

`rival`: forward and backward of preset `small` at 201 x 201, ours and the same sizes built from `torch.nn.TransformerEncoder` (pre-norm, GELU, the same reading and writing of patches), in turns, one each a round; medians of each round's own ratio, at dropout 0 and 0.1 (theirs
drops attention weights too, as torch's layer does), float32 and, where the processor has instructions for it, bfloat16 autocast.
`presets`: a training step (forward, backward, AdamW) of each preset at 201 x 201 and 152 x 1280: images per second, peak bytes of tensors beyond weights, optimizer and batch, and model FLOP utilisation: matrix products of forward and backward (counted by `torch.utils.flop_counter`,
checkpointing's second pass not counted) per second, against a product of two large matrices measured in the same run at the same precision.
`eight_gb`: the largest batch of a training step in 8 GB with weights, gradients and optimizer, with and without checkpointing. On a GPU measured, with `torch.cuda.set_per_process_memory_fraction`; on a CPU computed from two measured batch sizes, and marked so.
Writes results/autoencoder.json, on a GPU results/autoencoder_<card>.json; parts that are not asked for keep what an earlier call has measured. Let nothing else run meanwhile."""
import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from autoencoder_ladder import driver
from common import RESULTS, card, save, table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from stage_modules.attention.cost import peak_memory, time_side_by_side
from stage_modules.autoencoder.model import PRESETS, create_autoencoder, reconstruction_loss
from stage_modules.autoencoder.speed import compile_blocks, has_bfloat16

SIZES = ((201, 201), (152, 1280))
GIGABYTES = 8 * 2**30


class Rival(nn.Module):
    "The same sizes with PyTorch's own encoder layers; patches are read, pooled, spread and written by our parts."

    def __init__(self, preset: str, dropout: float):
        super().__init__()
        ours = create_autoencoder(preset=preset, dropout=dropout)
        s = ours.settings
        self.read, self.pool, self.expand, self.write = ours.encoder.read, ours.encoder.pool, ours.decoder.expand, ours.decoder.write
        def side() -> nn.TransformerEncoder:
            layer = nn.TransformerEncoderLayer(s.token_dim, s.num_heads, 4 * s.token_dim, dropout, "gelu", batch_first=True, norm_first=True)
            return nn.TransformerEncoder(layer, s.num_layers, nn.LayerNorm(s.token_dim), enable_nested_tensor=False)
        self.encoder, self.decoder = side(), side()

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        size = tuple(x.shape[-2:])
        latent = self.pool(self.encoder(self.read(x)[0]), None, size)
        return self.write(self.decoder(self.expand(latent, size)[0]), size), None


def pass_of(model: nn.Module, images: Tensor, half: bool) -> Callable[[], None]:
    "Forward and backward."
    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half): loss = reconstruction_loss(model(images)[0].float(), images)
        loss.backward()
    return run


def rival(args: argparse.Namespace) -> Iterator[list[dict]]:
    "Ours and theirs in turns."
    rows = []
    images = torch.rand(args.batch, 1, 201, 201, device=args.device)
    for half in (False, True) if has_bfloat16(args.device) else (False,):
        for dropout in 0., .1:
            torch.manual_seed(0)
            nets = {"ours": create_autoencoder(preset="small", dropout=dropout), "nn.TransformerEncoder": Rival("small", dropout)}
            runs = {name: pass_of(net.to(args.device).train(), images, half) for name, net in nets.items()}
            seconds = time_side_by_side(runs, args.repeats, 2, args.device)
            ratios = [theirs / ours for ours, theirs in zip(*seconds.values())]
            for name, net in nets.items():
                rows.append({"precision": "bfloat16" if half else "float32", "dropout": dropout, "net": name, "parameters": sum(p.numel() for p in net.parameters()), "milliseconds": round(1000 * statistics.median(seconds[name]), 1),
                             "peak_mib": round(peak_memory(runs[name], args.device) / 2**20, 1), "ours is faster by": round(statistics.median(ratios), 3), "of rounds": sum(r > 1 for r in ratios), "rounds": len(ratios)})
            yield rows


def matrix_rate(args: argparse.Namespace, half: bool) -> float:
    "Multiplications and additions a second."
    n = 8192 if args.device == "cuda" else 1024
    a = torch.randn(n, n, device=args.device, dtype=torch.bfloat16 if half else torch.float32)
    return 2 * n**3 / statistics.median(time_side_by_side({"product": lambda: a @ a}, 10, 3, args.device)["product"])


def operations(net: nn.Module, images: Tensor) -> int:
    "Of forward and backward. The fused kernel is off, so that its products are seen on every device."
    for module in net.modules():
        if hasattr(module, "use_flash_attention"): module.use_flash_attention = False
    with FlopCounterMode(display=False) as counter: pass_of(net, images, False)()
    for module in net.modules():
        if hasattr(module, "use_flash_attention"): module.use_flash_attention = True
    return counter.get_total_flops()


def step_of(net: nn.Module, images: Tensor, half: bool) -> Callable[[], None]:
    "Forward, backward and AdamW."
    optimizer, both = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True), pass_of(net, images, half)
    def run() -> None:
        both()
        optimizer.step()
    return run


KINDS = {"matrix products": ("gemm", "nvjet", "xmma", "cutlass", "splitk"), "attention": ("flash", "fmha", "attention", "sdpa", "cudnn_generated"), "optimizer": ("adam", "multi_tensor")}


def spent(step: Callable[[], None]) -> dict[str, float]:
    "Shares of a step's time on a GPU by what its kernels do; `waiting` is when none ran."
    torch.cuda.synchronize()
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        for _ in range(3): step()
        torch.cuda.synchronize()
    seconds: dict[str, float] = {}
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    for event in events:
        name = event.name.lower()
        kind = next((kind for kind in ("attention", "optimizer", "matrix products") if any(word in name for word in KINDS[kind])), "everything else")
        seconds[kind] = seconds.get(kind, 0.) + event.time_range.elapsed_us() / 1e6
    span = (max(event.time_range.end for event in events) - min(event.time_range.start for event in events)) / 1e6
    return {kind: round(value / span, 3) for kind, value in seconds.items()} | {"waiting": round(max(0., 1 - sum(seconds.values()) / span), 3)}


def new_net(preset: str, size: tuple[int, int], args: argparse.Namespace, **overrides) -> nn.Module:
    "Made where it will be."
    torch.manual_seed(0)
    with torch.device(args.device): return create_autoencoder(size, preset, **overrides).train()


def presets(args: argparse.Namespace) -> Iterator[list[dict]]:
    "A training step of each."
    rows, half, cuda = [], has_bfloat16(args.device), args.device == "cuda"
    rate = matrix_rate(args, half)
    print(f"matrix products: {rate / 1e12:.1f} T a second", flush=True)
    for preset in args.presets:
        for size in SIZES:
            for compiled in (False, True) if cuda and (size == SIZES[0] or preset == "xlarge") else (False,):
                torch.compiler.reset()
                net = new_net(preset, size, args, dropout=args.dropout)
                tokens = net.encoder.read(torch.zeros(1, 1, *size, device=args.device))[0].shape[1]
                batch = max(1, args.gpu_tokens // tokens) if cuda else args.batch
                images = torch.rand(batch, 1, *size, device=args.device)
                flops = operations(net, images[:1]) * batch
                if compiled: compile_blocks(net)
                step, start = step_of(net, images, half), time.perf_counter()
                step()
                first = time.perf_counter() - start
                seconds = statistics.median(time_side_by_side({"step": step}, args.repeats, 2, args.device)["step"])
                rows.append({"preset": preset, "size": list(size), "tokens": tokens, "parameters": sum(p.numel() for p in net.parameters()), "batch": batch, "precision": "bfloat16" if half else "float32", "dropout": args.dropout, "compiled": compiled,
                             "images_per_second": round(batch / seconds, 2), "peak_mib": round(peak_memory(step, args.device) / 2**20), "gflop_per_image": round(flops / batch / 1e9, 2), "utilisation": round(flops / seconds / rate, 3), "matrix_gflops": round(rate / 1e9, 1),
                             "first_step_seconds": round(first, 1), **({"spent": spent(step)} if cuda else {})})
                print(rows[-1], flush=True)
                yield rows
                del net, images, step
                gc.collect()
                if cuda: torch.cuda.empty_cache()


def standing(net: nn.Module) -> int:
    "Bytes of weights, gradients and the two averages of AdamW."
    return 4 * 4 * sum(p.numel() for p in net.parameters())


def fits_computed(preset: str, size: tuple[int, int], checkpointing: bool, args: argparse.Namespace) -> int:
    "The batch at which standing memory and a straight line through two measured steps reach 8 GB."
    torch.manual_seed(0)
    net = create_autoencoder(size, preset, use_gradient_checkpointing=checkpointing).train()
    peak = []
    for batch in 1, 3:
        images = torch.rand(batch, 1, *size)
        run = pass_of(net, images, False)
        run()
        net.zero_grad(set_to_none=True)
        peak.append(peak_memory(run) + images.nbytes)
    slope = (peak[1] - peak[0]) / 2
    gradients = 4 * sum(p.numel() for p in net.parameters()) # measured with the step, and in `standing` already
    return int((GIGABYTES - standing(net) - (peak[0] - slope - gradients)) // slope)


def fits_measured(preset: str, size: tuple[int, int], checkpointing: bool, args: argparse.Namespace) -> int:
    "By trying, on a card that lends no more than 8 GB; two small batches say where to begin. Right to one part in 32."
    half = has_bfloat16("cuda")
    def peak(batch: int) -> int | None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        net = step = images = None
        try:
            net = new_net(preset, size, args, use_gradient_checkpointing=checkpointing)
            images = torch.rand(batch, 1, *size, device="cuda")
            step = step_of(net, images, half)
            for _ in range(2): step()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        except torch.cuda.OutOfMemoryError: return None
        finally:
            del net, step, images
            gc.collect()
    torch.cuda.set_per_process_memory_fraction(GIGABYTES / torch.cuda.get_device_properties(0).total_memory)
    try:
        start = 2 if preset == "xlarge" else 8
        few, more = peak(start), peak(3 * start)
        if few is None or more is None: return max((batch for batch in range(1, 3 * start) if peak(batch)), default=0)
        guess = int(3 * start + (GIGABYTES - more) / ((more - few) / (2 * start)))
        low, high, margin = 3 * start, None, 64
        while high is None or high - low > max(1, high // 32):
            if peak(guess): low = guess
            else: high = guess
            if high is None: guess, margin = low + max(1, low // margin), max(4, margin // 2)
            elif low == 3 * start: guess = max(low + 1, high - max(1, high // 32))
            else: guess = (low + high) // 2
            if high is not None and guess in (low, high): break
        return low
    finally: torch.cuda.set_per_process_memory_fraction(1.)


def eight_gb(args: argparse.Namespace) -> Iterator[list[dict]]:
    "Largest batches."
    rows, fits = [], fits_measured if args.device == "cuda" else fits_computed
    for preset in args.presets:
        for size in SIZES[:1] if args.device == "cpu" else SIZES:
            row = {"preset": preset, "size": list(size), "found": "measured" if args.device == "cuda" else "computed"}
            for name, checkpointing in ("batch", False), ("batch with checkpointing", True): row[name] = fits(preset, size, checkpointing, args)
            rows.append(row)
            print(row, flush=True)
            yield rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("rival", "presets", "eight_gb"), default=["rival", "presets", "eight_gb"])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=None, help="all on a GPU; tiny, small and medium on a CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=8, help="images in a step on a CPU, and for the rival")
    parser.add_argument("--gpu_tokens", type=int, default=43264, help="tokens in a step of `presets` on a GPU: 256 images of 201 x 201")
    parser.add_argument("--dropout", type=float, default=0., help="of `presets`; the training command has 0, too")
    parser.add_argument("--repeats", type=int, default=15, help="rounds that count")
    args = parser.parse_args()
    args.presets = args.presets or (list(PRESETS) if args.device == "cuda" else ["tiny", "small", "medium"])
    if args.device == "cuda": torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = "autoencoder" if args.device == "cpu" else f"autoencoder_{card()}"
    path = RESULTS / f"{name}.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    more = {"driver": driver(), "cuda": torch.version.cuda} if args.device == "cuda" else {}
    for part in args.parts:
        start = time.perf_counter()
        others = [row for row in results.get(part, []) if row.get("preset", args.presets[0]) not in args.presets] # presets that are not asked for keep theirs
        for rows in {"rival": rival, "presets": presets, "eight_gb": eight_gb}[part](args):
            results[part] = others + rows
            save(name, results, batch=args.batch, repeats=args.repeats, **more)
        print(f"\n{part}, {time.perf_counter() - start:.0f} s\n{table(results[part])}", flush=True)


if __name__ == "__main__": main()
