"What the tests of every stage's exercises share: the notebook of stubs, taken apart, and what must hold for it."
import doctest
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

NBS = Path(__file__).parent.parent / "nbs"


class ExercisePage:
    "A notebook of exercises with folded hints and solutions."

    def __init__(self, stage: str):
        self.path = NBS / stage / "exercises.ipynb"
        self.cells = json.loads(self.path.read_text(encoding="utf-8"))["cells"]
        self.markdown, self.code = (["".join(c["source"]) for c in self.cells if c["cell_type"] == kind] for kind in ("markdown", "code"))
        self.imports = self.code[0]

    def solutions(self) -> dict[str, str]:
        "Name of the exercise, and the code that is folded away."
        blocks = re.findall(r"<details><summary>Solution</summary>\n\n```python\n(.*?)```", "\n".join(self.markdown), re.DOTALL)
        return {re.search(r"def (\w+)\(", block)[1]: block for block in blocks}

    def run(self, *codes: str) -> dict:
        "The names that the codes define, with nothing but what the notebook imports."
        namespace: dict = {}
        for code in (self.imports, *codes): exec(code, namespace)  # noqa: S102 - the course's own solutions
        return namespace

    def solution(self, name: str) -> Callable:
        "The folded solution of one exercise, alone."
        return self.run(self.solutions()[name])[name]

    def assert_complete(self, checks: Iterable[str]) -> None:
        "Every exercise has a number, a hint, a solution, in this order, and a cell that checks it."
        names, text = list(checks), "\n".join(self.markdown)
        assert list(self.solutions()) == names
        assert text.count("<summary>Hint</summary>") == len(names)
        assert re.findall(r"^## (\d+)\.", text, re.MULTILINE) == [str(n + 1) for n in range(len(names))]
        for name in names: assert f"check_{name}({name})" in "\n".join(self.code)

    def assert_examples_are_true(self, number: int) -> None:
        "The examples in the statements, tried with the solutions."
        namespace, parser, ran = self.run(*self.solutions().values()), doctest.DocTestParser(), 0
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS, verbose=False)
        for i, text in enumerate(self.markdown):
            test = parser.get_doctest(text, dict(namespace), f"statement {i}", str(self.path), 0)
            if test.examples: runner.run(test); ran += 1
        assert ran == number
        assert runner.failures == 0


def write_notebook(folder: Path, name: str, *cells: str) -> Path:
    "A notebook with these code cells, as somebody might hand it in."
    path = folder / name
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": c} for c in cells], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8")
    return path
