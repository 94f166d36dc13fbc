"""The translator on real sentences: BLEU after two minutes of training on two cores, and sentences per second.

Tatoeba English-French pairs of at most ten words; validation and test are split off by distinct English sentence, and the score is cased, detokenised
sacreBLEU over all references. `python benchmarks/seq2seq_tatoeba.py` prints it and writes results/seq2seq_tatoeba.json."""
import argparse
import tempfile
import time
from pathlib import Path

from common import save, table

from stage_modules.seq2seq.data import load_tatoeba, split_pairs
from stage_modules.seq2seq.evaluate import evaluate
from stage_modules.seq2seq.train import TrainConfig, train

NEEDS_DATA = "tatoeba/fra-eng.zip"


def one_run(attention_type: str, steps: int, seed: int, split, timed: bool = True) -> dict:
    "Train for a number of steps (not minutes: the same work on every machine), then score on the test sentences."
    with tempfile.TemporaryDirectory() as folder:
        for name in "train", "valid":
            Path(folder, f"{name}.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in getattr(split, name)), encoding="utf-8")
        config = TrainConfig(data_path=f"{folder}/train.tsv", valid_path=f"{folder}/valid.tsv", output_dir=f"{folder}/run", attention_type=attention_type,
                             max_steps=steps, embedding_dim=128, hidden_size=128, attention_dim=128, vocab_size=3000, batch_size=32,
                             learning_rate=8e-3, dropout=0., num_epochs=50, seed=seed, progress=False, tensorboard=False)
        start = time.perf_counter()
        result = train(config)
        seconds = time.perf_counter() - start
        found = evaluate(result.translator, split.test)
        alone = evaluate(result.translator, split.test[:2000], batch_size=1).sentences_per_second if timed else None
    times = {"training seconds": round(seconds, 1), "sentences/s": round(found.sentences_per_second), "sentences/s one at a time": round(alone)} if timed else {}
    return {"attention": attention_type, "seed": seed, "steps": steps, "BLEU": round(found.score.bleu, 2), **times,
            "test sentences": found.score.sentences, "references": found.score.references, "signature": found.score.signature}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1800, help="training steps of 32 pairs")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each attention")
    args = parser.parse_args()
    split = split_pairs(load_tatoeba(max_words=10), valid=1000, test=2000, seed=0)
    rows = []
    for seed in range(args.seeds):
        for attention in "bahdanau", "none":
            rows.append(one_run(attention, args.steps, seed, split))
            print({key: rows[-1][key] for key in ("attention", "seed", "BLEU", "training seconds", "sentences/s")}, flush=True)
    print(table(rows))
    save("seq2seq_tatoeba", rows, training_pairs=len(split.train))


if __name__ == "__main__": main()
