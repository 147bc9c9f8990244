"""What `retrieval-spec report` takes beside what `replay` takes; nothing that takes time to import."""

from __future__ import annotations

import argparse

from retrieval_spec.commands.replay_arguments import add_replay_arguments


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the traces, what drafts, and what is written."""
    add_replay_arguments(parser)
    parser.add_argument(
        "--output",
        default="report.html",
        metavar="FILE",
        help="the page, one file without anything beside it; replaced (default: %(default)s)",
    )
    parser.add_argument("--png", metavar="DIR", help="write the charts as PNG files, too")
    parser.add_argument(
        "--show",
        type=int,
        default=200,
        metavar="N",
        help="generations that are shown token by token (default: %(default)s)",
    )
    parser.add_argument(
        "--show-tokens",
        type=int,
        default=400,
        metavar="N",
        help="tokens of each at most; all together 100,000 (default: %(default)s)",
    )
