"""What commands take that read documents into datastores; nothing that takes time to import."""

from __future__ import annotations

import argparse

_NEARLY = 0.8


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Adds where a build runs."""
    parser.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="build on this machine, or on a Ray cluster, whose nodes all see inputs, tokenizer and output; "
        "there --memory-limit and --threads are those of each task (default: %(default)s)",
    )
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="ray: the cluster's head, HOST:PORT (default: the cluster that this machine is part of)",
    )


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Adds how files are read."""
    parser.add_argument("--text-field", metavar="NAME", help="the field or column that holds the text")
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help="in folders, read only what this name or pattern is meant for, such as '*.py'; may be repeated",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="in folders, leave this out, such as 'tests' or 'build/**'; may be repeated",
    )
    parser.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="what cannot be read: stop, or pass over it and say how much it was (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-licence-headers",
        action="store_true",
        help="read source files without the comment at their top that states a licence",
    )


def add_near_duplicates(parser: argparse.ArgumentParser) -> None:
    """Adds whether documents that are nearly others are left out."""
    parser.add_argument(
        "--drop-near-duplicates",
        nargs="?",
        type=float,
        const=_NEARLY,
        metavar="THRESHOLD",
        help="leave out documents that are nearly one that came before: the share of all runs of 5 tokens "
        f"that both have, 0.5 to 1.0 ({_NEARLY} if none is given); stands behind the paths",
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Adds what a build may use."""
    parser.add_argument("--threads", type=int, metavar="N", help="threads for sorting (default: all cores)")
    parser.add_argument(
        "--memory-limit", metavar="SIZE", help="such as 4G; a longer corpus becomes several segments"
    )
