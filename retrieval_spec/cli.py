"""The command line: `retrieval-spec build | inspect | verify | export | serve | generate | demo`.

Each command imports what it needs when it runs, so that `--help` and wrong usage answer at once.
Bad input ends with exit code 2 and one line on standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from retrieval_spec import __version__
from retrieval_spec.errors import RetrievalSpecError

BAD_INPUT = 2
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like those of the commands."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parsed = _parser().parse_args(arguments)
    logging.basicConfig(level=parsed.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    try:
        parsed.run(parsed)
    except RetrievalSpecError as error:
        print(f"retrieval-spec {parsed.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> Parser:
    parser = Parser(prog="retrieval-spec", description="Drafts tokens from text that exists already.")
    parser.add_argument("--version", action="version", version=f"retrieval-spec {__version__}")
    parser.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_build, _add_inspect, _add_verify, _add_export, _add_serve, _add_generate, _add_demo):
        add(commands)
    return parser


def _command(commands: Any, name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_build(commands: Any) -> None:
    parser = _command(
        commands,
        "build",
        _build,
        "Build a datastore from text, JSONL, parquet, Arrow, chats, recorded outputs or token arrays.",
        "retrieval-spec build corpus/*.jsonl.zst --tokenizer tokenizer.json --out datastores/docs",
    )
    parser.add_argument("inputs", nargs="*", metavar="PATH", help="files or folders of text")
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
    _add_reading(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="threads for sorting (default: all cores)")
    parser.add_argument("--replace", action="store_true", help="replace an existing datastore")
    _add_json(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
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


def _add_inspect(commands: Any) -> None:
    parser = _command(
        commands,
        "inspect",
        _inspect,
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
    parser.add_argument("--tokenizer", metavar="PATH", help="shows n-grams as text")
    _add_json(parser)


def _add_verify(commands: Any) -> None:
    parser = _command(
        commands,
        "verify",
        _verify,
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
        _export,
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


def _add_serve(commands: Any) -> None:
    parser = _command(
        commands,
        "serve",
        _serve,
        "Serve draft trees over gRPC, as a sidecar of an inference engine.",
        "retrieval-spec serve --datastore datastores/docs --listen unix:/run/retrieval-spec.sock",
    )
    _add_sources(parser)
    parser.add_argument(
        "--listen",
        default="127.0.0.1:7431",
        metavar="ADDRESS",
        help="unix:PATH or HOST:PORT (default: %(default)s)",
    )
    parser.add_argument("--trust-datastores", action="store_true", help="skip the checksums at start")


def _add_generate(commands: Any) -> None:
    parser = _command(
        commands,
        "generate",
        _generate,
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
    _add_json(parser)


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        _demo,
        "Build, serve, generate and compare with plain decoding, all on this machine.",
        "retrieval-spec demo --json",
    )
    parser.add_argument("--model", metavar="DIR", help="a local model folder (default: the one that ships)")
    parser.add_argument("--prompts", type=int, default=8, metavar="N")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N")
    parser.add_argument("--max-nodes", type=int, default=16, metavar="N")
    _add_json(parser)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--datastore", action="append", default=[], metavar="DIR", help="may be given more than once"
    )
    parser.add_argument("--preset", default="default", help="which sources draft (default: %(default)s)")
    parser.add_argument("--vocab-size", type=int, metavar="N", help="default: the largest of the datastores")
    parser.add_argument("--model", metavar="DIR", help="check the datastores against this model's tokenizer")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _print(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
    else:
        print("\n".join(_lines(result, indent="")))


def _lines(result: dict[str, Any], indent: str) -> list[str]:
    """Returns a line for every plain value; what stands inside another one is indented."""
    lines = []
    width = max(map(len, result), default=0)
    for key, value in result.items():
        name = indent + key.replace("_", " ")
        if isinstance(value, dict):
            lines += [name, *_lines(value, indent + "  ")]
        else:
            lines.append(
                f"{name:<{len(indent) + width}}  {f'{value:,.3f}' if isinstance(value, float) else value}"
            )
    return lines


def _build(arguments: argparse.Namespace) -> None:
    if arguments.kind == "dense":
        from retrieval_spec.commands.build_dense import build_dense_command

        _print(build_dense_command(arguments), arguments.json)
    else:
        from retrieval_spec.commands.build import build_command
        from retrieval_spec.datastore.store import inspect_datastore

        _print(inspect_datastore(build_command(arguments)), arguments.json)


def _inspect(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.inspect import inspect_command, readable

    facts = inspect_command(arguments)
    _print(facts if arguments.json else readable(facts), arguments.json)


def _verify(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.verify import verify_command

    _print(verify_command(arguments), arguments.json)


def _export(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.export import export_command

    _print(export_command(arguments), arguments.json)


def _serve(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.serve import serve_command

    serve_command(arguments)


def _generate(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.generate import generate_command

    _print_generation(generate_command(arguments), arguments.json)


def _print_generation(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    print(result.pop("text"))
    print("; ".join(f"{key.replace('_', ' ')} {value}" for key, value in result.items()), file=sys.stderr)


def _demo(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.demo import run_demo

    result = run_demo(arguments.model, arguments.prompts, arguments.max_new_tokens, arguments.max_nodes)
    _print(result, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
