"""The local page to try, keep and revert edits: `python -m mend_jax.edit serve`.

The page is for one person, and guarded. The server listens on this machine only. It answers only
under a loopback name, so that another site cannot make a browser take this server for its own (DNS
rebinding). Only requests with this start's token see the page, and every action needs the token and
must come from the page itself. One request at a time uses the model.
"""

from __future__ import annotations

import contextlib
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
MAX_LINES = 8  # of paraphrases, or of neighbours
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
    """Serve the page until Ctrl-C, and print its address.

    Args:
      port: 0 for any free port.

    Raises:
      ConfigError: the port cannot be used.
    """
    with Server(session, port) as server:
        print(
            f"Open {server.url}\nStop with Ctrl-C; the ledger has every edit you kept.", flush=True
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


class Server(http.server.ThreadingHTTPServer):
    """The server of a session, on a port of 127.0.0.1.

    Attributes:
      token: grants access to the page and its actions.
      lock: held while a request uses the session.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session, self.lock = session, threading.Lock()
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as e:
            raise ConfigError(
                f"port {port} cannot be used ({e}): choose another, or 0 for any free port"
            ) from e

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without looking up this machine's name
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    @property
    def url(self) -> str:
        """The address of the page, including its token."""
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"


class _Refused(Exception):
    """A request that is refused, with a status and a reason."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "mend_jax", ""
    timeout = 30  # seconds that a request may need to arrive

    def do_GET(self) -> None:
        self._respond(self._page)

    def do_POST(self) -> None:
        self._respond(self._act)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the address contains the token."""

    def _respond(self, make_html: Callable[[], str]) -> None:
        """Send what `make_html` returns, or the reason for its error as plain text."""
        try:
            self._require_own_host()
            html = make_html()
        except _Refused as e:
            self._send(e.status, "text/plain", str(e))
        except MendError as e:
            self._send(HTTPStatus.UNPROCESSABLE_ENTITY, "text/plain", str(e))
        except TimeoutError:
            self._send(HTTPStatus.REQUEST_TIMEOUT, "text/plain", "The request came too slowly.")
        except Exception:
            logging.exception("%s %s failed", self.command, self.path.partition("?")[0])
            reason = "An internal error; the terminal of the command shows where."
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", reason)
        else:
            self._send(HTTPStatus.OK, "text/html", html)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse with our headers; the library's `message` would repeat parts of the request."""
        self.close_connection = True
        self._send(HTTPStatus(code), "text/plain", HTTPStatus(code).phrase)

    def _send(self, status: HTTPStatus, content_type: str, body: str) -> None:
        data = body.encode("utf-8", errors="replace")
        headers = _HEADERS | {
            "Content-Type": f"{content_type}; charset=utf-8",
            "Content-Length": str(len(data)),
            "Content-Security-Policy": html_view.served_page_policy(),
        }
        with contextlib.suppress(ConnectionError, TimeoutError):  # the client is gone
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    def _require_own_host(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0] not in self._own_hosts():
            raise _Refused(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"This server answers only as 127.0.0.1:{self.server.server_port}.",
            )

    def _own_hosts(self) -> list[str]:
        return [f"{name}:{self.server.server_port}" for name in _LOOPBACK]

    def _require_token(self, token: str) -> None:
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(
                HTTPStatus.FORBIDDEN,
                "The token is not this server's: open the address that the command printed.",
            )

    def _page(self) -> str:
        """Return the whole page."""
        url = urllib.parse.urlsplit(self.path)
        if url.path != "/":
            raise _Refused(HTTPStatus.NOT_FOUND, "The only page is at /.")
        self._require_token(urllib.parse.parse_qs(url.query).get("token", [""])[0])
        with self.server.lock:
            state = self.server.session.state()
            return html_view.render_served_page(state, self.server.token, MAX_TEXT)

    def _act(self) -> str:
        """Run an action of the page, and return the part of the page that it changes."""
        if self.headers.get("Origin") not in [f"http://{host}" for host in self._own_hosts()]:
            raise _Refused(HTTPStatus.FORBIDDEN, "Only this server's own page may act.")
        self._require_token(self.headers.get("X-Token", ""))
        action = ACTIONS.get(self.path)
        if action is None:
            raise _Refused(HTTPStatus.NOT_FOUND, f"The actions are {', '.join(ACTIONS)}.")
        fields = self._fields()
        with self.server.lock:
            result = action(self.server.session, fields)
            if self.path == "/compare":
                return html_view.render_comparison(result)
            return html_view.render_workspace(self.server.session.state())

    def _fields(self) -> dict[str, Any]:
        """Return the request's JSON object."""
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


Fields = Mapping[str, Any]


def _propose(session: Session, fields: Fields) -> None:
    fact = Fact(
        prompt=_text(fields, "prompt"),
        target=_text(fields, "target"),
        paraphrases=_lines(fields, "paraphrases"),
        neighbours=_lines(fields, "neighbours"),
    )
    session.propose(fact)


ACTIONS: dict[str, Callable[[Session, Fields], Any]] = {
    "/propose": _propose,
    "/keep": lambda session, fields: session.keep(_number(fields, "proposal")),
    "/discard": lambda session, fields: session.discard(_number(fields, "proposal")),
    "/revert": lambda session, fields: session.revert(_number(fields, "number")),
    "/compare": lambda session, fields: session.compare(_text(fields, "prompt")),
}


def _text(fields: Fields, name: str) -> str:
    text = _checked(fields.get(name), name).strip()
    if not text:
        raise DataError(f"{name} is empty: give a text")
    return text


def _lines(fields: Fields, name: str) -> tuple[str, ...]:
    """Return the lines of a text that may be missing or empty."""
    text = _checked(fields.get(name) or "", name, MAX_LINES * MAX_TEXT)
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(lines) > MAX_LINES:
        raise DataError(f"{name} has {len(lines)} lines: give at most {MAX_LINES}")
    return lines


def _checked(value: Any, name: str, max_length: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} is not a text: give one")
    if len(value) > max_length:
        raise DataError(f"{name} has {len(value)} characters: give at most {max_length}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        raise DataError(f"{name} holds half a character ({e}): give whole ones") from e
    return value


def _number(fields: Fields, name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"{name}: {value!r} is not a whole number")
    return value
