"""A ledger: a folder that records every edit of one base model, in order, and never overwrites one.

    base.json       the base model that the edits are for
    log.jsonl       one line per edit and per revert; see `journal`
    edits/          one file per edit: NNNN-<sha8>.safetensors, see `core.edit_file`, or scoped,
                    NNNN-<sha8>.bank.safetensors, see `core.bank_file`. A file that no line names
                    was left by a process that was killed, and has no effect
    scope.safetensors  the scope of the scoped edits, see `core.scope_file`
    lock            locked by whichever process writes

Every edit is computed on the unedited base. The active edits are combined (`combine_edits`) or put
into one bank, and reverting one leaves it out: the result is bit for bit what it would be without
that edit.
A ledger has either plain or scoped edits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_type_hints

from mend_jax.errors import CheckpointError, LedgerError
from mend_jax.io.file_locks import locked
from mend_jax.io.files import as_path, is_remote, write_bytes, write_json
from mend_jax.io.json_values import matches_type, parse_json
from mend_jax.io.timestamps import utc_timestamp
from mend_jax.ledger import journal

if TYPE_CHECKING:  # jax takes a second to import, and a log of edits needs none of it
    from mend_jax.core.gated_bank import GatedBank
    from mend_jax.core.scope_file import LearnedScope
    from mend_jax.core.weight_edit import Edit

FORMAT = "mend_jax_ledger/1"
_BASE, _LOG, _EDITS, _LOCK = "base.json", "log.jsonl", "edits", "lock"
_SCOPE = "scope.safetensors"
_EDIT_FILE = re.compile(_EDITS + r"/\w[^/\\]*\.safetensors")  # allows no other folder


class _EditRecord(TypedDict):
    kind: Literal["edit"]
    number: int
    file: str
    sha256: str
    facts: list[tuple[str, str]]
    editor: str
    made: str
    measured: dict[str, Any]


class _RevertRecord(TypedDict):
    kind: Literal["revert"]
    number: int
    made: str


@dataclasses.dataclass(frozen=True)
class Base:
    """The base model of a ledger, and how to load it.

    Attributes:
      spec, dtype, last_n_blocks, edit_roles: arguments of `load_model`.
      fingerprint: of the base weights.
    """

    spec: str
    fingerprint: str
    dtype: str
    last_n_blocks: int
    edit_roles: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One edit in a ledger.

    Attributes:
      number: 1, 2, ... in the order of appending.
      file: the edit's file, relative to the ledger.
      sha256: of that file.
      facts: the (prompt, target) pairs of the edit.
      editor: the id of the editor that made it.
      created: when, an ISO date and time in UTC.
      measured: its measurement, see `measurement_schema`; {} where there is none.
      reverted: whether it has been reverted, and is no longer active.
      reverted_at: when it was reverted; "" while it is active.
    """

    number: int
    file: str
    sha256: str
    facts: tuple[tuple[str, str], ...]
    editor: str
    created: str
    measured: dict[str, Any]
    reverted: bool = False
    reverted_at: str = ""


@dataclasses.dataclass(frozen=True)
class Ledger:
    """A ledger on disk, from `create`, `open` or `open_or_create`. It caches nothing in memory."""

    path: Path
    base: Base

    @staticmethod
    def create(path: str | os.PathLike[str], base: Base) -> Ledger:
        """Create a ledger, and its folder where that is missing.

        Raises:
          LedgerError: the folder holds a ledger already, or cannot be written.
        """
        folder = _folder(path)
        with _disk_errors_named(f"{folder}: the ledger was not created"):
            (folder / _EDITS).mkdir(parents=True, exist_ok=True)
            with locked(folder / _LOCK):
                if (folder / _BASE).exists():
                    raise _AlreadyExists(
                        f"{folder} is a ledger already: open it, or choose another folder"
                    )
                if (folder / _LOG).exists() and (folder / _LOG).stat().st_size:
                    raise LedgerError(
                        f"{folder} holds a log of edits but no {_BASE}: restore it from a copy"
                    )
                (folder / _LOG).touch()
                journal.sync(folder)
                _write_base(folder, base)
                journal.sync(folder)
                journal.sync(folder.parent)
        return Ledger.open(folder)

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Ledger:
        """Open the ledger in a folder and check its log.

        Raises:
          LedgerError: there is none, or it is damaged; the message says where.
        """
        folder = _folder(path)
        ledger = Ledger(folder, _read_base(folder / _BASE))
        ledger.entries()
        return ledger

    @staticmethod
    def open_or_create(path: str | os.PathLike[str], base: Base) -> Ledger:
        """Open the ledger in a folder, or create one there.

        An existing ledger keeps the model spec that it was created with.

        Raises:
          CheckpointError: it is for another base; the message names both fingerprints.
          LedgerError: it is damaged, or cannot be created.
        """
        folder = _folder(path)
        if not (folder / _BASE).exists():
            with contextlib.suppress(_AlreadyExists):
                return Ledger.create(folder, base)
        ledger = Ledger.open(folder)
        dtype = "" if base.dtype == ledger.base.dtype else f", loaded in {base.dtype}"
        ledger.refuse_other_base(base.fingerprint, f"the model ({base.spec}{dtype})")
        return ledger

    def entries(self) -> list[Entry]:
        """Return all edits in order, including the reverted ones."""
        with locked(self.path / _LOCK, shared=True, best_effort=True):
            return self._entries()

    def active(self) -> list[Entry]:
        """Return the edits that are not reverted, in order."""
        return [entry for entry in self.entries() if not entry.reverted]

    def entry(self, number: int) -> Entry:
        """Return the entry of one edit; raise a LedgerError if there is none."""
        return _find(self.path, self.entries(), number)

    def edit(self, number: int) -> Edit | GatedBank:
        """Load one edit, active or reverted, and check it against its recorded hash.

        Raises:
          LedgerError: no such edit, or its file is missing, damaged or replaced.
          CheckpointError: it is for another base.
        """
        return self._load(self.entry(number))

    def composed(self, more: Edit | None = None) -> Edit | GatedBank | None:
        """Return the active edits as one: combined, or one bank; None without any.

        Args:
          more: a plain edit that is not in the ledger, combined with its edits.
        """
        from mend_jax.ledger import edit_files

        edits = [self._load(entry) for entry in self.active()]
        return edit_files.combine([*edits, *([] if more is None else [more])])

    def append(
        self,
        edit: Edit | GatedBank,
        measured: dict[str, Any] | None = None,
        scope: LearnedScope | None = None,
    ) -> Entry:
        """Record an edit. When this returns, it is safely on disk.

        Args:
          measured: its measurement, as JSON values.
          scope: of a scoped edit; it is written once.

        Raises:
          CheckpointError: it is for another or an unknown base, or it holds several edits; it is of
            another scope than the ledger's, or of another kind than the ledger's edits.
          LedgerError: it could not be recorded, for example on a full disk. Earlier edits are kept.
        """
        from mend_jax.ledger import edit_files

        self.refuse_other_base(edit.base, "the edit")
        data, suffix = edit_files.encode(edit)
        digest = hashlib.sha256(data).hexdigest()
        with self._writing("the edit"):
            self._refuse_other_kind(scoped=edit_files.is_scoped(edit))
            if edit_files.is_scoped(edit):
                self._keep_scope(edit, scope)
            number = len(self._entries()) + 1
            file = f"{_EDITS}/{number:04d}-{digest[:8]}{suffix}"
            record = {
                "kind": "edit", "number": number, "file": file, "sha256": digest,
                "facts": edit.facts, "editor": edit.editor, "made": edit.created or utc_timestamp(),
                "measured": measured or {},
            }  # fmt: skip
            for scratch in (self.path / _EDITS).glob(".*"):  # left by a writer that was killed
                scratch.unlink()
            write_bytes(self.path / file, data)
            try:
                journal.sync(self.path / _EDITS)
                record = self._log(record)
            except BaseException:
                with contextlib.suppress(LedgerError, OSError):
                    if len(self._entries()) < number:  # else the line is there, unconfirmed
                        (self.path / file).unlink()
                raise
        return _entry(record)

    def revert(self, number: int) -> Entry:
        """Record that an edit is no longer active. Its file stays.

        Raises:
          LedgerError: no such edit, it is reverted already, or this could not be recorded.
        """
        with self._writing(f"the revert of edit {number}"):
            entry = _find(self.path, self._entries(), number)
            if entry.reverted:
                raise LedgerError(
                    f"{self.path}: edit {number} is reverted already; `log` lists the active edits"
                )
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
            if kind == "edit" and _is_edit_record(record, len(entries) + 1):
                entries.append(_entry(record))
            elif matches_type(record, _RevertRecord) and 1 <= record["number"] <= len(entries):
                i = record["number"] - 1
                entries[i] = dataclasses.replace(
                    entries[i], reverted=True, reverted_at=record["made"]
                )
            else:
                raise LedgerError(
                    f"{where}: its checksum is right, but it lacks the fields of a record of kind "
                    f"{kind!r}: another program wrote it; restore the file from a copy"
                )
        return entries

    def learned_scope(self) -> LearnedScope | None:
        """Return the scope of the ledger's scoped edits; None if it has had none.

        Raises:
          CheckpointError: its file is damaged.
        """
        from mend_jax.ledger import edit_files

        path = self.path / _SCOPE
        return edit_files.load_scope(path) if path.exists() else None

    def _refuse_other_kind(self, scoped: bool) -> None:
        from mend_jax.ledger import edit_files

        active = [e for e in self._entries() if not e.reverted]
        other = [e.number for e in active if e.file.endswith(edit_files.BANK_SUFFIX) != scoped]
        if other:
            ours, theirs = ("scoped", "plain") if scoped else ("plain", "scoped")
            raise CheckpointError(
                f"the edit is {ours}, and the active edits {other} of {self.path} are {theirs}: "
                f"use another ledger{'' if scoped else ', leave out --plain'}, or revert those"
            )

    def _keep_scope(self, edit: Edit | GatedBank, scope: LearnedScope | None) -> None:
        """Write the scope of the first scoped edit; refuse another one."""
        from mend_jax.ledger import edit_files

        kept = self.learned_scope()
        if kept is None:
            edit_files.save_scope(self.path / _SCOPE, scope, edit)
            journal.sync(self.path)
        else:
            edit_files.refuse_other_scope(self.path, kept, edit)

    def _load(self, entry: Entry) -> Edit | GatedBank:
        from mend_jax.ledger import edit_files

        file = self.path / entry.file
        try:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as e:
            raise LedgerError(
                f"{file}: the file of edit {entry.number} is missing ({e}): restore it, or "
                f"revert {entry.number}"
            ) from e
        if digest != entry.sha256:
            raise LedgerError(
                f"{file}: not the file written as edit {entry.number} (sha256 is {digest}, "
                f"the recorded one {entry.sha256}): restore it, or revert {entry.number}"
            )
        scope = self.learned_scope()
        if scope is None and entry.file.endswith(edit_files.BANK_SUFFIX):
            raise LedgerError(
                f"{self.path / _SCOPE} is missing, and edit {entry.number} is scoped: restore "
                "it from a copy"
            )
        edit = edit_files.load(file, scope)
        self.refuse_other_base(edit.base, str(file))
        return edit

    def move_base(self, spec: str) -> None:
        """Record another place of the same base."""
        with self._writing("the place of the base"):
            _write_base(self.path, dataclasses.replace(_read_base(self.path / _BASE), spec=spec))

    def refuse_other_base(self, fingerprint: str, what: str) -> None:
        """Raise a CheckpointError unless this is the fingerprint of the ledger's base."""
        if fingerprint != self.base.fingerprint:
            raise CheckpointError(
                f"{what} is for base {fingerprint or 'unknown'}, but the ledger {self.path} is for "
                f"{self.base.fingerprint} ({self.base.spec}, in {self.base.dtype}): use one ledger "
                "per base and dtype"
            )

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        with _disk_errors_named(f"{self.path}: {what} was not recorded"):
            with locked(self.path / _LOCK):
                yield


class _AlreadyExists(LedgerError):
    """Another process created the ledger in the meantime."""


def _folder(path: str | os.PathLike[str]) -> Path:
    folder = as_path(path)
    if is_remote(folder):
        raise LedgerError(
            f"{path}: a ledger must be a local folder, which can be locked; choose a local path"
        )
    return folder


def _find(path: Path, entries: list[Entry], number: int) -> Entry:
    if not 1 <= number <= len(entries):
        numbers = f"edits 1 to {len(entries)}" if entries else "no edits"
        raise LedgerError(f"{path} has no edit {number}: it holds {numbers}")
    return entries[number - 1]


def _is_edit_record(record: dict[str, Any], number: int) -> bool:
    """Whether `append` can have written the record; its file must be in the folder of the edits."""
    return (
        matches_type(record, _EditRecord)
        and record["number"] == number
        and bool(_EDIT_FILE.fullmatch(record["file"]))
    )


def _entry(record: dict[str, Any]) -> Entry:
    facts = tuple((prompt, target) for prompt, target in record["facts"])
    fields = {name: record[name] for name in ("number", "file", "sha256", "editor", "measured")}
    return Entry(**fields, facts=facts, created=record["made"])


def _write_base(folder: Path, base: Base) -> None:
    fields = dataclasses.asdict(base) | {"spec": os.fspath(base.spec)}
    write_json(folder / _BASE, {"format": FORMAT, **fields})


def _read_base(path: Path) -> Base:
    try:
        fields = parse_json(path.read_bytes())
        form = fields.pop("format")
        base = Base(**{**fields, "edit_roles": tuple(fields["edit_roles"])})
        hints = get_type_hints(Base)
        if wrong := [name for name in hints if not matches_type(getattr(base, name), hints[name])]:
            raise TypeError(f"{wrong} have the wrong type")
    except OSError as e:
        raise LedgerError(f"{path.parent} holds no ledger ({e}): `apply` creates one") from e
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise LedgerError(f"{path}: damaged ({e!r}): restore it from a copy") from e
    if form != FORMAT:
        raise LedgerError(
            f"{path}: format {form!r} is not {FORMAT!r}: open it with the version that wrote it"
        )
    return base


@contextlib.contextmanager
def _disk_errors_named(what: str) -> Iterator[None]:
    """Turn OSErrors into LedgerErrors."""
    try:
        yield
    except OSError as e:
        raise LedgerError(
            f"{what} ({e}); nothing that was recorded before is lost. Free some disk space or make "
            "the folder writable, then try again"
        ) from e
