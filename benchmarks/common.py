"What every benchmark shares: the machine that it ran on, a table on the screen, and a JSON file with both."
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from multiprocessing import get_context
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, str | int]:
    "What a reader needs to judge a number by: processor, cores, memory, system, Python. No host name, no user, no path."
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    found = {"processor": processor(), "cores": cores(), "memory_gib": round(memory / 2**30), "system": f"{platform.system()} {platform.machine()}",
             "python": platform.python_version()}
    try:
        import torch

        if torch.cuda.is_available(): found["gpu"] = torch.cuda.get_device_name(0)
    except ImportError: pass
    return found


def cores() -> int:
    "The cores that this process may use, which a container can make fewer than the machine has."
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    "The processor's own name; `platform.processor()` is empty on most Linux systems."
    try: return re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].strip()
    except (OSError, TypeError): pass
    if platform.system() == "Darwin":
        import subprocess

        return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def card() -> str:
    "Short name of the GPU, for a file's name: h100, a100, rtx4090."
    import torch

    name = torch.cuda.get_device_name(0)
    found = re.search(r"\b(RTX|GTX)?\s*([A-Z]{0,2}\d{1,4}\w*)", name)
    return "".join(part for part in found.groups() if part).lower() if found else "gpu"


def save(
    name: str, # of the benchmark: the file is results/<name>.json
    results: dict | list, # what was measured, plain numbers and names
    **more, # settings worth keeping: sizes, seeds, repeats
) -> Path: # the file
    "Write results beside the machine and the versions that they hold for."
    import torch

    RESULTS.mkdir(exist_ok=True)
    content = {"name": name, "date": date.today().isoformat(), "machine": machine(), "torch": torch.__version__, "threads": torch.get_num_threads(), **more, "results": results}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def earlier_rows(
    name: str, # of the benchmark
    fresh: bool = False, # begin anew
    **settings, # those that the earlier call must have had
) -> list[dict]: # what an earlier, stopped call has measured
    "Results to go on from."
    path = RESULTS / f"{name}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() and not fresh else {}
    return old["results"] if old and all(old.get(key) == value for key, value in settings.items()) else []


def side_by_side(
    run: Callable[..., dict], # a run, in a process of its own
    jobs: Iterable[tuple], # its arguments
    workers: int, # processes at once
) -> Iterator[dict]: # results, as they come
    "Runs beside each other."
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for job in as_completed([pool.submit(run, *arguments) for arguments in jobs]):
            print(job.result(), flush=True)
            yield job.result()


def table(rows: list[dict]) -> str:
    "Rows of equal keys as an aligned table."
    heads = list(rows[0])
    cells = [heads, *[[shown(row.get(head)) for head in heads] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells)


def shown(value) -> str:
    "A number with four significant digits, anything else as it is."
    if isinstance(value, bool) or not isinstance(value, int | float): return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
