"""What `retrieval-spec admin` takes; nothing that takes time to import."""

from __future__ import annotations

import argparse


def add_admin_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the server's address and a subcommand for each call."""
    parser.add_argument("--socket", required=True, metavar="ADDRESS", help="what the server's --admin says")
    parser.add_argument("--token-file", metavar="FILE", help="holds the token, where the socket is HOST:PORT")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="which datastores are drafted from")
    actions.add_parser("stats", help="what they take of the memory, and how many sessions are open")
    load = actions.add_parser("load", help="draft from one more datastore")
    load.add_argument("folder", metavar="FOLDER", help="its name below the server's --admin-root")
    load.add_argument("--name", help="what it is to be called (default: the folder's name)")
    unload = actions.add_parser("unload", help="draft from a datastore no more")
    swap = actions.add_parser("swap", help="take up the current generation of a datastore, or another folder")
    append = actions.add_parser("append", help="add documents to a datastore and draft from them")
    snapshot = actions.add_parser("snapshot", help="copy what is drafted from to a new folder")
    forget = actions.add_parser(
        "forget", help="delete for good what a namespace taught, from memory and disk"
    )
    forget.add_argument("namespace", metavar="NAMESPACE", help="with its tenant, as in acme/code")
    for named in (unload, swap, append, snapshot):
        named.add_argument("name", metavar="NAME", help="of the datastore")
    swap.add_argument("folder", nargs="?", metavar="FOLDER", help="its name below the server's --admin-root")
    append.add_argument("inputs", nargs="+", metavar="PATH", help="files or folders, as for `append`")
    append.add_argument("--tokenizer", required=True, metavar="PATH", help="the one that it was built with")
    append.add_argument("--text-field", metavar="NAME", help="as for `build`")
    snapshot.add_argument("folder", metavar="FOLDER", help="a new name below the server's --admin-root")
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
