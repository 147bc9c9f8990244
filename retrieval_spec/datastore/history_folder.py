"""The history of all namespaces on disk: a folder each, in it segments that are appended to.

Whoever has it open holds its lock. Files are private, and nothing in their names is a tenant's. Knows files
and texts; nothing of sources, threads and clocks. `datastores/HISTORY.md` describes every byte.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from retrieval_spec.datastore.atomic import check_parent, draft_file, sync_folder, writing
from retrieval_spec.datastore.history_namespace import (
    LEFTOVER,
    SEGMENT_BYTES,
    Fullness,
    StoredNamespace,
    discard,
    read_start,
)
from retrieval_spec.datastore.history_segment import Text, record_bytes
from retrieval_spec.datastore.locks import locked
from retrieval_spec.datastore.sealed_json import MAX_BYTES, parse_sealed, sealed_json
from retrieval_spec.errors import DatastoreError, MissingPath, TokenizerMismatch

FACTS_NAME = "history.json"
_FORMAT = "retrieval-spec-history"
_SEAL = "history_sha256"
_UNKNOWN = "unknown"
_FINGERPRINT = re.compile(r"unknown|sha256:[0-9a-f]{64}", re.ASCII)
_FOLDER_NAME = re.compile(r"[0-9a-f]{32}", re.ASCII)
_BUSY = "a server or another command uses the history"

MAX_NAMESPACES = 4_096
"""Of the tenant that has most, the one written to longest ago goes first."""
_SHARE_OF_AGE = 8
_LEAST_SEGMENTS = 64
_LEAST_SEGMENT_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class HistoryLimits:
    """What is kept.

    Attributes:
        max_bytes: of all namespaces: of the tenant that holds most, the oldest segment goes first.
        max_age_s: nothing older stays; None: nothing is too old.
    """

    max_bytes: int = 1 << 30
    max_age_s: float | None = None

    @property
    def fullness(self) -> Fullness:
        """When a segment gets no more records: small enough parts, by size and by age, that go at once."""
        max_bytes = min(SEGMENT_BYTES, max(self.max_bytes // _LEAST_SEGMENTS, _LEAST_SEGMENT_BYTES))
        return Fullness(max_bytes, None if self.max_age_s is None else self.max_age_s / _SHARE_OF_AGE)


class Listed(NamedTuple):
    """What is told of one namespace."""

    namespace: str
    num_bytes: int
    num_segments: int
    oldest_s: int
    """When its oldest segment was begun, in seconds since 1970."""


class HistoryFolder:
    """The open history of a server or of a command; safe to share between threads.

    Attributes:
        num_damaged: segments in which something could not be read, so far.
    """

    def __init__(self, path: Path, vocab_size: int, limits: HistoryLimits, held: ExitStack) -> None:
        self._path = path
        self._vocab_size = vocab_size
        self._limits = limits
        self._held = held  # the lock of the folder
        self._lock = threading.Lock()
        self._stored: dict[str, StoredNamespace] = {}
        self.num_damaged = 0
        with writing(path):
            self._scan()

    @classmethod
    def open(
        cls,
        path: str | Path,
        vocab_size: int,
        tokenizer_fingerprint: str | None = None,
        limits: HistoryLimits | None = None,
    ) -> HistoryFolder:
        """Opens the history in a folder, which is made if there is none, and locks it.

        Raises:
            MissingPath: the folder above does not exist.
            DatastoreError: in use, not private, damaged, or not to be written.
            TokenizerMismatch: its ids are those of another vocabulary.
        """
        path, fingerprint = Path(path).absolute(), tokenizer_fingerprint or _UNKNOWN
        _make(path)
        with ExitStack() as held:
            held.enter_context(locked(path, busy=_BUSY))
            _expect_private(path)
            if not (path / FACTS_NAME).exists():
                _write_facts(path, vocab_size, fingerprint)
            _expect_same_ids(path, vocab_size, fingerprint)
            return cls(path, vocab_size, limits or HistoryLimits(), held.pop_all())

    @classmethod
    def open_existing(cls, path: str | Path) -> HistoryFolder:
        """Opens a history that is there, whatever its vocabulary, and locks it.

        Raises:
            MissingPath: there is none.
            DatastoreError: in use, or damaged.
        """
        path = Path(path).absolute()
        with ExitStack() as held:
            held.enter_context(locked(path, busy=_BUSY))
            vocab_size, _ = _read_facts(path)
            return cls(path, vocab_size, HistoryLimits(), held.pop_all())

    def close(self) -> None:
        """Lets others open it."""
        self._held.close()

    @property
    def num_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(stored.num_bytes for stored in list(self._stored.values()))

    def holds(self, namespace: str) -> bool:
        """Tells whether anything is kept of a namespace; takes no look at the disk."""
        return _key(namespace) in self._stored

    def listing(self) -> list[Listed]:
        """Returns what is kept, by namespace."""
        with self._lock:
            stored = sorted(self._stored.values(), key=lambda stored: stored.namespace)
            return [
                Listed(one.namespace, one.num_bytes, len(one.segments), one.segments[0].created_s)
                for one in stored
            ]

    def append(self, namespace: str, texts: Sequence[Text], now_s: int) -> None:
        """Writes texts behind what is kept of a namespace, to the disk; what is oldest may have to go.

        Raises:
            DatastoreError: the file system refused; what was written before stays.
        """
        records = [record_bytes(text) for text in texts]
        with self._lock, writing(self._path):
            stored = self._stored.get(_key(namespace)) or self._new(namespace)
            try:
                stored.append(records, now_s, self._limits.fullness)
            finally:
                if not stored.segments:
                    del self._stored[stored.folder.name]
            self._shrink()

    def read(self, namespace: str) -> list[Text]:
        """Returns what is kept of a namespace, oldest first; what is damaged is left out."""
        with self._lock, writing(self._path):
            stored = self._stored.get(_key(namespace))
            if stored is None:
                return []
            before = stored.num_damaged
            texts = list(stored.texts())
            self.num_damaged += stored.num_damaged - before
            return texts

    def forget(self, namespace: str) -> bool:
        """Deletes all that is kept of a namespace; returns whether there was anything.

        Raises:
            DatastoreError: the file system refused, so that some of it may still be there: ask again.
        """
        with self._lock, writing(self._path):
            key = _key(namespace)
            stored = self._stored.get(key)
            if stored is not None:
                self._remove(stored)
            leftovers = list(self._path.glob(f".{key}.gone-*"))  # of a call that failed
            for path in leftovers:
                shutil.rmtree(path)
            return stored is not None or bool(leftovers)

    def expire(self, now_s: int) -> int:
        """Deletes segments that hold a text which is too old; returns how many.

        Raises:
            DatastoreError: the file system refused.
        """
        if self._limits.max_age_s is None:
            return 0
        oldest_s, num_deleted = now_s - self._limits.max_age_s, 0
        with self._lock, writing(self._path):
            for stored in list(self._stored.values()):
                while stored.segments and stored.segments[0].created_s < oldest_s:
                    self._delete_oldest(stored)
                    num_deleted += 1
        return num_deleted

    def _scan(self) -> None:
        """Finds what is there by names and sizes, and removes what a crash left behind."""
        for entry in sorted(os.scandir(self._path), key=lambda entry: entry.name):
            path = Path(entry.path)
            if LEFTOVER.fullmatch(entry.name):
                discard(path)
            elif _FOLDER_NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                stored = StoredNamespace.find(path, self._vocab_size)
                if stored is not None and _key(stored.namespace) == entry.name:
                    self._stored[entry.name] = stored
                else:  # nobody could ask for it, or have it forgotten
                    self.num_damaged += 1
                    discard(path)

    def _new(self, namespace: str) -> StoredNamespace:
        if len(self._stored) >= MAX_NAMESPACES:
            self._remove(self._least_missed())
        key = _key(namespace)
        folder = self._path / key
        folder.mkdir(mode=0o700, exist_ok=True)
        sync_folder(self._path)
        self._stored[key] = StoredNamespace(namespace, folder, self._vocab_size)
        return self._stored[key]

    def _least_missed(self) -> StoredNamespace:
        counts = Counter(_tenant(stored) for stored in self._stored.values())
        most = max(counts.values())
        of_largest = (stored for stored in self._stored.values() if counts[_tenant(stored)] == most)
        return min(of_largest, key=lambda stored: (stored.segments[-1].created_s, stored.namespace))

    def _shrink(self) -> None:
        num_bytes = self.num_bytes
        while num_bytes > self._limits.max_bytes:
            oldest = self._oldest_of_largest()
            num_bytes -= oldest.segments[0].num_bytes
            self._delete_oldest(oldest)

    def _oldest_of_largest(self) -> StoredNamespace:
        """Returns whose first segment goes: the oldest one of the tenant that holds most."""
        sizes: Counter[str] = Counter()
        for stored in self._stored.values():
            sizes[_tenant(stored)] += stored.num_bytes
        largest = max(sizes, key=lambda tenant: (sizes[tenant], tenant))
        of_largest = (stored for stored in self._stored.values() if _tenant(stored) == largest)
        return min(of_largest, key=lambda stored: (stored.segments[0].created_s, stored.namespace))

    def _delete_oldest(self, stored: StoredNamespace) -> None:
        stored.delete_oldest()
        if not stored.segments:
            self._remove(stored)

    def _remove(self, stored: StoredNamespace) -> None:
        """Takes a namespace's folder out in one step, so that after a crash it is there whole or gone."""
        name = stored.folder.name
        gone = self._path / f".{name}.gone-{secrets.token_hex(8)}"
        os.rename(stored.folder, gone)
        del self._stored[name]
        sync_folder(self._path)
        shutil.rmtree(gone)
        sync_folder(self._path)


def _tenant(stored: StoredNamespace) -> str:
    return stored.namespace.partition("/")[0]


def _key(namespace: str) -> str:
    """Returns the name of a namespace's folder, in which nothing of its own name shows."""
    return hashlib.sha256(namespace.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _make(path: Path) -> None:
    check_parent(path)
    with writing(path), suppress(FileExistsError):
        path.mkdir(mode=0o700)
        sync_folder(path.parent)


def _expect_private(path: Path) -> None:
    status = os.stat(path)
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise DatastoreError(
            "others may read the history",
            got=f"{path} of user {status.st_uid}, mode {stat.S_IMODE(status.st_mode):04o}",
            expected="a folder of this user's alone, mode 0700",
            remedy="chmod 700, or name a folder that does not exist yet",
        )


def _write_facts(path: Path, vocab_size: int, fingerprint: str) -> None:
    if any(not LEFTOVER.fullmatch(name) for name in os.listdir(path)):
        raise DatastoreError("the folder holds something else than a history", got=path)
    _replace_facts(path, vocab_size, fingerprint)


def _replace_facts(path: Path, vocab_size: int, fingerprint: str) -> None:
    facts = {"format": _FORMAT, "version": 1, "vocab_size": vocab_size, "tokenizer_fingerprint": fingerprint}
    with draft_file(path / FACTS_NAME, 0o600) as file:
        file.write(sealed_json(facts, _SEAL))


def _read_facts(path: Path) -> tuple[int, str]:
    data = read_start(path / FACTS_NAME, MAX_BYTES + 1)
    if data is None:
        raise MissingPath("no history here", got=path)
    facts = parse_sealed(data, FACTS_NAME, _FORMAT, 1, _SEAL)
    vocab_size = facts.integer("vocab_size", 1, 2**31 - 1)
    return vocab_size, facts.matching("tokenizer_fingerprint", _FINGERPRINT)


def _expect_same_ids(path: Path, vocab_size: int, fingerprint: str) -> None:
    """Refuses a history of another tokenizer; where one of the two is not known, of another size.

    Raises:
        TokenizerMismatch: it is, or some of its ids lie outside the vocabulary.
    """
    written_size, written = _read_facts(path)
    got, expected = f"a vocabulary of {written_size}", f"a vocabulary of {vocab_size}"
    if _UNKNOWN not in (fingerprint, written) and (written != fingerprint or written_size <= vocab_size):
        got, expected = written, fingerprint
    if got == expected and written_size < vocab_size:
        _replace_facts(path, vocab_size, fingerprint)
    if got != expected:
        raise TokenizerMismatch(
            f"the history in {path} has ids of another tokenizer",
            got=got,
            expected=expected,
            remedy="name another folder for the history of this model",
        )
