"""Token ids that other tools wrote: whole files, and files that lie about themselves."""

from __future__ import annotations

import struct
import tracemalloc
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.readers import arrays as arrays_module
from retrieval_spec.errors import InvalidRequest


def test_an_index_that_ends_too_soon_is_refused(tmp_path):
    (tmp_path / "index").write_bytes(np.arange(10, dtype="<u8").tobytes())
    assert list(arrays_module.numbers_of(tmp_path / "index", np.dtype("<u8"), 16, 8)) == list(range(2, 10))
    with pytest.raises(InvalidRequest, match="index became shorter while it was read"):
        list(arrays_module.numbers_of(tmp_path / "index", np.dtype("<u8"), 16, 9))


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    documents = Corpus([write_datatrove(tmp_path)]).documents(tokenizer=FixedVocabulary(65_535))
    next(iter(documents))
    (tmp_path / "00000.ds").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="ds became shorter while it was read"):
        list(documents)


class FixedVocabulary:
    """As much of a tokenizer as ids need that exist already."""

    folder = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size


DOCUMENTS = [[5, 1, 300], [7], [], [65_534, 2]]
WIDE = [[5, 1, 300], [7], [], [151_000, 2]]


def flat(documents) -> list[int]:
    return [token_id for document in documents for token_id in document]


def write_datatrove(folder: Path, documents=DOCUMENTS, dtype="<u2") -> Path:
    path = folder / "00000.ds"
    path.write_bytes(np.array(flat(documents), dtype).tobytes())
    ends = list(accumulate(map(len, documents)))
    path.with_name("00000.ds.index").write_bytes(np.array(ends, "<u8").tobytes())
    return path


def write_infini_gram(folder: Path, documents=DOCUMENTS, dtype="<u2") -> Path:
    separator = np.iinfo(dtype).max
    parts = [np.array([separator, *document], dtype).tobytes() for document in documents]
    starts = list(accumulate(map(len, parts), initial=0))[:-1]
    (folder / "tokenized.3").write_bytes(b"".join(parts))
    (folder / "offset.3").write_bytes(np.array(starts, "<u8").tobytes())
    return folder / "tokenized.3"


def megatron_index(lengths, edges, code=8, width=2, version=1, num_sequences=None, num_edges=None) -> bytes:
    first_bytes = [width * end for end in accumulate(lengths, initial=0)][:-1]
    header = struct.pack(
        "<9sQBQQ",
        b"MMIDIDX\0\0",
        version,
        code,
        len(lengths) if num_sequences is None else num_sequences,
        len(edges) if num_edges is None else num_edges,
    )
    columns = (np.array(lengths, "<i4"), np.array(first_bytes, "<i8"), np.array(edges, "<i8"))
    return header + b"".join(column.tobytes() for column in columns)


def write_megatron(folder: Path, documents=DOCUMENTS, dtype="<u2") -> Path:
    path = folder / "a.bin"
    path.write_bytes(np.array(flat(documents), dtype).tobytes())
    code, width = {"<u2": (8, 2), "<u4": (4, 4)}[dtype]
    edges = list(range(len(documents) + 1))
    path.with_suffix(".idx").write_bytes(megatron_index(list(map(len, documents)), edges, code, width))
    return path


WRITERS = {"datatrove": write_datatrove, "infini-gram": write_infini_gram, "megatron": write_megatron}


def ids(*inputs: Path, vocab_size: int | None = None, **options) -> list[list[int]]:
    tokenizer = None if vocab_size is None else FixedVocabulary(vocab_size)
    documents = Corpus(inputs, **options).documents(tokenizer=tokenizer)
    return [document.token_ids.tolist() for document in documents]


def filled(documents) -> list[list[int]]:
    return [document for document in documents if document]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("documents", "dtype"), [(DOCUMENTS, "<u2"), (DOCUMENTS, "<u4"), (WIDE, "<u4")])
def test_documents_come_back(tmp_path, kind, documents, dtype):
    path = WRITERS[kind](tmp_path, documents, dtype)
    assert ids(path) == filled(documents)
    assert ids(tmp_path) == filled(documents)
    corpus = Corpus([path])
    told: list[int] = []
    assert all(document.source == str(path) for document in corpus.documents(told.append))
    assert sum(told) == corpus.num_bytes


REAL_DOCUMENTS = [
    [4299, 277, 33529, 198, 220, 220, 220, 1441, 352, 198],
    [12227, 3188],
    [17089, 10545, 245, 98, 17312, 105, 45739, 252, 530],
]
REAL_IDS = "cb101501f982c600dc00dc00dc00a1056001c600c32f740cc1423129f5006200a0436900abb2fc001202"
REAL_FILES = {
    "datatrove 0.10.1": {
        "0.ds": REAL_IDS,
        "0.ds.index": "0a000000000000000c000000000000001500000000000000",
    },
    "megatron-core 0.16.1": {
        "a.bin": REAL_IDS,
        "a.idx": "4d4d49444944580000010000000000000008030000000000000004000000000000000a00000002000000"
        "090000000000000000000000140000000000000018000000000000000000000000000000010000000000000002000000000000000300"
        "000000000000",
    },
    "infini-gram 2.6.0": {
        "tokenized.0": f"ffff{REAL_IDS[:40]}ffff{REAL_IDS[40:48]}ffff{REAL_IDS[48:]}",
        "offset.0": "000000000000000016000000000000001c00000000000000",
    },
}


@pytest.mark.parametrize("tool", REAL_FILES)
def test_files_that_the_tools_themselves_wrote_are_read(tmp_path, tool):
    for name, data in REAL_FILES[tool].items():
        (tmp_path / name).write_bytes(bytes.fromhex(data))
    assert ids(tmp_path, vocab_size=50_257) == REAL_DOCUMENTS


@pytest.mark.parametrize("kind", WRITERS)
def test_no_documents_are_none(tmp_path, kind):
    assert ids(WRITERS[kind](tmp_path, [])) == []
    assert ids(WRITERS[kind](tmp_path, [[], []])) == []


@pytest.mark.parametrize("kind", WRITERS)
def test_an_id_outside_the_vocabulary_is_named_or_passed_over(tmp_path, kind):
    path = WRITERS[kind](tmp_path)
    with pytest.raises(InvalidRequest, match=rf"{path.name}: document 0: token id at index 2 .* got 300"):
        ids(path, vocab_size=300)
    corpus = Corpus([path], on_error="skip")
    found = [document.token_ids.tolist() for document in corpus.documents(tokenizer=FixedVocabulary(300))]
    assert found == [[7]]
    assert corpus.skipped[path].num_rows == 2


@pytest.mark.parametrize("kind", WRITERS)
def test_an_index_that_is_missing_is_named(tmp_path, kind):
    path = WRITERS[kind](tmp_path)
    index = next(file for file in tmp_path.iterdir() if file != path)
    index.unlink()
    with pytest.raises(InvalidRequest, match=rf"{index.name}|cannot tell how to read"):
        ids(path)


@pytest.mark.row("F2")
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("which", ["ids", "index"])
@pytest.mark.parametrize("damage", ["cut", "cut oddly", "longer", "empty", "ones"])
def test_files_that_do_not_fit_each_other_are_refused_before_anything_is_allocated(
    tmp_path, kind, which, damage
):
    path = WRITERS[kind](tmp_path)
    index = next(file for file in tmp_path.iterdir() if file != path)
    damaged = path if which == "ids" else index
    whole = damaged.read_bytes()
    damaged.write_bytes(
        {
            "cut": whole[: len(whole) // 16 * 8],
            "cut oddly": whole[:-1],
            "longer": whole + bytes(8),
            "empty": b"",
            "ones": b"\xff" * len(whole),
        }[damage]
    )
    if kind == "infini-gram" and which == "ids" and damage in ("longer", "cut"):
        return  # that is a whole file with other documents, or less of the last one
    if which == "ids" and damage == "ones" and kind != "infini-gram":
        assert ids(path, vocab_size=65_536)  # any number is an id
        with pytest.raises(InvalidRequest, match="document 0: token id at index 0 is outside"):
            ids(path, vocab_size=65_535)
        return
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=rf"{path.name}"):
            ids(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20
    corpus = Corpus([path], on_error="skip")
    num_documents = sum(1 for _ in corpus.documents())
    assert num_documents < len(filled(DOCUMENTS))
    assert corpus.skipped[path]


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (megatron_index([3, 1, 0, 2], [0, 1, 2, 3, 4], version=2), "version 2, type 8; expected version 1"),
        (megatron_index([3, 1, 0, 2], [0, 1, 2, 3, 4], code=9), "version 1, type 9"),
        (megatron_index([3, 1, 0, 2], [0, 1, 2, 3, 4], code=7), "type 7"),  # float32
        (megatron_index([3, 1, 0, 2], [0, 1, 2, 3, 4], num_sequences=2**62), "got 4611686018427387904 sequ"),
        (megatron_index([3, 1, 0, 2], [0, 1, 2, 3, 4], num_edges=2**61), "2305843009213693952 edges"),
        (megatron_index([3, -1, 2, 2], [0, 1, 2, 3, 4]), "sequence 1 of -1 tokens at byte 6"),
        (megatron_index([3, 2**31 - 1, 0, 2], [0, 1, 2, 3, 4]), "a last sequence that ends at byte"),
        (megatron_index([7, 1, 0, 2], [0, 1, 2, 3, 4]), "a last sequence that ends at byte 20"),
        (megatron_index([3, 1, 0, 2], [0, 1, 9, 3, 4]), "document 1 of sequences 1 to 9"),
        (megatron_index([3, 1, 0, 2], [0, 1, 2, 1, 4]), "document 2 of sequences 2 to 1"),
        (megatron_index([3, 1, 0, 2], [1, 2, 3, 4]), "document 0 of sequences 1 to 2"),
        (megatron_index([3, 1, 0, 2], [0, 1, 2]), "documents of 2 sequences"),
        (megatron_index([3, 1, 0, 2], [0, 1, 2, 3, 4]).replace(b"MMID", b"XXID"), "MMIDIDX"),
        (b"MMIDIDX\0\0", "and a header"),
    ],
)
def test_a_megatron_index_that_lies_is_refused(tmp_path, index, said):
    path = write_megatron(tmp_path)
    path.with_suffix(".idx").write_bytes(index)
    with pytest.raises(InvalidRequest, match=rf"a\.idx does not fit it; .*{said}"):
        ids(path)


def test_a_last_sequence_elsewhere_is_refused(tmp_path):
    path = write_megatron(tmp_path)
    index = bytearray(megatron_index([3, 1, 0, 2], [0, 1, 2, 3, 4]))
    index[34 + 4 * 4 + 8 : 34 + 4 * 4 + 16] = struct.pack("<q", -8)
    path.with_suffix(".idx").write_bytes(index)
    with pytest.raises(InvalidRequest, match=r"sequence 1 of 1 tokens at byte -8; expected one at byte 6"):
        ids(path)


def test_a_megatron_document_may_have_several_sequences(tmp_path):
    path = write_megatron(tmp_path)
    path.with_suffix(".idx").write_bytes(megatron_index([3, 1, 0, 2], [0, 2, 2, 4]) + bytes(4))
    assert ids(path) == [[5, 1, 300, 7], [65_534, 2]]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([3, 2, 4, 6], "document 1 from 3 to 2"),
        ([3, 2**63, 4, 6], f"document 1 from 3 to {2**63}"),
        ([3, 4, 4, 7], "7 tokens in 12 bytes"),
        ([3, 4, 4, 2**64 - 1], f"{2**64 - 1} tokens in 12 bytes"),
    ],
)
def test_a_datatrove_index_that_lies_is_refused(tmp_path, ends, said):
    path = write_datatrove(tmp_path)
    path.with_name("00000.ds.index").write_bytes(np.array(ends, np.uint64).tobytes())
    with pytest.raises(InvalidRequest, match=rf"00000\.ds\.index does not fit it; got {said}"):
        ids(path)


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ([0, 8, 6, 14], "document 1 from byte 8 to 6"),
        ([0, 7, 12, 14], "document 0 from byte 0 to 7"),
        ([0, 6, 12, 14], "no separator at byte 6, document 1"),
        ([0, 8, 12, 2**64 - 2], f"document 2 from byte 12 to {2**64 - 2}"),
        ([8, 12, 14], "document 0 from byte 8"),
        ([], "0 documents"),
    ],
)
def test_an_infini_gram_index_that_lies_is_refused(tmp_path, starts, said):
    path = write_infini_gram(tmp_path)
    (tmp_path / "offset.3").write_bytes(np.array(starts, np.uint64).tobytes())
    with pytest.raises(InvalidRequest, match=rf"offset\.3 does not fit it; got {said}"):
        ids(path)


def test_an_infini_gram_document_without_its_offset_is_refused(tmp_path):
    path = write_infini_gram(tmp_path)
    (tmp_path / "offset.3").write_bytes(np.array([0, 12, 14], np.uint64).tobytes())
    with pytest.raises(InvalidRequest, match="document 0: a separator inside"):
        ids(path)


def test_a_first_document_without_tokens_does_not_make_ids_wider(tmp_path):
    assert ids(write_infini_gram(tmp_path, [[], [1, 2], [3]])) == [[1, 2], [3]]
    assert ids(write_infini_gram(tmp_path, [[], [1, 2], [3]], "<u4")) == [[1, 2], [3]]


@pytest.mark.row("F-fuzz")
@pytest.mark.parametrize("kind", WRITERS)
def test_altered_bytes_give_other_documents_or_one_kind_of_error(tmp_path, kind):
    path = WRITERS[kind](tmp_path)
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    generator = np.random.default_rng(3)
    num_refused = 0
    for _ in range(200):
        for file, data in whole.items():
            altered = bytearray(data)
            altered[generator.integers(len(data))] ^= 1 << generator.integers(8)
            file.write_bytes(altered[: generator.integers(len(data)) if generator.random() < 0.2 else None])
        try:
            assert len(flat(ids(path))) <= len(flat(DOCUMENTS)) + len(DOCUMENTS)
        except InvalidRequest:
            num_refused += 1
    assert num_refused > 60


# numpy


def write_npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<u4", "<i8", ">u2"])
def test_npy(tmp_path, dtype):
    vector = write_npy(tmp_path / "vector.npy", np.array([1, 2, 300], dtype))
    matrix = write_npy(tmp_path / "matrix.npy", np.array([[1, 2], [3, 4], [5, 6]], dtype))
    assert ids(vector) == [[1, 2, 300]]
    assert ids(matrix) == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(InvalidRequest, match=r"matrix\.npy: document 2: token id at index 1 .* got 6"):
        ids(matrix, vocab_size=6)
    assert ids(tmp_path, include=["*.npy"]) == [[1, 2], [3, 4], [5, 6], [1, 2, 300]]
    with pytest.raises(InvalidRequest, match="no documents found"):
        Corpus([tmp_path])


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_an_empty_npy_has_no_document(tmp_path, shape):
    assert ids(write_npy(tmp_path / "a.npy", np.zeros(shape, np.int32))) == []


@pytest.mark.row("F5/F6")
@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros(3), r"<f8 of shape \(3,\)"),
        (np.zeros((2, 2, 2), np.int32), r"<i4 of shape \(2, 2, 2\)"),
        (np.int32(7), r"<i4 of shape \(\)"),
        (np.asfortranarray(np.zeros((2, 3), np.int32)), r"<i4 of shape \(2, 3\) by column"),
        (np.array([{}], object), r"\|O"),
        (np.array([True]), r"\|b1"),
    ],
)
def test_npy_of_something_else_is_refused(tmp_path, array, said):
    path = write_npy(tmp_path / "a.npy", array)
    with pytest.raises(InvalidRequest, match=rf"a\.npy holds no token ids; got {said}"):
        ids(path)


def npy_header(text: str) -> bytes:
    body = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body


FACTS = "{{'descr': '<i4', 'fortran_order': False, 'shape': {}}}"


@pytest.mark.row("F2")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"PK\x03\x04" + bytes(40),
        npy_header("__import__('os')"),
        npy_header("[" * 5_000),
        npy_header(FACTS.format((2**62,))) + bytes(12),
        npy_header(FACTS.format((2**40, 2**40))) + bytes(12),
        npy_header(FACTS.format((-3,))) + bytes(12),
        npy_header(FACTS.format((True,))) + bytes(4),
        npy_header(FACTS.format((2,))) + bytes(12),
        npy_header(FACTS.format((4,))) + bytes(12),
        npy_header(FACTS.format((3,)).replace("<i4", "<q9")) + bytes(12),
    ],
)
def test_a_damaged_npy_is_named(tmp_path, data):
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match=r"a\.npy"):
        ids(path)


def test_a_long_document_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays_module, "_PART_ITEMS", 4)
    assert ids(write_npy(tmp_path / "a.npy", np.arange(10))) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    many = [[n] for n in range(20)]
    for kind, write in WRITERS.items():
        assert ids(write(tmp_path, many)) == many, kind


def test_a_large_array_is_read_in_bounded_memory(tmp_path):
    path = write_npy(tmp_path / "a.npy", np.ones(16 << 20, np.uint16))
    tracemalloc.start()
    try:
        assert sum(len(document.token_ids) for document in Corpus([path]).documents()) == 16 << 20
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 24 << 20
