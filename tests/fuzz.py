"""What parses bytes of strangers, as targets for fuzzing; tests/atheris_fuzz.py looks for bad ends.

A target may refuse its input with a typed error; whatever else it raises is a bug.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from retrieval_spec import wire
from retrieval_spec.datastore.generation import Generation, SegmentEntry, format_generation, parse_generation
from retrieval_spec.datastore.history_segment import Text, header_bytes, read_segment, record_bytes
from retrieval_spec.datastore.layout import check_manifest
from retrieval_spec.datastore.manifest import parse_manifest
from retrieval_spec.datastore.sealed_json import UNSEALED
from retrieval_spec.errors import RetrievalSpecError
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1 import draft_pb2 as pb
from tests.conftest import REPOSITORY

CORPUS = Path(__file__).with_name("fuzz_corpus")
NAMES = ("a", "b", "c")
VOCAB_SIZE, MAX_ROWS, MAX_NODES = 300, 8, 16
HASH_BYTES = 32


def resealed(data: bytes, key: bytes) -> bytes:
    """The same with a right checksum, if there is a place for one: else nothing behind it is ever reached."""
    head, quote, tail = data.partition(b'"' + key + b'": "')
    zeroed = head + quote + UNSEALED.encode() + tail[64:]
    return head + quote + hashlib.sha256(zeroed).hexdigest().encode() + tail[64:] if quote else data


def manifest(data: bytes) -> None:
    check_manifest(parse_manifest(resealed(data, b"manifest_sha256")))


def generation(data: bytes) -> None:
    found = parse_generation(resealed(data, b"generation_sha256"))
    assert parse_generation(format_generation(found)) == found


def history(data: bytes) -> None:
    records, begin = [], 0
    while begin < len(data):  # the first byte of each record says how long it is
        end = begin + 1 + data[begin]
        records.append(data[begin + 1 : end])
        begin = end
    sealed = b"".join(record + hashlib.sha256(record).digest() for record in records)
    content = read_segment(header_bytes("default") + sealed, VOCAB_SIZE)
    assert content is not None
    for text in content.texts:
        assert all(0 <= token < VOCAB_SIZE for token in (*text.prompt.tolist(), *text.output.tolist()))


def step(data: bytes) -> None:
    message = pb.DraftStep.FromString(data)
    columns = wire.read_columns(message, MAX_ROWS)
    for row in wire.read_step(message, columns, wire.read_commits(message, columns)):
        assert row.commit.dtype == np.int32
    wire.read_cost_curve(message)


def suffixes(data: bytes) -> None:
    for row in wire.read_suffixes(pb.DraftSuffixesRequest.FromString(data), MAX_ROWS):
        assert 0 <= len(row.token_ids) <= row.context_length


def answer(data: bytes) -> None:
    message = pb.DraftStepResult.FromString(data)
    if message.step_number % 2:
        wire.unpad(message)
    count = min(len(message.node_counts) // 4, MAX_ROWS)
    outcomes = wire.read_result(message, [MAX_NODES] * count, 2 * MAX_NODES, VOCAB_SIZE, NAMES)
    for outcome in outcomes:
        if isinstance(outcome, DraftTree):
            outcome.check(VOCAB_SIZE)


def ahead(data: bytes) -> None:
    message = pb.DraftAhead.FromString(data)
    for outcome, tree in wire.read_ahead(message, MAX_NODES, VOCAB_SIZE, NAMES).items():
        assert len(outcome) % 4 == 0
        tree.check(VOCAB_SIZE)


def projection(data: bytes) -> None:
    wire.read_projection(pb.Projection.FromString(data))


Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (manifest, generation, history, step, suffixes, answer, ahead, projection)
}


def attempt(target: Target, data: bytes) -> bool:
    """Whether the target took the data; refusing it by a typed error is as good."""
    try:
        target(data)
    except (RetrievalSpecError, DecodeError):
        return False
    return True


def mutated(data: bytes, chosen: random.Random) -> bytes:
    """The data with some bytes changed, put in, left out or said twice."""
    changed = bytearray(data)
    for _ in range(chosen.randint(1, 4)):
        at, count = chosen.randint(0, len(changed)), chosen.randint(1, 8)
        kind = chosen.randrange(4)
        if kind == 0 and at < len(changed):
            changed[at] = chosen.randrange(256)
        elif kind == 1:
            changed[at:at] = chosen.choice((chosen.randbytes(count), bytes(count), b"\xff" * count))
        elif kind == 2:
            del changed[at : at + count]
        else:
            changed[at:at] = changed[at : at + 2 * count]
    return bytes(changed)


def seeds() -> dict[str, list[bytes]]:
    """Sound inputs of every kind, to begin with."""
    tree = DraftTree.from_lists([1, 2, 3], [-1, 0, 0], [0.5, 0.5, 0.25], [1, 2, 4], NAMES)
    result, steps, rows = pb.DraftStepResult(), pb.DraftStep(), pb.DraftSuffixesRequest()
    wire.write_result(result, [tree, tree])
    tokens = np.array([1, 2, 299], np.int32)
    wire.write_step(steps, [wire.SessionStep(7, 3, tokens, 4), wire.SessionStep(8, 0, tokens[:0], 4)], 8)
    wire.write_suffixes(rows, [wire.Suffix(tokens, 9, 4)], 8)
    pushed = pb.DraftAhead()
    wire.write_ahead(pushed, [tokens[:1], tokens], [tree, tree])
    vector = np.ones(2, "<f4").tobytes()
    shape = pb.Projection(
        mean=vector, scale=vector, components=2 * vector, model_fingerprint="sha256:" + "0" * 64
    )
    text = Text(tokens[:1], tokens)
    entry = SegmentEntry("segments/0123456789abcdef", "a" * 64, 12, 3)
    golden = REPOSITORY / "datastores" / "golden" / "v1"
    record = record_bytes(text)[:-HASH_BYTES]
    return {
        "manifest": [path.read_bytes() for path in sorted(golden.glob("*/manifest.json"))],
        "generation": [format_generation(Generation(7, (SegmentEntry(".", "b" * 64, 5, 1), entry)))],
        "history": [bytes([len(record)]) + record, b""],
        "step": [steps.SerializeToString()],
        "suffixes": [rows.SerializeToString()],
        "answer": [result.SerializeToString()],
        "ahead": [pushed.SerializeToString()],
        "projection": [shape.SerializeToString()],
    }


def corpus_of(name: str) -> list[bytes]:
    """What is tried in every run: sound inputs, and what reached a new branch once."""
    return [*seeds()[name], *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]
