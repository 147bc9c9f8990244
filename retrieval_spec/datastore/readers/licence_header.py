"""The comment at the top of a source file that states its licence: the same text in every file of a tree."""

from __future__ import annotations

import re

_HASH = (
    ".bash .cfg .cmake .conf .ex .exs .gradle .graphql .ini .jl .nim .nix .pl .pm .properties .ps1 .py .pyi "
    ".pyx .r .rb .sh .tcl .tf .toml .yaml .yml .zsh"
)
_SLASH = (
    ".c .cc .cpp .cs .css .cu .cuh .cxx .dart .fs .go .gradle .groovy .h .hh .hpp .hxx .java .js .jsx .kt "
    ".kts .less .m .mm .php .proto .rs .sass .scala .scss .sv .svelte .swift .ts .tsx .v .vue"
)
_DASHES = ".elm .hs .lua .sql .vhd"
_SEMICOLONS = ".asm .clj .cljs .el .lisp .s .scm"
_PERCENTS = ".erl .hrl .tex"
_TAGS = ".astro .htm .html .markdown .md .svelte .vue .xml"
_BRACKETS = ".ml .mli .pas"


def _lines(mark: str) -> str:
    return rf"(?:[ \t]*{mark}[^\n]*(?:\n|\Z))+"


_COMMENTS: dict[str, list[str]] = {}
for _suffixes, _pattern in (
    (_HASH, _lines("#")),
    (_SLASH, _lines("//")),
    (_SLASH + " .sql", r"[ \t]*/\*(?s:.*?)\*/[ \t]*(?:\n|\Z)"),
    (_DASHES, _lines("--")),
    (_SEMICOLONS, _lines(";")),
    (_PERCENTS, _lines("%")),
    (_TAGS, r"[ \t]*<!--(?s:.*?)-->[ \t]*(?:\n|\Z)"),
    (_BRACKETS, r"[ \t]*\(\*(?s:.*?)\*\)[ \t]*(?:\n|\Z)"),
):
    for _suffix in _suffixes.split():
        _COMMENTS.setdefault(_suffix, []).append(_pattern)
_BLOCKS = {suffix: re.compile("|".join(patterns)) for suffix, patterns in _COMMENTS.items()}
# What must stand before any comment stays: an interpreter's or a language's own first line.
_PREAMBLE = re.compile(
    r"(?:#![^\n]*\n|<\?(?:php|xml)[^\n]*\n|<!DOCTYPE[^\n]*\n)*(?:[ \t]*\r?\n)*", re.IGNORECASE
)
_WORDS = re.compile(r"licen[cs]e|copyright|\(c\)\s*\d{4}|©|spdx-", re.IGNORECASE)
_BLANK_LINES = re.compile(r"(?:[ \t]*\r?\n)*")
_MAX_HEADER_CHARACTERS = 1 << 16


def without_licence_header(text: str, suffix: str) -> str:
    """Returns the text of a source file without comments at its top that speak of licence or copyright."""
    block = _BLOCKS.get(suffix)
    if block is None:
        return text
    head = text[:_MAX_HEADER_CHARACTERS]
    start = end = _end(_PREAMBLE, head, 0)
    while (found := block.match(head, end)) and _WORDS.search(found.group()):
        end = _end(_BLANK_LINES, head, found.end())
    return text[:start] + text[end:]


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start
