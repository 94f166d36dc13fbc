"""The defaults, untouched, from 2,000 to 120,000 pairs: what BLEU `python -m stage_modules.seq2seq.train --data_path FILE` gets, and how long it takes.

Samples of the Tatoeba English-French pairs of at most ten words; the same 2,000 English sentences are kept out for every size. No setting is
given but the file and a limit of minutes, which the largest sizes reach. `python benchmarks/seq2seq_defaults.py` prints the table and writes
results/seq2seq_defaults.json."""
import argparse
import random
import tempfile
from pathlib import Path

from common import save, table

from stage_modules.seq2seq.data import load_tatoeba, split_pairs
from stage_modules.seq2seq.evaluate import evaluate
from stage_modules.seq2seq.train import TrainConfig, train

NEEDS_DATA = "tatoeba/fra-eng.zip"


def one_run(pairs: list[tuple[str, str]], test: list[tuple[str, str]], minutes: float) -> dict:
    "Train as the command does when it is given a file and nothing else, then score."
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pairs.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in pairs), encoding="utf-8")
        result = train(TrainConfig(data_path=f"{folder}/pairs.tsv", output_dir=f"{folder}/run", max_minutes=minutes, progress=False, tensorboard=False))
        found = evaluate(result.translator, test)
    last = result.history[-1]
    return {"pairs": len(pairs), "BLEU": round(found.score.bleu, 2), "minutes": round(result.seconds / 60, 2), "steps": last["step"], "passes": round(last["epoch"], 1),
            "sentences/s": round(found.sentences_per_second), "test sentences": found.score.sentences, "signature": found.score.signature}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 8_000, 30_000, 120_000], help="training pairs")
    parser.add_argument("--minutes", type=float, default=6., help="most minutes of a run")
    args = parser.parse_args()
    split, rows = split_pairs(load_tatoeba(max_words=10), valid=1000, test=2000, seed=0), []
    for size in args.sizes:
        if size > len(split.train): parser.error(f"--sizes: there are {len(split.train):,} training pairs, {size:,} were asked for")
        rows.append(one_run(random.Random(0).sample(list(split.train), size), split.test, args.minutes))
        print({key: rows[-1][key] for key in ("pairs", "BLEU", "minutes", "steps")}, flush=True)
    print(table(rows))
    save("seq2seq_defaults", rows, limit_minutes=args.minutes)


if __name__ == "__main__": main()
