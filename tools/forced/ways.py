"""The ways to generate that are compared; each takes what the host's `generate` takes and runs under it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from retrieval_spec import DraftClient, Engine, LocalClient
from retrieval_spec.integrations.transformers import generate
from retrieval_spec.verifier.drafts import NoDrafts
from retrieval_spec.verifier.statistics import Statistics


class Way(Protocol):
    """One way to generate."""

    name: str

    def begin(self, family: str, repeat: int) -> None:
        """Forgets what earlier generations taught: no repetition may draft for the next one."""

    def __call__(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Returns the host's sequences, prompts included."""


class Host:
    """The host's own loop: plain, or with options of its own."""

    def __init__(self, name: str, **options: Any) -> None:
        self.name = name
        self._options = options

    def begin(self, family: str, repeat: int) -> None:
        """Does nothing: it learns nothing."""

    def __call__(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Generates."""
        return model.generate(**inputs, do_sample=False, **self._options)


class Trees:
    """This project's loop with a draft source.

    Attributes:
        counts: what the drafts of all generations did.
    """

    def __init__(self, name: str, max_nodes: int, step_costs: Any, **options: Any) -> None:
        self.name = name
        self.counts = Statistics()
        self._max_nodes = max_nodes
        self._step_costs = step_costs
        self._options = options
        self.source: Any = None
        self.namespace = "default"

    def begin(self, family: str, repeat: int) -> None:
        """Does nothing: for sources that learn nothing."""

    def __call__(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Generates."""
        return model.generate(
            **inputs,
            do_sample=False,
            custom_generate=generate,
            draft_source=self.source,
            max_nodes=self._max_nodes,
            step_costs=self._step_costs,
            namespace=self.namespace,
            statistics=self.counts,
            **self._options,
        )


class WithoutDrafts(Trees):
    """This project's loop, decoding plainly."""

    def __init__(self, name: str, vocab_size: int, **options: Any) -> None:
        super().__init__(name, 0, None, **options)
        self.source = NoDrafts(vocab_size)


class InProcess(Trees):
    """Drafts of an engine in this process, a new one for each family and repetition."""

    def __init__(self, name: str, vocab_size: int, max_nodes: int, step_costs: Any, **options: Any) -> None:
        super().__init__(name, max_nodes, step_costs, **options)
        self._vocab_size = vocab_size

    def begin(self, family: str, repeat: int) -> None:
        """Opens a new engine."""
        self.source = LocalClient(Engine(self._vocab_size))


class Sidecar(Trees):
    """Drafts of a server process, with a namespace for each family and repetition."""

    def __init__(
        self, name: str, client: DraftClient, max_nodes: int, step_costs: Any, **options: Any
    ) -> None:
        super().__init__(name, max_nodes, step_costs, **options)
        self.source = client

    def begin(self, family: str, repeat: int) -> None:
        """Goes on in a namespace that nobody wrote to."""
        self.namespace = f"{family}-{repeat}"


@contextmanager
def sidecar(folder: Path, vocab_size: int) -> Iterator[DraftClient]:
    """A server process of the default preset without datastores, and a client of it."""
    command = [sys.executable, "-m", "retrieval_spec.cli", "serve", "--listen", f"unix:{folder}/drafts.sock"]
    process = subprocess.Popen([*command, "--vocab-size", str(vocab_size)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit("the server did not start")
        with DraftClient(f"unix:{folder}/drafts.sock") as client:
            yield client
    finally:
        process.terminate()
        process.wait()
