"""`retrieval-spec demo`: the whole job on this machine, with nothing but what ships with the package.

Builds a datastore from the Python standard library, serves it from a process of its own, generates with
a real model over gRPC and compares every token with the host library's own plain decoding.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_spec.build import build_datastore
from retrieval_spec.client import DraftClient, DraftSource
from retrieval_spec.commands.generate import load_model
from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.errors import InvalidRequest, ServiceUnavailable

PROMPT_CHARACTERS = 1_200
ANSWER_TIMEOUT_S = 0.1
# Decoded greedily, a model as small as the shipped one soon repeats one line for ever, and drafts gain
# far more than on any real text. The penalty keeps it writing.
DECODING: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.2}


@dataclass
class Tally:
    """What one way to generate took, and what its drafts did."""

    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    accepted_tokens: int = 0

    def time(self, way: Callable[[Any, int], Any], inputs: Any, new_tokens: int) -> Any:
        """Runs one generation and counts it."""
        began = time.perf_counter()
        output_ids = way(inputs, new_tokens)
        self.seconds += time.perf_counter() - began
        self.tokens += len(output_ids)
        return output_ids

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second over all generations."""
        return self.tokens / self.seconds


def run_demo(model_dir: str | None, num_prompts: int, max_new_tokens: int, max_nodes: int) -> dict[str, Any]:
    """Returns what was measured: exactness against plain decoding, acceptance and speed.

    Raises:
        InvalidRequest: an option out of range.
        ServiceUnavailable: the sidecar did not start.
    """
    if num_prompts < 1 or max_new_tokens < 1 or max_nodes < 0:
        raise InvalidRequest("the demo needs at least one prompt and one new token", remedy="see --help")
    folder = Path(model_dir) if model_dir else demo_model_dir()
    model, tokenizer = load_model(folder)
    with tempfile.TemporaryDirectory(prefix="retrieval-spec-demo-") as scratch, progress_bar() as progress:
        datastore = Path(scratch) / "python-stdlib"
        build_datastore(Corpus(standard_library()), tokenizer=folder, out=datastore, progress=progress)
        with sidecar(datastore, folder, Path(scratch)) as (server_pid, address):
            # Asks in every step, so that two runs accept the same: what drafts bring is to be shown.
            client = DraftClient(address, timeout_s=ANSWER_TIMEOUT_S)
            try:
                prompts = prompt_texts(num_prompts)
                result = compare(model, tokenizer, client, prompts, max_new_tokens, max_nodes, progress)
            finally:
                client.close()
    return {**result, "server_pid": server_pid}


def held_out_files() -> list[str]:
    """Returns the standard library's files that the shipped model was not trained on, as relative paths."""
    return (demo_model_dir() / "held_out.txt").read_text(encoding="utf-8").splitlines()


def standard_library() -> list[Path]:
    """Returns the interpreter's own sources, without tests and without the files held out from training."""
    root = Path(sysconfig.get_path("stdlib"))
    held_out = set(held_out_files())
    skipped = {"site-packages", "test", "tests", "idlelib", "turtledemo", "lib2to3", "__pycache__"}
    files = (path for path in sorted(root.rglob("*.py")) if not skipped & set(path.relative_to(root).parts))
    return [path for path in files if path.relative_to(root).as_posix() not in held_out]


def prompt_texts(count: int) -> list[str]:
    """Returns the beginnings of files that neither the model nor the datastore has seen.

    Raises:
        InvalidRequest: this interpreter has fewer of them.
    """
    root = Path(sysconfig.get_path("stdlib"))
    texts = (path.read_text(encoding="utf-8", errors="ignore") for path in existing(root, held_out_files()))
    long_enough = [text[: text.rfind("\n", 0, PROMPT_CHARACTERS) + 1] for text in texts if len(text) > 2_000]
    if len(long_enough) < count:
        raise InvalidRequest(
            "too many prompts", got=count, expected=f"<= {len(long_enough)}", remedy="lower --prompts"
        )
    return long_enough[:count]


def existing(root: Path, names: list[str]) -> Iterator[Path]:
    """Yields the files that this version of Python has."""
    return (root / name for name in names if (root / name).is_file())


@contextmanager
def sidecar(datastore: Path, model_dir: Path, scratch: Path) -> Iterator[tuple[int, str]]:
    """Runs the server as a process of its own and yields its process id and address.

    Raises:
        ServiceUnavailable: it ended or stayed silent.
    """
    address = f"unix:{scratch / 'sidecar.sock'}"
    command = [sys.executable, "-m", "retrieval_spec.cli", "serve", "--listen", address]
    command += ["--datastore", str(datastore), "--model", str(model_dir)]
    with (scratch / "sidecar.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            wait_until_ready(process, scratch / "sidecar.log")
            yield process.pid, address
        finally:
            process.terminate()
            process.wait(timeout=10)


def wait_until_ready(process: subprocess.Popen[str], log: Path) -> None:
    """Returns when the server has announced its address.

    Raises:
        ServiceUnavailable: it ended first.
    """
    assert process.stdout is not None
    if not process.stdout.readline().startswith("serving on"):
        raise ServiceUnavailable("the sidecar did not start", remedy=log.read_text()[-500:] or "see its log")


def compare(
    model: Any,
    tokenizer: Any,
    client: DraftSource,
    prompts: list[str],
    max_new_tokens: int,
    max_nodes: int,
    progress: Progress,
) -> dict[str, Any]:
    """Generates each prompt greedily, by the host itself and over draft trees, and compares the tokens."""
    from retrieval_spec.verifier import generate

    def plain(inputs: Any, new_tokens: int) -> Any:
        output = model.generate(inputs, max_new_tokens=new_tokens, **DECODING)
        return output[0, inputs.shape[1] :].numpy()

    def drafted(inputs: Any, new_tokens: int) -> Any:
        result = generate(model, inputs, client, max_nodes=max_nodes, max_new_tokens=new_tokens, **DECODING)
        tally.steps += result.steps
        tally.accepted_tokens += result.accepted_tokens
        return result.output_ids

    encoded = [tokenizer(text, return_tensors="pt").input_ids for text in prompts]
    baseline, tally, exact = Tally(), Tally(), True
    for way in (plain, drafted):  # first calls pay for loading code
        way(encoded[0], 8)
    tally.steps = tally.accepted_tokens = 0
    progress.start("generate", len(prompts), "prompt")
    for inputs in encoded:
        expected = baseline.time(plain, inputs, max_new_tokens)
        found = tally.time(drafted, inputs, max_new_tokens)
        exact = exact and np.array_equal(expected, found)
        progress.advance(1)
    return {
        "exact": exact,
        "prompts": len(prompts),
        "tokens": tally.tokens,
        "mean_acceptance_length": 1 + tally.accepted_tokens / max(tally.steps, 1),
        "plain_tokens_per_s": baseline.tokens_per_s,
        "draft_tokens_per_s": tally.tokens_per_s,
        "speedup": tally.tokens_per_s / baseline.tokens_per_s,
    }
