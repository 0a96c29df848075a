"""Readers of user input: settings on the command line, and requests to the local page."""

from __future__ import annotations

import functools
import json
import logging
import socket
import threading
import types
from pathlib import Path
from typing import Any
from unittest import mock

from support.small_edits import FINGERPRINT

from fuzzing.mutations import damage_bytes
from fuzzing.reader import Reader, put
from mend_jax.errors import DataError
from mend_jax.ledger import web_server
from mend_jax.ledger.edit_ledger import Base
from mend_jax.training import config as configs
from mend_jax.training import config_check, config_keys, run_folder
from mend_jax.training.assembly import build_editor, build_optimizer

_BASE = Base("tiny", FINGERPRINT, "float32", 2, ("mlp/up",))


# --- settings


def _read_overrides(folder: Path, data: bytes) -> None:
    """Lines of KEY=VALUE: settings are read back unchanged, and checked configs can be built."""
    del folder
    text = data.decode("utf-8", "replace")
    config = configs.load_config("quickstart.py:smoke")
    configs.apply_overrides(config, text.split("\n"))
    again = configs.load_config("quickstart.py:smoke")
    values = {key: config_keys.key_value(config, key) for key in configs.flat_keys(config)}
    known = {k: v for k, v in values.items() if k in {key.name for key in config_keys.KEYS}}
    configs.apply_overrides(again, configs.as_overrides(known))
    for key, value in known.items():
        assert repr(config_keys.key_value(again, key)) == repr(value), key
    config_check.check_editing_config(config)
    configs.to_json(config)
    build_editor(config)


_SETTINGS = (
    b"train.lr=3e-4\ndata.name=facts/a.jsonl\ndata.pack=(8, 16)\neval.sequential=(1, 10)\nseed=7",
    b"editor.options={'rank': 4}\neval.baselines={'fine_tune': {'lr': 0.1}}\ntrain.decay=false",
    b"editor.name=fine_tune\neditor.options={'lr': 0.01}\nmodel.edit_roles=mlp/up,mlp/down\n"
    b"data.template=Q: {} A:\ntrain.trunk_cache=host",
)


@functools.cache
def _config_seed() -> bytes:
    return configs.to_json(configs.load_config("quickstart.py")).encode()


def _read_config(folder: Path, data: bytes) -> None:
    """Read the config of a run from its folder: an accepted config can be built."""
    put(folder / "config.json", data)
    config = run_folder.read_run_config(folder)
    configs.to_json(config)
    build_editor(config)
    build_optimizer(config)


# --- requests


class _Session:
    """A session without a model."""

    def propose(self, fact: Any) -> None:
        fact.prompt.encode()

    def keep(self, number: int) -> None:
        if number != 1:
            raise DataError(f"no edit {number}: name another")

    discard = revert = keep

    def compare(self, prompt: str) -> dict[str, Any]:
        return {"prompt": prompt, "before": "b", "after": prompt, "edits": 0, "proposed": False}

    def state(self) -> dict[str, Any]:
        return {"base": "B", "editor": "E", "ledger": "L", "proposal": None, "entries": []}


_SERVER = types.SimpleNamespace(
    session=_Session(), lock=threading.Lock(), token="T" * 32, server_port=8000
)


def _requests() -> list[bytes]:
    own = "Host: 127.0.0.1:8000\r\n"
    get = f"GET /?token={_SERVER.token} HTTP/1.1\r\n{own}Accept: */*\r\n\r\n"
    found = [get.encode()]
    actions = {
        "/propose": {"prompt": "a", "target": "b", "paraphrases": "c\nd"},
        "/compare": {"prompt": "<b>"},
        "/revert": {"number": 1},
    }
    for action, fields in actions.items():
        body = json.dumps(fields)
        head = f"POST {action} HTTP/1.1\r\n{own}Origin: http://127.0.0.1:8000\r\n"
        head += f"X-Token: {_SERVER.token}\r\nContent-Type: application/json\r\n"
        found.append(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return found


def _read_request(folder: Path, data: bytes) -> None:
    """The server replies without an internal error, and logs nothing."""
    put(folder / "request", data)
    ours, theirs = socket.socketpair()
    faults: list[str] = []
    with (
        ours,
        theirs,
        mock.patch.object(logging, "exception", lambda *args: faults.append(str(args))),
    ):
        ours.setblocking(False)
        try:
            ours.send(data)
        except BlockingIOError:
            raise DataError("too long for this test") from None
        ours.shutdown(socket.SHUT_WR)
        web_server.Handler(theirs, ("127.0.0.1", 1), _SERVER)
        theirs.shutdown(socket.SHUT_RDWR)
        reply = b""
        while piece := _received(ours):
            reply += piece
    assert not faults, faults
    status = reply.split(b" ", 2)[1:2]
    assert status != [b"500"], reply[:300]
    assert b"<script>alert(1)" not in reply or b"text/plain" in reply
    if status and status != [b"200"]:
        raise DataError("refused")


def _received(ours: socket.socket) -> bytes:
    try:
        return ours.recv(1 << 16)
    except OSError:
        return b""


READERS = {
    "config overrides": Reader(lambda: list(_SETTINGS), _read_overrides, damage_bytes),
    "config values": Reader(lambda: [_config_seed()], _read_config),
    "requests to serve": Reader(_requests, _read_request, damage_bytes, 2),
}  # fmt: skip
