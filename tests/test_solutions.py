"""The solutions at the end of the pages run, each alone, with what its page imports and what its module exports.

(The page of exercises has checks of its own; `test_exercises.py` runs its solutions through them.)
"""
import ast
import json
import random
import re
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from stage_modules.seq2seq import attention, coverage  # noqa: F401  (coverage registers itself once, for good)

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(p for p in (ROOT / "nbs").glob("*/[0-9]*.ipynb"))
SOLUTION = re.compile(r"<details>\s*<summary>[^<]*Solution[^<]*</summary>(.*?)</details>", re.DOTALL)
CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CHECK = re.compile(r"\b(assert |test_\w+\()")


def cells(page: Path, kind: str) -> list[str]:
    return ["".join(c["source"]) for c in json.loads(page.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def solutions(page: Path) -> list[str]:
    "The text of every folded solution of a page, in order."
    return [text for cell in cells(page, "markdown") for text in SOLUTION.findall(cell)]


def blocks(page: Path) -> list[str]:
    return [code for text in solutions(page) for code in CODE.findall(text)]


def imports(page: Path) -> str:
    "The import statements of a page's cells, and everything that its module exports."
    found = []
    for cell in cells(page, "code"):
        if not re.search(r"^(import|from)\b", cell, re.MULTILINE): continue
        code = re.sub(r"^[%!].*$", "", cell, flags=re.MULTILINE)
        found += [ast.unparse(node) for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    if exported := re.search(r"^#\| default_exp ([\w.]+)", "\n".join(cells(page, "code")), re.MULTILINE):
        found.append(f"from stage_modules.{exported[1]} import *")
    return "\n".join(found)


def run(page: Path) -> None:
    "Each block on its own: nothing that the page defined, nothing that another solution left."
    for number, code in enumerate(blocks(page), 1):
        names = {"__name__": "__main__"}
        exec(imports(page), names)
        for seed in random.seed, np.random.seed, torch.manual_seed: seed(0)
        exec(compile(code, f"{page.name}, solution with code number {number}", "exec"), names)
        plt.close("all")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    "No window, no sliders, a folder of its own; what a solution registers or sets does not stay."
    monkeypatch.setenv("STAGE_STATIC", "1")
    registered = dict(attention.ATTENTIONS)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    with plt.rc_context(): yield
    for name in set(attention.ATTENTIONS) - set(registered): del attention.ATTENTIONS[name]


def marked(pages: list[Path]) -> list:
    return [pytest.param(page, id=page.relative_to(ROOT / "nbs").as_posix()) for page in pages]


@pytest.mark.parametrize("page", marked([page for page in PAGES if blocks(page)]))
def test_solutions_run(page):
    run(page)


@pytest.mark.parametrize("page", marked(PAGES))
def test_every_block_of_code_in_a_solution_is_python_and_proves_what_it_says(page):
    for text in solutions(page):
        rest = CODE.sub("", text)
        assert "```" not in rest and not re.search(r"^    \S", rest, re.MULTILINE), f"code that no test runs:\n{text}"
    for code in blocks(page): assert CHECK.search(code), f"it checks nothing:\n{code}"


def page_with(solution: str, path: Path) -> Path:
    text = f"<details><summary>Solution</summary>\n\nIt is so.\n\n```python\n{solution}\n```\n\n</details>"
    code = ["#| default_exp attention.scores", "import math\nscale = math.sqrt(4)"]
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": c} for c in code] + [{"cell_type": "markdown", "source": text}]}))
    return path


def test_a_solution_has_its_page_s_imports_and_module(tmp_path):
    run(page_with("assert dot_score.__name__ == 'dot_score' and math.sqrt(16) == 4", tmp_path / "page.ipynb"))


@pytest.mark.parametrize("solution, error", [
    ("assert math.sqrt(4) == 3", AssertionError), ("scale", NameError), ("scaled_dot_scores", NameError),
])
def test_a_broken_solution_is_found(solution, error, tmp_path):
    "A false claim, a name that only the page's other cells define, a name that does not exist."
    with pytest.raises(error): run(page_with(solution, tmp_path / "page.ipynb"))
