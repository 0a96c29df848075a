"""A ledger: every edit of one base in a folder, in order, none of them ever lost or overwritten.

    base.json       which base the edits are for
    log.jsonl       what was done, a line an edit or a revert; see `journal`
    edits/          NNNN-<sha8>.safetensors, an edit each; see `edit_files`. One that no line names
                    is of a program that was killed, and in force nowhere
    lock            held by who writes; several processes may

Every edit is made for the unedited base, so what is in force is the sum of the live ones, and to
revert one is to leave it out: bit for bit as if it had never been there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict, get_type_hints

from mend_jax.core import edit_file
from mend_jax.core.compose import sum_edits
from mend_jax.core.weight_edit import Edit, utc_timestamp
from mend_jax.errors import CheckpointError, LedgerError
from mend_jax.io.file_locks import locked
from mend_jax.io.files import as_path, is_remote, write_bytes, write_json
from mend_jax.io.json_values import matches_type, parse_json
from mend_jax.ledger import journal

FORMAT = "mend_jax_ledger/1"
_BASE, _LOG, _EDITS, _LOCK = "base.json", "log.jsonl", "edits", "lock"
_FILE = re.compile(_EDITS + r"/\w[^/\\]*\.safetensors")  # and in no other folder


class _Appended(TypedDict):
    kind: Literal["edit"]
    number: int
    file: str
    sha256: str
    facts: list[tuple[str, str]]
    editor: str
    made: str
    measured: dict[str, Any]


class _Reverted(TypedDict):
    kind: Literal["revert"]
    number: int
    made: str


@dataclasses.dataclass(frozen=True)
class Base:
    """The base that a ledger's edits are for, and how it is loaded.

    Attributes:
      spec, dtype, last_n_blocks, edit_roles: what `load_model` takes.
      fingerprint: of the base weights.
    """

    spec: str
    fingerprint: str
    dtype: str
    last_n_blocks: int
    edit_roles: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """An edit of a ledger.

    Attributes:
      number: 1, 2, ... in the order of appending.
      file: of the edit, relative to the ledger.
      sha256: of that file.
      facts: the (prompt, target) pairs that the edit was made from.
      editor: what made it.
      made: when, an ISO date and time in UTC.
      measured: what was measured of it, as JSON holds it.
      reverted: whether it is in force no longer.
      reverted_at: since when; "" while it is live.
    """

    number: int
    file: str
    sha256: str
    facts: tuple[tuple[str, str], ...]
    editor: str
    made: str
    measured: dict[str, Any]
    reverted: bool = False
    reverted_at: str = ""


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A ledger on disk. Made by `create`, `open` or `open_or_create`; holds nothing in memory."""

    path: Path
    base: Base

    @staticmethod
    def create(path: str | os.PathLike[str], base: Base) -> Ledger:
        """A new ledger, in a folder that is made where it is missing.

        Raises:
          LedgerError: there is one already, or the folder cannot be written.
        """
        folder = _folder(path)
        with _naming(f"{folder}: no ledger was made"):
            (folder / _EDITS).mkdir(parents=True, exist_ok=True)
            with locked(folder / _LOCK):
                if (folder / _BASE).exists():
                    raise _Exists(f"{folder} is a ledger already: open it, or name another")
                if (folder / _LOG).exists() and (folder / _LOG).stat().st_size:
                    raise LedgerError(f"{folder} holds a log of edits but no {_BASE}: restore it")
                (folder / _LOG).touch()
                journal.sync(folder)
                write_json(folder / _BASE, {"format": FORMAT, **dataclasses.asdict(base)})
                journal.sync(folder)
                journal.sync(folder.parent)
        return Ledger.open(folder)

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Ledger:
        """The ledger of a folder, its log checked.

        Raises:
          LedgerError: there is none, or it is damaged: what and where.
        """
        folder = _folder(path)
        ledger = Ledger(folder, _read_base(folder / _BASE))
        ledger.entries()
        return ledger

    @staticmethod
    def open_or_create(path: str | os.PathLike[str], base: Base) -> Ledger:
        """The ledger of a folder, made where there is none; the spec that it was made with stands.

        Raises:
          CheckpointError: it is for another base (both fingerprints are named).
          LedgerError: it is damaged, or cannot be made.
        """
        folder = _folder(path)
        if not (folder / _BASE).exists():
            with contextlib.suppress(_Exists):
                return Ledger.create(folder, base)
        ledger = Ledger.open(folder)
        ledger._refuse_other_base(base.fingerprint, f"the model ({base.spec})")
        return ledger

    def entries(self) -> list[Entry]:
        """All edits in order, those that were reverted flagged."""
        with locked(self.path / _LOCK, shared=True, best_effort=True):
            return self._entries()

    def active(self) -> list[Entry]:
        """The edits in force, in order."""
        return [entry for entry in self.entries() if not entry.reverted]

    def edit(self, number: int) -> Edit:
        """The edit of an entry, live or reverted, checked against what was written.

        Raises:
          LedgerError: no such entry, or its file is missing, damaged or another's.
          CheckpointError: it is for another base.
        """
        return self._load(_find(self.path, self.entries(), number))

    def composed(self) -> Edit | None:
        """The live edits at once, summed in order; None where there is none."""
        edits = [self._load(entry) for entry in self.active()]
        return sum_edits(edits) if edits else None

    def append(self, edit: Edit, measured: dict[str, Any] | None = None) -> Entry:
        """Records an edit. Once this returns it is on disk, whatever happens.

        Args:
          measured: what was measured of it, of what JSON holds.

        Raises:
          CheckpointError: it is for another base, for an unknown one, or several edits in one.
          LedgerError: it could not be recorded, as on a full disk. All else still is.
        """
        self._refuse_other_base(edit.base, "the edit")
        data = edit_file.to_bytes(edit)
        digest = hashlib.sha256(data).hexdigest()
        with self._writing("the edit"):
            number = len(self._entries()) + 1
            file = f"{_EDITS}/{number:04d}-{digest[:8]}.safetensors"
            record = {
                "kind": "edit", "number": number, "file": file, "sha256": digest,
                "facts": edit.facts, "editor": edit.editor, "made": edit.created or utc_timestamp(),
                "measured": measured or {},
            }  # fmt: skip
            for scratch in (self.path / _EDITS).glob(".*"):  # of a writer that was killed
                scratch.unlink()
            write_bytes(self.path / file, data)
            try:
                journal.sync(self.path / _EDITS)
                record = self._log(record)
            except BaseException:
                with contextlib.suppress(LedgerError, OSError):
                    if len(self._entries()) < number:  # else it is there, though not confirmed
                        (self.path / file).unlink()
                raise
        return _entry(record)

    def revert(self, number: int) -> Entry:
        """Takes an edit out of force, by a record of its own; its file stays.

        Raises:
          LedgerError: no such entry, one that is reverted already, or it could not be recorded.
        """
        with self._writing(f"the revert of edit {number}"):
            entry = _find(self.path, self._entries(), number)
            if entry.reverted:
                raise LedgerError(f"{self.path}: edit {number} is reverted already")
            record = self._log({"kind": "revert", "number": number, "made": utc_timestamp()})
        return dataclasses.replace(entry, reverted=True, reverted_at=record["made"])

    def _log(self, record: dict[str, Any]) -> dict[str, Any]:
        return journal.append(self.path / _LOG, self.base.fingerprint, record)

    def _entries(self) -> list[Entry]:
        entries: list[Entry] = []
        records = journal.read(self.path / _LOG, self.base.fingerprint)
        for line, record in enumerate(records, start=1):
            where = f"{self.path / _LOG}: line {line}"
            kind = record.get("kind") if isinstance(record, dict) else None
            if kind not in ("edit", "revert"):
                raise LedgerError(
                    f"{where}: a record of kind {kind!r}, which this version does not know: open "
                    "the ledger with the version that wrote it"
                )
            if kind == "edit" and _is_appended(record, len(entries) + 1):
                entries.append(_entry(record))
            elif matches_type(record, _Reverted) and 1 <= record["number"] <= len(entries):
                i = record["number"] - 1
                entries[i] = dataclasses.replace(
                    entries[i], reverted=True, reverted_at=record["made"]
                )
            else:
                raise LedgerError(
                    f"{where}: not of the form in which an {kind} is recorded, though its checksum "
                    "is right: another program wrote it; restore the file from a copy"
                )
        return entries

    def _load(self, entry: Entry) -> Edit:
        file = self.path / entry.file
        try:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as e:
            raise LedgerError(f"{file}: the file of edit {entry.number} is missing ({e})") from e
        if digest != entry.sha256:
            raise LedgerError(
                f"{file}: not the file that was written as edit {entry.number} (sha256 {digest}, "
                f"it was {entry.sha256}): restore it from a copy, or revert {entry.number}"
            )
        edit = edit_file.load(file)
        self._refuse_other_base(edit.base, str(file))
        return edit

    def _refuse_other_base(self, fingerprint: str, what: str) -> None:
        if fingerprint != self.base.fingerprint:
            raise CheckpointError(
                f"{what} is for base {fingerprint or 'unknown'}, the ledger {self.path} is of "
                f"{self.base.fingerprint} ({self.base.spec}): use a ledger of its own for each base"
            )

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        with _naming(f"{self.path}: {what} was not recorded"):
            with locked(self.path / _LOCK):
                yield


class _Exists(LedgerError):
    """Another process made the ledger meanwhile."""


def _folder(path: str | os.PathLike[str]) -> Path:
    folder = as_path(path)
    if is_remote(folder):
        raise LedgerError(f"{path}: a ledger is a local folder, which several writers can lock")
    return folder


def _find(path: Path, entries: list[Entry], number: int) -> Entry:
    if not 1 <= number <= len(entries):
        held = f"edits 1 to {len(entries)}" if entries else "no edits"
        raise LedgerError(f"{path} has no edit {number}: it holds {held}")
    return entries[number - 1]


def _is_appended(record: dict[str, Any], number: int) -> bool:
    """Whether `append` may have recorded it; its file lies among the edits and nowhere else."""
    return (
        matches_type(record, _Appended)
        and record["number"] == number
        and bool(_FILE.fullmatch(record["file"]))
    )


def _entry(record: dict[str, Any]) -> Entry:
    fields = {name: record[name] for name in _Appended.__annotations__ if name != "kind"}
    return Entry(**{**fields, "facts": tuple((p, t) for p, t in record["facts"])})


def _read_base(path: Path) -> Base:
    try:
        found = parse_json(path.read_bytes())
        form = found.pop("format")
        base = Base(**{**found, "edit_roles": tuple(found["edit_roles"])})
        hints = get_type_hints(Base)
        if odd := [name for name in hints if not matches_type(getattr(base, name), hints[name])]:
            raise TypeError(f"{odd} are of another type")
    except OSError as e:
        raise LedgerError(f"{path.parent} holds no ledger ({e}): apply an edit to make one") from e
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise LedgerError(f"{path}: damaged ({e!r}): restore it from a copy") from e
    if form != FORMAT:
        raise LedgerError(f"{path}: format {form!r} is not {FORMAT!r}: written by another version")
    return base


@contextlib.contextmanager
def _naming(what: str) -> Iterator[None]:
    """Errors of the disk as errors of the ledger."""
    try:
        yield
    except OSError as e:
        raise LedgerError(
            f"{what} ({e}); nothing that was recorded before is lost. Free some space or grant "
            "the right to write, and do it again"
        ) from e
