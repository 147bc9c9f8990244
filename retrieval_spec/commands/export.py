"""`retrieval-spec export`: a datastore as a file that another program drafts from."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.segments import open_segments
from retrieval_spec.export import Bounds, export_lookup


def export_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the file that the arguments describe; returns what it holds, ready for JSON."""
    with progress_bar() as progress:
        exported = export_lookup(
            open_segments(arguments.datastore).stores,
            arguments.out,
            bounds=Bounds(arguments.min_count, arguments.max_continuations),
            replace=arguments.replace,
            progress=progress,
        )
    return {"out": arguments.out, "format": arguments.format, **asdict(exported)}
