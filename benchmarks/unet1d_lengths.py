"""Time and memory of both middles of the UNet against length, the multiplications that explain them, and where attention's L x L part overtakes.

    python benchmarks/unet1d_lengths.py                            all of it (about five minutes on one core)
    python benchmarks/unet1d_lengths.py --widths 64 --longest 288 --repeats 3   a look (seconds)

Forward and backward through one `ResBlock1D(C, C)` and one `SelfAttention1D(C)`, the latter fused and with its weights asked for, at every length from 18 (what
the UNet has in the middle) to 2,304, and through their parts alone: two convolutions, four projections, the two products with L x L. One thread; the rivals
of one length run in turns and the median round counts. Bytes are the most tensor memory that was alive at once, beyond input and weights
(`stage_modules.attention.cost.peak_memory`). Slopes are least-squares lines through log time against log length, for short and for long sequences apart.
Let nothing else run meanwhile. Writes results/unet1d_lengths.json after each length and goes on where it was stopped (`--fresh` begins anew)."""
import argparse
import math
import statistics
from collections.abc import Callable

import torch
from common import earlier_rows, save, table

from stage_modules.attention.cost import fit_power_law, peak_memory, time_side_by_side
from stage_modules.attention.multihead import join_heads, split_heads
from stage_modules.attention.scaled_dot_product import scaled_dot_product_attention
from stage_modules.unet1d.blocks import Conv3, ResBlock1D, SelfAttention1D

LENGTHS = (18, 36, 72, 144, 288, 576, 1152, 2304)
TIME, KERNEL, LONG = 256, 3, 288 # size of the time embedding; of the window; the length that short sequences end before
CONV, FUSED, ASKED = "ResBlock1D", "SelfAttention1D, fused", "SelfAttention1D, weights asked for"
PARTS = ("two convolutions", "four projections", "products, fused", "products, weights asked for")


def multiplications(part: str, C: int, L: int) -> int:
    "Of one sequence, forward: those in matrix products and convolutions that grow with the length."
    products, projections, convolutions = 2 * C * L**2, 4 * C**2 * L, 2 * KERNEL * C**2 * L # QK^T and AV; Q, K, V and out; two of kernel 3
    return {CONV: convolutions, FUSED: projections + products, ASKED: projections + products,
            **dict(zip(PARTS, (convolutions, projections, products, products)))}[part]


def passes(C: int, L: int, batch: int, heads: int, device: str) -> dict[str, Callable[[], object]]:
    "A call for each rival that goes forward and backward, to the input and the weights."
    torch.manual_seed(0)
    x, told = torch.randn(batch, C, L, device=device, requires_grad=True), torch.randn(batch, TIME, device=device)
    query, key, value = (torch.randn(batch, heads, L, C // heads, device=device, requires_grad=True) for _ in range(3))
    conv, attention = ResBlock1D(C, C, TIME).to(device), SelfAttention1D(C, TIME, heads).to(device)
    windows = torch.nn.Sequential(Conv3(C, C), Conv3(C, C)).to(device)

    def both(forward: Callable, inputs: list) -> Callable[[], object]:
        def run():
            out = forward()
            return torch.autograd.grad(out, inputs, torch.ones_like(out))
        return run

    def projected():
        q, k, v = (split_heads(part, heads) for part in attention.qkv(x).transpose(1, 2).contiguous().chunk(3, -1))
        return attention.proj(join_heads(q + k + v).transpose(1, 2)) # in place of attention: a sum, which costs little

    own = lambda *modules: [x, *(p for m in modules for p in m.parameters())]
    asked = lambda need: scaled_dot_product_attention(query, key, value, need_weights=need)[0]
    return {CONV: both(lambda: conv(x, told), own(conv)), FUSED: both(lambda: attention(x, told), own(attention)),
            ASKED: both(lambda: attention(x, told, need_weights=True)[0], own(attention)),
            PARTS[0]: both(lambda: windows(x), own(windows)), PARTS[1]: both(projected, own(attention.qkv, attention.proj)),
            PARTS[2]: both(lambda: asked(False), [query, key, value]), PARTS[3]: both(lambda: asked(True), [query, key, value])}


def measure(C: int, L: int, args: argparse.Namespace) -> list[dict]:
    "A row for each rival at one width and length."
    runs = passes(C, L, args.batch, args.heads, args.device)
    seconds = time_side_by_side(runs, args.repeats, warmup=2, device=args.device)
    return [{"width": C, "length": L, "part": part, "seconds": statistics.median(seconds[part]), "fastest": min(seconds[part]), "slowest": max(seconds[part]),
             "bytes": peak_memory(run, args.device), "multiplications": multiplications(part, C, L)} for part, run in runs.items()]


def column(rows: list[dict], C: int, part: str, key: str) -> dict[int, float]:
    "One number of a rival by length."
    return {row["length"]: row[key] for row in rows if (row["width"], row["part"]) == (C, part)}


def slopes(rows: list[dict]) -> list[dict]:
    "The power of the length that time, bytes and multiplications grow with, for short and for long sequences."
    found = []
    for C in dict.fromkeys(row["width"] for row in rows):
        for part in dict.fromkeys(row["part"] for row in rows):
            for which, holds in {"short": lambda n: n < LONG, "long": lambda n: n >= LONG}.items():
                law = {}
                for key in "seconds", "bytes", "multiplications":
                    points = {n: v for n, v in column(rows, C, part, key).items() if holds(n) and v > 0}
                    if len(points) >= 3: law |= dict(zip((key, f"{key} error"), (round(v, 3) for v in fit_power_law(list(points), list(points.values()))[:2])))
                if law: found.append({"width": C, "part": part, "lengths": which, **law})
    return found


def crossing(one: dict[int, float], other: dict[int, float]) -> float | None:
    "The length from which `one` is and stays above `other`, on a straight line between logarithms; None where the lengths do not hold it."
    lengths = sorted(one.keys() & other.keys())
    gaps = [math.log(one[n] / other[n]) for n in lengths]
    for i in range(len(gaps) - 1, 0, -1):
        if gaps[i] > 0 >= gaps[i - 1]: return math.exp(math.log(lengths[i - 1]) + math.log(lengths[i] / lengths[i - 1]) * -gaps[i - 1] / (gaps[i] - gaps[i - 1]))
        if gaps[i] <= 0: return None


def crossings(rows: list[dict]) -> list[dict]:
    "Where attention overtakes, by the count and by the clock."
    found = []
    for C in dict.fromkeys(row["width"] for row in rows):
        for way, block, products in ("fused", FUSED, PARTS[2]), ("weights asked for", ASKED, PARTS[3]):
            for what, one, other, predicted in (("attention block over convolution block", block, CONV, (KERNEL - 2) * C),
                                                ("L x L products over four projections", products, PARTS[1], 2 * C),
                                                ("L x L products over two convolutions", products, PARTS[0], KERNEL * C)):
                times, memory = (crossing(column(rows, C, one, key), column(rows, C, other, key)) for key in ("seconds", "bytes"))
                found.append({"width": C, "attention": way, "what": what, "by multiplications": predicted, "by the clock": times and round(times), "by memory": memory and round(memory)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 512], help="channels C")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="longest sequence")
    parser.add_argument("--heads", type=int, default=8, help="heads of the attention")
    parser.add_argument("--batch", type=int, default=2, help="sequences at once")
    parser.add_argument("--repeats", type=int, default=9, help="rounds that the median is taken of")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--name", help="of the file in results; unet1d_lengths, or unet1d_lengths_cuda on a GPU, if not given")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier, stopped call has measured")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name = args.name or "unet1d_lengths" + ("" if args.device == "cpu" else f"_{args.device}")
    settings = {key: getattr(args, key) for key in ("heads", "batch", "repeats", "threads", "device")}
    rows = earlier_rows(name, args.fresh, **settings)
    for C in args.widths:
        for L in (n for n in LENGTHS if n <= args.longest):
            if any((row["width"], row["length"]) == (C, L) for row in rows): continue
            rows = sorted([*rows, *measure(C, L, args)], key=lambda row: (row["width"], row["length"])) # stable: the rivals keep their order
            save(name, rows, **settings, kernel=KERNEL, long_from=LONG, slopes=slopes(rows), crossings=crossings(rows))
            print(table([row for row in rows if (row["width"], row["length"]) == (C, L)]) + "\n", flush=True)
    for found in slopes(rows), crossings(rows):
        if found: print(table(found) + "\n")


if __name__ == "__main__": main()
