"""The page: one file with all that it needs, which asks no network and runs nothing but its own script.

Text of traces reaches it as data alone: as JSON without any character that means something to HTML, shown
as text nodes. A content security policy with the hashes of style and script holds even if that should fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

_SCRIPTS = ("dom.js", "charts.js", "trees.js", "generation.js", "main.js")
_MEANING_SOMETHING = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"}


def page_of(summary: dict[str, Any]) -> str:
    """Returns the HTML of a report."""
    style = _asset("page.css")
    script = '"use strict";\n' + "\n".join(_asset(name) for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"POLICY": policy, "STYLE": style, "DATA": embedded(summary), "SCRIPT": script}
    # Split once: what was put in is not looked at again.
    pieces = _asset("page.html").split("@@")
    return "".join(parts[piece] if at % 2 else piece for at, piece in enumerate(pieces))


def embedded(value: Any) -> str:
    """Returns JSON that may stand inside a script element: no text of it can end that element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # A lone surrogate is no character of a file; JSON has a spelling for it.
    text = "".join(_escaped(text)) if _has_surrogates(text) else text
    return text.translate(_MEANING_SOMETHING)


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _escaped(text: str) -> list[str]:
    return [f"\\u{ord(one):04x}" if "\ud800" <= one <= "\udfff" else one for one in text]


def _asset(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode('utf-8')).digest()).decode('ascii')}"
