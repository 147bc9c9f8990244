"""What `retrieval-spec replay` takes."""

from __future__ import annotations

import argparse


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the traces, what drafts, and how they are replayed."""
    parser.add_argument("traces", nargs="+", metavar="FILE", help="JSON lines, also .gz or .zst")
    parser.add_argument("--tokenizer", metavar="PATH", help="for traces of text: the target's")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="of the target, where no tokenizer says")
    parser.add_argument("--datastore", action="append", default=[], metavar="DIR", help="drafted from, too")
    parser.add_argument(
        "--preset",
        default="default",
        metavar="NAME",
        help="which sources draft; also sources joined by +, such as session+history (default: %(default)s)",
    )
    parser.add_argument(
        "--max-nodes", type=int, default=16, metavar="N", help="nodes of a draft tree at most"
    )
    parser.add_argument("--max-output-tokens", type=int, metavar="N", help="of an output, replay so many")
    parser.add_argument(
        "--cost-per-node",
        type=float,
        metavar="C",
        help="what a drafted node adds to a pass of the target, such as 0.01: projects the speed-up",
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="replay so many families at once"
    )
