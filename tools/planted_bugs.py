"""Bugs that are planted to see whether tests notice: what an entry of `tools/mutants/` says, and a reader."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass, fields
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUGS = Path(__file__).resolve().parent / "mutants"
_COMPILED = ("retrieval_spec/kernels/", "retrieval_spec/fusion.py")


class CannotPlant(Exception):
    """An entry does not fit the sources: it has to be written anew, or dropped."""


@dataclass(frozen=True)
class Bug:
    """A change of one place, as somebody who maintains it could make by mistake.

    Attributes:
        area: what it breaks; the name of the file that lists it.
        name: says what is wrong with it.
        file: where it is planted.
        old: stands there once.
        new: stands there then.
        harm: what a user would see.
        tests: files, or single tests of them, that should notice.
        plain: whether kernels run as plain Python: those of a changed source would all be compiled.
        survives: why no test needs to notice, if none does.
    """

    area: str
    name: str
    file: str
    old: str
    new: str
    harm: str
    tests: tuple[str, ...]
    plain: bool = False
    survives: str = ""

    def planted(self, source: str) -> str:
        """Returns a source with the bug in it.

        Raises:
            CannotPlant: there is no such place, or more than one, or it would be no Python any more.
        """
        count = source.count(self.old)
        if count != 1 or self.old == self.new:
            raise CannotPlant(f"{self.area}/{self.name}: its old text stands {count} times in {self.file}")
        changed = source.replace(self.old, self.new)
        try:
            ast.parse(changed)
        except SyntaxError as error:
            raise CannotPlant(f"{self.area}/{self.name}: {error}") from error
        return changed


def read_bugs(folder: Path) -> list[Bug]:
    """Returns all bugs of a folder's lists, which are named by their area."""
    known = {field.name for field in fields(Bug)}
    bugs = []
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text())["bug"]:
            if unknown := set(entry) - known:
                raise CannotPlant(f"{path.name}: {entry.get('name')} has unknown keys {sorted(unknown)}")
            is_compiled = entry["file"].startswith(_COMPILED)
            entry = {"plain": is_compiled, **entry, "tests": tuple(entry["tests"])}
            bugs.append(Bug(area=path.stem, **entry))
    return bugs
