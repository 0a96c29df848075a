"""The served page over HTTP: its effect on the ledger, and the requests that it refuses."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from http import HTTPStatus

import pytest
from support.fake_ledger import EVIL, fake_measurement
from support.tiny import save_tiny

from mend_jax import load_model
from mend_jax.core.weight_edit import Edit
from mend_jax.data.facts import Fact
from mend_jax.errors import ConfigError, LedgerError
from mend_jax.ledger import web_server
from mend_jax.ledger.edit_ledger import Base, Ledger
from mend_jax.ledger.editor_choice import choose_editor
from mend_jax.ledger.session import Proposal, Session

FRANCE = {"prompt": "ab cd", "target": "x"}


def tiny_editor(folder):
    """Return a fine-tuning editor of a tiny base."""
    model = load_model(str(save_tiny(folder)), last_n_blocks=2)
    return choose_editor(model, "fine_tune", options={"lr": 0.02, "max_steps": 60})


def tiny_session(editor, folder):
    model = editor.model
    base = Base(model.spec, model.fingerprint, "float32", 2, ())
    return Session(model, editor, Ledger.create(folder, base))


@pytest.fixture(scope="module")
def editor(tmp_path_factory):
    return tiny_editor(tmp_path_factory.mktemp("base"))


@pytest.fixture
def session(editor, tmp_path):
    return tiny_session(editor, tmp_path / "ledger")


@contextlib.contextmanager
def serving(session):
    """Serve a session."""
    server = web_server.Server(session)
    thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class FakeSession:
    """A session without a model, which counts its concurrent users."""

    def __init__(self):
        self.calls, self.users, self.max_users, self.error = [], 0, 0, None
        self.proposal = None

    def _use(self, *what):
        self.users += 1
        self.max_users = max(self.max_users, self.users)
        time.sleep(0.05)
        self.users -= 1
        self.calls.append(what)
        if self.error:
            raise self.error

    def propose(self, fact):
        self._use("propose", fact)
        edit = Edit({}, facts=((fact.prompt, fact.target),))
        self.proposal = Proposal(5, edit, fake_measurement((fact.prompt, fact.target)), None, ())

    def keep(self, number):
        self._use("keep", number)

    def discard(self, number):
        self._use("discard", number)

    def revert(self, number):
        self._use("revert", number)

    def compare(self, prompt):
        self._use("compare", prompt)
        return {"prompt": prompt, "before": "b", "after": EVIL, "edits": 0, "proposed": False}

    def state(self):
        return {"base": "B", "editor": EVIL, "ledger": "L", "proposal": self.proposal,
                "entries": []}  # fmt: skip


@pytest.fixture
def served():
    """Return a function that serves a session."""
    with contextlib.ExitStack() as servers:
        yield lambda session: servers.enter_context(serving(session))


def post(server, action, fields, **headers):
    """Post like the page itself, except for `headers` (None: left out); return the reply."""
    sent = {
        "Origin": f"http://127.0.0.1:{server.server_port}", "X-Token": server.token,
        "Content-Type": "application/json",
    } | {name.replace("_", "-"): value for name, value in headers.items()}  # fmt: skip
    sent = {name: value for name, value in sent.items() if value is not None}
    data = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    address = f"http://127.0.0.1:{server.server_port}{action}"
    request = urllib.request.Request(address, data, sent, method="POST")
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def refusal(call, *args, **kwargs):
    """Return the status and text of the error that a call gets."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        call(*args, **kwargs)
    with caught.value as error:
        return error.code, error.read().decode()


def get(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return answer.read().decode()


@pytest.mark.slow
def test_a_fact_is_proposed_kept_compared_and_reverted(served, session):
    server, ledger, model = served(session), session.ledger, session.model
    assert "None yet:" in get(server.url)
    page = post(
        server, "/propose", FRANCE | {"paraphrases": "q ab cd\n\n r ab ", "neighbours": "ef"}
    )
    assert "Keep it" in page and ledger.entries() == []  # nothing is recorded yet
    lines = [(a["kind"], a["prompt"]) for a in session.proposal.measured["facts"][0]["asked"]]
    assert lines == [("prompt", "ab cd"), ("paraphrase", "q ab cd"), ("paraphrase", "r ab")]
    assert session.proposal.together is None

    after = post(server, "/keep", {"proposal": 1})
    assert "Keep it" not in after and "Active edits (1)" in after and "Revert edit 1" in after
    (entry,) = ledger.active()
    assert entry.facts == (("ab cd", "x"),) and entry.measured["facts"][0]["target"] == "x"
    assert entry.editor == session.editor.id

    answer = post(server, "/compare", {"prompt": "ab cd"})
    assert "with the active edit" in answer
    before, after = re.findall(r"<bdi>(.*?)</bdi>", answer)
    edited = model.with_edit(ledger.composed()).generate("ab cd", 24)
    assert (before == after) == (model.generate("ab cd", 24) == edited)

    # The next proposal is measured with the active edits, and warned of its equal prompt.
    page = post(server, "/propose", {"prompt": "ab cd", "target": "y"})
    assert "Active edit 1 has the same prompt" in page and session.proposal.clashes == (1,)
    assert [f["target"] for f in session.proposal.together["facts"]] == ["y", "x"]
    assert "Of the 1 active fact" in page
    assert "and the proposal" in post(server, "/compare", {"prompt": "ab cd"})
    assert "Keep it" not in post(server, "/discard", {"proposal": 2})
    assert len(ledger.entries()) == 1

    undone = post(server, "/revert", {"number": 1})
    assert "None yet:" in undone and "Reverted (1)" in undone
    assert ledger.active() == [] and ledger.entries()[0].reverted
    assert "no active edit" in post(server, "/compare", {"prompt": "ab cd"})
    status, text = refusal(post, server, "/revert", {"number": 1})
    assert status == HTTPStatus.UNPROCESSABLE_ENTITY and "reverted already" in text


def test_compare_applies_the_active_edits_and_the_proposal(session):
    model = session.model
    session.propose(Fact("ab cd", "x"))
    session.keep(1)
    session.propose(Fact("ef gh", "zz"))
    found = session.compare("ef gh")
    both = session.ledger.composed(session.proposal.edit)
    assert found["before"] == model.generate("ef gh", 24)
    assert found["after"] == model.with_edit(both).generate("ef gh", 24) != found["before"]
    assert (found["edits"], found["proposed"]) == (1, True)


def test_only_the_current_proposal_can_be_kept(session):
    """A page left open cannot keep what another page proposed in the meantime."""
    session.propose(Fact("ab cd", "x"))
    session.propose(Fact("ef gh", "y"))
    for act in (session.keep, session.discard):
        with pytest.raises(LedgerError, match="proposal 1 no longer exists"):
            act(1)
    assert session.keep(2).facts == (("ef gh", "y"),)
    with pytest.raises(LedgerError, match="proposal 2 no longer exists"):
        session.keep(2)
    assert len(session.ledger.entries()) == 1


def test_a_proposal_survives_a_ledger_that_cannot_be_written(session, monkeypatch):
    def full(*args):
        raise LedgerError("no space")

    session.propose(Fact("ab cd", "x"))
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "append", full)
        with pytest.raises(LedgerError, match="no space"):
            session.keep(1)
    assert session.keep(1).number == 1


def test_changes_by_other_programs_are_read(session, editor):
    session.propose(Fact("ab cd", "x"))
    session.keep(1)
    other = Ledger.open(session.ledger.path)
    other.append(editor.edit([("ef gh", "y")]))
    assert session.active_edit().facts == (("ab cd", "x"), ("ef gh", "y"))
    other.revert(1)
    assert session.active_edit().facts == (("ef gh", "y"),)
    other.revert(2)
    assert session.active_edit() is None


def test_the_page_requires_the_token(served):
    server = served(FakeSession())
    home = f"http://127.0.0.1:{server.server_port}/"
    assert server.token in get(server.url) and server.token in server.url
    assert server.token != served(FakeSession()).token
    for address in (home, f"{home}?token=", f"{home}?token=x{server.token}", f"{home}?x=1"):
        status, text = refusal(get, address)
        assert status == HTTPStatus.FORBIDDEN and server.token not in text
    assert refusal(get, f"{home}etc/passwd?token={server.token}")[0] == HTTPStatus.NOT_FOUND
    assert get(server.url, Host=f"localhost:{server.server_port}")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "", "0:{port}"]
)
def test_other_host_names_are_refused(served, host):
    """Another site whose name resolves to this machine must not reach this server."""
    server = served(session := FakeSession())
    host = host.format(port=server.server_port)
    assert refusal(get, server.url, Host=host)[0] == HTTPStatus.MISDIRECTED_REQUEST
    status, _ = refusal(
        post, server, "/compare", {"prompt": "p"}, Host=host, Origin=f"http://{host}"
    )  # fmt: skip
    assert status == HTTPStatus.MISDIRECTED_REQUEST and not session.calls


def raw(server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as s:
        s.sendall(request)
        s.shutdown(socket.SHUT_WR)
        return s.makefile("rb").read()


def test_missing_and_repeated_host_headers_are_refused(served):
    server = served(FakeSession())
    path = f"GET /?token={server.token} HTTP/1.1\r\n".encode()
    own = f"Host: 127.0.0.1:{server.server_port}\r\n".encode()
    assert raw(server, path + own + b"\r\n").split()[1] == b"200"
    assert raw(server, path + b"\r\n").split()[1] == b"421"
    assert raw(server, path + own + b"Host: evil.example\r\n\r\n").split()[1] == b"421"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (HTTPStatus.FORBIDDEN, {"Origin": None}),
        (HTTPStatus.FORBIDDEN, {"Origin": "null"}),
        (HTTPStatus.FORBIDDEN, {"Origin": "http://evil.example"}),
        (HTTPStatus.FORBIDDEN, {"Origin": "http://127.0.0.1:1"}),
        (HTTPStatus.FORBIDDEN, {"X_Token": None}),
        (HTTPStatus.FORBIDDEN, {"X_Token": "wrong"}),
        (HTTPStatus.FORBIDDEN, {"X_Token": "\u00e9"}),
        (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"Content_Type": "text/plain"}),
        (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"Content_Type": None}),
        (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"Content_Length": "32769"}),
        (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"Content_Length": "9" * 30}),
        (HTTPStatus.LENGTH_REQUIRED, {"Content_Length": "-1"}),
        (HTTPStatus.LENGTH_REQUIRED, {"Content_Length": "1e3"}),
    ],
)
def test_requests_that_the_page_would_not_send_are_refused(served, status, headers):
    server = served(session := FakeSession())
    assert refusal(post, server, "/compare", {"prompt": "p"}, **headers)[0] == status
    assert not session.calls


@pytest.mark.parametrize(
    ("action", "fields", "status", "message"),
    [
        ("/nothing", {}, 404, "/propose"),
        ("/compare?x=1", {"prompt": "p"}, 404, "/compare"),
        ("/compare", b"{", 400, "Not JSON"),
        ("/compare", b"\xff", 400, "Not JSON"),
        ("/compare", b"[" * 30000, 400, "Not JSON"),
        ("/compare", ["prompt"], 400, "Not a JSON object"),
        ("/compare", {}, 422, "prompt is not a text"),
        ("/compare", {"prompt": " \n"}, 422, "prompt is empty"),
        ("/compare", {"prompt": "x" * 2001}, 422, "2001 characters"),
        ("/compare", {"prompt": "\ud800"}, 422, "half a character"),
        ("/propose", {"prompt": "p", "target": 3}, 422, "target is not a text"),
        ("/propose", FRANCE | {"paraphrases": "r\n" * 9}, 422, "9 lines"),
        ("/propose", FRANCE | {"neighbours": ["p"]}, 422, "neighbours is not a text"),
        ("/keep", {"proposal": "1"}, 422, "'1' is not a whole number"),
        ("/revert", {"number": True}, 422, "True is not a whole number"),
        ("/revert", {"number": 1.0}, 422, "1.0 is not a whole number"),
    ],
)
def test_invalid_fields_are_refused(served, action, fields, status, message):
    server = served(session := FakeSession())
    found, text = refusal(post, server, action, fields)
    assert (found, message in text, session.calls) == (status, True, [])


def test_other_methods_are_refused(served):
    server = served(FakeSession())
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        connection.request(method, "/compare")
        answer = connection.getresponse()
        assert answer.status == HTTPStatus.NOT_IMPLEMENTED
        assert "Access-Control-Allow-Origin" not in answer.headers
        connection.close()


def test_errors_are_reported_and_leave_the_server_running(served, caplog):
    server = served(session := FakeSession())
    session.error = LedgerError("the disk is full")
    assert refusal(post, server, "/keep", {"proposal": 1}) == (422, "the disk is full")
    session.error = RuntimeError("a secret")
    status, text = refusal(post, server, "/keep", {"proposal": 1})
    assert status == HTTPStatus.INTERNAL_SERVER_ERROR and "secret" not in text
    assert "a secret" in caplog.text and server.token not in caplog.text
    session.error = None
    assert "Active edits" in post(server, "/keep", {"proposal": 1})


def test_one_request_at_a_time_uses_the_session(served):
    server = served(session := FakeSession())
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(post, server, "/compare", {"prompt": str(i)}) for i in range(6)]
        assert all(call.result() for call in calls)
    assert session.max_users == 1 and len(session.calls) == 6


def test_model_output_stays_text_on_the_served_page(served):
    server = served(FakeSession())
    for part in (
        get(server.url),
        post(server, "/compare", {"prompt": "p"}),
        post(server, "/propose", {"prompt": EVIL, "target": EVIL}),
    ):
        assert "alert(1)" in part and "<script>alert" not in part


def test_headers_forbid_everything_that_the_page_does_not_need(served):
    server = served(FakeSession())
    with urllib.request.urlopen(server.url) as answer:
        headers, page = answer.headers, answer.read().decode()
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ") and "frame-ancestors 'none'" in policy
    assert "connect-src 'self'" in policy and "'unsafe-inline'; script-src 'sha256-" in policy
    assert headers["Referrer-Policy"] == "no-referrer" and headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in headers
    assert re.findall(r'(?:src|href)="(.*?)"', page) == ["data:,"]


def test_the_server_listens_on_the_loopback_interface_only(served):
    server = served(FakeSession())
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(ConfigError, match=f"port {server.server_port} cannot be used"):
        web_server.Server(FakeSession(), server.server_port)
    with pytest.raises(ConfigError, match="port 70000"):
        web_server.Server(FakeSession(), 70000)


def test_serve_prints_its_address_and_stops_on_an_interrupt(monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(web_server.Server, "serve_forever", interrupted)
    web_server.serve(FakeSession())
    assert re.search(r"Open http://127\.0\.0\.1:\d+/\?token=\S{32}\n", capsys.readouterr().out)
