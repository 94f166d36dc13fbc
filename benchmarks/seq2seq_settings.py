"""What each of the settings that this design is usually quoted with gives, beside the defaults: the same pairs, the same minutes, one setting changed at a time.

    python benchmarks/seq2seq_settings.py                      14,500 pairs, five minutes of one core each, two runs side by side

Sentences as long as image captions (Tatoeba English-French pairs of 8 to 22 words), scored on 1,000 unseen English sentences, greedily and with a beam of five.
Writes results/seq2seq_settings.json after each run and goes on where it was stopped (`--fresh` begins anew)."""
import argparse
import random
import tempfile
from pathlib import Path

import torch
from common import earlier_rows, save, side_by_side, table

from stage_modules.seq2seq.data import load_tatoeba, split_pairs
from stage_modules.seq2seq.evaluate import evaluate
from stage_modules.seq2seq.train import TrainConfig, train

NEEDS_DATA = "tatoeba/fra-eng.zip"
USUAL = {"hidden_size": 256, "num_layers": 2, "batch_size": 32, "learning_rate": 1e-3, "teacher_forcing_ratio": .8, "dropout": .3}
ALONE = {"attention_type": "bahdanau", "mixed_precision": "no"} # what else the defaults decide
ARMS = {"the defaults": {}, "all the usual settings": USUAL, **{f"{name} = {value}": {name: value} for name, value in (USUAL | ALONE).items()}}


def caption_like(count: int):
    "Pairs of 8 to 22 English words: some to train on, 500 English sentences to validate with, 1,000 to test."
    split = split_pairs([pair for pair in load_tatoeba(max_words=22) if len(pair[0].split()) >= 8], valid=500, test=1000, seed=0)
    return random.Random(0).sample(list(split.train), count), split.valid, split.test


def one_run(name: str, pairs: int, minutes: float) -> dict:
    "Train on one core for that long, and score."
    torch.set_num_threads(1)
    parts = dict(zip(("train", "valid", "test"), caption_like(pairs)))
    with tempfile.TemporaryDirectory() as folder:
        for part in "train", "valid": Path(folder, f"{part}.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in parts[part]), encoding="utf-8")
        result = train(TrainConfig(data_path=f"{folder}/train.tsv", valid_path=f"{folder}/valid.tsv", output_dir=f"{folder}/run", max_minutes=minutes, progress=False,
                                   tensorboard=False, **ARMS[name]))
    greedy, beam = evaluate(result.translator, parts["test"]), evaluate(result.translator, parts["test"], beam_size=5)
    return {"settings": name, "BLEU": round(greedy.score.bleu, 2), "BLEU, beam 5": round(beam.score.bleu, 2), "validation loss": round(result.best_loss, 3),
            "minutes": round(result.seconds / 60, 2), "passes": round(result.history[-1]["epoch"], 1), "signature": greedy.score.signature}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=14_500, help="training pairs")
    parser.add_argument("--minutes", type=float, default=5., help="of each run")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier, stopped call has measured")
    args = parser.parse_args()
    rows, default = earlier_rows("seq2seq_settings", args.fresh, pairs=args.pairs, limit_minutes=args.minutes), TrainConfig()
    done = {row["settings"] for row in rows}
    differs = lambda name: name == "the defaults" or any(getattr(default, key) != value for key, value in ARMS[name].items())
    for row in side_by_side(one_run, [(name, args.pairs, args.minutes) for name in ARMS if differs(name) and name not in done], args.workers):
        rows = sorted([*rows, row], key=lambda row: list(ARMS).index(row["settings"]))
        save("seq2seq_settings", rows, pairs=args.pairs, limit_minutes=args.minutes, threads_per_run=1, usual=USUAL,
             defaults={name: getattr(default, name) for name in USUAL | ALONE})
    print(table(rows))


if __name__ == "__main__": main()
