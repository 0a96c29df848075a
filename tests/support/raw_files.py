"""Raw files for tests: valid ones in each form, and ones damaged in each way."""

import gzip
import json
import os
from pathlib import Path

ROOT = Path(os.environ.get("MEND_DATA_DIR") or Path(__file__).parents[3] / "shared/data")
"""The folder of real raw data, if present."""


def lines(records):
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


def write(path, records, form="lines"):
    """Write records as `lines`, a `list`, or either compressed (`lines.gz`, `list.gz`)."""
    data = lines(records) if form.startswith("lines") else json.dumps(records).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if form.endswith(".gz") else data)
    return path


def change(records, number, **fields):
    """Return the records with fields of one changed; None removes a field."""
    changed = {k: v for k, v in {**records[number], **fields}.items() if v is not None}
    return [*records[:number], changed, *records[number + 1 :]]


def _latin(records, field):
    return lines(change(records, 1, **{field: "Caf@"})).replace(b"Caf@", b"Caf\xe9")


# Damage to a field of the second record, and the error after the path.
SPOILT = {
    "truncated gzip": (
        lambda r, f: gzip.compress(lines(r))[:-9],
        ": the gzip stream breaks off or is damaged",
    ),
    "damaged gzip": (
        lambda r, f: gzip.compress(lines(r))[:-8] + b"\0" * 8,
        ": the gzip stream breaks off or is damaged",
    ),
    "missing field": (lambda r, f: lines(change(r, 1, **{f: None})), ":2: field '{}' is missing"),
    "empty text": (lambda r, f: lines(change(r, 1, **{f: " "})), ":2: field '{}' is empty"),
    "a number": (lambda r, f: lines(change(r, 1, **{f: 3})), ":2: field '{}' is a number"),
    "wrong encoding": (_latin, r":2: not UTF-8 text \(byte 0xe9\)"),
    "not JSON": (lambda r, f: lines(r[:1]) + b"{'a': 1}\n" + lines(r[1:]), ":2: not JSON"),
    "cut off": (lambda r, f: lines(r[:2])[:-9], ":2: not JSON"),
    "field twice": (
        lambda r, f: lines(r[:1]) + lines(r[1:]).replace(b"{", f'{{"{f}": "x", '.encode(), 1),
        ":2: field '{}' occurs twice",
    ),
    "not an object": (lambda r, f: lines([r[0], [r[1]]]), ":2: a JSON list, not an object"),
    "empty file": (lambda r, f: b"", ": no records in it"),
    "blank lines": (lambda r, f: b"\n \n", ": no records in it"),
    "empty list": (lambda r, f: b"[]", ": no records in it"),
    "list, missing field": (
        lambda r, f: json.dumps(change(r, 1, **{f: None})).encode(),
        ": record 2: field '{}' is missing",
    ),
    "list, not an object": (
        lambda r, f: json.dumps([r[0], "x"]).encode(),
        ": record 2: a JSON text, not an object",
    ),
    "list cut off": (lambda r, f: json.dumps(r).encode()[:-5], ": not JSON"),
}


def spoil(path, records, how, field):
    """Write damaged records; return the pattern that the error must match."""
    make, message = SPOILT[how]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make(records, field))
    return path.name.replace(".", r"\.") + message.format(field)
