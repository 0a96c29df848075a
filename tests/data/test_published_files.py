"""Published raw files are fetched whole, once, and read."""

import http.server
import json
import threading

import pytest
from test_mquake import RECORDS

from mend_jax import data
from mend_jax.data import __main__ as command
from mend_jax.data import published_files
from mend_jax.errors import DataError

NAME = "mquake/MQuAKE-CF-3k.json"


@pytest.fixture
def server():
    """Serve texts by path; count the requests; a path with "short" breaks off."""
    texts, seen = {"/a.json": json.dumps(RECORDS).encode(), "/short": b"x" * 10}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            if self.path not in texts:
                self.send_error(404)
                return
            body = texts[self.path]
            self.send_response(200)
            missing = 5 if self.path == "/short" else 0
            self.send_header("Content-Length", str(len(body) + missing))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", seen
    running.shutdown()
    running.server_close()
    thread.join()


def test_files_are_fetched_once_and_read(server, tmp_path, capsys, monkeypatch):
    url, seen = server
    monkeypatch.setattr(published_files, "HOMES", {"mquake": {NAME: f"{url}/a.json"}})
    monkeypatch.setattr(published_files.fetch, "__defaults__", (published_files.HOMES,))
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path / "cache"))
    for _ in range(2):
        assert command.main(["fetch", "mquake", f"--to={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / NAME}  from {url}/a.json" in said and "licence: MIT" in said
    assert len(data.load("mquake", tmp_path, tmp_path / "prepared").split("train")) > 5
    assert seen == ["/a.json"]  # kept the second time
    assert [p.name for p in (tmp_path / "mquake").iterdir()] == ["MQuAKE-CF-3k.json"]
    assert command.main(["list"]) == 0 and f"mquake: {NAME}" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["none", "short"])
def test_a_file_that_cannot_be_had_is_named_with_its_place(server, tmp_path, path):
    url, _ = server
    with pytest.raises(DataError, match=f"{url}/{path}.*(put it to .*x.json|fetch it again)"):
        published_files.fetch("x", tmp_path, {"x": {"x/x.json": f"{url}/{path}"}})
    assert not list((tmp_path / "x").iterdir())


def test_an_unknown_name_and_a_missing_folder_are_errors(tmp_path, capsys, monkeypatch):
    with pytest.raises(DataError, match=r"'counterfacts' \(did you mean 'counterfact'\?\)"):
        published_files.fetch("counterfacts", tmp_path)
    monkeypatch.delenv("MEND_DATA_DIR", raising=False)
    assert command.main(["fetch", "mquake"]) == 2
    assert "give --to=DIR, or set MEND_DATA_DIR" in capsys.readouterr().err


def test_every_home_is_of_a_data_set():
    for name, files in published_files.HOMES.items():
        assert name.partition("/")[0] in data.DATA_SETS
        assert all(url.startswith(("https://", "http://dl.fbai")) for url in files.values())
