"""What the spread of fresh word embeddings is worth: the translator trained from several, on the same sentences for the same steps.

Tatoeba English-French pairs of at most ten words, the settings of the Tatoeba page. `python benchmarks/seq2seq_start.py` prints the table and writes
results/seq2seq_start.json."""
import argparse

from common import save, table
from seq2seq_tatoeba import one_run

from stage_modules.seq2seq import model
from stage_modules.seq2seq.data import load_tatoeba, split_pairs

NEEDS_DATA = "tatoeba/fra-eng.zip"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000, help="training steps of 32 pairs")
    parser.add_argument("--spreads", type=float, nargs="+", default=[1., .5, .3, .2, .1], help="standard deviations of fresh embeddings")
    parser.add_argument("--seeds", type=int, default=2, help="runs from each spread")
    args = parser.parse_args()
    split, rows = split_pairs(load_tatoeba(max_words=10), valid=1000, test=2000, seed=0), []
    for spread in args.spreads:
        model.EMBEDDING_STD = spread
        for seed in range(args.seeds):
            rows.append({"spread": spread, **one_run("bahdanau", args.steps, seed, split, timed=False)})
            print({key: rows[-1][key] for key in ("spread", "seed", "BLEU")}, flush=True)
    print(table(rows))
    save("seq2seq_start", rows, training_pairs=len(split.train))


if __name__ == "__main__": main()
