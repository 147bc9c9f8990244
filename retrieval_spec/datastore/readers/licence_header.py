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


def _between(start: str, end: str) -> str:
    return rf"[ \t]*{start}(?s:.*?){end}[ \t\r]*(?:\n|\Z)"


def _blocks() -> dict[str, re.Pattern[str]]:
    """Returns what is a comment at the top of a file, by the file's suffix."""
    comments: dict[str, list[str]] = {}
    for suffixes, pattern in (
        (_HASH, _lines("#")),
        (_SLASH, _lines("//")),
        (_SLASH + " .sql", _between(r"/\*", r"\*/")),
        (_DASHES, _lines("--")),
        (_SEMICOLONS, _lines(";")),
        (_PERCENTS, _lines("%")),
        (_TAGS, _between("<!--", "-->")),
        (_BRACKETS, _between(r"\(\*", r"\*\)")),
    ):
        for suffix in suffixes.split():
            comments.setdefault(suffix, []).append(pattern)
    return {suffix: re.compile("|".join(patterns)) for suffix, patterns in comments.items()}


_BLOCKS = _blocks()
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
    is_longer_than_head = end == len(head) < len(text)
    return text if is_longer_than_head else text[:start] + text[end:]


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start
