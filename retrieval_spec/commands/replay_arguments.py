"""What `retrieval-spec replay` and `measure-cost` take; nothing that takes time to import."""

from __future__ import annotations

import argparse


def add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the traces, what drafts, and how they are replayed."""
    parser.add_argument(
        "traces", nargs="+", metavar="FILE", help="JSON lines, also .gz or .zst; Parquet, Arrow"
    )
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
    cost = parser.add_mutually_exclusive_group()
    cost.add_argument(
        "--cost-per-node",
        type=float,
        metavar="C",
        help="what a drafted node adds to a plain pass of the target, such as 0.01: only nodes that pay are "
        "drafted, and the speed-up is projected",
    )
    cost.add_argument(
        "--cost-curve",
        metavar="FILE",
        help="the same, as `measure-cost --json` measured it with the target; by batch size, where it did",
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="replay so many families at once"
    )


def add_leave_one_out(parser: argparse.ArgumentParser) -> None:
    """Adds what is for datastores that hold the outputs."""
    parser.add_argument(
        "--leave-one-out",
        action="store_true",
        help="the datastores were built from these outputs: draft none from documents that hold it",
    )


def add_cost_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `retrieval-spec measure-cost` takes: the model, and what is measured."""
    parser.add_argument("--model", required=True, metavar="DIR", help="a local model folder")
    parser.add_argument(
        "--nodes",
        type=int,
        nargs="+",
        default=[0, 1, 2, 4, 8, 16, 32, 64],
        metavar="N",
        help="drafted nodes of a row in a step (default: 0 1 2 4 8 16 32 64)",
    )
    parser.add_argument(
        "--batch-sizes",
        type=_numbers,
        default=[1],
        metavar="N,N",
        help="rows that go through the model together, such as 1,4,16 (default: 1)",
    )
    parser.add_argument("--context-tokens", type=int, default=512, metavar="N", help="of the prompt")
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="steps of each size")


def _numbers(said: str) -> list[int]:
    return [int(number) for number in said.split(",")]
