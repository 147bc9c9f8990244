"""Files of the hosts: of an installed one, or of wheels in the folder that RETRIEVAL_SPEC_HOSTS names."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import os
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from unittest.mock import MagicMock

import pytest

FOLDER = "RETRIEVAL_SPEC_HOSTS"


def host_text(distribution: str, path: str, folder: str | Path | None = None) -> str:
    """The text of a host's file; skips where the host is not to be had."""
    place = folder or os.environ.get(FOLDER)
    for wheel in sorted(Path(place).glob(f"{distribution}-*.whl")) if place else ():
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(path).decode()
    try:
        return Path(str(metadata.distribution(distribution).locate_file(path))).read_text()
    except (metadata.PackageNotFoundError, FileNotFoundError):
        pytest.skip(f"{distribution} is not installed, and {FOLDER} names no folder with its wheel")


def module_of(text: str, name: str, stubs: dict[str, dict[str, object]]) -> types.ModuleType:
    """Runs a host's file, with modules in place of those that it imports."""
    module = types.ModuleType(name)
    with pytest.MonkeyPatch.context() as patch:
        for stub, names in stubs.items():
            stand_in = types.ModuleType(stub)
            vars(stand_in).update(names)
            patch.setitem(sys.modules, stub, stand_in)
        exec(compile(text, name, "exec"), vars(module))
    return module


def calls_of(text: str, function: str) -> list[ast.Call]:
    """All calls of a method of this name."""
    return [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == function
    ]


def keywords_of(call: ast.Call) -> set[str | None]:
    return {keyword.arg for keyword in call.keywords}


class Hollow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules in place of a host's, whose names are all there and mean nothing."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == self._package:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module) -> None:
        module.__path__ = []
        module.__getattr__ = _nothing


def _nothing(name: str) -> MagicMock:
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock(name=name)


@contextmanager
def running(
    package: str, modules: dict[str, dict[str, object] | str]
) -> Iterator[dict[str, types.ModuleType]]:
    """Some modules of a host, each by its names or by its text; all others are hollow."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == package}
    for name in before:
        del sys.modules[name]
    finder = Hollow(package)
    sys.meta_path.insert(0, finder)
    made = {}
    try:
        for name, content in modules.items():
            importlib.import_module(name.rpartition(".")[0])
            made[name] = sys.modules[name] = types.ModuleType(name)
            if isinstance(content, str):
                exec(compile(content, name, "exec"), vars(made[name]))
            else:
                vars(made[name]).update(content)
        yield made
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]
        sys.modules.update(before)
