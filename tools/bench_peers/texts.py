"""What is replayed: text that every machine has, and recorded outputs where there are some.

A set is a folder of `traces.jsonl` and `static.jsonl` (recordings, families one after the other), `fed.jsonl`
(recordings that teach), `corpus.u16` (documents of token ids, each ended by 65535) and `facts.json`. Ids are
renamed to small ones in their own order, as infini-gram's index of ids above 65535 asks for 34 GB.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from environments import KEPT, ROOT
from replaying import Trace

from retrieval_spec.datastore.tokenizer import load_tokenizer

SEPARATOR = 0xFFFF
LIBRARY_PROMPT_TOKENS = 400
LIBRARY_ITEMS = 12
OUTPUT_TOKENS = 200
RECORDED_ITEMS = 4
STATIC_ITEMS = {"library": 8, "recorded": 2}
STATIC_TOKENS = 80
DOCUMENTS = 700
"""Read of each corpus: more than enough tokens."""
RECORDED_FED_ITEMS = 60
FED_TOKENS = 60_000
CORPUS_TOKENS = 600_000
LEFT_OUT = {"encodings", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo"}
"""Folders of the standard library: tables, tests and what not every machine has."""

NOT_RECORDED = {"agent_code", "agent_tools"}
"""Families whose prompts are far longer than their outputs are not fed."""

Ids = list[int]


def library_files() -> list[tuple[str, str]]:
    """Returns name and text of the standard library's modules."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in root.rglob("*.py") if not LEFT_OUT & set(path.relative_to(root).parts))
    texts = ((str(path.relative_to(root)), path.read_text("utf-8", "ignore")) for path in paths)
    return [(name, text) for name, text in texts if 2_000 < len(text) < 200_000]


def renamed_functions(text: str) -> Iterator[tuple[str, str]]:
    """Yields the functions of a module that use an argument often: a task to rename it, and the result."""
    for node in ast.walk(ast.parse(text)):
        source = ast.get_source_segment(text, node) if isinstance(node, ast.FunctionDef) else None
        if source is None or not 600 < len(source) < 2_000:
            continue
        arguments = {argument.arg for argument in node.args.args} - {"self", "cls"}
        used = Counter(
            name.id for name in ast.walk(node) if isinstance(name, ast.Name) and name.id in arguments
        )
        if used and (most := used.most_common(1)[0])[1] >= 3:
            task = f"{source}\n\n# The same with {most[0]} renamed to given_{most[0]}:\n"
            yield task, re.sub(rf"\b{re.escape(most[0])}\b", f"given_{most[0]}", source)


def library() -> dict[str, Any]:
    """Returns the set from the standard library: modules that go on, and functions with a name changed."""
    tokenizer = load_tokenizer(ROOT / "retrieval_spec" / "demo_model")
    files = library_files()
    chosen = files[:: max(1, len(files) // (3 * LIBRARY_ITEMS))]
    ids = tokenizer.encode_batch([text for _, text in chosen])
    traces = [
        trace_of("module goes on", document[:LIBRARY_PROMPT_TOKENS], document[LIBRARY_PROMPT_TOKENS:])
        for document in islice((d.tolist() for d in ids if d.size > 800), LIBRARY_ITEMS)
    ]
    edits = [edit for _, text in chosen for edit in islice(renamed_functions(text), 1)][:LIBRARY_ITEMS]
    for task, result in edits:
        prompt, output = (encoded.tolist() for encoded in tokenizer.encode_batch([task, result]))
        traces.append(trace_of("name changed", prompt, output))
    names = {name for name, _ in chosen}
    rest = [document.tolist() for document in tokenizer.encode_batch([t for n, t in files if n not in names])]
    fed = [trace_of("fed", document[:100], document[100:700], 600) for document in rest]
    return whole_set(traces, fed, up_to(rest, CORPUS_TOKENS))


def recorded(data: Path) -> dict[str, Any]:
    """Returns the set from recorded outputs: the first items of every family, and corpora."""
    traces, fed = [], []
    for path in sorted((data / "tok_qwen2").glob("*.jsonl")):
        with path.open() as lines:
            items = [json.loads(line) for line in islice(lines, RECORDED_FED_ITEMS)]
        found = [trace_of(path.stem, item["prompt_ids"], item["output_ids"]) for item in items]
        traces += found[:RECORDED_ITEMS]
        fed += [] if path.stem in NOT_RECORDED else found[RECORDED_ITEMS:]
    tokenizer = load_tokenizer(data / "tokenizers" / "qwen2")
    documents: list[Ids] = []
    corpora = sorted((data / "corpora").glob("*_*mb.jsonl"))
    for path in corpora:
        with path.open() as lines:
            texts = [document_text(line) for line in islice(lines, DOCUMENTS)]
        encoded = (document.tolist() for document in tokenizer.encode_batch(texts))
        documents += up_to(encoded, CORPUS_TOKENS // len(corpora))
    return whole_set(traces, fed, documents)


def document_text(line: str) -> str:
    """Returns what a line of a corpus says."""
    item = json.loads(line)
    return str(item["text"] if "text" in item else item["output"])


def trace_of(family: str, prompt: Ids, output: Ids, max_tokens: int = OUTPUT_TOKENS) -> Trace:
    """Returns a recording, its output cut."""
    return {"family": family, "prompt_ids": prompt, "output_ids": output[:max_tokens]}


def up_to(documents: Iterable[Ids], max_tokens: int) -> list[Ids]:
    """Returns the first documents, about so many tokens in all, and each once."""
    taken: dict[tuple[int, ...], None] = {}
    size = 0
    for document in documents:
        if size >= max_tokens:
            break
        size += 0 if tuple(document) in taken else len(document)
        taken[tuple(document)] = None
    return [list(document) for document in taken]


def whole_set(traces: list[Trace], fed: list[Trace], documents: list[Ids]) -> dict[str, Any]:
    """Returns the parts of a set, ids renamed in their own order."""
    taken, size = [], 0
    for trace in fed:
        if size < FED_TOKENS and len(trace["output_ids"]) > 10:
            taken.append(trace)
            size += len(trace["output_ids"])
    recordings = [*traces, *taken]
    used = {i for trace in recordings for i in trace["prompt_ids"] + trace["output_ids"]}
    names = {token: name for name, token in enumerate(sorted(used.union(*documents)))}
    if len(names) >= SEPARATOR:
        raise SystemExit(f"bench_peers: {len(names):,} different token ids do not fit 16 bits; use less text")
    for trace in recordings:
        trace["prompt_ids"] = [names[token] for token in trace["prompt_ids"]]
        trace["output_ids"] = [names[token] for token in trace["output_ids"]]
    corpus = np.array([i for d in documents for i in (*(names[t] for t in d), SEPARATOR)], np.uint16)
    return {"traces": traces, "fed": taken, "corpus": corpus, "vocab_size": len(names)}


def first_of_each(traces: list[Trace], items: int, tokens: int) -> list[Trace]:
    """Returns the first recordings of each family, cut shorter."""
    seen: Counter[str] = Counter()
    found = []
    for trace in traces:
        seen[trace["family"]] += 1
        if seen[trace["family"]] <= items:
            found.append({**trace, "output_ids": trace["output_ids"][:tokens]})
    return found


def write_set(name: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Writes a set; returns its facts, with places."""
    folder = KEPT / "texts" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    static = first_of_each(parts["traces"], STATIC_ITEMS[name], STATIC_TOKENS)
    for kind, traces in (("traces", parts["traces"]), ("static", static), ("fed", parts["fed"])):
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in traces))
    parts["corpus"].tofile(folder / "corpus.u16")
    return {
        "name": name,
        "folder": str(folder),
        "vocab_size": parts["vocab_size"],
        "items": len(parts["traces"]),
        "output_tokens": sum(len(trace["output_ids"]) for trace in parts["traces"]),
        "static_tokens": sum(len(trace["output_ids"]) for trace in static),
        "fed_tokens": sum(len(trace["output_ids"]) for trace in parts["fed"]),
        "corpus_tokens": int(parts["corpus"].size),
    }
