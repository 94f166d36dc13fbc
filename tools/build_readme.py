"""README.md from nbs/index.ipynb: the same text with links and pictures seen from the root of the repository.

Quarto's own README keeps the links of nbs/, which lead nowhere from the root, so that both engines' sites use this one."""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = re.compile(r"(\]\()([^)\s]+)(\))")  # of a Markdown link or picture


def from_root(found: re.Match) -> str:
    target = found[2]
    if re.match(r"[a-z]+:|#|/", target): return found[0]
    return found[1] + (target[3:] if target.startswith("../") else f"nbs/{target}") + found[3]


def outputs(cell: dict) -> str:
    "What a cell printed or returned, as a code block without a language."
    texts = ["".join(o.get("text", "")) or "".join(o.get("data", {}).get("text/plain", "")) for o in cell["outputs"]]
    return "".join(f"\n\n    {'    '.join(text.rstrip().splitlines(keepends=True))}" for text in texts if text.strip())


def readme(notebook: dict) -> str:
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown": parts.append(TARGET.sub(from_root, source))
        elif source and not re.search(r"^#\|\s*(hide|default_exp)", source, re.MULTILINE): parts.append(f"```python\n{source}\n```{outputs(cell)}")
    return "\n\n".join(parts) + "\n\n<!-- made from nbs/index.ipynb by `make site`: edit that -->\n"


def main() -> None:
    notebook = json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))
    to = ROOT / "README.md"
    made = readme(notebook)
    if not to.exists() or to.read_text(encoding="utf-8") != made: to.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
