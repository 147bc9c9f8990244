"""Measures what a dense datastore adds to sources of text, at equal numbers of nodes.

    python tools/measure_dense.py --dense DIR --text DIR [--model DIR]

Both datastores hold the same corpus. The model writes on from the beginnings of held-out modules, greedily
and by sampling; held-out text itself stands for a target that writes as people do. Outputs are made once
and replayed: under verification the accepted tokens depend on the output alone.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval_spec.commands.demo import existing, held_out_files, prompt_texts
from retrieval_spec.commands.generate import load_model
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.drafters.presets import Preset, Source, preset
from retrieval_spec.engine import Engine
from retrieval_spec.feedback import Feedback
from retrieval_spec.session import Session

NODES = (4, 8, 16, 32, 64)
NUM_PROMPTS = 14
NEW_TOKENS = 160
DECODING: dict[str, dict[str, Any]] = {
    "greedy, repetition penalty 1.2": {"do_sample": False, "repetition_penalty": 1.2},
    "sampled at temperature 0.8": {"do_sample": True, "temperature": 0.8, "top_k": 0},
}
PRESETS = {
    "session + corpus": Preset((Source("session"), Source("corpus"))),
    "session + corpus + dense": Preset((Source("session"), Source("corpus"), Source("dense"))),
    "corpus": Preset((Source("corpus"),)),
    "dense": Preset((Source("dense"),)),
    "dresd": preset("dresd"),
}


@dataclass(frozen=True)
class Output:
    """One text: the first `prompt_length` tokens are given, `states[i]` decides token i + 1."""

    kind: str
    tokens: list[int]
    prompt_length: int
    states: NDArray[np.float32]


def outputs(model: Any, tokenizer: Any) -> Iterator[Output]:
    """Yields the model's outputs, then held-out text."""
    for kind, options in DECODING.items():
        for seed, text in enumerate(prompt_texts(NUM_PROMPTS)):
            torch.manual_seed(seed)
            prompt = tokenizer(text, return_tensors="pt").input_ids
            tokens = model.generate(prompt, max_new_tokens=NEW_TOKENS, **options)[0].tolist()
            yield Output(kind, tokens, prompt.shape[1], states_of(model, tokens))
    for file in existing(Path(sysconfig.get_path("stdlib")), held_out_files()):
        tokens = tokenizer(file.read_text(encoding="utf-8", errors="ignore"), verbose=False).input_ids[:900]
        if len(tokens) > 700:
            yield Output("held-out text itself", tokens, 400, states_of(model, tokens))


def states_of(model: Any, tokens: list[int]) -> NDArray[np.float32]:
    """Returns float32[n, h], the states of one plain pass."""
    with torch.inference_mode():
        states: NDArray[np.float32] = model.model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    return states


def replay(engine: Engine, output: Output, max_nodes: int, us: list[float]) -> tuple[int, int]:
    """Returns steps and accepted tokens of one output; appends the time of every draft to `us`."""
    session = engine.open_session(output.tokens[: output.prompt_length])
    states = engine.projection.apply(output.states) if engine.projection else None
    at, steps, accepted = output.prompt_length, 0, 0
    commit(session, output.tokens[at : at + 1], states, at + 1)
    at += 1
    while at < len(output.tokens):
        began = time.perf_counter()
        tree = session.draft(max_nodes)
        us.append(1e6 * (time.perf_counter() - began))
        num = matched(tree, output.tokens[at:-1])
        end = at + num + 1
        commit(session, output.tokens[at:end], states, end)
        at, steps, accepted = end, steps + 1, accepted + num
    session.close()
    return steps, accepted


def commit(session: Session, tokens: list[int], states: NDArray[np.float32] | None, end: int) -> None:
    """Commits tokens that end before `end`, with the state that decided the last of them."""
    session.commit(tokens, None if states is None else Feedback(hidden_state=states[end - 2]))


def matched(tree: Any, truth: list[int]) -> int:
    """Returns how many of the next tokens are a path of the tree."""
    nodes = zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True)
    children = {key: node for node, key in enumerate(nodes)}
    node, num = -1, 0
    while num < len(truth) and (node, truth[num]) in children:
        node, num = children[node, truth[num]], num + 1
    return num


def main() -> None:
    """Prints the mean acceptance length for every kind of output, preset and number of nodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dense", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--model", default=str(demo_model_dir()))
    arguments = parser.parse_args()
    model, tokenizer = load_model(arguments.model)
    texts = list(outputs(model, tokenizer))
    stores = [arguments.dense, arguments.text]
    engines = {
        name: Engine(model.config.vocab_size, preset=chosen, datastores=stores)
        for name, chosen in PRESETS.items()
    }
    for kind in dict.fromkeys(text.kind for text in texts):
        chosen = [text for text in texts if text.kind == kind]
        print(f"\n{kind}: {len(chosen)} texts, mean acceptance length at {NODES} nodes, p50 of a draft")
        for name, engine in engines.items():
            row, us = [], []
            for max_nodes in NODES:
                counts = np.array([replay(engine, text, max_nodes, us) for text in chosen]).sum(axis=0)
                row.append(f"{1 + counts[1] / counts[0]:.3f}")
            print(f"  {name:26s}{'  '.join(row)}  {np.median(us):4.0f} us")


if __name__ == "__main__":
    main()
