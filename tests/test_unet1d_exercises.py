"""The checks of stage 3's exercises are worth something: right answers pass, stubs are told apart, plausible mistakes are caught."""
import csv
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.models.embeddings import get_timestep_embedding
from exercise_page import ExercisePage, write_notebook
from scipy.spatial.transform import Rotation
from torch import nn
from torch.nn import functional as F

from stage_modules.attention import exercises as stage1
from stage_modules.attention.multihead import MultiHeadAttention
from stage_modules.seq2seq import exercises as stage2
from stage_modules.toolkit.checking import prove_check
from stage_modules.unet1d import blocks
from stage_modules.unet1d import exercises as ex

PAGE = ExercisePage("stage3_unet1d")


# ---- answers: right ones in two ways, and the mistakes that people make

def cost(i, o, k, n, stride, padding, numbers=lambda i, o, k: (i * k + 1) * o, length=lambda n, k, s, p: (n + 2 * p - k) // s + 1):
    return numbers(i, o, k), length(n, k, stride, padding)


def cost_counted(i, o, k, n, stride, padding):
    return o * i * k + o, sum(1 for start in range(-padding, n + padding - k + 1) if (start + padding) % stride == 0)


def code(time, dim, base=10000.0, order="pairs", first=0, speed=lambda dim: torch.arange(0, dim, 2) / dim, whole=False):
    angle = (time.long() if whole else time)[:, None].add(first) / base ** speed(dim)
    pair = [angle.sin(), angle.cos()] if order != "cosine first" else [angle.cos(), angle.sin()]
    return torch.cat(pair, -1) if order == "halves" else torch.stack(pair, -1).flatten(1)


def code_by_diffusers(time, dim):
    halves = get_timestep_embedding(time, dim, downscale_freq_shift=0)
    return halves.unflatten(1, (2, -1)).mT.flatten(1)


def heads(x, w_qkv, w_out, H, scale=lambda c, h: (c // h) ** -0.5, axis=-1, split="h c", order=(0, 1, 2), short_cut=False, over="positions"):
    B, C, L = x.shape
    parts = torch.einsum("oc,bcl->bol", w_qkv, x).chunk(3, 1)
    def cut(part): return part.view(B, H, C // H, L) if split == "h c" else part.view(B, C // H, H, L).transpose(1, 2)
    q, k, v = (cut(parts[i]) for i in order)
    if over == "channels":
        out = (q @ k.mT * scale(C, H)).softmax(axis) @ v
    else:
        out = v @ (q.mT @ k * scale(C, H)).softmax(axis).mT
    out = out if split == "h c" else out.transpose(1, 2)
    out = torch.einsum("oc,bcl->bol", w_out, out.reshape(B, C, L))
    return x + out if short_cut else out


def heads_of_stage_1(x, w_qkv, w_out, H):
    layer = MultiHeadAttention(x.shape[1], H, bias=False)
    layer.load_state_dict({"in_proj_weight": w_qkv, "out_proj.weight": w_out})
    return layer(x.mT, x.mT, x.mT)[0].mT


def rolled(x, *rest):  # the middle of a window is counted from one place late
    return heads(x, *rest).roll(1, -1)


def with_places(x, *rest):
    return heads(x + 0.1 * torch.arange(x.shape[-1]), *rest)


def cosine(T, s=0.008, most=0.999, first=0, power=2, what="betas"):
    left = torch.cos((torch.arange(first, T + 1 + first).double() / T + s) / (1 + s) * math.pi / 2) ** power
    if what == "left": return left[1:] / left[0]
    return (1 - left[1:] / left[:-1]).clamp(max=most)


def cosine_by_diffusers(T): return DDPMScheduler(T, beta_schedule="squaredcos_cap_v2").betas


def noisy(x, noise, t, kept, signal=torch.sqrt, rest=lambda k: (1 - k).sqrt(), axes=None, to=True, pick=lambda kept, t: kept[t]):
    k = pick(kept, t)
    k = k.view(-1, *[1] * (x.ndim - 1)) if axes is None else axes(k, x)
    out = signal(k) * x + rest(k) * noise
    return out.to(x.dtype) if to else out


def noisy_by_diffusers(x, noise, t, kept):
    scheduler = DDPMScheduler(1000)
    scheduler.alphas_cumprod = kept.float()
    return scheduler.add_noise(x, noise, t)


def lined_up(k, x):  # right where it can be, silently wrong where B = D
    return k if x.ndim == 2 and x.shape[0] == x.shape[1] else k.view(-1, *[1] * (x.ndim - 1))


def ddim(x, e, now, after, share=lambda now, after: (1 - after) ** 0.5, signal=lambda now, after: after ** 0.5, clean=None):
    pose = clean(x, e, now) if clean else (x - (1 - now) ** 0.5 * e) / now ** 0.5
    return signal(now, after) * pose + share(now, after) * e


def ddim_in_one(x, e, now, after):  # collected: one factor for x, one for the noise
    ratio = math.sqrt(after / now)
    return torch.add(ratio * x, e, alpha=math.sqrt(1 - after) - ratio * math.sqrt(1 - now))


def sampler(predict, noise, kept, n, times=None, last=1.0, tell=lambda x, t: torch.full((len(x),), t), step=ddim, calls=1, steps=None):
    T, x = len(kept), noise
    way = (times or (lambda T, n: [T - i * T // n - 1 for i in range(n)]))(T, steps or n)
    for t, after in zip(way, way[1:] + [None]):
        for _ in range(calls): said = predict(x, tell(x, t))
        x = step(x, said, kept[t].item(), last if after is None else kept[after].item())
    return x


def sampler_by_diffusers(predict, noise, kept, n):
    scheduler = DDIMScheduler(len(kept), beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True)
    scheduler.set_timesteps(n)
    x = noise
    for t in scheduler.timesteps: x = scheduler.step(predict(x, t.expand(len(x))), t, x).prev_sample
    return x


def straight(noise, data, t, where=lambda e, x, t: (1 - t) * e + t * x, speed=lambda e, x, t: x - e, axis=1):
    t = t.unsqueeze(axis)
    return where(noise, data, t), speed(noise, data, t)


def straight_by_autograd(noise, data, t):
    times = t[:, None].expand_as(noise).contiguous()
    return torch.autograd.functional.jvp(lambda s: noise * (1 - s) + data * s, times, torch.ones_like(noise))


def middle(v, x, t, dt, place=0.5, time=0.5, start=None):
    half = x + place * dt * v(x, t)
    return (half if start else x) + dt * v(half, t + time * dt)


def middle_by_table(v, x, t, dt):  # any Runge-Kutta method, with the table of this one
    nodes, matrix, weights, slopes = (0, 0.5), ((), (0.5,)), (0, 1), []
    for c, row in zip(nodes, matrix): slopes.append(v(x + dt * sum(a * s for a, s in zip(row, slopes)), t + c * dt))
    return x + dt * sum(w * s for w, s in zip(weights, slopes))


def heun(v, x, t, dt):
    first = v(x, t)
    return x + dt / 2 * (first + v(x + dt * first, t + dt))


def runge_kutta_4(v, x, t, dt):
    a = v(x, t)
    b = v(x + dt / 2 * a, t + dt / 2)
    c = v(x + dt / 2 * b, t + dt / 2)
    return x + dt / 6 * (a + 2 * b + 2 * c + v(x + dt * c, t + dt))


def z_by(spread=lambda x: x.std(0, correction=0), centre=lambda x: x.mean(0), least=1e-4, small=0.0, still=0.0, back=True):
    def z_score(train):
        mean, deviation = centre(train), spread(train)
        moves = deviation >= least
        scale = torch.where(moves, deviation, torch.ones_like(deviation)) + small
        def normalise(x): return torch.where(moves, (x - mean) / scale, torch.full_like(x, still) if still is not None else x - mean)
        return normalise, lambda z: z * scale + mean if back else z * scale
    return z_score


def z_by_index(train):
    mean, deviation = train.double().mean(0), train.double().var(0, unbiased=False).sqrt()
    moving = (deviation > 1e-4).nonzero().flatten()
    def normalise(x):
        out = torch.zeros_like(x)
        out[:, moving] = ((x.double() - mean) / deviation)[:, moving].float()
        return out
    def denormalise(z):
        out = mean.float().repeat(len(z), 1)
        out[:, moving] += z[:, moving] * deviation[moving].float()
        return out
    return normalise, denormalise


def z_drops(train):  # what does not move is left out
    normalise, denormalise = z_by()(train)
    moving = train.std(0, correction=0) > 1e-4
    return lambda x: normalise(x)[:, moving], denormalise


def body(rotations, offsets, parents, join=torch.matmul, own=True, turn=lambda r: r, chain=False, move=True, absolute=False):
    turned, ends = [], []
    for i, parent in enumerate(parents):
        parent = i - 1 if chain else parent
        local = turn(rotations[:, i])
        turned.append(local if parent < 0 or absolute else join(turned[parent], local))
        by = turned[i] if own or parent < 0 else turned[parent]
        step = by @ offsets[i] if move else offsets[i].expand(len(rotations), 3)
        ends.append(step if parent < 0 else ends[parent] + step)
    return torch.stack(ends, 1)


def body_by_transforms(rotations, offsets, parents):  # 4 x 4, each turns and then shifts along its own bone
    place = torch.eye(4).repeat(*rotations.shape[:2], 1, 1)
    shift = torch.eye(4).repeat(len(parents), 1, 1)
    place[..., :3, :3], shift[:, :3, 3] = rotations, offsets
    world = []
    for i, parent in enumerate(parents): world.append((world[parent] if parent >= 0 else torch.eye(4)) @ place[:, i] @ shift[i])
    return torch.stack(world, 1)[..., :3, 3]


def follow(vectors, turns=lambda x: x.round(), result=True, most=99, nearest=True, period=2 * math.pi):
    out = [vectors[0]]
    for i, now in enumerate(vectors[1:]):
        angle = now.norm(dim=-1, keepdim=True)
        axis = torch.where(angle > 0, now / angle, torch.zeros(()))
        wanted = ((out[-1] if result else vectors[i]) * axis).sum(-1, keepdim=True)
        out.append(now + period * turns((wanted - angle) / period).clamp(-most, most) * axis)
    return torch.stack(out)


def follow_step_by_step(vectors):  # a turn more or less while that is nearer
    out = vectors.clone()
    for f in range(1, len(out)):
        for j in range(out.shape[1]):
            length = out[f, j].norm()
            if length == 0: continue
            whole = out[f, j] / length * 2 * math.pi
            for sign in 1, -1:
                while (out[f, j] + sign * whole - out[f - 1, j]).norm() < (out[f, j] - out[f - 1, j]).norm(): out[f, j] += sign * whole
    return out


def follow_unguarded(vectors):
    out = [vectors[0]]
    for now in vectors[1:]:
        axis = now / now.norm(dim=-1, keepdim=True)
        out.append(now + 2 * math.pi * (((out[-1] - now) * axis).sum(-1, keepdim=True) / (2 * math.pi)).round() * axis)
    return torch.stack(out)


def matrix(vectors): return torch.tensor(Rotation.from_rotvec(vectors.detach().reshape(-1, 3).numpy()).as_matrix()).float().view(*vectors.shape[:-1], 3, 3)


def six(vectors, pick=lambda m: torch.cat([m[..., 0], m[..., 1]], -1)): return pick(matrix(vectors))


def six_by_exponential(vectors):
    x, y, z = vectors.double().unbind(-1)
    o = torch.zeros_like(x)
    cross = torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(cross)[..., :2].mT.flatten(-2).float()


def six_by_rodrigues(vectors, guard=0.0):  # 0 / 0 where nothing turns
    angle = vectors.norm(dim=-1, keepdim=True)
    axis = vectors / (angle + guard)
    def turn(v):
        v = torch.tensor(v).expand_as(axis)
        return v * angle.cos() + torch.linalg.cross(axis, v) * angle.sin() + axis * (axis * v).sum(-1, keepdim=True) * (1 - angle.cos())
    return torch.cat([turn([1.0, 0.0, 0.0]), turn([0.0, 1.0, 0.0])], -1)


def gram(s, straighten=True, columns=True, order=(0, 1), hand=1, unit=True, last=True, clip=False):
    a, b = (s.unflatten(-1, (2, 3))[..., i, :] for i in order)
    x = F.normalize(a, dim=-1) if unit else a
    b = b - (b * x).sum(-1, keepdim=True) * x if straighten else b
    y = F.normalize(b, dim=-1) if unit else b
    m = torch.stack([x, y, hand * torch.linalg.cross(x, y)], -1 if columns else -2).reshape(-1, 3, 3)
    v = torch.tensor(Rotation.from_matrix(m.numpy()).as_rotvec()).float().view(*s.shape[:-1], 3)
    return v if last else m.view(*s.shape[:-1], 3, 3)


def gram_by_cross(s):  # z from the two, y from z and x; the logarithm by SciPy's matrix function, one at a time
    x = F.normalize(s[..., :3], dim=-1)
    z = F.normalize(torch.linalg.cross(x, s[..., 3:]), dim=-1)
    m = torch.stack([x, torch.linalg.cross(z, x), z], -1).reshape(-1, 3, 3).double()
    quaternion = Rotation.from_matrix(m.numpy()).as_quat(canonical=True)
    angle = 2 * np.arctan2(np.linalg.norm(quaternion[:, :3], axis=1), quaternion[:, 3])
    axis = quaternion[:, :3] / np.maximum(np.linalg.norm(quaternion[:, :3], axis=1), 1e-300)[:, None]
    return torch.tensor(axis * angle[:, None]).float().view(*s.shape[:-1], 3)


def second_rules(s):  # the first column is straightened, not the second
    y = F.normalize(s[..., 3:], dim=-1)
    return gram(torch.cat([s[..., :3] - (s[..., :3] * y).sum(-1, keepdim=True) * y, y], -1))


def shortest(s):  # takes x where it should go, by the shortest way
    x = F.normalize(s[..., :3], dim=-1)
    axis = torch.linalg.cross(torch.tensor([1.0, 0.0, 0.0]).expand_as(x), x)
    return F.normalize(axis, dim=-1) * torch.atan2(axis.norm(dim=-1), x[..., 0])[..., None]


def blow_up(s):  # a turn too many
    v = gram(s)
    return v * (1 + 2 * math.pi / v.norm(dim=-1, keepdim=True).clamp(min=1e-6))


def frechet(ma, ca, mb, cb, both=None, means=lambda d: d.square().sum(), factor=2, root=lambda x: x):
    if both is None:
        values, vectors = torch.linalg.eigh(ca)
        half = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.mT
        both = lambda a, b: torch.linalg.eigvalsh(half @ b @ half).clamp(min=0).sqrt().sum()
    return root(means(ma - mb) + ca.trace() + cb.trace() - factor * both(ca, cb))


def product_of_roots(a, b): return (torch.tensor(scipy.linalg.sqrtm(a.numpy()).real) @ torch.tensor(scipy.linalg.sqrtm(b.numpy()).real)).trace()


def frechet_svd(ma, ca, mb, cb):
    def root(c):
        values, vectors = torch.linalg.eigh(c)
        return vectors * values.clamp(min=0).sqrt()
    return float(torch.dist(ma, mb) ** 2 + ca.trace() + cb.trace() - 2 * torch.linalg.svdvals(root(ca).mT @ root(cb)).sum())


def cholesky(a, b): return torch.linalg.svdvals(torch.linalg.cholesky(a).mT @ torch.linalg.cholesky(b)).sum()


def averaged(history, decay, ramp=lambda n: (1 + n) / (10 + n), choose=min, start=lambda h: h[0], swap=False, first=1, upto=None):
    mean = start(history)
    for n, value in enumerate(history[1:upto], first):
        d = choose(decay, ramp(n))
        mean = (1 - d) * mean + d * value if swap else d * mean + (1 - d) * value
    return mean


def averaged_backwards(history, decay):  # one weighted sum, from the last one back
    total, share = torch.zeros_like(history[0]), 1.0
    for n in range(len(history) - 1, 0, -1):
        d = min(decay, (n + 1) / (n + 10))
        total, share = total + share * (1 - d) * history[n], share * d
    return total + share * history[0]


def averaged_in_place(history, decay):
    for n, value in enumerate(history[1:], 1): history[0].lerp_(value, 1 - min(decay, (1 + n) / (10 + n)))
    return history[0]


ANSWERS = {
    "conv_shape": ([cost, cost_counted], {
        "no bias": lambda *a: cost(*a, numbers=lambda i, o, k: i * k * o), "a bias for each input": lambda *a: cost(*a, numbers=lambda i, o, k: i * k * o + i),
        "kernel forgotten": lambda *a: cost(*a, numbers=lambda i, o, k: (i + 1) * o), "not rounded": lambda *a: cost(*a, length=lambda n, k, s, p: (n + 2 * p - k) / s + 1),
        "padding on one side": lambda *a: cost(*a, length=lambda n, k, s, p: (n + p - k) // s + 1), "stride forgotten": lambda *a: cost(*a, length=lambda n, k, s, p: n + 2 * p - k + 1),
        "one short": lambda *a: cost(*a, length=lambda n, k, s, p: (n + 2 * p - k) // s), "the length of the input": lambda *a: cost(*a, length=lambda n, k, s, p: n),
        "1 added before the stride": lambda *a: cost(*a, length=lambda n, k, s, p: (n + 2 * p - k + 1) // s), "parameters only": lambda *a: cost(*a)[:1]}),
    "time_features": ([code, code_by_diffusers], {
        "in halves": lambda *a: code(*a, order="halves"), "cosine first": lambda *a: code(*a, order="cosine first"), "whole steps": lambda *a: code(*a, whole=True), "one late": lambda *a: code(*a, first=1),
        "halves, one frequency fewer": lambda t, d: get_timestep_embedding(t, d), "the slowest is 1/10,000": lambda *a: code(*a, speed=lambda d: torch.linspace(0, 1, d // 2)),
        "exponents twice too small": lambda *a: code(*a, speed=lambda d: torch.arange(d // 2) / d), "base 1,000": lambda *a: code(*a, base=1000.0), "half as many": lambda t, d: code(t, d // 2),
        "time from 0 to 1": lambda t, d: code(t / 1000, d), "with cycles": lambda t, d: code(2 * math.pi * t, d)}),
    "map_attention": ([heads, heads_of_stage_1], {
        "no scaling": lambda *a: heads(*a, scale=lambda c, h: 1.0), "scaled by all channels": lambda *a: heads(*a, scale=lambda c, h: c ** -0.5), "wrong axis": lambda *a: heads(*a, axis=-2),
        "heads dealt out like cards": lambda *a: heads(*a, split="c h"), "keys and values swapped": lambda *a: heads(*a, order=(0, 2, 1)), "queries and keys swapped": lambda *a: heads(*a, order=(1, 0, 2)),
        "with a short cut": lambda *a: heads(*a, short_cut=True), "one head for all": lambda x, a, b, h: heads(x, a, b, 1), "channels attend": lambda *a: heads(*a, over="channels"),
        "w_out forgotten": lambda x, a, b, h: heads(x, a, torch.eye(len(b)), h), "transposed weights": lambda x, a, b, h: heads(x, a, b.mT, h), "(B, L, C) comes back": lambda *a: heads(*a).mT, "shifted": rolled, "told the places": with_places}),
    "alphas_cumprod": ([lambda b: (1 - b).cumprod(0), lambda b: torch.log1p(-b.double()).cumsum(0).exp()], {
        "product of betas": lambda b: b.cumprod(0), "1 minus the sum": lambda b: 1 - b.cumsum(0), "1 minus the product": lambda b: 1 - b.cumprod(0), "one late": lambda b: F.pad((1 - b).cumprod(0)[:-1], (1, 0), value=1.0),
        "only the last": lambda b: (1 - b).prod(), "the root": lambda b: (1 - b).cumprod(0).sqrt(), "alphas only": lambda b: 1 - b, "continuous time": lambda b: (-b.cumsum(0)).exp(), "backwards": lambda b: (1 - b).flip(0).cumprod(0)}),
    "cosine_betas": ([cosine, cosine_by_diffusers], {
        "not cut off": lambda n: cosine(n, most=1.0), "no offset": lambda n: cosine(n, s=0.0), "not squared": lambda n: cosine(n, power=1), "what is left": lambda n: cosine(n, what="left"), "a step early": lambda n: cosine(n, first=-1),
        "one too many": lambda n: torch.cat([cosine(n)[:1], cosine(n)]), "cut off too low": lambda n: cosine(n, most=0.02), "linear": lambda n: torch.linspace(1e-4, 0.02, n), "one for the start": lambda n: F.pad(cosine(n)[:-1], (1, 0)),
        "alphas": lambda n: 1 - cosine(n), "s of 0.08": lambda n: cosine(n, s=0.08)}),
    "add_noise": ([noisy, noisy_by_diffusers], {
        "no roots": lambda *a: noisy(*a, signal=lambda k: k, rest=lambda k: 1 - k), "noise not shrunk": lambda *a: noisy(*a, rest=lambda k: 1.0), "root outside": lambda *a: noisy(*a, rest=lambda k: 1 - k.sqrt()),
        "the wrong way round": lambda *a: noisy(*a, signal=lambda k: (1 - k).sqrt(), rest=torch.sqrt), "one late": lambda *a: noisy(*a, pick=lambda kept, t: kept[(t + 1).clamp(max=999)]),
        "float64": lambda *a: noisy(*a, to=False), "wrong axis": lambda *a: noisy(*a, axes=lined_up), "no axis": lambda *a: noisy(*a, axes=lambda k, x: k), "poses only": lambda *a: noisy(*a, axes=lambda k, x: k[:, None]),
        "one time for all": lambda x, e, t, k: noisy(x, e, t[:1].expand_as(t), k), "noise squared": lambda x, e, t, k: noisy(x, e.square(), t, k), "no noise": lambda x, e, t, k: noisy(x, 0 * e, t, k)}),
    "ddim_step": ([ddim, ddim_in_one], {
        "stays at the clean pose": lambda *a: ddim(*a, share=lambda n, t: 0.0, signal=lambda n, t: 1.0), "the old share": lambda *a: ddim(*a, share=lambda n, t: (1 - n) ** 0.5), "the old signal": lambda *a: ddim(*a, signal=lambda n, t: n ** 0.5),
        "no roots": lambda *a: ddim(*a, signal=lambda n, t: t, share=lambda n, t: 1 - t), "no noise put back": lambda *a: ddim(*a, share=lambda n, t: 0.0), "times swapped": lambda x, e, n, t: ddim(x, e, t, n),
        "noise taken out whole": lambda *a: ddim(*a, clean=lambda x, e, n: (x - e) / n ** 0.5), "not scaled up again": lambda *a: ddim(*a, clean=lambda x, e, n: x - (1 - n) ** 0.5 * e),
        "noise added": lambda x, e, n, t: ddim(x, -e, n, t), "the mean of DDPM": lambda x, e, n, t: (x - (1 - n / t) / (1 - n) ** 0.5 * e) / (n / t) ** 0.5, "fresh noise": lambda x, e, n, t: ddim(x, e, n, t) + (1 - t) * torch.randn_like(x)}),
    "sample_ddim": ([sampler, sampler_by_diffusers], {
        "stops before the end": lambda p, x, k, n: sampler(p, x, k, n, last=k[0].item()), "one jump": lambda *a: sampler(*a, steps=1), "asks twice": lambda *a: sampler(*a, calls=2), "upwards": lambda *a: sampler(*a, times=lambda T, n: [i * T // n for i in range(n)]),
        "leading": lambda *a: sampler(*a, times=lambda T, n: [i * (T // n) for i in range(n)][::-1]), "one time for all": lambda *a: sampler(*a, tell=lambda x, t: torch.tensor([t])), "every step": lambda p, x, k, n: sampler(p, x, k, 1000),
        "both ends": lambda *a: sampler(*a, times=lambda T, n: [round(t) for t in np.linspace(T - 1, 0, n)]), "the clean pose each time": lambda *a: sampler(*a, step=lambda *s: ddim(*s, share=lambda n, t: 0.0, signal=lambda n, t: 1.0)),
        "no noise back": lambda *a: sampler(*a, step=lambda *s: ddim(*s, share=lambda n, t: 0.0)), "the first pose only": lambda p, x, *a: sampler(p, x[:1], *a), "T, not T - 1": lambda *a: sampler(*a, times=lambda T, n: [T - i * T // n for i in range(n)])}),
    "straight_path": ([straight, straight_by_autograd], {
        "noise at time 1": lambda e, x, t: straight(x, e, t), "velocity to the noise": lambda *a: straight(*a, speed=lambda e, x, t: e - x), "velocity grows with time": lambda *a: straight(*a, speed=lambda e, x, t: t * (x - e)),
        "x_t only": lambda *a: straight(*a)[0], "velocity first": lambda *a: straight(*a)[::-1], "variance kept": lambda *a: straight(*a, where=lambda e, x, t: (1 - t * t).sqrt() * e + t * x), "velocity is the rest of the way": lambda *a: straight(*a, speed=lambda e, x, t: (1 - t) * (x - e)),
        "wrong axis": lambda e, x, t: straight(e, x, t, axis=0 if len(t) == e.shape[1] else 1), "data not shrunk": lambda *a: straight(*a, where=lambda e, x, t: (1 - t) * e + x), "one time for all": lambda e, x, t: straight(e, x, t[:1])}),
    "midpoint_step": ([middle, middle_by_table], {
        "Euler": lambda v, x, t, dt: x + dt * v(x, t), "Heun": heun, "Runge and Kutta's": runge_kutta_4, "time left behind": lambda *a: middle(*a, time=0.0), "place left behind": lambda *a: middle(*a, place=0.0), "time at the end": lambda *a: middle(*a, time=1.0),
        "place at the end": lambda *a: middle(*a, place=1.0), "from the middle": lambda *a: middle(*a, start=True), "half a step": lambda v, x, t, dt: middle(v, x, t, dt / 2), "Euler twice": lambda v, x, t, dt: x + dt / 2 * v(x, t) + dt / 2 * v(x + dt / 2 * v(x, t), t + dt / 2),
        "asks three times": lambda v, x, t, dt: middle(v, x, t, dt) + 0 * v(x, t), "backwards": lambda v, x, t, dt: middle(v, x, t, -dt)}),
    "z_score": ([z_by(), z_by_index], {
        "N - 1": z_by(spread=lambda x: x.std(0)), "no threshold": z_by(least=0.0), "a small number below the line": z_by(least=0.0, small=1e-8), "as scikit-learn": z_by(still=None), "ones for what does not move": z_by(still=1.0), "variance": z_by(spread=lambda x: x.var(0, correction=0)),
        "one mean for all": z_by(centre=lambda x: x.mean()), "one deviation for all": z_by(spread=lambda x: x.std(correction=0).expand(x.shape[1])), "wrong axis": lambda x: z_by()(x.mT), "no mean on the way back": z_by(back=False), "normalise only": lambda x: z_by()(x)[:1],
        "the batch's own numbers": lambda train: (lambda x: z_by()(x)[0](x), z_by()(train)[1]), "what does not move left out": z_drops, "numbers for functions": lambda x: (x.mean(0), x.std(0, correction=0)), "from 0 to 1": z_by(centre=lambda x: x.amin(0), spread=lambda x: x.amax(0) - x.amin(0)),
        "median": z_by(centre=lambda x: x.median(0).values), "the other way round": lambda x: z_by()(x)[::-1], "not a number where nothing moves": z_by(still=math.nan), "a high threshold": z_by(least=0.9)}),
    "forward_kinematics": ([body, body_by_transforms], {
        "order swapped": lambda *a: body(*a, join=lambda p, r: r @ p), "turned by the parent alone": lambda *a: body(*a, own=False), "backwards": lambda *a: body(*a, turn=lambda r: r.mT), "every bone hangs from the one before": lambda *a: body(*a, chain=True),
        "own rotation only": lambda *a: body(*a, absolute=True), "nothing turns": lambda *a: body(*a, move=False), "not added up": lambda r, o, p: body(r, o, p) - F.pad(body(r, o, p)[:, [max(q, 0) for q in p]][:, 1:], (0, 0, 1, 0)),
        "rotations added": lambda *a: body(*a, join=torch.add), "one pose": lambda r, o, p: body(r[:1], o, p), "root not at 0": lambda r, o, p: body(r, o, p) + 1, "element by element": lambda *a: body(*a, join=torch.mul)}),
    "continuous_rotations": ([follow, follow_step_by_step], {
        "left as they are": lambda v: v.clone(), "compared with what was read": lambda v: follow(v, result=False), "one turn at most": lambda v: follow(v, most=1), "rounded down": lambda v: follow(v, turns=torch.floor), "rounded up": lambda v: follow(v, turns=torch.ceil),
        "half turns": lambda v: follow(v, period=math.pi), "0 / 0 at rest": follow_unguarded, "components unwrapped": lambda v: torch.tensor(np.unwrap(v.numpy(), axis=0)), "signs flipped": lambda v: torch.cat([v[:1], torch.where((v[1:] * v[:-1]).sum(-1, keepdim=True) < 0, -v[1:], v[1:])]),
        "the shortest": lambda v: torch.tensor(Rotation.from_rotvec(v.reshape(-1, 3).numpy()).as_rotvec()).float().view_as(v), "in degrees": lambda v: follow(v, period=360.0), "smoothed": lambda v: torch.cat([v[:1], (v[1:] + v[:-1]) / 2]), "the first frame lost": lambda v: follow(v)[1:]}),
    "six_from_vector": ([six, six_by_exponential], {
        "rows": lambda v: six(v, lambda m: m[..., :2, :].flatten(-2)), "in turns": lambda v: six(v, lambda m: m[..., :2].flatten(-2)), "the last two columns": lambda v: six(v, lambda m: m[..., 1:].mT.flatten(-2)), "second column first": lambda v: six(v, lambda m: m[..., [1, 0]].mT.flatten(-2)),
        "in degrees": lambda v: six(v * math.pi / 180), "backwards": lambda v: six(-v), "0 / 0 for no rotation": six_by_rodrigues, "nine numbers": lambda v: six(v, lambda m: m.mT.flatten(-2)), "joints flattened": lambda v: six(v).reshape(-1, 6),
        "Euler angles": lambda v: torch.tensor(Rotation.from_euler("xyz", v.reshape(-1, 3).numpy()).as_matrix()).float()[..., :2].mT.flatten(-2).view(*v.shape[:-1], 6), "twice too long": lambda v: 2 * six(v), "a coarse guard": lambda v: six_by_rodrigues(v, guard=1e-2)}),
    "vector_from_six": ([gram, gram_by_cross], {
        "not straightened": lambda s: gram(s, straighten=False), "rows": lambda s: gram(s, columns=False), "the second rules": second_rules, "columns swapped": lambda s: gram(s, order=(1, 0)), "not made as long as 1": lambda s: gram(s, unit=False),
        "left-handed": lambda s: gram(s, hand=-1), "matrices": lambda s: gram(s, last=False), "in turns": lambda s: gram(s.unflatten(-1, (3, 2)).mT.flatten(-2)), "degrees": lambda s: gram(s) * 180 / math.pi, "backwards": lambda s: -gram(s), "a turn too many": blow_up,
        "joints flattened": lambda s: gram(s).reshape(-1, 3),
        "the second forgotten": shortest}),
    "frechet_distance": ([frechet, frechet_svd], {
        "diagonals only": lambda *a: frechet(*a, both=lambda x, y: (x.diag() * y.diag()).sqrt().sum()), "traces of roots": lambda *a: frechet(*a, both=product_of_roots), "Cholesky": lambda *a: frechet(*a, both=cholesky), "element by element": lambda *a: frechet(*a, both=lambda x, y: (x @ y).diag().abs().sqrt().sum()),
        "the root of the trace": lambda *a: frechet(*a, both=lambda x, y: (x @ y).trace().sqrt()), "no factor 2": lambda *a: frechet(*a, factor=1), "means not squared": lambda *a: frechet(*a, means=lambda d: d.norm()), "mean of squares": lambda *a: frechet(*a, means=lambda d: d.square().mean()),
        "the root of it all": lambda *a: frechet(*a, root=lambda x: x.clamp(min=0).sqrt()), "means forgotten": lambda *a: frechet(*a, means=lambda d: 0), "covariances forgotten": lambda a, x, b, y: (a - b).square().sum(), "KL": lambda a, x, b, y: 0.5 * ((y.inverse() @ x).trace() + (b - a) @ y.inverse() @ (b - a) - len(a) + y.logdet() - x.logdet()),
        "Frobenius": lambda a, x, b, y: (a - b).square().sum() + (x - y).square().sum(), "the root of a product that is not symmetric": lambda *a: frechet(*a, both=lambda x, y: torch.linalg.eigvalsh(x @ y).clamp(min=0).sqrt().sum()), "NaN": lambda *a: frechet(*a, both=lambda x, y: torch.linalg.eigvals(x @ y).real.sqrt().sum() + 0 * y.inverse().sum())}),
    "average_weights": ([averaged, averaged_backwards], {
        "no ramp": lambda *a: averaged(*a, ramp=lambda n: 1.0), "one late": lambda *a: averaged(*a, first=0), "one early": lambda *a: averaged(*a, first=2), "the larger decay": lambda *a: averaged(*a, choose=max), "ramp only": lambda *a: averaged(*a, choose=lambda d, r: r), "begins with zeros": lambda *a: averaged(*a, start=lambda h: 0 * h[0]),
        "the wrong way round": lambda *a: averaged(*a, swap=True), "plain mean": lambda h, d: torch.stack(h).mean(0), "the last": lambda h, d: h[-1], "changes the first": averaged_in_place, "the last left out": lambda *a: averaged(*a, upto=-1), "decay times ramp": lambda *a: averaged(*a, choose=lambda d, r: d * r),
        "the ramp for one update only": lambda *a: averaged(*a, ramp=lambda n: 2 / 11 if n == 1 else 1.0), "the decay of the first update for ever": lambda *a: averaged(*a, ramp=lambda n: 2 / 11),
        "1 / (10 + n)": lambda *a: averaged(*a, ramp=lambda n: 1 / (10 + n)), "n / (10 + n)": lambda *a: averaged(*a, ramp=lambda n: n / (10 + n)), "from the last to the first": lambda h, d: averaged(h[::-1], d)}),
}


@pytest.mark.parametrize("name", ex.CHECKS)
def test_check_tells_right_from_wrong(name):
    right, wrong = ANSWERS[name]
    caught = prove_check(ex.CHECKS[name], right, wrong)
    assert len(caught) == len(wrong) >= 3


@pytest.mark.parametrize("name", ex.CHECKS)
def test_check_never_raises(name):
    for answer in None, 3, len, nn.Linear(2, 2), lambda *a, **k: "soon", lambda *a, **k: torch.tensor(math.nan), lambda *a, **k: 1 / 0, lambda: None, lambda *a, **k: [], lambda *a, **k: (None, 1):
        assert not ex.CHECKS[name](answer)


def test_the_library_s_own_features_pass():
    assert ex.check_time_features(blocks.time_features)


# ---- the notebook: solutions are complete, examples are true, stubs are stubs

def test_every_exercise_has_hint_check_and_solution():
    PAGE.assert_complete(ex.CHECKS)


@pytest.mark.parametrize("name", ex.CHECKS)
def test_folded_solution_passes_its_check(name):
    verdict = ex.CHECKS[name](PAGE.solution(name))
    assert verdict, verdict


def test_examples_in_the_statements_are_true():
    PAGE.assert_examples_are_true(len(ex.CHECKS))


# ---- grading notebooks: stage 1's grader with this stage's checks

def test_the_notebook_of_stubs_is_graded_not_done():
    row = ex.grade_notebook(PAGE.path)
    assert row["cells_failed"] == 0 and row["passed"] == 0
    assert {row[name] for name in ex.CHECKS} == {"not done yet"}


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "stage_modules.unet1d.exercises", *map(str, arguments)], check=False, capture_output=True, text=True, timeout=180)


def test_grading_a_folder(tmp_path):
    handed_in, table = tmp_path / "handed in", tmp_path / "grades.csv"
    (handed_in / ".ipynb_checkpoints").mkdir(parents=True)
    write_notebook(handed_in, "ben.ipynb", "1 / 0", "def ddim_step(x, noise, now, after): return x", "def causal_mask(n): return 3")
    solved = write_notebook(handed_in, "anna.ipynb", PAGE.imports, *PAGE.solutions().values())
    write_notebook(handed_in / ".ipynb_checkpoints", "anna-checkpoint.ipynb", solved.read_text(encoding="utf-8"))
    (handed_in / "notes.txt").write_text("no notebook")
    done = command(handed_in, "--output", table)
    assert done.returncode == 0, done.stderr
    anna, ben = csv.DictReader(table.open(encoding="utf-8"))
    assert anna["notebook"] == "anna.ipynb" and anna["passed"] == str(len(ex.CHECKS)) and anna["cells_failed"] == "0"
    assert (ben["cells_failed"], ben["ddim_step"], ben["z_score"]) == ("1", "failed", "not done yet")
    assert "causal_mask" not in ben, "that one is stage 1's"
    assert f"{len(ex.CHECKS)} of {len(ex.CHECKS)} passed" in done.stdout


def test_a_folder_without_notebooks_is_named_and_nothing_is_written(tmp_path):
    table = tmp_path / "grades.csv"
    done = command(tmp_path, "--output", table)
    assert done.returncode != 0 and f"{tmp_path}: no notebook" in done.stderr
    assert not table.exists()


def test_the_stages_grade_their_own_exercises():
    assert set(ex.grade({}).verdicts) == set(ex.CHECKS)
    for other in stage1, stage2: assert not set(ex.CHECKS) & set(other.CHECKS)
