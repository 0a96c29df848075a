"""Damage an input: random changes of bytes, or of the structure of JSON."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

Mutation = Callable[[Random, bytes], bytes]

MAX_BYTES = 1 << 17  # of an input, including what was inserted
_LENGTHS = (0, 1, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**64 - 1)
_JUNK = (
    b"\0", b"\0" * 64, b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\n",
    b"\r\n", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"[" * 3000, b'{"a":' * 3000,
    b"(" * 300, b"-" * 3000, b"9" * 5000, b"1e999", b"-1", b"NaN", b"Infinity", b"null", b"../",
    b"\\u0000", b"\\ud800", "\u202e\u2028\u0085\ufeff\U0010ffff".encode(), b"A" * 20000,
    b"<script>alert(1)</script>", b"{}", b"{{ x }}", b"%s%n", b"\x1b[2J", b"\x80\x04K\x01.",
)  # fmt: skip
_TEXTS = (
    "", " ", "\0", "\ud800", "\u202e", "\n", "e\u0301" * 50, "../../etc/passwd", "/etc/passwd",
    "..", "A" * 20000, "<script>alert(1)</script>", "{}", "{{ x }}", "__class__", "\U0010ffff",
    "\x1b[2J", "true", "1", "\u0661", "XXX", "a.b", "a/b", "=", "\ufeff",
)  # fmt: skip


def damage_bytes(rng: Random, data: bytes) -> bytes:
    """Make one to four random changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice(_BYTE_DAMAGES)(rng, data)
    return data[:MAX_BYTES]


def damage_head(size: int, chance: float = 0.8) -> Mutation:
    """Return a mutation that mostly changes the first `size` bytes, where the structure is."""

    def damage(rng: Random, data: bytes) -> bytes:
        if rng.random() > chance:
            return damage_bytes(rng, data)
        return damage_bytes(rng, data[:size]) + data[size:]

    return damage


def damage_json(rng: Random, data: bytes) -> bytes:
    """Change a value, a key or the nesting of a JSON document or JSON line; or change bytes."""
    if rng.random() < 0.3:
        return damage_bytes(rng, data)
    lines = data.split(b"\n")
    try:
        json.loads(data)
        lines = [data]
    except ValueError:
        pass
    chosen = [i for i, line in enumerate(lines) if line.strip()]
    if not chosen:
        return damage_bytes(rng, data)
    at = rng.choice(chosen)
    try:
        lines[at] = damage_document(rng, json.loads(lines[at]))
    except (ValueError, RecursionError):
        lines[at] = damage_bytes(rng, lines[at])
    if len(lines) > 1 and rng.random() < 0.1:  # repeat or move a line
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    return b"\n".join(lines)[:MAX_BYTES]


def damage_document(rng: Random, value: Any) -> bytes:
    """Return the JSON text of a value after one to three changes of its structure."""
    holder = [value]
    raw: list[bytes] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _damage_node(rng, holder, raw)
    text = json.dumps(holder[0], default=lambda _: None).encode()
    for piece in raw:
        text = text.replace(b'"\\u0000RAW"', piece, 1)
    return text


def _damage_node(rng: Random, holder: list[Any], raw: list[bytes]) -> None:
    """Change one node in place."""
    node, key = rng.choice([*_places(holder)])
    how = rng.randrange(8)
    if how <= 3 or (node is holder and how < 7):
        node[key] = _unusual(rng, node[key], raw)
    elif how == 4:
        del node[key]
    elif how == 5 and isinstance(node, dict):
        node[rng.choice((*_TEXTS, str(key) + "x"))] = node.pop(key)
    elif how == 6:
        other, place = rng.choice([*_places(holder)])
        if not any(isinstance(value, (dict, list)) for value in (node[key], other[place])):
            node[key], other[place] = other[place], node[key]
    elif isinstance(node, dict):
        node[rng.choice(("extra", "__class__", "", "format"))] = _unusual(rng, None, raw)
    else:
        node.insert(rng.randrange(len(node) + 1), _unusual(rng, None, raw))
    if not holder:
        holder.append(None)


def _unusual(rng: Random, value: Any, raw: list[bytes]) -> Any:
    """Return a value of another type, an extreme one, or a placeholder for unusual JSON."""
    how = rng.randrange(12)
    if how == 0:
        raw.append(rng.choice((b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 2000,
                               b"[" * 900 + b"]" * 900, b'{"a": 1, "a": 2}')))  # fmt: skip
        return "\0RAW"
    if how <= 3:
        return rng.choice((None, True, False, 0, -1, 1.5, [], {}, "", [[]], [None], {"a": None}))
    if how <= 5:
        return rng.choice((2**31, 2**63, 10**9, -(2**63), 10**30, 1e308, -1e308, 1e-320))
    if how <= 8:
        return rng.choice(_TEXTS)
    if how == 9:
        return [value]
    if how == 10:
        return {"a": value}
    return [value] * rng.choice((0, 2, 3, 100))


def _places(root: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every node."""
    items = root.items() if isinstance(root, dict) else enumerate(root)
    for key, value in list(items):
        yield root, key
        if isinstance(value, (dict, list)) and depth < 12:
            yield from _places(value, depth + 1)


def damage_safetensors(rng: Random, data: bytes) -> bytes:
    """Change the JSON header and correct its length, or change bytes."""
    if rng.random() < 0.35:
        return damage_head(400)(rng, data)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.8:
        text = damage_document(rng, header)
    else:
        text = damage_bytes(rng, data[8 : 8 + size])
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def _span(rng: Random, data: bytes) -> slice:
    start = rng.randrange(len(data) + 1)
    return slice(start, min(len(data), start + rng.choice((1, 2, 8, 40, 400))))


def _flip(rng: Random, data: bytes) -> bytes:
    if not data:
        return data
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def _cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _delete(rng: Random, data: bytes) -> bytes:
    gone = _span(rng, data)
    return data[: gone.start] + data[gone.stop :]


def _repeat(rng: Random, data: bytes) -> bytes:
    part = data[_span(rng, data)] * rng.choice((1, 1, 2, 50))
    at = rng.randrange(len(data) + 1)
    return data[:at] + part + data[at:]


def _swap(rng: Random, data: bytes) -> bytes:
    one, two = sorted((_span(rng, data), _span(rng, data)), key=lambda s: s.start)
    stop = min(one.stop, two.start)
    return (data[: one.start] + data[two] + data[stop : two.start] + data[one.start : stop]
            + data[two.stop :])  # fmt: skip


def _insert(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_JUNK) + data[at:]


def _length(rng: Random, data: bytes) -> bytes:
    """Insert an extreme number where a length field can be."""
    size = rng.choice((1, 2, 4, 8, 8))
    number = rng.choice(_LENGTHS) & ((1 << 8 * size) - 1)
    at, order = rng.randrange(len(data) + 1), rng.choice(("little", "little", "big"))
    return data[:at] + number.to_bytes(size, order) + data[at + size :]


def _set(rng: Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


_BYTE_DAMAGES = (_flip, _flip, _cut, _delete, _repeat, _swap, _insert, _insert, _length, _length,
                 _set)  # fmt: skip


def within(
    unpack: Callable[[bytes], bytes], pack: Callable[[bytes], bytes], inner: Mutation
) -> Mutation:
    """Return a mutation of packed content (as by gzip); in a quarter of cases of packed bytes."""

    @functools.wraps(inner)
    def damage(rng: Random, data: bytes) -> bytes:
        if rng.random() < 0.25:
            return damage_bytes(rng, data)
        return pack(inner(rng, unpack(data)))

    return damage
