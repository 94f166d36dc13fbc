"""Training speed of the translator: ours beside the same model written the way tutorials write it, and our encoder beside packing.

Both learn the same sentences with the same sizes, optimizer and number of threads, in turns within one run, so that whatever else the
machine does falls on both. No download. `python benchmarks/seq2seq_speed.py` prints a table and writes results/seq2seq_speed.json."""
import argparse
import copy
import statistics
import time

import torch
from common import save, table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stage_modules.seq2seq.attention import BahdanauAttention
from stage_modules.seq2seq.data import BucketedBatches, build_tokenizers, encode_pairs
from stage_modules.seq2seq.grammar import make_pairs
from stage_modules.seq2seq.luong import LuongAttention
from stage_modules.seq2seq.model import BidirectionalLayer, ModelConfig, build_model


class Tutorial(nn.Module):
    "Our model's parts, used the tutorial's way: packed encoder; then a loop over words in which each subclass looks, steps and scores the vocabulary."

    def __init__(self, config: ModelConfig, attention: nn.Module, waits: int, read: int):
        super().__init__()
        E, H = config.embedding_dim, config.hidden_size
        self.source_embedding = nn.Embedding(config.source_vocab_size, E, padding_idx=0)
        self.target_embedding = nn.Embedding(config.target_vocab_size, E, padding_idx=0)
        self.encoder = nn.LSTM(E, H // 2, bidirectional=True, batch_first=True)
        self.bridge, self.cell = nn.Linear(H, 2 * H), nn.LSTMCell(E + waits, H)
        self.attention, self.readout = attention, nn.Linear(read, E)
        self.output, self.dropout = nn.Linear(E, config.target_vocab_size), nn.Dropout(config.dropout)

    def copy(self, model: nn.Module) -> None:
        "Takes our model's weights: it is the same function, written another way."
        encoder, decoder = model.encoder, model.decoder
        for name, p in encoder.layers[0].forwards.named_parameters(): getattr(self.encoder, name).data.copy_(p)
        for name, p in encoder.layers[0].backwards.named_parameters(): getattr(self.encoder, f"{name}_reverse").data.copy_(p)
        for name, p in decoder.first.named_parameters(): getattr(self.cell, name.removesuffix("_l0")).data.copy_(p)
        for mine, theirs in ((self.source_embedding, encoder.embedding), (self.target_embedding, decoder.embedding), (self.bridge, decoder.bridge),
                             (self.attention, decoder.attention), (self.readout, decoder.readout), (self.output, decoder.output)): mine.load_state_dict(theirs.state_dict())

    def read(self, batch) -> tuple[Tensor, Tensor, Tensor]: # encoder states (B, S, H), first hidden and cell (B, H)
        x = self.dropout(self.source_embedding(batch.source))
        packed, (final, _) = self.encoder(pack_padded_sequence(x, batch.source_mask.sum(1), batch_first=True, enforce_sorted=False))
        states = x + pad_packed_sequence(packed, batch_first=True, total_length=batch.source.shape[1])[0]
        h, c = self.bridge(torch.cat([final[0], final[1]], -1)).chunk(2, -1)
        return states, h.tanh(), c

    def score(self, features: Tensor, right: Tensor) -> Tensor:
        return F.cross_entropy(self.output(self.dropout(features)), right, ignore_index=0, reduction="sum")


class TutorialModel(Tutorial):
    "Bahdanau's: looks before the step; keys projected at each step."

    def __init__(self, config: ModelConfig):
        E, H = config.embedding_dim, config.hidden_size
        super().__init__(config, BahdanauAttention(H, H, config.attention_dim), H, 2 * H + E)

    def loss(self, batch) -> tuple[Tensor, Tensor]:
        states, h, c = self.read(batch)
        loss = 0.
        for t in range(batch.target_in.shape[1]):
            word = self.dropout(self.target_embedding(batch.target_in[:, t]))
            context, _ = self.attention(h, states, states, batch.source_mask)
            h, c = self.cell(torch.cat([word, context], -1), (h, c))
            loss = loss + self.score(self.readout(torch.cat([h, word, context], -1)).tanh(), batch.target_out[:, t])
        return loss, batch.target_mask.sum()


class TutorialLuong(Tutorial):
    "Luong's: looks after the step; with input feeding the attentional vector goes into the next step."

    def __init__(self, config: ModelConfig):
        H = config.hidden_size
        super().__init__(config, LuongAttention(H, H, config.attention_dim, config.attention_method), config.embedding_dim * config.input_feeding, 2 * H)
        self.feeding = config.input_feeding

    def loss(self, batch) -> tuple[Tensor, Tensor]:
        states, h, c = self.read(batch)
        loss, feature = 0., states.new_zeros(len(states), self.readout.out_features)
        for t in range(batch.target_in.shape[1]):
            word = self.dropout(self.target_embedding(batch.target_in[:, t]))
            h, c = self.cell(torch.cat([word, feature], -1) if self.feeding else word, (h, c))
            context, _ = self.attention(h, states, states, batch.source_mask)
            feature = self.readout(torch.cat([h, context], -1)).tanh()
            loss = loss + self.score(feature, batch.target_out[:, t])
        return loss, batch.target_mask.sum()


def check_same(ours: nn.Module, theirs: Tutorial, batch) -> None:
    "Both give the same loss from the same weights, or the race would be between two models."
    theirs.copy(ours)
    a, b = (model.eval().loss(batch)[0].item() for model in (ours, theirs))
    assert abs(a / b - 1) < 1e-4, f"not the same model: losses {a} and {b}"
    ours.train(); theirs.train()


def speed_of(model: nn.Module, batches: list, optimizer: torch.optim.Optimizer, bf16: bool = False) -> float:
    "Real target tokens per second of whole training steps."
    start, tokens = time.perf_counter(), 0
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16): loss, count = model.loss(batch)
        (loss / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        tokens += int(count)
    return tokens / (time.perf_counter() - start)


def training(hidden: int, batch_size: int, steps: int, rounds: int) -> dict:
    "Ours and the tutorial's, in turns."
    pairs = [(p.source, p.target) for p in make_pairs(max(4000, steps * batch_size), seed=0)]
    tokenizers = build_tokenizers(pairs, "bpe", vocab_size=4000)
    encoded = encode_pairs(pairs, *tokenizers)
    config = ModelConfig("bahdanau", hidden, hidden, hidden, source_vocab_size=len(tokenizers[0]), target_vocab_size=len(tokenizers[1]))
    ours, theirs = build_model(config), TutorialModel(config)
    check_same(ours, theirs, next(iter(BucketedBatches(encoded[:50], 50, buckets=False))))
    contestants = {"ours": (ours, True), "tutorial": (theirs, False), "tutorial, with our buckets": (copy.deepcopy(theirs), True)}
    runs = {}
    for name, (model, buckets) in contestants.items():
        batches = list(BucketedBatches(encoded, batch_size, seed=0, buckets=buckets))[:steps]
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True) # the same for all: only the model's way differs
        runs[name] = (model, batches, optimizer)
        speed_of(model, batches[:2], optimizer)
    speeds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items(): speeds[name].append(speed_of(*run))
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    ratios = {name: statistics.median(a / b for a, b in zip(speeds["ours"], speeds[name])) for name in runs if name != "ours"}
    return {"what": "training, target tokens per second", "hidden": hidden, "batch": batch_size, "parameters": sum(p.numel() for p in ours.parameters()),
            **{name: round(speed) for name, speed in middle.items()}, **{f"ours over {name}": round(ratio, 2) for name, ratio in ratios.items()},
            "rounds": {name: [round(x) for x in values] for name, values in speeds.items()}}


def encoders(batch: int, length: int, features: int, rounds: int) -> dict:
    "Forward and backward of one bidirectional layer: turned around within its length, and packed."
    layer, packed = BidirectionalLayer(features, features), nn.LSTM(features, features // 2, bidirectional=True, batch_first=True)
    lengths = torch.randint(max(1, length - 2), length + 1, (batch,), generator=torch.Generator().manual_seed(0))
    x = torch.randn(batch, length, features, requires_grad=True)
    def turned(): layer(x, lengths)[0].sum().backward()
    def bundled(): pad_packed_sequence(packed(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[0], batch_first=True)[0].sum().backward()
    times = {"turned around": [], "packed": []}
    for turn in range(rounds + 2):
        for name, run in ("turned around", turned), ("packed", bundled):
            start = time.perf_counter()
            run()
            if turn >= 2: times[name].append(time.perf_counter() - start)
    middle = {name: round(1e3 * statistics.median(values), 2) for name, values in times.items()}
    return {"what": "encoder layer, milliseconds", "hidden": features, "batch": batch, "length": length, **middle,
            "packed over turned around": round(middle["packed"] / middle["turned around"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, only to see that it runs; writes nothing")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    trained = [training(h, b, 3 if quick else 12, 1 if quick else 5) for h, b in ((32, 16),) * quick or ((256, 32), (256, 128))]
    encoded = [encoders(b, n, 32 if quick else 256, 2 if quick else 25) for b, n in ((32, 10), (128, 10), (128, 30))]
    for rows in trained, encoded: print(table([{key: value for key, value in row.items() if key != "rounds"} for row in rows]), end="\n\n")
    if not quick: save("seq2seq_speed", [*trained, *encoded])


if __name__ == "__main__": main()
