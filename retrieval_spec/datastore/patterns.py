"""Glob patterns that choose among the files of a folder."""

from __future__ import annotations

import re
from collections.abc import Collection

_PIECES = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


class Patterns:
    """Patterns such as `*.py`, `tests`, `docs/**/*.md`, `build/**`.

    One without a slash is meant for the name of a file or of any folder above it; one with a slash for the
    path from the folder that was named, or for a folder above. `*` and `?` stay within a name, `**` does not.
    """

    def __init__(self, patterns: Collection[str]) -> None:
        cleaned = [pattern.removeprefix("./").rstrip("/") for pattern in patterns]
        self._names = _compiled([pattern for pattern in cleaned if "/" not in pattern])
        self._paths = _compiled([pattern for pattern in cleaned if "/" in pattern])

    def match_name(self, name: str) -> bool:
        """Returns whether a pattern without a slash is meant for exactly this name."""
        return self._names is not None and self._names.fullmatch(name) is not None

    def match(self, path: str) -> bool:
        """Returns whether a pattern is meant for the path, given with slashes, or for a folder above it."""
        names = path.split("/")
        if any(self.match_name(name) for name in names):
            return True
        paths = self._paths
        return paths is not None and any(
            paths.fullmatch("/".join(names[:length])) for length in range(1, len(names) + 1)
        )


def _compiled(patterns: Collection[str]) -> re.Pattern[str] | None:
    expressions = ["".join(map(_expression, _PIECES.findall(pattern))) for pattern in patterns if pattern]
    return (
        re.compile("|".join(f"(?:{expression})" for expression in expressions), re.DOTALL)
        if expressions
        else None
    )


def _expression(piece: str) -> str:
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if piece in known:
        return known[piece]
    if len(piece) > 1:  # a class of characters
        inside = piece[1:-1].replace("\\", r"\\").replace("[", r"\[")
        return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
    return re.escape(piece)
