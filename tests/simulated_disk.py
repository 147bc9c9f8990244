"""A disk that loses power: from the calls of one writer, every state that a crash may leave behind.

`recording` notes what a writer asks of the system. `crash_states` goes over these calls: until a file is
synced its bytes may be lost in six ways, until a folder is synced the changes of its names may be. What was
written last need not be what is lost: with `ordered` a prefix of the changes survives, else any of them.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from retrieval_spec.datastore import atomic

needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="reads /proc to see what is written"
)
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "intact": lambda data: data,
    "deleted": lambda data: None,
    "zeroed": lambda data: bytes(len(data)),
    "half": lambda data: data[: len(data) // 2],
    "flipped": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
    ),
    "empty": lambda data: b"",
}
MAX_SUBSETS = 64


@dataclass
class Recording:
    """What was asked of the system, in order; `data` events hold the bytes of a file at that moment."""

    root: Path
    events: list[tuple] = field(default_factory=list)

    def note(self, kind: str, *paths: object, data: bytes = b"") -> None:
        inside = [os.path.relpath(path, self.root) for path in map(str, paths)]
        if not any(path.startswith("..") for path in inside):
            self.events.append((kind, *inside, data))

    def note_data(self, path: str) -> None:
        with open(path, "rb") as file:
            self.note("data", path, data=file.read())


def path_at(name: object, dir_fd: int | None) -> str:
    name = os.fspath(name)
    folder = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
    return os.path.join(folder, name)


@contextmanager
def recording(root: Path) -> Iterator[Recording]:
    """Notes every call of this process that changes what is below `root`."""
    notes = Recording(root)
    with pytest.MonkeyPatch.context() as patch:
        real = {name: getattr(os, name) for name in ("open", "fsync", "mkdir", "rmdir", "unlink", "rename")}

        def opens(path, flags, mode=0o777, *, dir_fd=None):
            full = path_at(path, dir_fd)
            is_new = bool(flags & os.O_CREAT) and not os.path.lexists(full)
            fd = real["open"](path, flags, mode, dir_fd=dir_fd)
            if is_new:
                notes.note("create", full)
            return fd

        def fsync(fd):
            path = os.readlink(f"/proc/self/fd/{fd}")
            if stat.S_ISREG(os.fstat(fd).st_mode):
                notes.note_data(path)
            notes.note("fsync", path)

        def one_name(kind):
            def call(path, *arguments, dir_fd=None, **options):
                full = path_at(path, dir_fd)
                real[kind](path, *arguments, dir_fd=dir_fd, **options)
                notes.note(kind, full)

            return call

        def renames(source, target, *, src_dir_fd=None, dst_dir_fd=None):
            both = path_at(source, src_dir_fd), path_at(target, dst_dir_fd)
            if os.path.isfile(both[0]):
                notes.note_data(both[0])
            real["rename"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            notes.note("rename", *both)

        swap = atomic._swap

        def swaps(first, second):
            done = swap(first, second)
            if done:
                notes.note("exchange", first, second)
            return done

        for name, call in (("open", opens), ("fsync", fsync), ("rename", renames), ("replace", renames)):
            patch.setattr(os, name, call)
        for name in ("mkdir", "rmdir", "unlink"):
            patch.setattr(os, name, one_name(name))
        patch.setattr(os, "remove", one_name("unlink"))
        patch.setattr(atomic, "_swap", swaps)
        yield notes


Tree = dict[str, "Tree | bytes"]
"""A folder: names to folders or to the bytes of files."""


def tree_of(folder: Path) -> Tree:
    return {
        path.name: tree_of(path) if path.is_dir() else path.read_bytes() for path in sorted(folder.iterdir())
    }


def write_tree(folder: Path, tree: Tree) -> None:
    folder.mkdir()
    for name, content in tree.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            write_tree(folder / name, content)


def key_of(tree: Tree | bytes) -> object:
    if isinstance(tree, bytes):
        return hashlib.blake2b(tree, digest_size=12).digest()
    return tuple(sorted((name, key_of(content)) for name, content in tree.items()))


Change = list[tuple[int, str, int | None]]
"""Names that change together: folder, name, and what it names then."""


class Disk:
    """Folders and files by number, what of them is on disk, and which changes of names are not yet."""

    def __init__(self, tree: Tree) -> None:
        self.numbers = itertools.count()
        self.folders: dict[int, dict[str, int]] = {}
        self.durable: dict[int, dict[str, int]] = {}
        self.data: dict[int, bytes] = {}
        self.synced: dict[int, bytes] = {}
        self.pending: list[Change] = []
        self.root = self._load(tree)

    def _load(self, tree: Tree | bytes) -> int:
        number = next(self.numbers)
        if isinstance(tree, bytes):
            self.data[number] = self.synced[number] = tree
        else:
            self.folders[number] = {name: self._load(content) for name, content in tree.items()}
            self.durable[number] = dict(self.folders[number])
        return number

    def find(self, path: str) -> int:
        number = self.root
        for part in Path(path).parts:
            number = self.folders[number][part]
        return number

    def slot(self, path: str) -> tuple[int, str]:
        return self.find(os.path.dirname(path)), os.path.basename(path)

    def apply(self, event: tuple) -> None:
        kind, *paths, data = event
        if kind == "data":
            self.data[self.find(paths[0])] = data
        elif kind == "fsync":
            self._sync(self.find(paths[0]))
        else:
            self._change(kind, paths)

    def _change(self, kind: str, paths: list[str]) -> None:
        slots = [self.slot(path) for path in paths]
        if kind in ("create", "mkdir"):
            number = next(self.numbers)
            if kind == "create":
                self.data[number] = b""
            else:
                self.folders[number], self.durable[number] = {}, {}
            change: Change = [(*slots[0], number)]
        elif kind in ("unlink", "rmdir"):
            change = [(*slots[0], None)]
        elif kind == "rename":
            change = [(*slots[0], None), (*slots[1], self.find(paths[0]))]
        else:
            change = [(*slots[0], self.find(paths[1])), (*slots[1], self.find(paths[0]))]
        perform(change, self.folders)
        self.pending.append(change)

    def _sync(self, number: int) -> None:
        if number in self.data:
            self.synced[number] = self.data[number]
            return
        rest = []
        for change in self.pending:
            if any(folder == number for folder, *_ in change):
                perform(change, self.durable)
            else:
                rest.append(change)
        self.pending = rest

    def live(self) -> Tree:
        """What processes see that go on."""
        return self._tree(self.root, self.folders, {})

    def _tree(self, number: int, folders: dict, damaged: dict[int, bytes | None]) -> Tree:
        tree: Tree = {}
        for name, child in folders[number].items():
            if child in self.folders:
                tree[name] = self._tree(child, folders, damaged)
            else:
                content = damaged.get(child, self.data[child])
                if content is not None:
                    tree[name] = content
        return tree

    def unsynced(self) -> list[int]:
        return [number for number, data in self.data.items() if self.synced.get(number) != data]

    def _damaged(self, number: int, damage: Callable[[bytes], bytes | None]) -> bytes | None:
        """What was synced and only written behind stays what it was."""
        data, sure = self.data[number], self.synced.get(number)
        if sure is None or not data.startswith(sure):
            return damage(data)
        return sure + (damage(data[len(sure) :]) or b"")

    def crashed(self, changes: list[Change]) -> Iterator[Tree]:
        """What may be found if these of the pending changes were kept."""
        folders = {number: dict(names) for number, names in self.durable.items()}
        for change in changes:
            perform(change, folders)
        unsynced = self.unsynced()
        yield self._tree(self.root, folders, {})
        for damage in list(DAMAGES.values())[1:]:
            broken = {number: self._damaged(number, damage) for number in unsynced if self.data[number]}
            if broken:
                yield self._tree(self.root, folders, broken)
            if len(broken) > 1:
                for number, content in broken.items():
                    yield self._tree(self.root, folders, {number: content})


def perform(change: Change, folders: dict[int, dict[str, int]]) -> None:
    for folder, name, number in change:
        if number is None:
            folders[folder].pop(name, None)
        else:
            folders[folder][name] = number


def subsets(pending: list[Change], ordered: bool, chosen: random.Random) -> Iterator[list[Change]]:
    """Which of the pending changes may have been kept."""
    if ordered:
        yield from (pending[:count] for count in range(len(pending) + 1))
    elif 1 << len(pending) <= MAX_SUBSETS:
        for mask in range(1 << len(pending)):
            yield [change for bit, change in enumerate(pending) if mask >> bit & 1]
    else:
        yield from (pending, [])
        for _ in range(MAX_SUBSETS - 2):
            kept = chosen.random()
            yield [change for change in pending if chosen.random() < kept]


def crash_states(
    before: Tree, events: list[tuple], ordered: bool, seed: int = 0
) -> Iterator[tuple[int, Tree]]:
    """Every state after every call: how many calls had been made, and what is found then."""
    disk, chosen = Disk(before), random.Random(seed)
    for count in range(len(events) + 1):
        if count:
            disk.apply(events[count - 1])
        for changes in subsets(disk.pending, ordered, chosen):
            for tree in disk.crashed(changes):
                yield count, tree
