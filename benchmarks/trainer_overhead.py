"""What the Trainer costs beside ten lines of plain torch: the same model, batches and optimizer, trained in turn, several times.

Prints milliseconds per step and saves benchmarks/results/trainer_overhead.json. Needs no download."""
import statistics
import time
from pathlib import Path

import common
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stage_modules.toolkit.training import Trainer, TrainingConfig, make_optimizer

VOCABULARY, STEPS, ROUNDS = 1000, 20, 7
SIZES = {"small": 32, "medium": 128, "large": 256} # features of embedding and recurrent layer


def make_model(dim: int) -> nn.Module:
    torch.manual_seed(0)
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.recurrent, self.output = nn.Embedding(VOCABULARY, dim), nn.GRU(dim, dim, batch_first=True), nn.Linear(dim, VOCABULARY)
        def forward(self, tokens): return self.output(self.recurrent(self.embedding(tokens))[0])
    return Model()


def make_batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, VOCABULARY, (32, 21), generator=generator) for _ in range(STEPS)]


def loss_fn(model, tokens):
    loss = cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0, reduction="sum")
    return loss, (tokens[:, 1:] != 0).sum()


def bare(dim: int, batches: list) -> float:
    "Seconds of the plain loop, which clips and reads the loss as the Trainer does."
    model, config = make_model(dim).train(), TrainingConfig()
    optimizer = make_optimizer(model, config)
    start = time.perf_counter()
    for tokens in batches:
        loss, count = loss_fn(model, tokens)
        loss = loss / count
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip_norm)
        optimizer.step()
        loss.item()
    return time.perf_counter() - start


def trained(dim: int, batches: list) -> float:
    "Seconds of `Trainer.fit`, which writes nothing."
    trainer = Trainer(make_model(dim), TrainingConfig(num_epochs=1, progress=False, device="cpu"), batches, loss_fn)
    start = time.perf_counter()
    trainer.fit()
    return time.perf_counter() - start


def main() -> Path:
    "Measures, prints, saves."
    batches, results = make_batches(), {}
    for name, dim in SIZES.items():
        bare(dim, batches), trained(dim, batches) # warm up
        pairs = [(bare(dim, batches), trained(dim, batches)) for _ in range(ROUNDS)] # in turn, so that a busy moment hits both
        plain, ours = (statistics.median(times) * 1000 / STEPS for times in zip(*pairs))
        results[name] = {"features": dim, "bare_ms_per_step": round(plain, 3), "trainer_ms_per_step": round(ours, 3),
                         "median_ratio": round(statistics.median(b / a for a, b in pairs), 3)}
        print(f"{name:7s} bare {plain:7.2f} ms   Trainer {ours:7.2f} ms   ratio {results[name]['median_ratio']:.3f}")
    return common.save("trainer_overhead", results, steps=STEPS, rounds=ROUNDS)


if __name__ == "__main__": main()
