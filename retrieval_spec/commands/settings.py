"""The settings of `serve`: one schema for its file, its flags and its documentation.

A flag goes before the file, the file before the default. Standard library alone, so that `--help` answers
at once.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from retrieval_spec.errors import InvalidRequest, MissingDependency, MissingPath
from retrieval_spec.limits import Limits, check_limit

LIMITS_TABLE = "limits"
_PATHS = ("DIR", "PEM", "FILE")
_TYPES: dict[str, type] = {"str": str, "bool": bool, "float": float, "int": int, "tuple[str, ...]": tuple}
_EXPECTED = {
    str: "a text",
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    tuple: "a list of texts",
}


def _setting(default: Any, meaning: str, metavar: str | None = None, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"meaning": meaning, "metavar": metavar, "choices": choices})


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What `serve` can be told besides limits; None and () mean not told."""

    datastore: tuple[str, ...] = _setting((), "a datastore; may be given more than once", "DIR")
    preset: str = _setting("default", "which sources draft", "NAME")
    vocab_size: int | None = _setting(None, "default: the largest of the datastores", "N")
    model: str | None = _setting(None, "check the datastores against this model's tokenizer", "DIR")
    listen: str = _setting("127.0.0.1:7431", "unix:PATH or HOST:PORT", "ADDRESS")
    load: str = _setting(
        "auto",
        "map the datastores, which processes share, or read them into memory of its own; auto maps "
        "unless others may write to the folder",
        choices=("auto", "mmap", "memory"),
    )
    trust_datastores: bool = _setting(False, "skip the checksums at start")
    frames: str | None = _setting(
        None, "another socket where clients on this machine ask without gRPC, sooner answered", "unix:PATH"
    )
    insecure: bool = _setting(False, "listen beyond this machine without TLS: the network itself is trusted")
    tls_certificate: str | None = _setting(
        None, "the server's certificate chain; read again when it changes", "PEM"
    )
    tls_key: str | None = _setting(None, "its private key", "PEM")
    tls_client_ca: str | None = _setting(
        None, "clients must show a certificate that it signed; their name in it is their tenant", "PEM"
    )
    tokens: str | None = _setting(
        None,
        "lines of TENANT TOKEN, mode 0600; clients must show a token; read again when it changes",
        "FILE",
    )
    health_address: str | None = _setting(
        None, "a listener for health checks alone, which answers when the rest hangs", "HOST:PORT"
    )
    metrics_address: str | None = _setting(None, "where Prometheus finds metrics", "HOST:PORT")
    traces: bool = _setting(False, "make OpenTelemetry spans of calls; OTEL_... variables say where they go")
    log_format: str = _setting("text", "how the log is written", choices=("text", "json"))
    grace_s: float = _setting(2.0, "seconds that a stopping server waits for calls under way", "S")
    admin: str | None = _setting(
        None,
        "where an operator changes datastores and namespaces: unix:PATH, or loopback and --admin-tokens",
        "ADDRESS",
    )
    admin_root: str | None = _setting(
        None, "the folder below which an operator may name datastores and snapshots", "DIR"
    )
    admin_tokens: str | None = _setting(
        None, "lines of OPERATOR TOKEN, mode 0600; operators must show a token", "FILE"
    )
    reload_datastores: bool = _setting(
        False, "take up new generations of the datastores as they are written; SIGHUP always does"
    )
    history: str | None = _setting(
        None, "a folder in which what sessions teach outlives the server; made if it is not there", "DIR"
    )
    history_flush_s: float = _setting(
        5.0, "what a killed server forgets at most: the last so many seconds", "S"
    )
    history_max_bytes: int = _setting(1 << 30, "of the history's files; the oldest go first", "BYTES")
    history_max_age_s: float | None = _setting(None, "text is deleted from disk before it is older", "S")

    group: tuple[str, ...] = _setting(
        (), "tenants that share what several of them wrote; may be given more than once", "NAME=TENANT,TENANT"
    )
    group_min_tenants: int = _setting(3, "so many of a group must have written what it shares", "K")


Entry = Field[Any]
SETTINGS: dict[str, Entry] = {entry.name: entry for entry in fields(ServeSettings)}
LIMITS: dict[str, Entry] = {entry.name: entry for entry in fields(Limits)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every setting and every limit, and `--config`."""
    parser.add_argument("--config", metavar="TOML", help="a file of settings; flags go before it")
    for name, entry in SETTINGS.items():
        wanted, meaning = type_of(entry), entry.metadata["meaning"]
        kind: dict[str, Any] = {"default": argparse.SUPPRESS, "help": meaning + _default_of(entry)}
        if wanted is bool:
            kind["action"] = argparse.BooleanOptionalAction  # to say no to what the file says
        elif entry.metadata["choices"]:
            kind["choices"] = entry.metadata["choices"]
        else:
            kind["metavar"] = entry.metadata["metavar"]
            kind |= {"action": "append"} if wanted is tuple else {"type": wanted}
        parser.add_argument(flag(name), **kind)
    limits = parser.add_argument_group(
        "limits", "what is more is refused, clamped or dropped (docs/server.md)"
    )
    for name, entry in LIMITS.items():
        text = f"{entry.metadata['meaning']} (default: {entry.default})"
        limits.add_argument(flag(name), type=int, metavar="N", default=argparse.SUPPRESS, help=text)


def settings_of(arguments: argparse.Namespace) -> tuple[ServeSettings, Limits]:
    """Returns what flags, file and defaults say together.

    Raises:
        MissingPath: there is no such file.
        InvalidRequest: it is no TOML, or a setting is unknown, of a wrong type or out of its range.
    """
    said = read_settings(arguments.config) if arguments.config else {}
    bounds = dict(said.pop(LIMITS_TABLE, {}))
    given = vars(arguments)
    said |= {name: given[name] for name in SETTINGS if name in given}
    bounds |= {name: given[name] for name in LIMITS if name in given}
    said |= {name: tuple(said.get(name, ())) for name in ("datastore", "group")}
    return ServeSettings(**said), Limits(**bounds)


def read_settings(path: str) -> dict[str, Any]:
    """Returns what a file says, each setting checked and each path seen from the file's folder.

    Raises:
        MissingPath: there is no such file.
        InvalidRequest: it is no TOML, or a setting is unknown, of a wrong type or out of its range.
    """
    said = _parse(path)
    limits = said.get(LIMITS_TABLE, {})
    if not isinstance(limits, dict):
        raise _wrong(path, LIMITS_TABLE, limits, "a table")
    _expect_known(path, "setting", said, [*SETTINGS, LIMITS_TABLE])
    _expect_known(path, "limit", limits, list(LIMITS))
    for name, value in said.items():
        if name != LIMITS_TABLE:
            _expect_type(path, SETTINGS[name], value)
            said[name] = _resolved(Path(path).absolute().parent, SETTINGS[name], value)
    for name, value in limits.items():
        check_limit(LIMITS[name], value)
    return said


def flag(name: str) -> str:
    """Returns the flag of a setting."""
    return "--" + name.replace("_", "-")


def type_of(entry: Entry) -> type:
    """Returns the type of what may be said."""
    return _TYPES[str(entry.type).removesuffix(" | None")]


def _default_of(entry: Entry) -> str:
    return "" if entry.default in (None, False, (), MISSING) else f" (default: {entry.default})"


def _parse(path: str) -> dict[str, Any]:
    try:
        toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        return dict(toml.loads(Path(path).read_text(encoding="utf-8")))
    except ImportError as error:
        raise MissingDependency(
            "tomli is not installed", remedy="pip install 'retrieval-spec[server]'"
        ) from error
    except FileNotFoundError as error:
        raise MissingPath("no such file of settings", got=path) from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"cannot read the settings in {path}", got=error, expected="TOML") from error


def _resolved(folder: Path, entry: Entry, value: Any) -> Any:
    if entry.metadata["metavar"] not in _PATHS:
        return value
    return tuple(str(folder / item) for item in value) if isinstance(value, list) else str(folder / value)


def _expect_known(path: str, what: str, said: Mapping[str, Any], known: list[str]) -> None:
    for name in said:
        if name not in known:
            near = difflib.get_close_matches(name.replace("-", "_"), known, 1)
            raise InvalidRequest(
                f"{path}: unknown {what}",
                got=repr(name),
                expected=None if near else ", ".join(known),
                remedy=f"did you mean {near[0]}?" if near else None,
            )


def _expect_type(path: str, entry: Entry, value: object) -> None:
    wanted, choices = type_of(entry), entry.metadata["choices"]
    if wanted is tuple:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
    else:
        fits = type(value) is wanted or (wanted is float and type(value) is int)
    if not fits:
        raise _wrong(path, entry.name, value, _EXPECTED[wanted])
    if choices and value not in choices:
        raise _wrong(path, entry.name, value, " or ".join(choices))


def _wrong(path: str, name: str, value: object, expected: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path}: {name} is wrong",
        got=repr(value)[:80],
        expected=expected,
        remedy=f"change {name} in the file",
    )
