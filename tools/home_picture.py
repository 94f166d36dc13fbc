"""Draw the picture of the home page and of README.md: what a trained translator looks at.

    python tools/home_picture.py [FOLDER ["a sentence"]]

FOLDER is a checkpoint or the output folder of a training run, without one the small translator in the package; the picture goes to nbs/images/translation.png."""
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from stage_modules.seq2seq.translate import Translator
from stage_modules.toolkit.plots import attention_heatmap, use_style

SENTENCE = "You do not have two difficult magazines."
DEMO = Path(__file__).resolve().parent.parent / "stage_modules/seq2seq/demo/bahdanau"
TO = Path(__file__).resolve().parent.parent / "nbs/images/translation.png"


def main(folder: str | Path = DEMO, sentence: str = SENTENCE) -> None:
    translation = Translator.load(folder).translate_with_attention([sentence])[0]
    use_style()
    read, written = translation.source_tokens, translation.target_tokens
    fig, ax = plt.subplots(figsize=(1.6 + .55 * len(read), 1.2 + .38 * len(written)), layout="constrained")
    attention_heatmap(translation.weights, read, written, title=f"“{translation.text}”", xlabel="what it reads", ylabel="what it writes", ax=ax)
    fig.savefig(TO, dpi=150)
    print(f"{sentence} -> {translation.text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
