"What every pytest run of this project shares: its environment, notebooks as tests, and the seconds that each took."
import json
import os
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
SHARED_DATA = ROOT.parent / "shared" / "data"

os.environ.setdefault("STAGE_STATIC", "1")  # explorers draw their static figure: no browser is watching
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # or every kernel warns about frozen modules
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warn after every fork
if "STAGE_DATA_DIR" not in os.environ and SHARED_DATA.is_dir():
    os.environ["STAGE_DATA_DIR"] = str(SHARED_DATA)
MY_IPYTHONDIR = None if "IPYTHONDIR" in os.environ else tempfile.mkdtemp(prefix="ipython-")
if MY_IPYTHONDIR: os.environ["IPYTHONDIR"] = MY_IPYTHONDIR  # no reader's own start-up files, and no history left in theirs
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # share the cores out, before anything imports torch
    threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


# ------------------------------------------------------------------ notebooks


def pytest_configure(config):
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ: config.option.color = "no"  # nbval colours its reports on its own
    if not (config.getoption("nbval", False) or config.getoption("nbval_lax", False)): return
    from nbval.kernel import RunningKernel

    def execute_cell_input(self, cell_input, allow_stdin=None):
        """Run a cell as JupyterLab does, with history: without it IPython shows the value of a last line that ends in `;`."""
        return self.kc.execute(cell_input, allow_stdin=allow_stdin, stop_on_error=False)

    RunningKernel.execute_cell_input = execute_cell_input


def pytest_unconfigure():
    if MY_IPYTHONDIR: shutil.rmtree(MY_IPYTHONDIR, ignore_errors=True)


@cache
def real_data(name: str) -> bool:
    "Whether a real data set can be had: it is cached, or its publisher answers within three seconds."
    from stage_modules.toolkit import datasets

    if datasets.is_available(name): return True
    if os.environ.get("STAGE_OFFLINE"): return False
    import urllib.request

    url = next((line.split()[2] for line in registry().splitlines() if line.split()[:1] == [name]), None)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3): return True
    except (OSError, ValueError): return False


def registry() -> str:
    return (ROOT / "stage_modules/toolkit/registry.txt").read_text(encoding="utf-8")


@cache
def missing_data(notebook: Path) -> list[str]:
    "The real data sets that a notebook tagged `needs-data` fetches and cannot have; none where it has no tag."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    if not cells or "needs-data" not in cells[0]["metadata"].get("tags", []): return []
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    names = [line.split()[0] for line in registry().splitlines() if line.strip() and not line.startswith("#")]
    return [name for name in names if re.search(rf"""["']{re.escape(name)}["']""", code) and not real_data(name)]


def pytest_collection_modifyitems(items):
    for item in items:
        if type(item).__name__ == "IPyNbCell":
            # nbdev_clean strips execution counts, and nbval takes a cell without one for a cell that was never run.
            if item.cell.get("execution_count") is None: item.cell["execution_count"] = 0
            missing = missing_data(item.path)
            if missing: item.add_marker(pytest.mark.skip(reason=f"{shown(item.path)} needs real data, and there is neither cache nor network: {', '.join(missing)}"))
        for marker in item.iter_markers("needs_data"):
            missing = [name for name in marker.args if not real_data(name)]
            if missing: item.add_marker(pytest.mark.skip(reason=f"neither cache nor network: {', '.join(missing)}"))


@pytest.fixture(autouse=True)
def figures_without_a_screen(monkeypatch):
    "Tests draw without a screen. Notebooks get no fixtures, so theirs stay inline."
    monkeypatch.setenv("MPLBACKEND", "Agg")


# ------------------------------------------------------------------ the table at the end

seconds, failed, skipped = defaultdict(float), defaultdict(int), set()


def shown(path) -> str:
    try: return str(Path(path).resolve().relative_to(ROOT))
    except ValueError: return str(path)


def pytest_runtest_logreport(report):
    file = report.nodeid.split("::")[0]
    seconds[file] += report.duration
    failed[file] += report.failed
    if report.skipped and file.endswith(".ipynb"): skipped.add(file)


def pytest_terminal_summary(terminalreporter):
    notebooks = {file: s for file, s in seconds.items() if file.endswith(".ipynb")}
    if not notebooks: return
    terminalreporter.section("seconds per notebook")
    for file, s in sorted(notebooks.items()):
        note = f"   {failed[file]} cells failed" if failed[file] else "   skipped: no data" if file in skipped and s < 1 else ""
        terminalreporter.write_line(f"{s:8.1f}  {file}{note}")
    terminalreporter.write_line(f"{sum(notebooks.values()):8.1f}  all notebooks, one after the other")
    rest = sum(seconds.values()) - sum(notebooks.values())
    if rest: terminalreporter.write_line(f"{rest:8.1f}  tests/")
