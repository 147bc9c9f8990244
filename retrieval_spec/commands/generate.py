"""`retrieval-spec generate`: one generation with a local model, drafts from a sidecar or in process."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from retrieval_spec.client import Credentials, DraftClient, DraftSource, LocalClient
from retrieval_spec.commands.connecting import credentials_of, expect_server
from retrieval_spec.errors import InvalidRequest, MissingDependency, MissingPath, TokenizerMismatch


def generate_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs the generation and returns the text and what the drafts gained."""
    # What can be refused at once is refused before the model is loaded, which takes seconds.
    check_generation_options(arguments)
    prompt = read_prompt(arguments.prompt)
    check_model_folder(arguments.model)
    if arguments.draft_model:
        check_draft_model(arguments.draft_model, arguments.model)
    credentials = credentials_of(arguments)
    remote = open_server(arguments.server, arguments.model, credentials) if arguments.server else None
    model, tokenizer = load_model(arguments.model)
    source: DraftSource = remote or open_engine(arguments, int(model.config.vocab_size))
    if arguments.draft_model:
        source = with_draft_model(source, arguments.draft_model)
    try:
        return run_generation(arguments, model, tokenizer, source, prompt)
    finally:
        source.close()


def run_generation(
    arguments: argparse.Namespace, model: Any, tokenizer: Any, source: DraftSource, prompt: str
) -> dict[str, Any]:
    """Generates and measures."""
    from retrieval_spec.step_costs import StepCostMeter
    from retrieval_spec.verifier import generate

    inputs = tokenizer(prompt, return_tensors="pt").input_ids
    began = time.perf_counter()
    result = generate(
        model,
        inputs,
        source,
        max_nodes=arguments.max_nodes,
        step_costs=StepCostMeter() if arguments.node_budget == "measured" else None,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        **sampling_options(arguments),
    )
    seconds = time.perf_counter() - began
    return {
        "text": tokenizer.decode(result.output_ids, skip_special_tokens=True),
        "tokens": len(result.output_ids),
        "steps": result.steps,
        "drafted_nodes": result.drafted_nodes,
        "mean_acceptance_length": round(result.mean_acceptance_length, 3),
        "tokens_per_s": round(len(result.output_ids) / seconds, 1),
    }


def check_generation_options(arguments: argparse.Namespace) -> None:
    """Refuses values that no generation can have.

    Raises:
        InvalidRequest: an option out of range, or a server and datastores together.
    """
    if arguments.server and arguments.datastore:
        raise InvalidRequest(
            "datastores belong to the server", remedy="give --server or --datastore, not both"
        )
    if arguments.server and arguments.preset != "default":
        raise InvalidRequest("the preset is the server's", remedy="give --preset to `retrieval-spec serve`")
    expect_server(arguments)
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


def check_model_folder(folder: str | Path, option: str = "--model") -> None:
    """Refuses a folder that holds no model.

    Raises:
        MissingPath: there is no such folder, or no config.json in it.
    """
    if not (Path(folder) / "config.json").is_file():
        raise MissingPath(
            "no model folder", got=folder, expected="a folder with config.json", remedy=f"check {option}"
        )


def load_model(folder: str | Path) -> tuple[Any, Any]:
    """Returns a causal language model in float32 and its tokenizer, from a local folder alone.

    Raises:
        MissingPath: the folder does not exist or holds no model.
        MissingDependency: torch or transformers is not installed.
    """
    check_model_folder(folder)
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


def open_server(address: str, model: str | Path, credentials: Credentials | None = None) -> DraftClient:
    """Returns a client of the sidecar, checked against the model's tokenizer.

    Raises:
        TokenizerMismatch: a datastore behind it was built with another tokenizer.
        ServiceUnavailable: the server does not answer.
    """
    client = DraftClient(address, credentials=credentials)
    check_server(client, model)
    return client


def open_engine(arguments: argparse.Namespace, vocab_size: int) -> LocalClient:
    """Returns an engine in this process, its datastores checked against the model's tokenizer.

    Raises:
        TokenizerMismatch: a datastore was built with another tokenizer.
    """
    from retrieval_spec.commands.serve import check_tokenizers
    from retrieval_spec.datastore.segments import open_segments
    from retrieval_spec.engine import Engine

    manifests = {path: open_segments(path).manifest for path in arguments.datastore}
    check_tokenizers(arguments.model, manifests)
    return LocalClient(Engine(vocab_size, preset=arguments.preset, datastores=arguments.datastore))


def check_draft_model(folder: str | Path, model: str | Path) -> None:
    """Refuses a draft model whose ids mean other text than the target's.

    Raises:
        MissingPath: the folder holds no model.
        TokenizerMismatch: the tokenizers differ.
    """
    from retrieval_spec.datastore.tokenizer import load_tokenizer
    from retrieval_spec.model_tree import check_same_ids

    check_model_folder(folder, "--draft-model")
    check_same_ids(load_tokenizer(folder).fingerprint, load_tokenizer(model).fingerprint)


def with_draft_model(source: DraftSource, folder: str | Path) -> DraftSource:
    """Returns a source that fuses the trees of `source` with a draft model's (RASD)."""
    from retrieval_spec.verifier.draft_model import HuggingFaceDraftModel
    from retrieval_spec.verifier.fused_source import FusedSource

    return FusedSource([source], HuggingFaceDraftModel(load_model(folder)[0]))


def check_server(client: DraftClient, model: str | Path) -> None:
    """Refuses a server whose datastores were built with another tokenizer than the model's.

    Raises:
        TokenizerMismatch: a datastore's ids mean other text.
        ServiceUnavailable: the server does not answer.
    """
    from retrieval_spec.datastore.manifest import TRANSLATE
    from retrieval_spec.datastore.tokenizer import load_tokenizer

    datastores = client.server_info.datastores
    fingerprint = load_tokenizer(model).fingerprint if datastores else ""
    for datastore in datastores:
        if datastore.tokenizer_fingerprint != fingerprint:
            raise TokenizerMismatch(
                f"the server's datastore {datastore.name} was built with another tokenizer",
                got=datastore.tokenizer_fingerprint,
                expected=fingerprint,
                remedy=TRANSLATE,
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
