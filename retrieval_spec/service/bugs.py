"""Exceptions that should not have been: told once for each place, without what they say."""

from __future__ import annotations

import logging
import traceback

from retrieval_spec.errors import RetrievalSpecError

logger = logging.getLogger("retrieval_spec.service.servicer")

_logged: set[tuple[type, str]] = set()


def internal_error(error: Exception) -> RetrievalSpecError:
    """Logs a bug, once for each place it shows up in: the next step would hit it again."""
    place = (type(error), str(traceback.extract_tb(error.__traceback__)[-1]))
    if place not in _logged:
        _logged.add(place)
        where = "".join(traceback.format_tb(error.__traceback__))
        logger.error("a call failed with %s, at\n%s", type(error).__name__, where)
    return RetrievalSpecError("the server failed", remedy="its log says where")
