"""The command line: `retrieval-spec COMMAND`; `commands/arguments.py` says which there are.

Each command imports what it needs when it runs, so that `--help` and wrong usage answer at once.
Bad input ends with exit code 2 and one line on standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from retrieval_spec.commands.arguments import BAD_INPUT, new_parser
from retrieval_spec.errors import RetrievalSpecError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parsed = new_parser().parse_args(arguments)
    logging.basicConfig(level=parsed.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    try:
        _RUN[parsed.command](parsed)
    except RetrievalSpecError as error:
        print(f"retrieval-spec {parsed.command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


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
        from retrieval_spec.datastore.segments import inspect_segments, open_segments

        _print(inspect_segments(open_segments(build_command(arguments))), arguments.json)


def _change(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.grow import CHANGES

    _print(CHANGES[arguments.command](arguments), arguments.json)


def _inspect(arguments: argparse.Namespace) -> None:
    if arguments.documents:
        _list_documents(arguments)
        return
    from retrieval_spec.commands.inspect import inspect_command, readable

    facts = inspect_command(arguments)
    _print(facts if arguments.json else readable(facts), arguments.json)


def _list_documents(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.documents import list_documents

    try:
        for listed in list_documents(arguments):
            print(json.dumps(listed._asdict()) if arguments.json else listed.line())
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _verify(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.verify import verify_command

    _print(verify_command(arguments), arguments.json)


def _export(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.export import export_command

    _print(export_command(arguments), arguments.json)


def _replay(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.replay import replay_command
    from retrieval_spec.commands.replay_results import table_of

    result = replay_command(arguments)
    print(json.dumps(result) if arguments.json else table_of(result))


def _report(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.report import report_command

    result = report_command(arguments)
    if arguments.json:
        print(json.dumps(result))


def _measure_cost(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.measure_cost import measure_cost_command, table_of

    result = measure_cost_command(arguments)
    print(json.dumps(result) if arguments.json else table_of(result))


def _serve(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.serve import serve_command

    serve_command(arguments)


def _history(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.history import HISTORY_COMMANDS

    _print(HISTORY_COMMANDS[arguments.action](arguments), arguments.json)


def _admin(arguments: argparse.Namespace) -> None:
    from retrieval_spec.commands.admin import admin_command

    _print(admin_command(arguments), arguments.json)


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


_RUN: dict[str, Callable[[argparse.Namespace], None]] = {
    "build": _build,
    "append": _change,
    "remove": _change,
    "compact": _change,
    "inspect": _inspect,
    "verify": _verify,
    "export": _export,
    "replay": _replay,
    "report": _report,
    "measure-cost": _measure_cost,
    "serve": _serve,
    "history": _history,
    "admin": _admin,
    "generate": _generate,
    "demo": _demo,
}

if __name__ == "__main__":
    sys.exit(main())
