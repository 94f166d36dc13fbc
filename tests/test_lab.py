"`make lab`, started as a reader starts it: who may connect, what it opens, and the explorer under a real mouse."
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
CHROMIUM = next((found for found in map(shutil.which, BROWSERS) if found), None)
VENV = ROOT / ".venv/bin/jupyter"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab by `make lab`, with its own settings folder, so that nobody's own JupyterLab is touched. Gives port, address, log."
    if not (shutil.which("make") and VENV.exists()): pytest.skip("needs make and .venv")
    folder = tmp_path_factory.mktemp("lab")
    port = free_port()
    env = {k: v for k, v in os.environ.items() if k not in {"STAGE_STATIC", "MPLBACKEND", "JUPYTER_TOKEN"} and not k.startswith("PYTEST_")}
    env |= {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_DATA_DIR": str(folder / "data"), "JUPYTER_RUNTIME_DIR": str(folder / "run"), "OMP_NUM_THREADS": "1"}
    flags = f"--no-browser --port={port} --ServerApp.port_retries=0"
    log = folder / "log.txt"
    # The set-up is taken as done (the tests run in it), so that this test cannot change the environment it runs in.
    with log.open("w") as out:
        process = subprocess.Popen(["make", "lab", "-o", "setup", f"LAB_FLAGS={flags}"], cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        url = None
        for _ in range(120):
            time.sleep(0.5)
            found = re.search(rf"http://127\.0\.0\.1:{port}/\S*token=\w+", log.read_text())
            if found:
                url = found[0]
                break
            assert process.poll() is None, log.read_text()
        assert url, f"no address in a minute:\n{log.read_text()}"
        yield port, url, log
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try: process.wait(3)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGTERM)
        try: process.wait(20)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer: return answer.status
    except urllib.error.HTTPError as error: return error.code


def test_it_prints_the_address_of_the_first_page(lab):
    _port, url, _log = lab
    assert "/lab/tree/nbs/index.ipynb?token=" in url
    assert status(url) == 200


def test_without_the_token_nothing_is_given_out(lab):
    port, url, _log = lab
    token = url.split("token=")[1]
    api = f"http://127.0.0.1:{port}/api/contents/nbs/index.ipynb?content=0"
    assert status(api) == 403
    assert status(f"{api}&token={'0' * len(token)}") == 403
    assert status(f"{api}&token={token}") == 200


def test_it_listens_on_this_machine_only(lab):
    "Not on another address of the machine: neither the one it is known by in its network nor all of them."
    port, _url, _log = lab
    with socket.socket() as s: assert s.connect_ex(("127.0.0.1", port)) == 0
    others = ["127.0.0.2"] if sys.platform == "linux" else []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9)) # sends nothing: it only asks which address the machine would use
            others.append(s.getsockname()[0])
        except OSError: pass
    for address in others:
        with socket.socket() as s:
            s.settimeout(2)
            assert s.connect_ex((address, port)) != 0, f"it also listens on {address}"


def test_the_kernel_is_the_python_of_the_environment(lab):
    "Whatever kernels the user has of their own, `python3` is the one with the course's packages."
    code = "from jupyter_client.manager import KernelManager as K; print(K(kernel_name='python3').format_kernel_cmd()[0])"
    done = subprocess.run([ROOT / ".venv/bin/python", "-c", code], capture_output=True, text=True, check=False)
    assert Path(done.stdout.strip()).parent == ROOT / ".venv/bin", done.stdout + done.stderr


def test_news_is_switched_off():
    settings = ROOT / ".venv/share/jupyter/lab/settings/overrides.json"
    if not VENV.exists(): pytest.skip("needs .venv")
    assert settings.exists() and settings.read_text() == (ROOT / "tools/overrides.json").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not on this machine: the explorer is not tried in a browser")
def test_a_slider_moves_the_figure(lab, tmp_path):
    "Open the explorer's notebook, run it, move a slider with the keyboard, and see another figure."
    sync_api = pytest.importorskip("playwright.sync_api")
    _port, url, _log = lab
    notebook = "nbs/stage1_attention/07_explorer.ipynb"
    before = (ROOT / notebook).read_bytes()
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page(viewport={"width": 1500, "height": 1100})
            page.set_default_timeout(90_000)
            page.goto(url.replace("nbs/index.ipynb", notebook))
            page.locator(".jp-Notebook .jp-Cell").first.wait_for()
            page.locator("[data-jp-item-name=kernelName]").filter(has_text="Python 3").first.wait_for()
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            slider = page.locator(".widget-slider, .jupyter-widget-slider").first
            for _ in range(60): # cells out of view are not in the page yet
                if slider.count(): break
                page.locator(".jp-WindowedPanel-outer").first.evaluate("e => e.scrollBy(0, 600)")
                page.wait_for_timeout(1000)
            slider.scroll_into_view_if_needed()
            figure = page.locator(".jp-OutputArea:has(.widget-slider, .jupyter-widget-slider) img").first
            figure.wait_for()
            first = figure.get_attribute("src")
            handle = slider.locator(".noUi-handle").first
            handle.focus()
            for _ in range(5): handle.press("ArrowRight")
            page.wait_for_timeout(500)
            for _ in range(60):
                if figure.count() and figure.get_attribute("src") not in (first, None): break
                page.wait_for_timeout(500)
            page.screenshot(path=str(tmp_path / "explorer.png"))
            assert figure.get_attribute("src") != first, "the slider moved and the figure did not"
            assert not page.get_by_text("Would you like to receive official Jupyter news").count(), "the news pop-up came"
        finally: browser.close()
    assert (ROOT / notebook).read_bytes() == before, "looking at a notebook changed it"
