"""`retrieval-spec generate`: one generation with a local model, drafts from a sidecar or in process."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from retrieval_spec.client import DraftClient, DraftSource, LocalClient
from retrieval_spec.errors import InvalidRequest, MissingDependency, MissingPath, TokenizerMismatch


def generate_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the generation and returns the text and what the drafts gained."""
    from retrieval_spec.verifier import generate

    check_generation_options(arguments)
    model, tokenizer = load_model(arguments.model)
    source = open_source(arguments, int(model.config.vocab_size))
    try:
        inputs = tokenizer(read_prompt(arguments.prompt), return_tensors="pt").input_ids
        began = time.perf_counter()
        result = generate(
            model,
            inputs,
            source,
            max_nodes=arguments.max_nodes,
            max_new_tokens=arguments.max_new_tokens,
            seed=arguments.seed,
            **sampling_options(arguments),
        )
        seconds = time.perf_counter() - began
    finally:
        source.close()
    return {
        "text": tokenizer.decode(result.output_ids, skip_special_tokens=True),
        "tokens": len(result.output_ids),
        "steps": result.steps,
        "mean_acceptance_length": round(result.mean_acceptance_length, 3),
        "tokens_per_s": round(len(result.output_ids) / seconds, 1),
    }


def check_generation_options(arguments: argparse.Namespace) -> None:
    """Refuses values that no generation can have.

    Raises:
        InvalidRequest: an option out of range.
    """
    for name, low in (("max_new_tokens", 1), ("max_nodes", 0), ("temperature", 0)):
        value = getattr(arguments, name)
        if value < low:
            raise InvalidRequest(f"--{name.replace('_', '-')} is too small", got=value, expected=f">= {low}")


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the host's options for a temperature, top-k and top-p; 0 is greedy decoding."""
    if arguments.temperature == 0:
        return {"do_sample": False}
    options = {"top_k": arguments.top_k or 0, "top_p": arguments.top_p or 1.0}
    return {"do_sample": True, "temperature": arguments.temperature, **options}


def load_model(folder: str | Path) -> tuple[Any, Any]:
    """Returns a causal language model in float32 and its tokenizer, from a local folder alone.

    Raises:
        MissingPath: the folder does not exist or holds no model.
        MissingDependency: torch or transformers is not installed.
    """
    if not (Path(folder) / "config.json").is_file():
        raise MissingPath(
            "no model folder", got=folder, expected="a folder with config.json", remedy="check --model"
        )
    # OpenMP threads that spin between two forwards starve the sidecar on the same machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as host_logging
    except ImportError as error:
        raise MissingDependency(
            f"{error.name} is missing", remedy="pip install 'retrieval-spec[torch]'"
        ) from error
    host_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def open_source(arguments: argparse.Namespace, vocab_size: int) -> DraftSource:
    """Returns the sidecar's client, or an engine in this process, checked against the model's tokenizer.

    Raises:
        TokenizerMismatch: a datastore behind it was built with another tokenizer.
        InvalidRequest: both a server and datastores were named.
    """
    if arguments.server and arguments.datastore:
        raise InvalidRequest(
            "datastores belong to the server", remedy="give --server or --datastore, not both"
        )
    if arguments.server:
        client = DraftClient(arguments.server)
        check_server(client, arguments.model)
        return client
    from retrieval_spec.commands.serve import check_tokenizers
    from retrieval_spec.datastore.store import open_datastore
    from retrieval_spec.engine import Engine

    check_tokenizers(arguments.model, {path: open_datastore(path).manifest for path in arguments.datastore})
    return LocalClient(Engine(vocab_size, datastores=arguments.datastore))


def check_server(client: DraftClient, model: str | Path) -> None:
    """Refuses a server whose datastores were built with another tokenizer than the model's.

    Raises:
        TokenizerMismatch: a datastore's ids mean other text.
        ServiceUnavailable: the server does not answer.
    """
    from retrieval_spec.datastore.tokenizer import load_tokenizer

    datastores = client.server_info.datastores
    fingerprint = load_tokenizer(model).fingerprint if datastores else ""
    for datastore in datastores:
        if datastore.tokenizer_fingerprint != fingerprint:
            raise TokenizerMismatch(
                f"the server's datastore {datastore.name} was built with another tokenizer",
                got=datastore.tokenizer_fingerprint,
                expected=fingerprint,
                remedy="build it again with the tokenizer of this model",
            )


def read_prompt(prompt: str) -> str:
    """Returns the prompt itself, or the text of the file that `@FILE` names.

    Raises:
        MissingPath: the file cannot be read as text.
    """
    if not prompt.startswith("@"):
        return prompt
    try:
        return Path(prompt[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingPath("cannot read the prompt", got=prompt[1:], remedy=str(error)) from error
