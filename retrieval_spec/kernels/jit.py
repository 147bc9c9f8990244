"""The one decorator of all kernels, and the private compile cache behind it.

numba keys its cache on the path and the bytes of the function's own file, so a changed callee in another
file goes unnoticed. Here the cache folder's name is a hash of all kernel sources instead: any change
starts a fresh folder, and every copy of the same sources shares one. The cache holds pickles, so the folder
is private (0700) and ours, or unused.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numba
from numba.core import caching

logger = logging.getLogger(__name__)
Function = TypeVar("Function", bound=Callable[..., object])

CACHE_DIR_VARIABLE = "RETRIEVAL_SPEC_CACHE_DIR"
_SOURCES = (Path(__file__).parent, Path(__file__).parent.parent / "fusion.py")


def source_key() -> str:
    """Returns a hash of every kernel source, of numba and of Python: one cache folder each."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    for source in _SOURCES:
        for path in sorted(source.glob("*.py")) if source.is_dir() else (source,):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def cache_dir() -> Path:
    """Returns a private folder for compiled kernels, or a fresh temporary one if none can be had."""
    root = os.environ.get(CACHE_DIR_VARIABLE) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(root).expanduser() / "retrieval_spec" / f"kernels-{source_key()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_private(folder):
            return folder
        reason = "it is open to other users"
    except OSError as error:
        reason = str(error)
    logger.warning("kernel cache %s is not used (%s); kernels compile at every start", folder, reason)
    return Path(tempfile.mkdtemp(prefix="retrieval-spec-kernels-"))


def _is_private(folder: Path) -> bool:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return False
    if status.st_mode & 0o077:
        folder.chmod(0o700)  # ours, made under a lax umask or by hand: what lies in it may not be ours
        return not any(folder.iterdir())
    return os.access(folder, os.W_OK)


def _drop_damaged(folder: Path) -> None:
    """Deletes cache files that numba could not read: a truncated one would fail every start."""
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith((".nbi", ".nbc")) and not _is_complete(os.path.join(place, name)):
                for entry in Path(place).glob(f"{_function_of(name)}.*"):
                    entry.unlink(missing_ok=True)


def _function_of(name: str) -> str:
    """Returns what the names of one function's files begin with: FUNCTION-LINE.PYTHON(.NUMBER)?.SUFFIX."""
    return name.removesuffix(".nbi") if name.endswith(".nbi") else name.rsplit(".", 2)[0]


def _is_complete(path: str) -> bool:
    # The last byte of a pickle is its STOP opcode; numba writes each file whole and renames it, so
    # only damage from outside leaves another one. Only that byte is read: this happens at every start.
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True  # dropped already, or by another process
    try:
        return os.pread(fd, 1, max(0, os.fstat(fd).st_size - 1)) == b"."
    finally:
        os.close(fd)


def kernel(function: Function) -> Function:
    """Compiles `function` on first call: no interpreter lock, no threads, no recursion, cached on disk.

    `NUMBA_DISABLE_JIT=1` leaves it plain Python, for debuggers and coverage.
    """
    return _compiled(function)


def allocation_free_kernel(function: Function) -> Function:
    """Makes a `kernel` that creates no array, and so needs no reference counts: calls cost half.

    Every array passed down from one kernel to the next would be counted up and down otherwise.
    """
    return _compiled(function, _nrt=False)


def inlined_kernel(function: Function) -> Function:
    """Makes a part of other kernels, for LLVM to copy into each of them: calls cost nothing but code.

    numba's own inlining, of `expanded_kernel`, takes most of the time of a compilation.
    """
    return _compiled(function, _nrt=False, forceinline=True)


class _InFolder(caching._CacheLocator):  # type: ignore[misc]
    """Finds compiled code by function and line alone: the folder's name stands for the sources."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(_FOLDER)

    def get_source_stamp(self) -> str:
        return _FOLDER.name

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: Callable[..., object], py_file: str) -> _InFolder:
        return cls(py_func)


def expanded_kernel(function: Function) -> Function:
    """Makes a part of other kernels that returns an array: no call can, without reference counts."""
    return numba.njit(inline="always")(function)  # type: ignore[no-any-return]


def _compiled(function: Function, **options: bool) -> Function:
    # numba asks for the folder while it decorates; other users of numba in the process keep theirs.
    theirs, caching.CacheImpl._locator_classes = caching.CacheImpl._locator_classes, [_InFolder]
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)  # type: ignore[no-any-return]
    finally:
        caching.CacheImpl._locator_classes = theirs


_FOLDER = cache_dir()
_drop_damaged(_FOLDER)
