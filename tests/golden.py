"""Copies of the golden datastores to damage, and manifests sealed again after a change."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import REPOSITORY

GOLDEN = REPOSITORY / "datastores" / "golden" / "v1"
COLUMNS = ("tokens", "positions", "buckets", "documents")
FILES = (*(f"{column}.bin" for column in COLUMNS), "manifest.json")


def copy_golden(tmp_path: Path, name: str = "uint16") -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def reseal(data: bytes) -> bytes:
    """The seal as FORMAT.md describes it, written once more without the package."""
    seal = re.compile(rb'(?<="manifest_sha256": ")[^"]*(?=")')
    zeroed = seal.sub(b"0" * 64, data)
    return seal.sub(hashlib.sha256(zeroed).hexdigest().encode(), zeroed)


def change_manifest(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes fields of the manifest and seals it again, as a hostile writer would."""
    manifest = json.loads((store / "manifest.json").read_bytes())
    change(manifest)
    (store / "manifest.json").write_bytes(reseal(json.dumps(manifest, indent=2).encode()))


def change_column(store: Path, column: str, data: bytes) -> None:
    """Gives a column other bytes of any length, with a manifest that fits them."""
    (store / f"{column}.bin").write_bytes(data)

    def change(manifest: dict[str, Any]) -> None:
        entry = manifest["files"][f"{column}.bin"]
        item_bytes = entry["bytes"] // max(entry["shape"][0], 1)
        entry.update(
            bytes=len(data), shape=[len(data) // item_bytes], sha256=hashlib.sha256(data).hexdigest()
        )

    change_manifest(store, change)
