"""The running interpreter's standard library as training and held-out text.

Knows files and text only: no tokens, no model.
"""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import tokenize
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_PERCENT = 3
# Tests are most of the library's bytes and the least like the code people write; the others are
# installed by third parties or generated tables of numbers.
LEFT_OUT_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
LEFT_OUT_PREFIXES = ("encodings/cp", "encodings/iso", "encodings/mac_", "encodings/koi8")
LEFT_OUT_STEMS = ("_sysconfigdata",)


@dataclass(frozen=True)
class Corpus:
    """Texts by name, sorted; the held-out ones are never trained on."""

    title: str
    licence: str
    training: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]


def text_sha256(documents: tuple[tuple[str, str], ...]) -> str:
    """SHA-256 of the documents' UTF-8 text in order, each followed by a zero byte."""
    digest = hashlib.sha256()
    for _, text in documents:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def text_bytes(documents: tuple[tuple[str, str], ...]) -> int:
    """UTF-8 bytes of all documents together."""
    return sum(len(text.encode()) for _, text in documents)


def is_held_out(name: str) -> bool:
    """Decide by the name alone, so every machine holds out the same files."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def is_wanted(name: str) -> bool:
    """Keep modules a person wrote; leave out tests, generated tables and third parties."""
    path = Path(name)
    if LEFT_OUT_FOLDERS.intersection(path.parts[:-1]):
        return False
    return not (name.startswith(LEFT_OUT_PREFIXES) or path.stem.startswith(LEFT_OUT_STEMS))


def read_source(path: Path) -> str | None:
    """Read one module with the encoding it declares; None where that fails or it is empty."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
    except (SyntaxError, UnicodeDecodeError):
        return None
    return text or None


def read_corpus(root: Path) -> Corpus:
    """Read every wanted `*.py` below `root`, sorted by name."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    texts = [(name, read_source(root / name)) for name in names if is_wanted(name)]
    found = [(name, text) for name, text in texts if text is not None]
    own = root == standard_library()
    version = ".".join(map(str, sys.version_info[:3]))
    return Corpus(
        title=f"the standard library of Python {version}" if own else f"the folder `{root.name}`",
        licence="PSF-2.0" if own else "that of the folder's files",
        training=tuple((name, text) for name, text in found if not is_held_out(name)),
        held_out=tuple((name, text) for name, text in found if is_held_out(name)),
    )


def standard_library() -> Path:
    """Folder of the running interpreter's own modules."""
    return Path(sysconfig.get_path("stdlib"))
