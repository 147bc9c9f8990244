from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_spec.datastore.manifest import format_manifest, parse_manifest
from retrieval_spec.datastore.sealed_json import MAX_BYTES
from retrieval_spec.datastore.store import open_datastore
from retrieval_spec.errors import DatastoreCorrupt, DatastoreError, DatastoreVersion
from tests.golden import GOLDEN, change_manifest, copy_golden, reseal

SEALED = (GOLDEN / "uint16" / "manifest.json").read_bytes()
NUMBER_LIES = (-1, 2**63, 10**400, True, False, 1.0, 1.5, "7", None, [], {}, float("nan"))
TEXT_LIES = ("", "x" * 129, "line\nbreak", "\x00", 7, None, [], True)
HASH_LIES = ("", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "\u0660" * 64, 0, None)
SHAPE_LIES = ([], [29, 1], [-1], [2**63], [2**62], [True], [29.0], ["29"], 29, "29", None, {}, [[29]])
NAME_LIES = (
    "../tokens.bin",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..",
    "a..b",
    "",
    "x" * 65,
    "Tokens.bin",
    "tokens.bin\n",
    "tokens\x00.bin",
    "töken.bin",
    "manifest.json",
)


def lies() -> list[tuple[tuple[str, ...], object]]:
    """Every field with every value that it must not have."""
    table: list[tuple[tuple[str, ...], object]] = []
    for key in ("num_tokens", "num_documents", "vocab_size", "separator", "depth_tokens"):
        table += [((key,), value) for value in NUMBER_LIES]
    table += [(("version",), value) for value in NUMBER_LIES if value != 2**63]
    table += [
        (("vocab_size",), 0),
        (("depth_tokens",), 0),
        (("depth_tokens",), 65),
        (("num_tokens",), 2**32 + 1),
    ]
    table += [(("separator",), 65_534), (("separator",), 2**31 - 1), (("token_dtype",), "<i4")]
    for key in ("kind", "name", "created_by"):
        table += [((key,), value) for value in TEXT_LIES]
    for key in ("model", "normalizer", "pre_tokenizer"):
        table += [(("tokenizer", key), value) for value in TEXT_LIES]
    for key in ("vocab_size", "num_added_tokens", "num_merges"):
        table += [(("tokenizer", key), value) for value in NUMBER_LIES]
    table += [(("tokenizer", "fingerprint"), value) for value in (*HASH_LIES, "sha256:", "md5:" + "0" * 64)]
    for value in ("<f4", "<u1", ">u2", "=u2", "u2", "|O", "object", "<u4", 2, None, [], {}):
        table += [(("token_dtype",), value), (("files", "tokens.bin", "dtype"), value)]
    table += [(("files", "tokens.bin", "shape"), value) for value in SHAPE_LIES]
    table += [(("files", "tokens.bin", "bytes"), value) for value in NUMBER_LIES]
    table += [(("files", "tokens.bin", "sha256"), value) for value in HASH_LIES]
    table += [(("files", "tokens.bin", "column"), value) for value in (*TEXT_LIES, "positions", "else")]
    table += [((key,), value) for key in ("tokenizer", "files") for value in (None, [], 7, "x", {})]
    table += [(("files", "tokens.bin"), value) for value in (None, [], 7, "x", {})]
    return table


@pytest.mark.row("F2")
@pytest.mark.parametrize(("keys", "value"), lies(), ids=repr)
def test_a_sealed_manifest_that_lies_is_refused(tmp_path, keys, value):
    store = copy_golden(tmp_path)

    def lie(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    change_manifest(store, lie)
    with pytest.raises(DatastoreCorrupt):
        open_datastore(store)


def paths_of(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [path]
    return [path] * bool(path) + [p for key, v in value.items() for p in paths_of(v, (*path, key))]


@pytest.mark.row("F2")
@pytest.mark.parametrize("keys", paths_of(json.loads(SEALED)), ids=".".join)
def test_every_field_is_needed(tmp_path, keys):
    store = copy_golden(tmp_path)

    def drop(manifest):
        for key in keys[:-1]:
            manifest = manifest[key]
        del manifest[keys[-1]]

    change_manifest(store, drop)
    with pytest.raises(DatastoreCorrupt):
        open_datastore(store)


@pytest.mark.row("F5/F6")
@pytest.mark.parametrize("name", NAME_LIES, ids=repr)
def test_file_names_stay_in_the_folder(tmp_path, name):
    store = copy_golden(tmp_path)
    (tmp_path / "tokens.bin").write_bytes((store / "tokens.bin").read_bytes())

    def rename(manifest):
        manifest["files"][name] = manifest["files"].pop("tokens.bin")

    change_manifest(store, rename)
    with pytest.raises(DatastoreCorrupt, match="file name"):
        open_datastore(store)


@pytest.mark.quick
@pytest.mark.row("F1")
def test_every_single_bit_flip_is_detected():
    accepted = []
    for index in range(len(SEALED)):
        for bit in range(8):
            flipped = bytearray(SEALED)
            flipped[index] ^= 1 << bit
            try:
                parse_manifest(bytes(flipped))
            except DatastoreError:
                continue
            accepted.append((index, bit))
    assert accepted == []


@pytest.mark.row("F-fuzz")
@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_garbage_is_refused(data):
    with pytest.raises(DatastoreCorrupt):
        parse_manifest(data)


@pytest.mark.row("F2")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b"9" * 100_000,
        b'{"format": NaN}',
        b"\xff\xfe",
        SEALED[:-20],
        SEALED + b" " * MAX_BYTES,
        SEALED.replace(b'"version": 1,', b'"version": 1, "version": 1,'),
        b'{"format": "retrieval-spec-datastore", "version": 1}',
        b'{"format": "safetensors", "version": 1}',
    ],
    ids=range(13),
)
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(DatastoreCorrupt):
        parse_manifest(data)


@pytest.mark.row("F2")
def test_a_duplicate_key_is_refused_even_if_sealed():
    data = SEALED.replace(b'"name":', b'"name": "other", "name":')
    with pytest.raises(DatastoreCorrupt, match="occurs twice"):
        parse_manifest(reseal(data))


@pytest.mark.row("F9")
@pytest.mark.parametrize("version", [2, 7, 2**40])
def test_a_newer_version_is_named_with_the_remedy(tmp_path, version):
    store = copy_golden(tmp_path)
    change_manifest(store, lambda manifest: manifest.update(version=version, files="of another shape"))
    with pytest.raises(DatastoreVersion, match=rf"got {version}; expected 1; upgrade"):
        open_datastore(store)


@pytest.mark.row("F9")
def test_an_unknown_kind_is_named(tmp_path):
    store = copy_golden(tmp_path)
    change_manifest(store, lambda manifest: manifest.update(kind="graph"))
    with pytest.raises(DatastoreVersion, match="got graph; expected context_array"):
        open_datastore(store)


@pytest.mark.row("F9")
def test_unknown_keys_of_the_same_version_are_ignored(tmp_path):
    store = copy_golden(tmp_path)
    change_manifest(store, lambda manifest: manifest.update(colour={"deep": [1.5, None]}))
    assert open_datastore(store).manifest == open_datastore(GOLDEN / "uint16").manifest


def test_parsing_and_formatting_are_inverse():
    assert format_manifest(parse_manifest(SEALED)) == SEALED


def test_errors_are_one_line_and_name_the_remedy():
    with pytest.raises(DatastoreCorrupt) as caught:
        parse_manifest(reseal(re.sub(rb'"num_tokens": \d+', b'"num_tokens": -4', SEALED)))
    assert str(caught.value) == (
        "manifest.json: 'num_tokens' is wrong; got -4; expected 0 to 4294967296; "
        "rebuild it with `retrieval-spec build`"
    )


def test_the_specification_names_every_field():
    text = Path(GOLDEN.parent.parent, "FORMAT.md").read_text()
    for path in paths_of(json.loads(SEALED)):
        assert path[-1] in text
