"""`python -m tests.atheris_fuzz TARGET SECONDS FOLDER`: inputs that follow the branches that were reached.

What reached a new branch is kept in FOLDER; tests/fuzz_corpus holds the least of it (`-merge=1`). An input
that ends badly ends the run. Needs atheris: pip install retrieval-spec[fuzz]
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["retrieval_spec"]):
    from tests import fuzz


def main(name: str, seconds: str, folder: str, *more: str) -> None:
    """Runs until the time is over; atheris ends the process."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for data in fuzz.corpus_of(name):
        (place / hashlib.sha1(data).hexdigest()).write_bytes(data)
    options = [f"-max_total_time={seconds}", "-max_len=4096", "-rss_limit_mb=2048", "-timeout=5"]
    atheris.Setup(
        [sys.argv[0], *options, str(place), *more], lambda data: fuzz.attempt(fuzz.TARGETS[name], data)
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
