"""What every command takes: parsers, and nothing that takes time to import."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from retrieval_spec import __version__
from retrieval_spec.commands.admin_arguments import add_admin_arguments
from retrieval_spec.commands.building_arguments import (
    add_engine,
    add_limits,
    add_near_duplicates,
    add_reading,
)
from retrieval_spec.commands.connecting import add_credentials
from retrieval_spec.commands.replay_arguments import (
    add_cost_arguments,
    add_leave_one_out,
    add_replay_arguments,
)
from retrieval_spec.commands.report_arguments import add_report_arguments
from retrieval_spec.commands.settings import add_flags

BAD_INPUT = 2
"""The exit code for it."""
_PRUNED_NGRAM_TOKENS = 5


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like those of the commands."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def new_parser() -> Parser:
    """Returns the parser of all commands; what it parses says which `command` it is."""
    parser = Parser(prog="retrieval-spec", description="Drafts tokens from text that exists already.")
    parser.add_argument("--version", action="version", version=f"retrieval-spec {__version__}")
    parser.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    datastores = (_add_build, _add_append, _add_remove, _add_compact, _add_inspect, _add_verify, _add_export)
    for add in (
        *datastores,
        _add_replay,
        _add_report,
        _add_measure_cost,
        _add_serve,
        _add_history,
        _add_admin,
        _add_generate,
        _add_demo,
    ):
        add(commands)
    return parser


def _command(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_build(commands: Any) -> None:
    parser = _command(
        commands,
        "build",
        "Build a datastore from text, JSONL, parquet, Arrow, chats, recorded outputs or token arrays.",
        "retrieval-spec build corpus/*.jsonl.zst --tokenizer tokenizer.json --out datastores/docs",
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="PATH",
        help="files or folders of text, or hf:NAME[@REVISION][:CONFIG[:SPLIT]] of the Hugging Face hub",
    )
    parser.add_argument("--recipe", metavar="TOML", help="a recipe that names inputs, tokenizer and output")
    parser.add_argument(
        "--from-datastore", metavar="DIR", help="translate this datastore's text into ids of --tokenizer"
    )
    parser.add_argument("--from-tokenizer", metavar="PATH", help="the tokenizer that it was built with")
    parser.add_argument(
        "--kind",
        choices=["context_array", "dense"],
        default="context_array",
        help="matched by text, or by the target's hidden states (default: %(default)s)",
    )
    parser.add_argument("--model", metavar="DIR", help="dense: the target model, which is run on the corpus")
    parser.add_argument("--tokenizer", metavar="PATH", help="a tokenizer.json or a model folder")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where the datastore goes; a translation: beside the old one, and used again the next time",
    )
    add_reading(parser)
    parser.add_argument("--drop-duplicates", action="store_true", help="leave out documents that came before")
    add_near_duplicates(parser)
    parser.add_argument(
        "--prune",
        nargs="?",
        type=int,
        const=_PRUNED_NGRAM_TOKENS,
        metavar="N",
        help="index one of all places with the same N tokens in a row: a smaller datastore that drafts no "
        f"worse ({_PRUNED_NGRAM_TOKENS} if none is given); stands behind the paths",
    )
    add_limits(parser)
    add_engine(parser)
    parser.add_argument("--replace", action="store_true", help="replace an existing datastore")
    _add_json(parser)


def _add_append(commands: Any) -> None:
    parser = _command(
        commands,
        "append",
        "Add documents to a datastore, those that it holds already left out.",
        "retrieval-spec append datastores/docs new.jsonl --tokenizer tokenizer.json",
    )
    parser.add_argument("datastore", metavar="DIR")
    parser.add_argument("inputs", nargs="+", metavar="PATH", help="files or folders, as for build")
    parser.add_argument("--tokenizer", metavar="PATH", help="the one that it was built with")
    parser.add_argument("--model", metavar="DIR", help="a dense datastore: the model that it was built with")
    add_reading(parser)
    add_near_duplicates(parser)
    add_limits(parser)
    _add_json(parser)


def _add_remove(commands: Any) -> None:
    parser = _command(
        commands,
        "remove",
        "Take documents out of a datastore, also from the disk.",
        "retrieval-spec remove datastores/docs --origin 'drafts/*.md'",
    )
    parser.add_argument("datastore", metavar="DIR")
    parser.add_argument(
        "--origin", action="append", default=[], metavar="NAME", help="the file it came from; * and ? allowed"
    )
    parser.add_argument(
        "--id", action="append", default=[], metavar="ID", help="as `inspect --documents` lists it"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads for sorting (default: all cores)")
    _add_json(parser)


def _add_compact(commands: Any) -> None:
    parser = _command(
        commands,
        "compact",
        "Merge a datastore's small segments while others may add to it; what it holds stays the same.",
        "retrieval-spec compact datastores/docs",
    )
    parser.add_argument("datastore", metavar="DIR")
    parser.add_argument(
        "--all", action="store_true", help="make one of all segments, also where that writes much again"
    )
    add_limits(parser)
    _add_json(parser)


def _add_inspect(commands: Any) -> None:
    parser = _command(
        commands,
        "inspect",
        "Show what a datastore holds, what repeats in it, and what it would accept of text like its own.",
        "retrieval-spec inspect datastores/docs --tokenizer tokenizer.json",
    )
    parser.add_argument("datastore", metavar="DIR")
    parser.add_argument(
        "--sample",
        type=int,
        default=100,
        metavar="N",
        help="documents to replay, each over drafts from the others; 0 shows the manifest alone "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--ngrams", type=int, nargs="+", metavar="N", help="tokens of repeated n-grams (default: 4 8 16)"
    )
    parser.add_argument(
        "--documents",
        action="store_true",
        help="list every document instead: id, tokens, origin; with --tokenizer how it begins",
    )
    parser.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="NAME",
        help="list only documents of this file; * and ? allowed; may be repeated",
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="shows n-grams and documents as text")
    _add_json(parser)


def _add_verify(commands: Any) -> None:
    parser = _command(
        commands,
        "verify",
        "Check every byte of a datastore, its structure and the order of its contexts.",
        "retrieval-spec verify datastores/docs --order whole",
    )
    parser.add_argument("datastore", metavar="DIR")
    parser.add_argument(
        "--order",
        choices=["sampled", "whole"],
        default="sampled",
        help="compare contexts in samples, or every one with its neighbour (default: %(default)s)",
    )
    _add_json(parser)


def _add_export(commands: Any) -> None:
    parser = _command(
        commands,
        "export",
        "Write a datastore as a file that another program drafts from.",
        "retrieval-spec export datastores/docs --format llamacpp-lookup --out docs.lookup",
    )
    parser.add_argument("datastore", metavar="DIR")
    parser.add_argument(
        "--format",
        choices=["llamacpp-lookup"],
        required=True,
        help="llamacpp-lookup: for llama-server --lookup-cache-static",
    )
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument(
        "--min-count",
        type=int,
        default=1,
        metavar="N",
        help="leave out what followed less often (default: %(default)s)",
    )
    parser.add_argument(
        "--max-continuations", type=int, metavar="N", help="after each 2-gram, the N most frequent ones"
    )
    parser.add_argument("--replace", action="store_true", help="replace an existing file")
    _add_json(parser)


def _add_replay(commands: Any) -> None:
    parser = _command(
        commands,
        "replay",
        "Show what drafts would gain on recorded prompts and outputs, without a model.",
        "retrieval-spec replay traces.jsonl --datastore datastores/docs --max-nodes 16 --json",
    )
    add_replay_arguments(parser)
    add_leave_one_out(parser)
    _add_json(parser)


def _add_report(commands: Any) -> None:
    parser = _command(
        commands,
        "report",
        "Show on a page, token by token and in charts, what drafts would gain on recorded outputs.",
        "retrieval-spec report traces.jsonl --tokenizer tokenizer.json --output report.html --png plots",
    )
    add_report_arguments(parser)
    _add_json(parser)


def _add_measure_cost(commands: Any) -> None:
    parser = _command(
        commands,
        "measure-cost",
        "Measure what a step of a local model costs by its drafted nodes, for replay --cost-curve.",
        "retrieval-spec measure-cost --model MODEL_DIR --json > curve.json",
    )
    add_cost_arguments(parser)
    _add_json(parser)


def _add_serve(commands: Any) -> None:
    parser = _command(
        commands,
        "serve",
        "Serve draft trees over gRPC, as a sidecar of an inference engine.",
        "retrieval-spec serve --datastore datastores/docs --listen unix:/run/retrieval-spec.sock",
    )
    add_flags(parser)


def _add_history(commands: Any) -> None:
    parser = _command(
        commands,
        "history",
        "List or forget what a stopped server keeps of its sessions.",
        "retrieval-spec history forget /var/lib/retrieval-spec/history acme/code",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, summary in (
        ("list", "say how much is kept of each namespace"),
        ("forget", "delete all that is kept of a namespace, for good"),
    ):
        added = actions.add_parser(action, help=summary, description=summary)
        added.add_argument("history", metavar="DIR", help="as in `serve --history DIR`")
        if action == "forget":
            added.add_argument("namespace", metavar="NAMESPACE", help="with its tenant, as `list` shows it")
        _add_json(added)


def _add_admin(commands: Any) -> None:
    parser = _command(
        commands,
        "admin",
        "List, add, exchange, extend and copy the datastores of a running server.",
        "retrieval-spec admin --socket unix:/run/retrieval-spec/admin.sock swap docs",
    )
    add_admin_arguments(parser)


def _add_generate(commands: Any) -> None:
    parser = _command(
        commands,
        "generate",
        "Generate with a local Hugging Face model over draft trees.",
        'retrieval-spec generate --model MODEL_DIR --server unix:/run/retrieval-spec.sock --prompt "..."',
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a local model folder")
    parser.add_argument("--prompt", required=True, help="the prompt; @FILE reads it from a file")
    parser.add_argument(
        "--server", metavar="ADDRESS", help="the sidecar; without it drafts are made in process"
    )
    parser.add_argument(
        "--datastore", action="append", default=[], metavar="DIR", help="in process: a datastore"
    )
    parser.add_argument("--preset", default="default", help="in process: which sources draft")
    parser.add_argument(
        "--draft-model", metavar="DIR", help="a small model of the same tokenizer, fused with the drafts"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument(
        "--max-nodes", type=int, default=16, metavar="N", help="nodes of a draft tree at most"
    )
    parser.add_argument(
        "--node-budget",
        choices=["fixed", "measured"],
        default="fixed",
        help="draft all of --max-nodes, or measure what a step costs and draft only what pays "
        "(default: %(default)s)",
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy decoding (the default)")
    parser.add_argument("--top-k", type=int, metavar="K")
    parser.add_argument("--top-p", type=float, metavar="P")
    parser.add_argument("--seed", type=int, default=0, help="sampling: equal seeds give equal text")
    add_credentials(parser)
    _add_json(parser)


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        "Build, serve, generate and compare with plain decoding, all on this machine.",
        "retrieval-spec demo --json",
    )
    parser.add_argument("--model", metavar="DIR", help="a local model folder (default: the one that ships)")
    parser.add_argument("--prompts", type=int, default=8, metavar="N")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--max-nodes", type=int, default=16, metavar="N")
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")
