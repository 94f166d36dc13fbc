"Downloads over real HTTP: what arrives, what is refused, and what is left on disk when something goes wrong."
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stage_modules.toolkit.datasets import Entry, FetchError, data_folder, fetch, fetch_folder, is_available, registry

ROOT = Path(__file__).parents[1]
CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "folder/file.bin"


class Handler(BaseHTTPRequestHandler):
    "/whole, /changed, /truncated (promises more than it sends), /slow (pauses in the middle); anything else is 404."

    def do_GET(self):
        kind = self.path[1:]
        self.server.asked.append(kind)
        if kind not in ("whole", "changed", "truncated", "slow"):
            return self.send_error(404)
        body = CONTENT[::-1] if kind == "changed" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        if kind == "truncated":
            return
        if kind == "slow":
            self.wfile.flush()
            self.server.halfway.set()
            self.server.go_on.wait(20)
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.halfway, server.go_on = [], threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    server.server_close()


def entries(server, kind):
    return {NAME: Entry(SHA256, f"http://127.0.0.1:{server.server_port}/{kind}")}


def snapshot(folder):
    "Every path below a folder, with what a write would change."
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in [folder, *folder.rglob("*")]}


def left(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def child(server, kind, folder):
    "The same fetch in a process of its own."
    code = (
        "import sys; from stage_modules.toolkit.datasets import Entry, fetch\n"
        f"print(fetch({NAME!r}, sys.argv[1], {{{NAME!r}: Entry({SHA256!r}, sys.argv[2])}}))"
    )
    url = f"http://127.0.0.1:{server.server_port}/{kind}"
    return subprocess.Popen([sys.executable, "-c", code, str(folder), url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent)


def test_downloads_once(server, tmp_path, capsys):
    path = fetch(NAME, tmp_path, entries(server, "whole"))
    assert path == tmp_path / NAME and path.read_bytes() == CONTENT
    assert "1.05M" in capsys.readouterr().err, "a progress bar with the size"
    fetch(NAME, tmp_path, entries(server, "whole"))
    assert server.asked == ["whole"]
    assert left(tmp_path) == [path]


def test_the_environment_names_the_folder(server, tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE_DATA_DIR", str(tmp_path / "new"))
    assert not is_available(NAME)
    assert fetch(NAME, entries=entries(server, "whole"), progress=False) == tmp_path / "new" / NAME
    assert is_available(NAME)
    assert fetch_folder("folder", entries=entries(server, "whole")) == tmp_path / "new" / "folder"


def test_a_wrong_file_is_neither_used_nor_overwritten(server, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / NAME).write_bytes(b"mine")
    before = snapshot(tmp_path)
    with pytest.raises(FetchError) as caught:
        fetch(NAME, tmp_path, entries(server, "whole"))
    for part in (str(tmp_path / NAME), SHA256, hashlib.sha256(b"mine").hexdigest(), "/whole"):
        assert part in str(caught.value)
    assert snapshot(tmp_path) == before
    assert server.asked == []


@pytest.mark.parametrize("kind, reason", [("changed", "SHA256 hash of downloaded file"), ("truncated", "IncompleteRead"), ("gone", "404")])
def test_a_failed_download_leaves_nothing(server, tmp_path, kind, reason):
    with pytest.raises(FetchError, match=reason):
        fetch(NAME, tmp_path, entries(server, kind), progress=False)
    assert left(tmp_path) == []
    assert not is_available(NAME, tmp_path)
    assert fetch(NAME, tmp_path, entries(server, "whole"), progress=False).read_bytes() == CONTENT


def test_without_network_the_error_says_what_to_do(tmp_path):
    url = "http://127.0.0.1:9/file.bin"
    with pytest.raises(FetchError) as caught:
        fetch(NAME, tmp_path, {NAME: Entry(SHA256, url)})
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.name, error.url, error.path) == (NAME, url, tmp_path / NAME)
    for part in (NAME, url, str(tmp_path / NAME), "STAGE_DATA_DIR", "Connection"):
        assert part in str(error)


def test_a_read_only_folder_is_only_read(server, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / NAME).write_bytes(CONTENT)
    for path in (tmp_path / NAME, tmp_path / "folder", tmp_path):
        path.chmod(0o444 if path.is_file() else 0o555)
    before = snapshot(tmp_path)
    try:
        assert fetch(NAME, tmp_path, entries(server, "whole")) == tmp_path / NAME
        assert snapshot(tmp_path) == before
        assert server.asked == []
    finally:
        for path in (tmp_path, tmp_path / "folder"):
            path.chmod(0o755)


def test_a_folder_that_cannot_be_written_says_so(server, tmp_path):
    blocked = tmp_path / "a file"  # even root cannot make a folder in a file
    blocked.write_text("")
    with pytest.raises(FetchError, match="NotADirectoryError|FileExistsError"):
        fetch(NAME, blocked / "data", entries(server, "whole"))


def test_two_processes_at_once(server, tmp_path):
    folder = tmp_path / "cache"
    processes = [child(server, "slow", folder) for _ in range(2)]
    deadline = time.monotonic() + 30
    while server.asked.count("slow") < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.asked == ["slow"] * 2, "both are downloading"
    assert not is_available(NAME, folder)
    server.go_on.set()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.strip() == str(folder / NAME)
    assert left(folder) == [folder / NAME] and (folder / NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_killed_halfway(server, tmp_path, with_signal):
    folder = tmp_path / "cache"
    process = child(server, "slow", folder)
    assert server.halfway.wait(30)
    process.send_signal(with_signal)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert not is_available(NAME, folder)
    assert fetch(NAME, folder, entries(server, "whole"), progress=False).read_bytes() == CONTENT


def test_the_packaged_registry_is_the_one_in_data():
    packaged = (ROOT / "stage_modules/toolkit/registry.txt").read_bytes()
    assert packaged == (ROOT / "data/registry.txt").read_bytes()
    assert all(entry.url.startswith("https://") and len(entry.sha256) == 64 for entry in registry().values())


@pytest.mark.needs_data
def test_what_is_here_is_what_the_registry_means():
    here = [name for name in registry() if is_available(name)]
    if not here:
        pytest.skip("no data set is on this machine")
    before = {name: os.stat(data_folder() / name).st_mtime_ns for name in here}
    for name in here:
        fetch(name)
    assert before == {name: os.stat(data_folder() / name).st_mtime_ns for name in here}
