"""The best translator that half an hour on two cores gives: BLEU on 2,000 unseen English sentences of the Tatoeba pairs, and how fast it then translates.

The pairs (at most 20 words), the held-out sentences and the score are those of seq2seq_ablation.py, so the two can be compared. The settings were chosen on other sentences.
`python benchmarks/seq2seq_best.py` trains, prints and writes results/seq2seq_best.json."""
import argparse
import random
import tempfile
from pathlib import Path

from common import save, table
from seq2seq_ablation import SCORED, tatoeba

from stage_modules.seq2seq.evaluate import evaluate, group_references
from stage_modules.seq2seq.train import TrainConfig, train

NEEDS_DATA = "tatoeba/fra-eng.zip"
SETTINGS = {"attention_type": "luong", "embedding_dim": 384, "hidden_size": 384, "attention_dim": 384, "dropout": .2, "learning_rate": 5e-3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30., help="of training")
    args = parser.parse_args()
    split = tatoeba()
    sources, references = group_references(split.test)
    chosen = random.Random(0).sample(range(len(sources)), SCORED) # as in seq2seq_ablation.py
    test = [(sources[i], reference) for i in chosen for reference in references[i]]
    with tempfile.TemporaryDirectory() as folder:
        for part in "train", "valid": Path(folder, f"{part}.tsv").write_text("".join(f"{s}\t{t}\n" for s, t in getattr(split, part)), encoding="utf-8")
        result = train(TrainConfig(data_path=f"{folder}/train.tsv", valid_path=f"{folder}/valid.tsv", output_dir=f"{folder}/run", max_minutes=args.minutes, num_epochs=100,
                                   progress=False, tensorboard=False, **SETTINGS))
        rows = []
        for beam in 1, 5:
            found = evaluate(result.translator, test, beam_size=beam)
            rows.append({"beam": beam, "BLEU": round(found.score.bleu, 2), "chrF": round(found.chrf.value, 2), "sentences/s": round(found.sentences_per_second),
                         "minutes": round(result.seconds / 60, 1), "passes": round(result.history[-1]["epoch"], 1), "validation loss": round(result.best_loss, 3),
                         "test sentences": found.score.sentences, "signature": found.score.signature})
    print(table(rows))
    save("seq2seq_best", rows, limit_minutes=args.minutes, settings=SETTINGS, training_pairs=len(split.train), parameters=sum(p.numel() for p in result.translator.model.parameters()))


if __name__ == "__main__": main()
