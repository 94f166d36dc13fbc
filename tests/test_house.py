"The rules of the house: modules match notebooks, notebooks are clean, imports run one way, everything is pinned."
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(ROOT).parts))
STAGES = ["toolkit", "attention", "seq2seq", "unet1d", "labeler", "autoencoder"]  # the order in which one may use another
CONFIG = ConfigParser(delimiters=["="], interpolation=None)
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = CONFIG["DEFAULT"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def cells(notebook: Path, kind: str = "code") -> list[dict]:
    return [c for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tracked() -> list[Path]:
    "The files that git tracks; every file but the ignored ones where this is no checkout."
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode: pytest.skip("not a git checkout")
    return [ROOT / f for f in done.stdout.split("\0") if f and (ROOT / f).is_file()]


def house(folder: Path) -> Path:
    "A copy of what nbdev reads, so that no check can change the tree that it checks."
    folder.mkdir(parents=True, exist_ok=True)
    for file in "settings.ini", "pyproject.toml": shutil.copy(ROOT / file, folder)
    for notebook in NOTEBOOKS:
        (folder / name(notebook)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(notebook, folder / name(notebook))
    shutil.copytree(ROOT / "stage_modules", folder / "stage_modules", ignore=shutil.ignore_patterns("__pycache__", "_modidx.py"))
    return folder


def nbdev(command: str, *args: str, cwd: Path) -> None:
    done = subprocess.run([Path(sys.executable).with_name(command), *args], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------ notebooks and modules


def out_of_step(folder: Path) -> list[str]:
    "One line for each module in `folder` that is not what its notebook exports."
    homes = {}
    for notebook in sorted((folder / "nbs").rglob("*.ipynb")):
        for cell in cells(notebook):
            found = re.search(r"^#\|\s*default_exp\s+(\S+)", source(cell), re.MULTILINE)
            if found: homes[folder / "stage_modules" / (found[1].replace(".", "/") + ".py")] = notebook.relative_to(folder).as_posix()
    modules = {p for p in (folder / "stage_modules").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")}
    before = {p: p.read_text(encoding="utf-8") for p in modules}
    for p in modules: p.unlink()
    nbdev("nbdev_export", cwd=folder)
    wrong = [f"{p.relative_to(folder)}: no notebook exports it" for p in sorted(modules - set(homes))]
    for module, notebook in sorted(homes.items()):
        after = module.read_text(encoding="utf-8") if module.exists() else None
        if before.get(module) != after: wrong.append(f"{module.relative_to(folder)} is not what {notebook} exports: make export")
    return wrong


def test_modules_are_what_the_notebooks_export(tmp_path):
    assert out_of_step(house(tmp_path)) == []


def test_an_edited_module_is_found_and_its_notebook_named(tmp_path):
    folder = house(tmp_path)
    before = out_of_step(folder)
    module = folder / "stage_modules/toolkit/errors.py"
    module.write_text(module.read_text(encoding="utf-8") + "\nx = 1\n", encoding="utf-8")
    (folder / "stage_modules/toolkit/stray.py").write_text("x = 1\n", encoding="utf-8")
    wrong = [line for line in out_of_step(folder) if line not in before]
    assert len(wrong) == 2 and "stray.py" in wrong[0] and "nbs/toolkit/01_errors.ipynb" in wrong[1], wrong


def unclean(folder: Path) -> list[str]:
    "The notebooks in `folder` that `nbdev_clean` would change."
    before = {p: p.read_bytes() for p in sorted((folder / "nbs").rglob("*.ipynb"))}
    nbdev("nbdev_clean", cwd=folder)
    return [f"{p.relative_to(folder)} is not clean: make export" for p, was in before.items() if p.read_bytes() != was]


def test_notebooks_are_clean(tmp_path):
    assert unclean(house(tmp_path)) == []


def test_an_unclean_notebook_is_found(tmp_path):
    folder = house(tmp_path)
    nbdev("nbdev_clean", cwd=folder)
    notebook = folder / name(NOTEBOOKS[0])
    content = json.loads(notebook.read_text(encoding="utf-8"))
    content["cells"][0]["metadata"]["mine"] = 1
    notebook.write_text(json.dumps(content), encoding="utf-8")
    assert [line.split()[0] for line in unclean(folder)] == [name(NOTEBOOKS[0])]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_saved_outputs_hold_no_error_and_no_path_of_one_machine(notebook):
    here = {str(ROOT), str(ROOT.parent), str(Path.home()), sys.prefix} - {"/"}
    for number, cell in enumerate(cells(notebook)):
        tags = cell["metadata"].get("tags", [])
        for output in cell["outputs"]:
            where = f"{name(notebook)}, code cell {number}"
            assert output["output_type"] != "error" or "raises-exception" in tags, f"{where}: an error was saved"
            text = "".join(output.get("text", "")) + "".join("".join(v) for k, v in output.get("data", {}).items() if k.startswith("text/"))
            found = [path for path in here if re.search(rf"{re.escape(path)}\b", text)] + re.findall(r"(?:/home|/Users|/root|/tmp)/\w+", text)
            assert not found, f"{where}: a path of one machine was saved: {found[0]}"
            assert "Warning" not in text or "stderr" != output.get("name"), f"{where}: a warning was saved: {text[:200]}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_the_first_cell_is_a_title_and_one_line(notebook):
    "nbdev makes the page's title and description of it, and drops whatever else stands there."
    first = json.loads(notebook.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown" and re.fullmatch(r"# .+\n\n> [^\n]+\n?", source(first)), f"{name(notebook)}: {source(first)[:200]}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=name)
def test_figures_have_alt_text(notebook):
    for number, cell in enumerate(cells(notebook)):
        drawn = any(kind.startswith("image/") for output in cell["outputs"] for kind in output.get("data", {}))
        assert not drawn or re.search(r"^#\|\s*fig-alt:\s*\S", source(cell), re.MULTILINE), f"{name(notebook)}, code cell {number}: a figure without `#| fig-alt:`"
        for alt in re.findall(r"^#\|\s*fig-alt:\s*([^'\"\s].*)", source(cell), re.MULTILINE):
            assert ": " not in alt, f"{name(notebook)}, code cell {number}: the site reads a colon in an alt text as a setting, and drops the text"


def nbval(notebook: dict, folder: Path) -> subprocess.CompletedProcess:
    "Test a notebook as `make test` does; it lies inside the checkout, so that the project's conftest.py holds for it."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "page.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def page(*code: tuple[str, list[dict]], tags: tuple[str, ...] = ()) -> dict:
    "A notebook as nbdev_clean leaves it: outputs saved, execution counts gone."
    made = [{"cell_type": "markdown", "id": "t", "metadata": {"tags": list(tags)} if tags else {}, "source": ["# Page"]}]
    for n, (text, outputs) in enumerate(code):
        made.append({"cell_type": "code", "id": f"c{n}", "metadata": {}, "execution_count": None, "source": [text], "outputs": outputs})
    return {"cells": made, "metadata": {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}, "nbformat": 4, "nbformat_minor": 5}


def printed(text: str, stream: str = "stdout") -> dict:
    return {"output_type": "stream", "name": stream, "text": [text]}


def result(text: str) -> dict:
    return {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": {"text/plain": [text]}}


@pytest.fixture
def inside():
    "A folder inside the checkout that git ignores."
    folder = ROOT / ".work" / f"test-{os.getpid()}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_saved_outputs_are_compared(inside):
    "One tampered line a cell: every kind of text that a notebook saves is compared, though the execution counts are stripped."
    right = page(("print('two')", [printed("two\n")]), ("1 + 1", [result("2")]), ("7;", []))
    assert nbval(right, inside).returncode == 0
    wrong = page(
        ("print('two')", [printed("three\n")]),
        ("1 + 1", [result("3")]),
        ("import sys; print('loud', file=sys.stderr)", []),
        ("from IPython.display import HTML; HTML('<b>x</b>')", [{**result("<IPython.core.display.HTML object>"), "data": {"text/plain": ["<IPython.core.display.HTML object>"], "text/html": ["<b>y</b>"]}}]),
        ("2 + 2", []),
        ("x = 1", [result("1")]),
        ("7;", [result("7")]),
    )
    done = nbval(wrong, inside)
    assert done.returncode == 1 and "7 failed" in done.stdout, done.stdout


def test_a_notebook_without_its_data_is_skipped_and_named(inside, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("STAGE_OFFLINE", "1")
    needs = page(("assert False, 'tatoeba/fra-eng.zip'", []), tags=("needs-data",))
    done = nbval(needs, inside)
    assert done.returncode == 0 and "1 skipped" in done.stdout and "page.ipynb needs real data" in done.stdout, done.stdout


def test_a_notebook_that_needs_data_names_it_in_its_code():
    "The names are what decides whether it can run; without one it would run, and fail, on a machine that has no data."
    names = [line.split()[0] for line in (ROOT / "stage_modules/toolkit/registry.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if "needs-data" not in cells[0]["metadata"].get("tags", []): continue
        code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        assert any(f'"{name}"' in code for name in names), f"{path.name} is tagged needs-data and fetches nothing by name"


# ------------------------------------------------------------------ the library


def stage_imports(text: str, package: str) -> set[str]:
    "The subpackages of stage_modules that a module of `package` imports, wherever in the file."
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level == 1: base = f"stage_modules.{package}.{base}"
            elif node.level >= 2: base = f"stage_modules.{base}".rstrip(".")
            names = [f"{base}.{alias.name}" for alias in node.names]
        else: continue
        found |= {parts[1] for parts in (n.split(".") for n in names) if parts[0] == "stage_modules" and len(parts) > 1 and parts[1] in STAGES}
    return found


def wrong_way(text: str, package: str) -> set[str]:
    return {s for s in stage_imports(text, package) if STAGES.index(s) > STAGES.index(package)}


@pytest.mark.parametrize("module", sorted((ROOT / "stage_modules").glob("*/**/*.py")), ids=name)
def test_a_stage_imports_only_from_the_toolkit_and_from_earlier_stages(module):
    package = module.relative_to(ROOT / "stage_modules").parts[0]
    if package == "__pycache__": return
    assert package in STAGES, f"{package} has no place in the order of stages"
    assert not wrong_way(module.read_text(encoding="utf-8"), package)


@pytest.mark.parametrize("line", ["from stage_modules.seq2seq import x", "import stage_modules.seq2seq.data", "from ..seq2seq.data import x",
                                  "from stage_modules import seq2seq", "from .. import seq2seq", "def f():\n    from ..seq2seq import x"])
def test_an_import_the_wrong_way_is_found(line):
    assert wrong_way(line, "attention") == {"seq2seq"} and wrong_way(line, "toolkit") == {"seq2seq"}
    assert not wrong_way(line, "seq2seq") and not wrong_way(line, "unet1d")


def python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def test_importing_the_package_is_quick_and_leaves_torch_alone():
    code = "import time; t = time.perf_counter(); import stage_modules, sys; print(time.perf_counter() - t); assert 'torch' not in sys.modules"
    done = [python(code) for _ in range(3)]
    assert all(d.returncode == 0 for d in done), done[0].stderr
    assert min(float(d.stdout) for d in done) < 1, "the best of three imports took over a second"


def test_the_library_imports_without_what_only_the_course_needs():
    "Every module and every public name, with the development packages out of reach."
    code = """
import importlib, importlib.machinery, pkgutil, sys
development = {"nbdev", "fastcore", "execnb", "ghapi", "nbval", "pytest", "hypothesis", "jupytext", "jupyterlab", "tensorboard", "smalldocs", "playwright"}
finder = importlib.machinery.PathFinder
find = finder.find_spec
finder.find_spec = lambda name, *rest: None if name.split(".")[0] in development else find(name, *rest)
try: import nbdev
except ModuleNotFoundError: pass
else: raise AssertionError("nbdev is still in reach")
import stage_modules
count = 0
for info in pkgutil.walk_packages(stage_modules.__path__, "stage_modules."):
    if info.name.endswith("_modidx"): continue
    module = importlib.import_module(info.name)
    count += 1
    if info.ispkg:
        for public in module.__all__: getattr(module, public)
assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums(), "importing drew a figure"
print(count)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 4


def test_what_is_packaged(tmp_path):
    "The file list of the wheel, without building one in a fresh environment (CONTRIBUTING.md says how to do that by hand)."
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "stage_modules", folder / "stage_modules", ignore=shutil.ignore_patterns("__pycache__"))
    for file in "setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE": shutil.copy(ROOT / file, folder)
    done = subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", "out", "egg_info"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    packaged = {p.relative_to(folder / "out").as_posix() for p in (folder / "out").rglob("*") if p.is_file()}
    assert {"stage_modules/py.typed", "stage_modules/toolkit/registry.txt", "stage_modules/attention/__init__.py"} <= packaged
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / "stage_modules").rglob("*.py")} <= packaged
    requires = (folder / "stage_modules.egg-info/requires.txt").read_text(encoding="utf-8").split("[dev]")[0].split()
    assert requires == SETTINGS["requirements"].split()


# ------------------------------------------------------------------ pins and files


def bare(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>!~;\[ ]", requirement)[0]).lower()


def pins() -> dict[str, str]:
    "The pins that hold for this Python and platform: package to version."
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.split("#")[0].strip(): continue
        pin = Requirement(line.split("#")[0])
        exact = re.fullmatch(r"==([\w.]+)", str(pin.specifier))
        assert exact, f"constraints.txt: not one exact version: {line}"
        if pin.marker is None or pin.marker.evaluate(): found[bare(pin.name)] = exact[1]
    return found


def test_every_requirement_is_pinned_to_one_version():
    found = pins()
    for requirement in SETTINGS["requirements"].split() + SETTINGS["dev_requirements"].split():
        assert bare(requirement) in found, f"constraints.txt does not pin {requirement}"
        if "==" in requirement: assert found[bare(requirement)] == requirement.split("==")[1]


def test_what_is_installed_is_what_is_pinned():
    "Everything in this environment has a pin, and the pinned version (torch may carry a local suffix such as +cpu)."
    from importlib.metadata import distributions

    found, wrong = pins(), []
    for d in distributions():
        package, version = bare(d.metadata["Name"]), d.version.split("+")[0]
        if package in {"stage-modules", "pip", "wheel"}: continue
        if found.get(package) != version: wrong.append(f"{package} {version} is installed, {found.get(package, 'nothing')} is pinned")
    assert not wrong, "\n".join(wrong)


def test_no_tracked_file_names_one_machine_or_is_large():
    here = {str(ROOT), sys.prefix}
    for file in tracked():
        limit = 12 if file.suffix == ".ipynb" else 6 if file.suffix in {".tsv", ".csv", ".json", ".npz"} else 1
        assert file.stat().st_size < limit * 2**20, f"{name(file)} is over {limit} MiB"
        text = file.read_bytes().decode("utf-8", "ignore")
        found = [path for path in here if re.search(rf"{re.escape(path)}\b", text)]
        assert not found, f"{name(file)} names {found[0]}"
