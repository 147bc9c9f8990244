"""Files of the hosts: of an installed one, or of wheels in the folder that RETRIEVAL_SPEC_HOSTS names."""

from __future__ import annotations

import ast
import os
import sys
import types
import zipfile
from importlib import metadata
from pathlib import Path

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
