"""Recipes: one TOML file that says what a datastore is built from.

    inputs = ["{stdlib}"]           files, folders and patterns, seen from the recipe's folder
    tokenizer = "../my_model"       a tokenizer.json or a model folder, seen from the recipe's folder
    out = "python-stdlib"           where the datastore goes, seen from the recipe's folder
    name = "python-stdlib"          optional, as are the rest; the last part of `out` by default
    text_field = "text"
    include = ["*.py", "docs/**"]   names or glob patterns of what alone is read in folders
    exclude = ["test", "build/**"]  names or glob patterns of what is left out of folders
    on_error = "skip"               pass over rows and files that cannot be read; "stop" by default
    skip_licence_headers = true     leave out the comment at the top of a source file that states its licence
    depth_tokens = 32
    drop_duplicates = true          leave out documents that came before
    drop_near_duplicates = 0.8      and those that are nearly one of them, from this similarity on
    prune_ngram_tokens = 5          index one of all places with so many equal tokens in a row

`{stdlib}` stands for the folder of the running interpreter's standard library.
"""

from __future__ import annotations

import glob
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from retrieval_spec.datastore.readers.hub import HUB_PREFIX
from retrieval_spec.datastore.readers.reading import OnError
from retrieval_spec.errors import InvalidRequest, MissingDependency, MissingPath

_REQUIRED = ("inputs", "tokenizer", "out")
_TYPES: dict[str, type] = {
    "inputs": list,
    "tokenizer": str,
    "out": str,
    "name": str,
    "text_field": str,
    "include": list,
    "exclude": list,
    "on_error": str,
    "skip_licence_headers": bool,
    "depth_tokens": int,
    "drop_duplicates": bool,
    "drop_near_duplicates": float,
    "prune_ngram_tokens": int,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a recipe file says, with its paths resolved; None where it says nothing."""

    inputs: tuple[Path, ...]
    tokenizer: Path
    out: Path
    name: str | None = None
    text_field: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    on_error: OnError = "stop"
    skip_licence_headers: bool = False
    depth_tokens: int | None = None
    drop_duplicates: bool = False
    drop_near_duplicates: float | None = None
    prune_ngram_tokens: int = 0


def load_recipe(path: str | Path) -> Recipe:
    """Reads a recipe.

    Raises:
        MissingPath: there is no such file, or an input pattern matches nothing.
        InvalidRequest: it is no TOML, or a field is missing, unknown or of a wrong type.
    """
    file = Path(path)
    fields = _parse(file)
    _check(fields, file)
    folder = file.absolute().parent
    return Recipe(
        inputs=tuple(found for pattern in fields["inputs"] for found in _expand(pattern, folder)),
        tokenizer=folder / _filled(fields["tokenizer"]),
        out=folder / _filled(fields["out"]),
        name=fields.get("name"),
        text_field=fields.get("text_field"),
        include=tuple(fields.get("include", ())),
        exclude=tuple(fields.get("exclude", ())),
        on_error=fields.get("on_error", "stop"),
        skip_licence_headers=fields.get("skip_licence_headers", False),
        depth_tokens=fields.get("depth_tokens"),
        drop_duplicates=fields.get("drop_duplicates", False),
        drop_near_duplicates=fields.get("drop_near_duplicates"),
        prune_ngram_tokens=fields.get("prune_ngram_tokens", 0),
    )


def _parse(file: Path) -> Mapping[str, Any]:
    try:
        return _toml().loads(file.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise MissingPath("no such recipe", got=file) from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"cannot read the recipe {file}", got=error, expected="TOML") from error


def _toml() -> Any:
    try:
        return import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    except ImportError as error:
        raise MissingDependency(
            "tomli is not installed", remedy="pip install 'retrieval-spec[server]'"
        ) from error


def _check(fields: Mapping[str, Any], file: Path) -> None:
    missing = [key for key in _REQUIRED if key not in fields]
    unknown = sorted(set(fields) - set(_TYPES))
    if missing or unknown:
        got = f"no {', '.join(missing)}" if missing else f"unknown {', '.join(unknown)}"
        raise InvalidRequest(f"{file}: wrong fields", got=got, expected=", ".join(_TYPES))
    for key, value in fields.items():
        if not _is_of_type(value, _TYPES[key]):
            expected = "a list of texts" if _TYPES[key] is list else _TYPES[key].__name__
            raise InvalidRequest(f"{file}: {key!r} is wrong", got=repr(value)[:80], expected=expected)


def _is_of_type(value: Any, wanted: type) -> bool:
    if wanted is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) is wanted


def _expand(pattern: str, folder: Path) -> list[Path]:
    if pattern.startswith(HUB_PREFIX):
        return [Path(pattern)]
    full = folder / _filled(pattern)
    if full.exists():
        return [full]
    found = sorted(glob.glob(str(full), recursive=True))
    if not found:
        raise MissingPath("an input of the recipe matches nothing", got=full)
    return [Path(name) for name in found]


def _filled(text: str) -> str:
    return text.replace("{stdlib}", sysconfig.get_path("stdlib"))
