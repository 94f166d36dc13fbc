"""Every attention on the same sentences: quality, time, repetition, alignment, and how attention and gradients change while training; three seeds each.

    python benchmarks/seq2seq_ablation.py                     all of it (about forty minutes on two cores)
    python benchmarks/seq2seq_ablation.py --seeds 1 --steps 300   a look

Tatoeba English-French pairs of at most 20 words, all sizes but the attention the same, a fixed number of steps. Two thousand English sentences are for the scores, and
four thousand more together with them for the scores by length; none was used to choose a setting. Alignment errors come from a second training, on sentences of the
built-in grammar, whose true alignments are known. Times are seconds of one core's work (`time.process_time`), so two runs may go side by side.
Writes results/seq2seq_ablation.json after each run and goes on where it was stopped (`--fresh` begins anew)."""
import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from common import earlier_rows, save, side_by_side

from stage_modules.seq2seq.data import load_tatoeba, make_batch, split_pairs, tokenizer_from_json
from stage_modules.seq2seq.evaluate import corpus_bleu, evaluate
from stage_modules.seq2seq.explore import alignment_error_rate, forced_attention
from stage_modules.seq2seq.grammar import SIMPLE, make_pairs
from stage_modules.seq2seq.metrics import attention_spread, bleu_by_length, measure_attention
from stage_modules.seq2seq.train import TrainConfig, prepare, train
from stage_modules.seq2seq.translate import Translator
from stage_modules.toolkit.training import Callback

NEEDS_DATA = "tatoeba/fra-eng.zip"
ATTENTIONS = {"none": {"attention_type": "none"}, "bahdanau": {"attention_type": "bahdanau"},
              "luong, dot": {"attention_type": "luong", "attention_method": "dot"}, "luong, general": {"attention_type": "luong", "attention_method": "general"},
              "luong, concat": {"attention_type": "luong", "attention_method": "concat"}, "coverage": {"attention_type": "coverage"},
              "coverage, its loss from the start": {"attention_type": "coverage", "penalty_from": 0.},
              "self": {"attention_type": "self", "learning_rate": 4e-3}} # by the validation loss the best of 1e-3, 2e-3 and 4e-3 after 500 steps
SIZES = {"embedding_dim": 128, "hidden_size": 128, "attention_dim": 128, "batch_size": 32, "learning_rate": 8e-3, "dropout": 0., "progress": False, "tensorboard": False}
SCORED, HELD_OUT, EDGES = 2000, 6000, (4, 7, 10)


def tatoeba():
    "Pairs of at most 20 words, split by distinct English sentence."
    return split_pairs(load_tatoeba(max_words=20), valid=1000, test=HELD_OUT, seed=1)


class Watch(Callback):
    "At every row of the history: how widely the attention is spread over fixed sentences with the right words fed, and what the looking took."

    def __init__(self, pairs: list[tuple[str, str]], tokenizers):
        self.batch = make_batch([(tokenizers[0].encode(s), tokenizers[1].encode(t)) for s, t in pairs])
        self.rows, self.spent, self.started = [], 0., 0.

    def on_start(self, trainer) -> None: self.started = time.process_time()

    def on_row(self, trainer, row: dict) -> None:
        start, b, model = time.process_time(), self.batch, trainer.model
        kept = {"step": row["step"], "cpu_seconds": round(start - self.started - self.spent, 2), "loss": row["loss"], "gradient_norm": row["gradient_norm"]}
        if "valid_loss" in row: kept["valid_loss"] = row["valid_loss"]
        if model.decoder.looks:
            model.eval()
            with torch.no_grad(): weights = model.decoder(b.target_in, model.encoder(b.source, b.source_mask), need_weights=True)[1]
            model.train()
            kept["spread"] = attention_spread([w[:t, :s] for w, t, s in zip(weights, b.target_mask.sum(1).tolist(), b.source_mask.sum(1).tolist())], normalised=True)
        self.rows.append({key: round(value, 4) for key, value in kept.items()})
        self.spent += time.process_time() - start


def repeated(sentences: list[str], size: int = 2) -> float:
    "Word pairs that stood in the same sentence before, per 1,000 word pairs."
    seen_before = total = 0
    for sentence in sentences:
        words = sentence.split()
        grams = [tuple(words[i:i + size]) for i in range(len(words) - size + 1)]
        total += len(grams)
        seen_before += len(grams) - len(set(grams))
    return 1000 * seen_before / max(1, total)


def on_tatoeba(name: str, seed: int, steps: int) -> dict:
    "Train, and measure all that needs real sentences."
    split = tatoeba()
    with tempfile.TemporaryDirectory() as folder:
        for part in "train", "valid":
            Path(folder, f"{part}.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in getattr(split, part)), encoding="utf-8")
        config = TrainConfig(**SIZES | ATTENTIONS[name] | {"data_path": f"{folder}/train.tsv", "valid_path": f"{folder}/valid.tsv", "output_dir": f"{folder}/run", "seed": seed,
                             "vocab_size": 3000, "num_epochs": 50, "max_steps": steps, "log_every": max(1, steps // 18), "validate_every": max(1, steps // 6)})
        trainer, _ = prepare(config)
        tokenizers = [tokenizer_from_json(content) for content in trainer.files.values()] # source, target
        watch = Watch(random.Random(0).sample(list(split.valid), 256), tokenizers)
        trainer.callbacks.append(watch)
        trainer.fit()
        spent = time.process_time() - watch.started - watch.spent
        trainer.load_best()
    translator = Translator(trainer.model, *tokenizers)
    start = time.process_time()
    found = evaluate(translator, split.test)
    decoding = time.process_time() - start
    chosen = random.Random(0).sample(range(len(found.sources)), SCORED) # the file is sorted by length
    scored = corpus_bleu([found.translations[i] for i in chosen], [found.references[i] for i in chosen])
    beam = evaluate(translator, [(found.sources[i], r) for i in chosen for r in found.references[i]], beam_size=5)
    groups = bleu_by_length(found.sources, found.translations, found.references, EDGES)
    long = [i for i, s in enumerate(found.sources) if len(s.split()) > EDGES[-1]]
    row = {"attention": name, "seed": seed, "BLEU": round(scored.bleu, 2), "BLEU, beam 5": round(beam.score.bleu, 2), "signature": scored.signature,
           "by length": {group.words: round(group.bleu, 2) for group in groups}, "sentences by length": {group.words: group.sentences for group in groups},
           "repeated, long": round(repeated([found.translations[i] for i in long]), 2), "repeated, long references": round(repeated([found.references[i][0] for i in long]), 2),
           "training cpu seconds": round(spent, 1), "sentences per cpu second": round(len(found.sources) / decoding, 1),
           "parameters": sum(p.numel() for p in trainer.model.parameters()), "course": watch.rows}
    if trainer.model.decoder.looks:
        looked = measure_attention([t.weights for t in translator.translate_with_attention(found.sources[:500])])
        row |= {"spread": round(looked.spread, 4), "monotonic": round(looked.monotonic, 4), "left over": round(looked.left_over, 4), "over-attended": round(looked.over_attended, 4)}
    return row


def on_grammar(name: str, seed: int, epochs: int = 3) -> dict:
    "Train on sentences whose word alignment is known, and score where the attention looks."
    pairs = [p for p in make_pairs(24_000, seed=0, constructions=SIMPLE) if len(p.source.split()) <= 6]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pairs.tsv").write_text("".join(f"{p.source}\t{p.target}\n" for p in pairs), encoding="utf-8")
        result = train(TrainConfig(**SIZES | {"attention_dim": 64, "learning_rate": 7e-3} | ATTENTIONS[name] | {"data_path": f"{folder}/pairs.tsv", "output_dir": f"{folder}/run",
                                   "tokenizer": "word", "label_smoothing": 0., "num_epochs": epochs, "test_sentences": 400, "seed": seed}))
    held_out = {source for source, _ in result.data.test}
    gold = [p for p in pairs if p.source in held_out]
    found = evaluate(result.translator, result.data.test)
    row = {"grammar BLEU": round(found.score.bleu, 2)}
    if result.translator.model.decoder.looks:
        looked = forced_attention(result.translator, [(p.source, p.target) for p in gold])
        row["alignment error"] = round(alignment_error_rate([t.weights for t in looked], [p.alignment for p in gold]), 4)
    return row


def one_run(name: str, seed: int, steps: int) -> dict:
    "Both trainings of one attention with one seed, on one core."
    torch.set_num_threads(1)
    return on_tatoeba(name, seed, steps) | on_grammar(name, seed)


def summary(rows: list[dict]) -> list[dict]:
    "Mean and spread (standard deviation) over the seeds, a row for each attention."
    numbers = ["BLEU", "BLEU, beam 5", "grammar BLEU", "alignment error", "spread", "repeated, long", "training cpu seconds", "sentences per cpu second"]
    out = []
    for name in dict.fromkeys(row["attention"] for row in rows):
        own = [row for row in rows if row["attention"] == name]
        kept = {"attention": name, "runs": len(own)}
        for key in numbers:
            values = [row[key] for row in own if key in row]
            if values: kept |= {key: round(statistics.mean(values), 3), f"{key} sd": round(statistics.stdev(values), 3) if len(values) > 1 else None}
        out.append(kept)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="training steps of 32 pairs")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each attention")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier, stopped call has measured")
    args = parser.parse_args()
    rows = earlier_rows("seq2seq_ablation", args.fresh, steps=args.steps)
    done = {(row["attention"], row["seed"]) for row in rows}
    todo = [(name, seed, args.steps) for seed in range(args.seeds) for name in ATTENTIONS if (name, seed) not in done]
    for row in side_by_side(one_run, todo, args.workers):
        rows = sorted([*rows, row], key=lambda row: (list(ATTENTIONS).index(row["attention"]), row["seed"]))
        save("seq2seq_ablation", rows, steps=args.steps, sizes=SIZES, attentions=ATTENTIONS, max_words=20, test_sentences=SCORED, held_out=HELD_OUT, threads_per_run=1)
    for row in summary(rows): print(json.dumps(row))


if __name__ == "__main__": main()
