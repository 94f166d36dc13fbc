"Run one notebook from top to bottom, save its outputs, clean it and export its module."
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(notebook: Path) -> None:
    os.chdir(ROOT)
    env = {**os.environ, "STAGE_STATIC": "1"}  # explorers save their static figure
    if "default_exp" in notebook.read_text(encoding="utf-8"):
        from nbdev.export import nb_export

        nb_export(notebook, lib_path="stage_modules")
    jupyter = [sys.executable, "-m", "jupyter", "nbconvert", "--log-level=ERROR", "--to=notebook", "--inplace", "--execute"]
    subprocess.run([*jupyter, "--ExecutePreprocessor.timeout=1800", str(notebook)], env=env, check=True)
    subprocess.run([Path(sys.executable).with_name("nbdev_clean"), "--fname", str(notebook)], check=True)
    print(f"{notebook.relative_to(ROOT)}: run, cleaned, exported")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]).resolve())
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
