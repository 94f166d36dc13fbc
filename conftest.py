"What every pytest run of this project shares."
import os
from pathlib import Path

ROOT = Path(__file__).parent
SHARED_DATA = ROOT.parent / "shared" / "data"

os.environ.setdefault("STAGE_STATIC", "1")  # explorers draw their static figure: no browser is watching
if "STAGE_DATA_DIR" not in os.environ and SHARED_DATA.is_dir():
    os.environ["STAGE_DATA_DIR"] = str(SHARED_DATA)


def pytest_collection_modifyitems(items):
    "nbdev_clean strips execution counts, and nbval takes a cell without one for a cell that was never run."
    for item in items:
        if type(item).__name__ == "IPyNbCell" and item.cell.get("execution_count") is None:
            item.cell["execution_count"] = 0
