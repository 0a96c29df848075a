"""The local page on which a person tries, keeps and undoes edits: `python -m mend_jax.edit serve`.

It is one person's page and guarded as such. The server is reached from this machine alone; it
answers only under a loopback name, so that no other site can have a browser take it for its own
(DNS rebinding); the page is shown only to who has the token of this start, and every action needs
the token and comes from the page itself. The model is used by one request at a time.
"""

from __future__ import annotations

import hmac
import http.server
import json
import logging
import secrets
import socketserver
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from mend_jax.data.facts import Fact
from mend_jax.errors import ConfigError, DataError, MendError
from mend_jax.ledger import html_view
from mend_jax.ledger.session import Session

MAX_BODY = 32 << 10  # bytes of a request
MAX_TEXT = 2000  # characters of one text
MAX_LINES = 8  # paraphrases, or neighbours
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def serve(session: Session, port: int = 0) -> None:
    """Serves the page until it is interrupted, and says where it is.

    Args:
      port: 0 for one that is free.

    Raises:
      ConfigError: the port cannot be had.
    """
    with Server(session, port) as server:
        print(f"Open {server.url}\nEnd with Ctrl-C; what was kept is in the ledger.", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


class Server(http.server.ThreadingHTTPServer):
    """The server of a session, on a port of 127.0.0.1.

    Attributes:
      token: who knows it may see the page and act.
      lock: held while the session is in use.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session, self.lock = session, threading.Lock()
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as e:
            raise ConfigError(f"port {port} cannot be had ({e}): name another, or 0 for any") from e

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without looking up this machine's name
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def url(self) -> str:
        """The address of the page, its token included."""
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"


class _Refused(Exception):
    """A request that is not answered: a status and what to say."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "mend_jax", ""
    timeout = 30  # seconds that a request may take to arrive

    def do_GET(self) -> None:
        self._answer(self._page)

    def do_POST(self) -> None:
        self._answer(self._act)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address holds the token."""

    def _answer(self, make: Callable[[], str]) -> None:
        """Sends what `make` returns, or in plain text why there is nothing to return."""
        status, kind = HTTPStatus.OK, "text/html"
        try:
            self._refuse_other_hosts()
            body = make()
        except _Refused as e:
            status, kind, body = e.status, "text/plain", str(e)
        except MendError as e:
            status, kind, body = HTTPStatus.UNPROCESSABLE_ENTITY, "text/plain", str(e)
        except TimeoutError:
            status, kind, body = HTTPStatus.REQUEST_TIMEOUT, "text/plain", "too slow"
        except Exception:
            logging.exception("%s %s failed", self.command, self.path.partition("?")[0])
            status, kind = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain"
            body = "This failed inside the program; the terminal that it runs in says where."
        self._send(status, kind, body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library refuses by itself, with our headers; `message` repeats what came in."""
        self.close_connection = True
        self._send(HTTPStatus(code), "text/plain", HTTPStatus(code).phrase)

    def _send(self, status: HTTPStatus, kind: str, body: str) -> None:
        data = body.encode("utf-8", errors="replace")
        try:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", html_view.served_page_policy())
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except (ConnectionError, TimeoutError):
            pass  # the reader is gone

    def _refuse_other_hosts(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0] not in self._own_hosts():
            raise _Refused(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"This server answers as 127.0.0.1:{self.server.server_port} alone.",
            )

    def _own_hosts(self) -> list[str]:
        return [f"{name}:{self.server.server_port}" for name in _LOOPBACK]

    def _refuse_strangers(self, token: str) -> None:
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                "The token is not that of this server: open the address that the command printed.",
            )

    def _page(self) -> str:
        """The whole page."""
        where = urllib.parse.urlsplit(self.path)
        if where.path != "/":
            raise _Refused(HTTPStatus.NOT_FOUND, "There is nothing here but the page at /.")
        self._refuse_strangers(urllib.parse.parse_qs(where.query).get("token", [""])[0])
        with self.server.lock:
            return html_view.served(self.server.session.state(), self.server.token, MAX_TEXT)

    def _act(self) -> str:
        """Does what the page asks for, and returns the part of the page that it changes."""
        if self.headers.get("Origin") not in [f"http://{host}" for host in self._own_hosts()]:
            raise _Refused(HTTPStatus.FORBIDDEN, "Only the page of this server may ask for that.")
        self._refuse_strangers(self.headers.get("X-Token", ""))
        act = ACTIONS.get(self.path)
        if act is None:
            raise _Refused(HTTPStatus.NOT_FOUND, f"The actions are {', '.join(ACTIONS)}.")
        fields = self._fields()
        with self.server.lock:
            return act(self.server.session, fields)

    def _fields(self) -> dict[str, Any]:
        """The request's JSON object."""
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send application/json.")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Send a Content-Length.")
        if len(length) > 9 or int(length) > MAX_BODY:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"More than {MAX_BODY} bytes: shorten it."
            )
        try:
            fields = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as e:
            raise _Refused(HTTPStatus.BAD_REQUEST, f"Not JSON: {e}.") from e
        if not isinstance(fields, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "Not a JSON object.")
        return fields


def _propose(session: Session, fields: Mapping[str, Any]) -> str:
    session.propose(
        Fact(
            prompt=_text(fields, "prompt"),
            target=_text(fields, "target"),
            rephrases=_lines(fields, "rephrases"),
            locality=_lines(fields, "locality"),
        )
    )
    return html_view.bench(session.state())


def _keep(session: Session, fields: Mapping[str, Any]) -> str:
    session.keep(_number(fields, "proposal"))
    return html_view.bench(session.state())


def _discard(session: Session, fields: Mapping[str, Any]) -> str:
    session.discard(_number(fields, "proposal"))
    return html_view.bench(session.state())


def _revert(session: Session, fields: Mapping[str, Any]) -> str:
    session.revert(_number(fields, "number"))
    return html_view.bench(session.state())


def _ask(session: Session, fields: Mapping[str, Any]) -> str:
    return html_view.answer(session.ask(_text(fields, "prompt")))


ACTIONS: dict[str, Callable[[Session, Mapping[str, Any]], str]] = {
    "/propose": _propose, "/keep": _keep, "/discard": _discard, "/revert": _revert, "/ask": _ask,
}  # fmt: skip


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = _checked(fields.get(name), name).strip()
    if not value:
        raise DataError(f"{name} is empty: give a text")
    return value


def _lines(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The lines of a text that may be missing or empty."""
    lines = _checked(fields.get(name) or "", name, MAX_LINES * MAX_TEXT).splitlines()
    lines = tuple(line.strip() for line in lines if line.strip())
    if len(lines) > MAX_LINES:
        raise DataError(f"{name} has {len(lines)} lines: give at most {MAX_LINES}")
    return lines


def _checked(value: Any, name: str, most: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} is not a text: give one")
    if len(value) > most:
        raise DataError(f"{name} has {len(value)} characters: give at most {most}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        raise DataError(f"{name} holds half a character ({e}): give whole ones") from e
    return value


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{name}: {value!r} is not a whole number")
    return value
