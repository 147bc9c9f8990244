"""Log records as JSON: one object a line. Holds no text, token or name of a tenant, since no record does."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import datetime, timezone


class JsonFormatter(logging.Formatter):
    """Writes `time`, `level`, `logger` and `event`; an exception's type and places, never what it says."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line."""
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["stack"] = "".join(traceback.format_tb(record.exc_info[2]))
        return json.dumps(line)


def write_json_logs() -> None:
    """Makes all handlers of the root logger write JSON."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter())
