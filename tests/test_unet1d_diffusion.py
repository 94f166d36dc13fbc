"Diffusion and flow matching: beside diffusers' schedulers, on distributions with a known answer, and with bad settings."
import copy
import math
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stage_modules.toolkit.errors import ShapeError
from stage_modules.unet1d.diffusion import (
    DDPM,
    PointDenoiser,
    ask_model,
    evaluation_mode,
    fit_points,
    placement,
    spaced_steps,
    spiral,
    walk,
)
from stage_modules.unet1d.flow import LOOKS, STEPS, FlowMatching, make_process

fixed = settings(derandomize=True, deadline=None, max_examples=50)
SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}  # our name and diffusers'


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float32).to(dtype)


def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    "Some smooth function of both."
    return 0.8 * torch.sin(1.3 * x + x.roll(1, -1)) * torch.cos(time.to(x.dtype)[:, None] / 400)


def denoiser(process: DDPM):
    "Nearly the best answer for data of standard deviation 0.5, bent so that it is no longer linear: chains stay near the data, as a trained network's do."

    def answer(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        signal, noisiness = process.columns(time, x)
        return noisiness / (0.25 * signal**2 + noisiness**2) * x + 0.3 * signal * torch.sin(1.3 * x + x.roll(1, -1))

    return answer


def theirs(kind: type, ours: DDPM, exact: bool = True, **options):
    """diffusers' scheduler for our process. Its tables are float32; with `exact` it gets our float64 ones, so that nothing but the formulas can differ.

    clip_sample=False, because we do not clip either; set_alpha_to_one=True (of DDIM) means that the last step ends at clean data."""
    if kind is DDIMScheduler: options = {"set_alpha_to_one": True, "steps_offset": 0} | options
    options = {"clip_sample": False, "timestep_spacing": "trailing"} | options
    scheduler = kind(num_train_timesteps=ours.num_timesteps, beta_schedule=SCHEDULES[ours.schedule], beta_start=1e-4, beta_end=0.02, **options)
    if exact: scheduler.betas, scheduler.alphas_cumprod = ours.betas, ours.alphas_cumprod
    return scheduler


class WithWeights(nn.Module):
    "A function as a module of some type, so that samplers work in it."

    def __init__(self, answer, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.answer, self.weight = answer, nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, x, time):
        assert x.dtype == self.weight.dtype
        return self.answer(x, time) * self.weight


def their_chain(scheduler, network, x: torch.Tensor, num_steps: int | None, seed: int, timesteps: list[int] | None = None, **step_options) -> torch.Tensor:
    "The loop that diffusers' pipelines run, with noise drawn in float32 like ours."
    noise = generator(seed)
    scheduler.set_timesteps(num_steps) if timesteps is None else scheduler.set_timesteps(timesteps=timesteps)
    for t in scheduler.timesteps:
        answer = network(x, t.expand(len(x)))
        if isinstance(scheduler, DDIMScheduler) and step_options.get("eta"):
            last = t == scheduler.timesteps[-1]  # sigma is 0 there: any noise will do, and we draw none
            fresh = torch.zeros_like(x) if last else torch.randn(x.shape, generator=noise, dtype=torch.float32).to(x)
            x = scheduler.step(answer, t, x, variance_noise=fresh, **step_options).prev_sample
        else: x = scheduler.step(answer, t, x, generator=noise if x.dtype == torch.float32 else Float32(noise), **step_options).prev_sample
    return x


class Float32:
    "Makes diffusers draw in float32 where the state is float64."

    def __init__(self, inner: torch.Generator): self.inner, self.device = inner, inner.device


@pytest.fixture(autouse=True)
def noise_in_float32(monkeypatch):
    import diffusers.schedulers.scheduling_ddpm as module
    true = module.randn_tensor

    def drawn(shape, generator=None, device=None, dtype=None, **rest):
        if isinstance(generator, Float32): return true(shape, generator=generator.inner, device=device, dtype=torch.float32).to(dtype)
        return true(shape, generator=generator, device=device, dtype=dtype, **rest)

    monkeypatch.setattr(module, "randn_tensor", drawn)


# ------------------------------------------------------------------ diffusers


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [10, 1000])
def test_schedules_are_those_of_diffusers(schedule, num_timesteps):
    ours = DDPM(num_timesteps, schedule)
    scheduler = theirs(DDPMScheduler, ours, exact=False)
    torch.testing.assert_close(ours.betas.float(), scheduler.betas, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noising_is_that_of_diffusers(schedule):
    ours = DDPM(schedule=schedule)
    x, noise, t = normal(64, 72, dtype=torch.float32), normal(64, 72, seed=1, dtype=torch.float32), torch.randint(1000, (64,), generator=generator())
    torch.testing.assert_close(ours.add_noise(x, noise, t), theirs(DDPMScheduler, ours, exact=False).add_noise(x, noise, t), rtol=0, atol=1e-5)
    exact = theirs(DDPMScheduler, ours).add_noise(x.double(), noise.double(), t)
    torch.testing.assert_close(ours.add_noise(x.double(), noise.double(), t), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_one_ancestral_step_is_that_of_diffusers(schedule, t):
    ours, x = DDPM(schedule=schedule), normal(16, 72)
    answer = denoiser(ours)(x, torch.full((16,), t))
    expected = theirs(DDPMScheduler, ours).step(answer, t, x, generator=Float32(generator(3))).prev_sample
    torch.testing.assert_close(ours.step(x, answer, t, t - 1, generator=generator(3)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1000, 50, 7])
def test_ancestral_chains_are_those_of_diffusers(schedule, num_steps):
    "7 does not divide 1000; given as a list, diffusers takes exactly those steps."
    ours, x = DDPM(schedule=schedule), normal(8, 72)
    samples = ours.sample(WithWeights(denoiser(ours)), 8, num_steps, generator=generator(3), start=(x, 999))
    expected = their_chain(theirs(DDPMScheduler, ours), denoiser(ours), x, None, 3, timesteps=spaced_steps(999, num_steps))
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-8)
    assert 0.1 < samples.abs().max() < 10


def test_a_float32_chain_is_that_of_an_untouched_diffusers():
    ours, x = DDPM(), normal(8, 72, dtype=torch.float32)
    samples = ours.sample(WithWeights(denoiser(ours), torch.float32), 8, 50, generator=generator(3), start=(x, 999))
    expected = their_chain(theirs(DDPMScheduler, ours, exact=False), denoiser(ours), x, 50, 3)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("eta", [0., 0.5, 1.])
@pytest.mark.parametrize("num_steps", [250, 50, 8, 1])
def test_ddim_chains_are_those_of_diffusers(schedule, eta, num_steps):
    "Only where num_steps divides T: elsewhere diffusers steps to t - T // num_steps, which is not the next of its own timesteps."
    ours, x = DDPM(schedule=schedule), normal(8, 72)
    samples = ours.sample(WithWeights(denoiser(ours)), 8, num_steps, "ddim", eta, generator(3), start=(x, 999))
    expected = their_chain(theirs(DDIMScheduler, ours), denoiser(ours), x, num_steps, 3, eta=eta)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind, solver", [(DDPMScheduler, "ddpm"), (DDIMScheduler, "ddim")])
def test_clipping_is_that_of_diffusers(kind, solver):
    "DDIM must be told to take the noise that belongs to the clipped value; DDPM's formula does so of itself."
    ours, x = DDPM(schedule="cosine", clip=0.7), normal(8, 72)
    samples = ours.sample(WithWeights(denoiser(ours)), 8, 50, solver, generator=generator(3), start=(x, 999))
    options = {"use_clipped_model_output": True} if solver == "ddim" else {}
    expected = their_chain(theirs(kind, ours, clip_sample=True, clip_sample_range=0.7), denoiser(ours), x, 50, 3, **options)
    torch.testing.assert_close(samples, expected, rtol=0, atol=1e-8)
    assert samples.abs().max() <= 0.7 + 1e-9


def test_spaced_steps_are_those_of_diffusers():
    "diffusers adds up floating-point steps: a place exactly between two whole numbers may be rounded either way, and some counts get one step too many, down to -1."
    scheduler, longer = theirs(DDIMScheduler, DDPM()), []
    for num_steps in range(1, 1001):
        scheduler.set_timesteps(num_steps)
        ours, others = spaced_steps(999, num_steps), scheduler.timesteps.tolist()
        if len(others) > num_steps: longer.append(others.pop())
        for i, (our, other) in enumerate(zip(ours, others, strict=True)):
            tie = 2000 * (num_steps - i) % num_steps == 0 and 1000 * (num_steps - i) % num_steps
            assert our == other or (tie and abs(our - other) == 1), f"num_steps={num_steps}, step {i}: {our}, diffusers {other}"
    assert set(longer) <= {-1}


@pytest.mark.parametrize("num_steps", [1, 4, 50])
def test_euler_is_that_of_diffusers(num_steps):
    """diffusers goes the other way: sigma = 1 - t falls from 1 (noise) to 0 (data), its model predicts noise - data = minus our velocity, and is told 1000 sigma.

    Its own spacing ends at sigma = 1/1000 before the 0 that it appends, so we give it our evenly spaced sigmas."""
    ours, x = FlowMatching(), normal(8, 72)
    samples = ours.sample(WithWeights(velocity), 8, num_steps, "euler", start=(x, 0.))
    scheduler, state = FlowMatchEulerDiscreteScheduler(), x.float()
    scheduler.set_timesteps(sigmas=[1 - i / num_steps for i in range(num_steps)])
    for timestep in scheduler.timesteps:
        state = scheduler.step(-velocity(state, (1000 - timestep).expand(8)), timestep, state).prev_sample
    torch.testing.assert_close(samples.float(), state, rtol=0, atol=1e-5)


def test_points_on_the_line_are_those_of_diffusers():
    ours, scheduler = FlowMatching(), FlowMatchEulerDiscreteScheduler()
    x, noise = normal(9, 72, dtype=torch.float32), normal(9, 72, seed=1, dtype=torch.float32)
    timesteps = scheduler.timesteps[[0, 100, 200, 300, 400, 500, 700, 998, 999]]
    torch.testing.assert_close(ours.add_noise(x, noise, 1 - timesteps / 1000), scheduler.scale_noise(x, timesteps, noise), rtol=0, atol=1e-5)


# ------------------------------------------------------------------ known answers


class PerfectDenoiser:
    "The best answer for normal data with this mean and standard deviation."

    def __init__(self, process: DDPM, mean: float, std: float): self.process, self.mean, self.std = process, mean, std

    def __call__(self, x, t):
        signal, noisiness = self.process.columns(t, x)
        return noisiness / (signal**2 * self.std**2 + noisiness**2) * (x - signal * self.mean)


class PerfectField:
    "The mean velocity for normal data, by Bayes' rule."

    def __init__(self, process: FlowMatching, mean: float, std: float): self.scale, self.mean, self.std = process.time_scale, mean, std

    def __call__(self, x, time):
        t = (time / self.scale)[:, None].to(x.dtype)
        variance = t**2 * self.std**2 + (1 - t) ** 2
        return self.mean + (t * self.std**2 - (1 - t)) / variance * (x - t * self.mean)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver, eta", [("ddpm", 0.), ("ddim", 0.), ("ddim", 0.5)])
def test_a_perfect_denoiser_gives_its_distribution(schedule, solver, eta):
    ours = DDPM(schedule=schedule)
    x = ours.sample(PerfectDenoiser(ours, -1., 0.4), 20_000, solver=solver, eta=eta, dim=1, generator=generator())
    assert abs(x.mean() + 1) < 0.02 and abs(x.std() - 0.4) < 0.01


@pytest.mark.parametrize("solver, num_steps", [("euler", 400), ("midpoint", 20), ("rk4", 10)])
def test_a_perfect_field_gives_its_distribution(solver, num_steps):
    ours = FlowMatching()
    x = ours.sample(PerfectField(ours, -1., 0.4), 20_000, num_steps, solver, dim=1, generator=generator())
    assert abs(x.mean() + 1) < 0.02 and abs(x.std() - 0.4) < 0.01


@pytest.mark.parametrize("solver, order", [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_solvers_have_their_order(solver, order):
    "x' = -2 t x² has the solution 1 / (1 + t²); the error falls like the step to the power of the order."
    counts, errors = [16, 32, 64], []
    for n in counts:
        x = torch.ones(1, 1, dtype=torch.float64)
        for i in range(n): x = STEPS[solver](lambda x, t: -2 * t * x**2, x, i / n, 1 / n)
        errors.append(abs(x.item() - 1 / 2))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15


@pytest.mark.parametrize("solver", LOOKS)
def test_a_solver_looks_as_often_as_it_says(solver):
    times = []
    FlowMatching(time_scale=10.).sample(lambda x, t: times.append(t[0].item()) or x, 2, 5, solver, dim=1, generator=generator())
    assert len(times) == 5 * LOOKS[solver] and min(times) == 0 and max(times) <= 10


def test_the_loss_is_a_sum_over_everything_and_reaches_every_step_and_time():
    seen = []
    torch.manual_seed(0)
    total, count = DDPM(7).loss(lambda x, t: seen.append(t) or torch.zeros_like(x), torch.zeros(500, 3))
    assert count == 1500 and abs(total.item() / count - 1) < 0.1 and set(seen[0].tolist()) == set(range(7))
    total, count = FlowMatching().loss(lambda x, t: seen.append(t) or torch.zeros_like(x), torch.full((500, 3), 2.))
    assert count == 1500 and abs(total.item() / count - 5) < 0.3  # data² + noise²
    assert seen[1].min() < 20 and seen[1].max() > 980 and seen[1].max() <= 1000


def test_losses_depend_on_torchs_generator_alone():
    for process in DDPM(), FlowMatching():
        model, losses = PointDenoiser(), []
        for _ in range(2):
            torch.manual_seed(5)
            losses.append(process.loss(model, spiral(50))[0].item())
        assert losses[0] == losses[1] != process.loss(model, spiral(50))[0].item()


@pytest.mark.parametrize("process", [DDPM(), FlowMatching()], ids=["ddpm", "flow"])
def test_training_on_points_helps_and_gradients_reach_every_weight(process):
    model, losses = fit_points(process, spiral(500), num_steps=60)
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.05
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# ------------------------------------------------------------------ properties


@fixed
@given(st.integers(1, 1200), st.sampled_from(list(SCHEDULES)))
def test_schedules_only_lose_data(num_timesteps, schedule):
    ours = DDPM(num_timesteps, schedule)
    assert ours.betas.dtype == ours.alphas_cumprod.dtype == torch.float64 and len(ours.betas) == num_timesteps
    left = torch.cat([torch.ones(1, dtype=torch.float64), ours.alphas_cumprod])
    assert (left.diff() < 0).all() and (ours.alphas_cumprod > 0).all() and (ours.betas < 1).all()


@fixed
@given(st.integers(0, 999), st.data())
def test_spaced_steps_start_at_the_top_and_fall_evenly(start, data):
    num_steps = data.draw(st.integers(1, start + 1))
    steps = np.array(spaced_steps(start, num_steps))
    gaps = -np.diff([*steps, -1])
    assert len(steps) == num_steps and steps[0] == start and gaps.min() >= 1 and gaps.max() - gaps.min() <= 2


@fixed
@given(st.integers(0, 900), st.floats(-3, 3), st.floats(-3, 3), st.sampled_from(list(SCHEDULES)))
def test_noising_is_undone_by_who_knows_the_noise(t, value, noise, schedule):
    ours, x, e = DDPM(schedule=schedule), torch.full((2, 3), value, dtype=torch.float64), torch.full((2, 3), noise, dtype=torch.float64)
    torch.testing.assert_close(ours.predict_clean(ours.add_noise(x, e, t), e, t), x, rtol=0, atol=1e-9)


@fixed
@given(st.floats(0, 1), st.floats(-3, 3), st.floats(-3, 3))
def test_the_velocity_leads_to_the_data(t, value, noise):
    ours, x, e = FlowMatching(), torch.full((2, 3), value, dtype=torch.float64), torch.full((2, 3), noise, dtype=torch.float64)
    torch.testing.assert_close(ours.predict_clean(ours.add_noise(x, e, t), ours.velocity(x, e), t), x, rtol=0, atol=1e-9)


@fixed
@given(st.integers(1, 999), st.data(), st.floats(0, 1))
def test_a_step_with_the_true_noise_stays_true_in_mean_and_variance(t, data, eta):
    "Whatever the dial: for data known exactly, the next state has the level's signal and the level's noise."
    ours, following = DDPM(), data.draw(st.integers(-1, t - 1))
    x = torch.full((20_000, 1), 1.5, dtype=torch.float64)
    e = normal(20_000, 1)
    e = (e - e.mean()) / e.std()
    state = ours.step(ours.add_noise(x, e, t), e, t, following, eta, generator(1))
    signal, noisiness = ours.levels(following)
    assert abs(state.mean() - signal * 1.5) < 0.03 and abs(state.std() - noisiness) < 0.03 if following >= 0 else torch.allclose(state, x)


@fixed
@given(st.integers(1, 40), st.data())
def test_kept_states_are_on_the_way(num_steps, data):
    keep = data.draw(st.integers(2, num_steps + 1))
    x, path, times = walk(lambda x, t, following: x + following - t, torch.zeros(3, 2), list(range(num_steps + 1)), keep)
    assert path.shape == (keep, 3, 2) and times.shape == (keep,)
    assert times[0] == 0 and times[-1] == num_steps and (times.diff() >= 1).all() and times.diff().max() - times.diff().min() <= 2
    assert torch.equal(path[:, 0, 0], times.float()) and torch.equal(path[-1], x)


# ------------------------------------------------------------------ types, modes, reproducibility

PROCESSES = [(DDPM(20), {}), (DDPM(20), {"solver": "ddim"}), (FlowMatching(), {"num_steps": 5}), (FlowMatching(), {"num_steps": 5, "solver": "rk4"})]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_results_have_the_type_that_came(dtype):
    x, noise = normal(6, 72, dtype=dtype), normal(6, 72, seed=1, dtype=dtype)
    exact = {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float64: 1e-14}[dtype]
    for process, t in (DDPM(), torch.arange(0, 600, 100)), (FlowMatching(), torch.linspace(0, 0.9, 6, dtype=torch.float64)):
        noisy, reference = process.add_noise(x, noise, t), process.add_noise(x.double(), noise.double(), t)
        assert noisy.dtype == dtype
        torch.testing.assert_close(noisy.double(), reference, rtol=exact, atol=exact)
        assert process.predict_clean(noisy, noise, t).dtype == dtype
        total, _ = process.loss(lambda x, time: x, x)
        assert total.dtype == torch.promote_types(dtype, torch.float32) and total.isfinite()


@pytest.mark.parametrize("process, options", PROCESSES)
@pytest.mark.parametrize("dtype, result", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_samples_of_a_model_in_any_type(process, options, dtype, result):
    model = PointDenoiser().to(dtype)
    x = process.sample(model, 7, dim=2, generator=generator(), **options)
    assert x.dtype == result and x.shape == (7, 2) and x.isfinite().all() and not x.requires_grad
    reference = process.sample(copy.deepcopy(model).double(), 7, dim=2, generator=generator(), **options)
    assert ((x - reference).norm() / reference.norm()) < (0.1 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("process, options", PROCESSES)
def test_a_generator_is_all_that_samples_depend_on(process, options):
    model = PointDenoiser()
    first = process.sample(model, 5, dim=2, generator=generator(1), **options)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = process.sample(model, 5, dim=2, generator=generator(1), **options)
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, process.sample(model, 5, dim=2, generator=generator(2), **options))


class Watchful(nn.Module):
    "Notes in which mode it is asked, and fails when told to."

    def __init__(self, answer=lambda x: x):
        super().__init__()
        self.norm, self.frozen, self.answer, self.modes = nn.BatchNorm1d(2), nn.Dropout(0.5), answer, set()
        self.frozen.eval()

    def forward(self, x, time):
        self.modes.add((self.training, self.norm.training, torch.is_grad_enabled()))
        return self.answer(self.norm(x))


@pytest.mark.parametrize("process, options", PROCESSES)
def test_a_model_is_asked_in_evaluation_mode_and_given_back_as_it_was(process, options):
    model = Watchful()
    statistics = copy.deepcopy(model.norm.state_dict())
    process.sample(model, 4, dim=2, **options)
    assert model.modes == {(False, False, False)} and torch.is_grad_enabled()
    assert model.training and model.norm.training and not model.frozen.training
    assert all(torch.equal(value, statistics[name]) for name, value in model.norm.state_dict().items())


@pytest.mark.parametrize("process, options", PROCESSES)
@pytest.mark.parametrize("answer, error, message", [
    (lambda x: x * math.nan, FloatingPointError, "the model gave 8 of 8 numbers that are NaN or infinite"),
    (lambda x: torch.where(x == x.max(), math.inf, x), FloatingPointError, "the model gave 1 of 8 numbers"),
    (lambda x: x[:, :1], ShapeError, r"the model gave shape \(4, 1\), expected \(4, 2\)"),
    (lambda x: x[None], ShapeError, r"the model gave shape \(1, 4, 2\), expected \(4, 2\)"),
], ids=["nan", "infinity", "narrow", "batched"])
def test_bad_answers_end_the_walk_and_leave_the_model_as_it_was(process, options, answer, error, message):
    model = Watchful(answer)
    with pytest.raises(error, match=message): process.sample(model, 4, dim=2, **options)
    assert model.training and model.norm.training and not model.frozen.training and torch.is_grad_enabled()


def test_the_model_sees_whole_steps_or_scaled_times():
    seen = []
    model = lambda x, time: seen.append(time) or torch.zeros_like(x)
    DDPM(10).sample(model, 3, 2, dim=2)
    FlowMatching(time_scale=7.).sample(model, 3, 2, dim=2)
    assert [t.tolist() for t in seen[:2]] == [[9] * 3, [4] * 3] and not seen[0].is_floating_point()
    assert [t.tolist() for t in seen[2:]] == [[0.] * 3, [3.5] * 3] and seen[3].dtype == torch.float32


def test_a_model_without_weights_runs_on_the_cpu_and_one_with_whole_numbers_only_too():
    assert placement(torch.sin) == (torch.device("cpu"), torch.float32)
    counter = nn.Module()
    counter.register_buffer("count", torch.zeros(3, dtype=torch.int64))
    assert placement(counter) == (torch.device("cpu"), torch.float32)
    with evaluation_mode(counter): assert not counter.training
    assert counter.training and ask_model(lambda x, t: x, torch.ones(1, 1), 0).item() == 1


def test_walks_may_begin_half_way():
    x = normal(6, 2, dtype=torch.float32)
    steps = []
    model = lambda x, time: steps.append(time[0].item()) or torch.zeros_like(x)
    DDPM(10).sample(model, 6, dim=2, start=(x, 4))
    FlowMatching(1.).sample(model, 6, 2, dim=2, start=(x, 0.5))
    assert steps == [4, 3, 2, 1, 0, 0.5, 0.75]
    back, path, times = DDPM(10).sample(model, 6, 5, "ddim", dim=2, start=(x, 4), keep=6)
    assert torch.equal(path[0], x) and torch.equal(path[-1], back) and times.tolist() == [4, 3, 2, 1, 0, -1]


# ------------------------------------------------------------------ bad settings


@pytest.mark.parametrize("make, message", [
    (lambda: DDPM(0), "num_timesteps is 0, expected a whole number, 1 or more"),
    (lambda: DDPM(10.5), "num_timesteps is 10.5"),
    (lambda: DDPM(True), "num_timesteps is True"),
    (lambda: DDPM(schedule="quadratic"), "schedule is 'quadratic', expected one of linear, cosine"),
    (lambda: DDPM(beta_start=0.), "beta_start is 0.0, expected more than 0"),
    (lambda: DDPM(beta_start=0.02, beta_end=1e-4), "beta_end is 0.0001, expected at least beta_start=0.02"),
    (lambda: DDPM(beta_end=1.), "beta_end is 1.0"),
    (lambda: DDPM(clip=-1), "clip is -1, expected more than 0, or None"),
    (lambda: FlowMatching(0.), "time_scale is 0.0, expected more than 0"),
    (lambda: make_process("vae"), "model_type is 'vae', expected one of ddpm, flow"),
    (lambda: make_process("flow", schedule="linear"), "model_type 'flow' has no setting 'schedule'; it has time_scale"),
    (lambda: make_process("ddpm", schedule="x"), "schedule is 'x'"),
])
def test_bad_settings_of_a_process(make, message):
    with pytest.raises(ValueError) as error: make()
    assert message in str(error.value)


def never(x, time): raise AssertionError("asked before the settings were looked at")


@pytest.mark.parametrize("process, most", [(DDPM(10), "1 to 10"), (FlowMatching(), "1 or more")], ids=["ddpm", "flow"])
@pytest.mark.parametrize("options, message", [
    ({"num_samples": 0}, "num_samples is 0, expected a whole number, 1 or more"),
    ({"num_samples": -3}, "num_samples is -3"),
    ({"num_samples": 2.5}, "num_samples is 2.5"),
    ({"num_steps": 0}, "num_steps is 0, expected a whole number, {most}"),
    ({"num_steps": 2.5}, "num_steps is 2.5"),
    ({"solver": "dpm++"}, "solver is 'dpm++', expected one of "),
    ({"eta": -0.5, "solver": None}, "eta is -0.5, expected 0"),
    ({"dim": 0}, "dim is 0, expected a whole number, 1 or more"),
    ({"keep": 1}, "keep is 1, expected 0, or 2 to"),
    ({"keep": 2000}, "keep is 2000"),
])
def test_bad_settings_of_a_sampler(process, most, options, message):
    with pytest.raises(ValueError) as error: process.sample(never, **({"num_samples": 2} | options))
    assert message.format(most=most) in str(error.value)


@pytest.mark.parametrize("sample, message", [
    (lambda: DDPM(10).sample(never, 2, 11), "num_steps is 11, expected a whole number, 1 to 10"),
    (lambda: DDPM(10).sample(never, 2, 6, dim=3, start=(torch.zeros(2, 3), 4)), "num_steps is 6, expected a whole number, 1 to 5"),
    (lambda: DDPM(10).sample(never, 2, dim=3, start=(torch.zeros(2, 3), 10)), "start is 10, expected a whole number, 0 to 9"),
    (lambda: DDPM(10).sample(never, 2, dim=3, start=(torch.zeros(3, 3), 4)), "start has shape (3, 3), expected (2, 3)"),
    (lambda: FlowMatching().sample(never, 2, dim=3, start=(torch.zeros(2, 3), 1.)), "start is 1.0, expected a time from 0 to less than 1"),
    (lambda: FlowMatching().sample(never, 2, eta=1.), "eta is 1.0, expected 0"),
    (lambda: DDPM(10).add_noise(torch.zeros(2, 3), torch.zeros(2, 1), 4), "noise has shape (2, 1), expected (2, 3)"),
    (lambda: DDPM(10).add_noise(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([4, -1])), "t is -1, expected a whole number, 0 to 9"),
    (lambda: DDPM(10).add_noise(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0.1, 0.2])), "t is torch.float32, expected whole numbers"),
    (lambda: FlowMatching().add_noise(torch.zeros(2, 3), torch.zeros(2, 1), 0.5), "noise has shape (2, 1), expected (2, 3)"),
    (lambda: FlowMatching().add_noise(torch.zeros(2, 3), torch.zeros(2, 3), 3), "t is 3.0, expected 0 to 1"),
    (lambda: DDPM(10).loss(lambda x, t: x[:, :1], torch.zeros(2, 3)), "the model gave shape (2, 1), expected (2, 3)"),
    (lambda: FlowMatching().loss(lambda x, t: x[:, :1], torch.zeros(2, 3)), "the model gave shape (2, 1), expected (2, 3)"),
])
def test_bad_input_says_what_is_wrong(sample, message):
    with pytest.raises(ValueError) as error: sample()
    assert message in str(error.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("process, options", PROCESSES)
def test_on_a_gpu_the_same_generator_gives_the_same_samples(process, options):
    model = PointDenoiser()
    expected = process.sample(model, 50, dim=2, generator=generator(), **options)
    model.cuda()
    samples = process.sample(model, 50, dim=2, generator=generator(), **options)
    assert samples.is_cuda
    torch.testing.assert_close(samples.cpu(), expected, rtol=1e-3, atol=1e-3)
    total, _ = process.loss(model, spiral(64).cuda())
    assert total.is_cuda and total.isfinite()


def test_the_modules_do_not_need_diffusers():
    import subprocess
    code = "import sys; sys.modules['diffusers'] = None; sys.modules['fastcore'] = None; import stage_modules.unet1d.flow as f; f.make_process('ddpm')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
