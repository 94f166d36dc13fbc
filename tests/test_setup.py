"tools/setup.sh with a Python that only writes down what it is asked: done once, done again, interrupted, moved, without a Python."
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["sh", "cat", "sed", "cksum", "grep", "dirname", "cp", "mkdir", "rm", "chmod"]
READ = ["constraints.txt", "settings.ini", "setup.py", "pyproject.toml", "tools/setup.sh", "tools/overrides.json"]

PYTHON = """#!/bin/sh
case "$*" in
*version_info*) exit 0 ;;
--version) echo "Python 3.12.0" ;;
"-m venv --clear .venv")
    echo venv >> log
    rm -rf .venv; mkdir -p .venv/bin
    printf '#!/bin/sh\\necho "$*" >> log\\ncase "$*" in *dev*) test ! -f fail ;; esac\\n' > .venv/bin/python
    printf '#!/bin/sh\\necho "pip 26.0 from %s/.venv/lib/site-packages/pip (python 3.12)"\\n' "$(pwd -P)" > .venv/bin/pip
    chmod +x .venv/bin/python .venv/bin/pip ;;
esac
"""
OLD = "#!/bin/sh\ncase \"$*\" in --version) echo 'Python 3.9.18' ;; *) exit 1 ;; esac\n"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")


class Checkout:
    "A folder with what setup.sh reads, and a PATH with nothing but the tools it may use."

    def __init__(self, folder: Path):
        self.folder, self.bin = folder / "a checkout", folder / "bin"
        self.bin.mkdir()
        for file in READ:
            (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, self.folder / file)
        for tool in TOOLS: (self.bin / tool).symlink_to(shutil.which(tool))

    def command(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, **env: str) -> subprocess.CompletedProcess:
        (self.folder / "log").unlink(missing_ok=True)
        return subprocess.run(["/bin/sh", "tools/setup.sh"], cwd=self.folder, env={"PATH": str(self.bin), **env}, capture_output=True, text=True, check=False)

    @property
    def log(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def checkout(tmp_path): return Checkout(tmp_path)


@pytest.fixture
def ready(checkout):
    checkout.command("python3.12", PYTHON)
    done = checkout.run()
    assert done.returncode == 0, done.stderr
    return checkout


def test_it_installs_the_pinned_versions(ready):
    assert ready.log[0] == "venv" and ready.log[-1].endswith("install -c constraints.txt --no-build-isolation -e .[dev]")
    assert all("-c constraints.txt" in line for line in ready.log[1:])
    assert (ready.folder / ".venv/share/jupyter/lab/settings/overrides.json").exists()


def test_the_second_time_does_nothing(ready):
    done = ready.run()
    assert (done.returncode, done.stdout, done.stderr, ready.log) == (0, "", "", [])


@pytest.mark.parametrize("file", READ[:4])
def test_a_changed_file_installs_again(ready, file):
    with (ready.folder / file).open("a") as f: f.write("\n# changed\n")
    assert ready.run().returncode == 0
    assert "venv" not in ready.log and ready.log[-1].endswith(".[dev]")


def test_an_interrupted_install_is_taken_up_again(checkout):
    checkout.command("python3.12", PYTHON)
    (checkout.folder / "fail").touch()
    assert checkout.run().returncode != 0
    (checkout.folder / "fail").unlink()
    assert checkout.run().returncode == 0
    assert "venv" not in checkout.log and checkout.log[-1].endswith(".[dev]")
    assert checkout.run().returncode == 0 and checkout.log == []


def test_half_an_environment_is_made_anew(ready):
    (ready.folder / ".venv/bin/pip").write_text("#!/nowhere/python\n")
    (ready.folder / ".venv/.stage_modules").unlink()
    assert ready.run().returncode == 0 and ready.log[0] == "venv"


def test_a_moved_checkout_gets_its_own_environment(ready):
    moved = ready.folder.with_name("moved here")
    ready.folder.rename(moved)
    ready.folder = moved
    (moved / ".venv/bin/pip").write_text("#!/bin/sh\necho 'pip 26.0 from /another/place/.venv/lib/pip (python 3.12)'\n")
    assert ready.run().returncode == 0 and ready.log[0] == "venv"


def test_torch_from_another_index_and_the_choice_is_kept(ready):
    assert ready.run(TORCH_INDEX="https://example.org/cpu").returncode == 0
    torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert f"install --force-reinstall --no-deps --index-url https://example.org/cpu {torch}" in ready.log[0]
    assert ready.run().returncode == 0 and ready.log == []
    assert ready.run(TORCH_INDEX="https://example.org/cpu").returncode == 0 and ready.log == []


def test_no_python_is_one_clear_line(checkout):
    done = checkout.run()
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Python 3.11 or newer is needed" in done.stderr and "no python3" in done.stderr


def test_an_old_python_is_one_clear_line(checkout):
    checkout.command("python3", OLD)
    done = checkout.run()
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "3.11 or newer is needed" in done.stderr and "3.9.18" in done.stderr
    for name, word in (("python3", "3.9.18"), ("nosuch", "no such command")):
        done = checkout.run(PYTHON=name)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and word in done.stderr


def test_a_newer_python_is_found_beside_an_old_one(checkout):
    checkout.command("python3", OLD)
    checkout.command("python3.13", PYTHON)
    done = checkout.run()
    assert done.returncode == 0 and "Python 3.12.0" in done.stdout, done.stderr
