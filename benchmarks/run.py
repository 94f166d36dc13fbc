"""Run the benchmarks that need no download, one after the other, each in its own process.

    python benchmarks/run.py                 all that need no download
    python benchmarks/run.py attention seq2seq    those whose name holds one of these words
    python benchmarks/run.py --list          what there is

A benchmark is a script in this folder that prints its table and saves results/<name>.json with `common.save`. One that needs
a real data set says so in a line of its own, `NEEDS_DATA = "name"`, and is left out unless it is asked for by name."""
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def benchmarks() -> dict[Path, str | None]:
    "The scripts, and the data set that each needs."
    found = {}
    for script in sorted(HERE.glob("*.py")):
        if script.stem in {"common", "run"}: continue
        text = script.read_text(encoding="utf-8")
        if "__main__" not in text: continue
        needs = re.search(r"^NEEDS_DATA\s*=\s*[\[(]?[\"']([^\"']+)", text, re.MULTILINE)
        found[script] = needs[1] if needs else None
    return found


def main(wanted: list[str]) -> int:
    scripts = benchmarks()
    if wanted == ["--list"]:
        for script, needs in scripts.items(): print(f"{script.stem}{f'   needs {needs}' if needs else ''}")
        return 0
    chosen = [s for s, needs in scripts.items() if (any(word in s.stem for word in wanted) if wanted else not needs)]
    if not chosen:
        print("no such benchmark" if wanted else "no benchmark runs without a download", file=sys.stderr)
        return 1
    failed = []
    for script in chosen:
        print(f"\n== {script.stem}", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, str(script)], cwd=HERE.parent, env={**os.environ, "MPLBACKEND": "Agg"}, check=False).returncode
        print(f"   {time.perf_counter() - start:.0f} s", flush=True)
        if code: failed.append(script.stem)
    left = [s.stem for s, needs in scripts.items() if needs and s not in chosen]
    if left and not wanted: print(f"\nNeed real data, so run them by name: {', '.join(left)}")
    if failed: print(f"\nFailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
