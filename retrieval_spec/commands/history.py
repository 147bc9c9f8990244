"""`retrieval-spec history`: what a stopped server keeps of its sessions, and deleting it for good."""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from typing import Any

from retrieval_spec.datastore.history_folder import HistoryFolder, Listed


def list_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what is kept of each namespace, ready for JSON.

    Raises:
        MissingPath: there is no history.
        DatastoreError: a server or another command uses it, or it is damaged.
    """
    history = HistoryFolder.open_existing(arguments.history)
    try:
        listed = history.listing()
        return {
            "history": arguments.history,
            "num_bytes": history.num_bytes,
            "num_namespaces": len(listed),
            "namespaces": {one.namespace: _facts(one) for one in listed},
        }
    finally:
        history.close()


def forget_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Deletes all that is kept of a namespace; returns whether there was anything, ready for JSON.

    Raises:
        MissingPath: there is no history.
        DatastoreError: a server or another command uses it, or the file system refused.
    """
    history = HistoryFolder.open_existing(arguments.history)
    try:
        found = history.forget(arguments.namespace)
    finally:
        history.close()
    return {
        "history": arguments.history,
        "namespace": arguments.namespace,
        "was_kept": found,
        "is_kept": False,
    }


HISTORY_COMMANDS = {"list": list_command, "forget": forget_command}


def _facts(listed: Listed) -> dict[str, Any]:
    try:
        begun = datetime.fromtimestamp(listed.oldest_s, timezone.utc).isoformat()
    except (OverflowError, ValueError, OSError):  # the name of a file may say any second
        begun = "unknown"
    return {"num_bytes": listed.num_bytes, "num_segments": listed.num_segments, "begun": begun}
