"""Nearest vectors by inner product: the one file that knows FAISS, which is imported when first needed.

Vectors are stored as one byte a dimension. Up to `MAX_FLAT` of them are compared one by one; more are
sorted into lists around centroids, of which a search reads the nearest few.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest, MissingDependency
from retrieval_spec.tree import Float32s

MAX_FLAT = 20_000
"""Vectors that are compared one by one: beyond, that takes longer than reading lists."""
RECALL_NEIGHBOURS = 10
_RECALL_QUERIES = 300
_TRAINING_PER_LIST = 48
_LIST_READS = (8, 16, 32, 64, 128)
_ENOUGH = 0.02
"""Recall that may be missing against the largest number of lists read."""
_MAX_BYTES_A_VECTOR = 160
_SPARE = 8
"""Vectors that a search asks for beyond those that it returns, to see whether the last one is alone."""
_MAX_ASKED = 1 << 12
_ROUNDING = 1e-5
"""Similarities that differ by less may be in either order where FAISS computed them."""
_MAX_LISTS = 1 << 20
_MAX_BYTES_A_LIST = 64
"""Beside its centroid: a list that grew has them all, however few vectors it holds."""
_FOURCCS = {b"IxSQ": "IndexScalarQuantizer", b"IwSq": "IndexIVFScalarQuantizer"}
_HEADER = struct.Struct("<4siqqqBi")
_LISTS_HEADER = struct.Struct("<QQ4s")


class DenseIndex:
    """Vectors under their numbers, 0 to n - 1; immutable, safe to search from several threads."""

    def __init__(self, index: Any, num_vectors: int) -> None:
        self._faiss = _faiss()
        self._index = index
        self.num_vectors = num_vectors

    @classmethod
    def build(cls, vectors: Float32s) -> DenseIndex:
        """Returns the index over float32[n, d] vectors of length 1, tuned; n is at least 1.

        How many lists a search reads is the smallest number with almost the recall of the largest.
        """
        faiss = _faiss()
        num_vectors, dimensions = vectors.shape
        if num_vectors < 1:
            raise InvalidRequest("no vectors to index", got=vectors.shape, expected="one or more")
        num_lists = 0 if num_vectors <= MAX_FLAT else 1 << round(np.log2(4 * np.sqrt(num_vectors)))
        kind = f"IVF{num_lists},SQ8" if num_lists else "SQ8"
        index = faiss.index_factory(dimensions, kind, faiss.METRIC_INNER_PRODUCT)
        stride = max(num_vectors // (_TRAINING_PER_LIST * max(num_lists, 1_000)), 1)
        index.train(vectors[::stride])
        index.add(vectors)
        built = cls(index, num_vectors)
        if num_lists:
            built._tune(vectors)
        return built

    @classmethod
    def from_bytes(cls, data: NDArray[np.uint8], dimensions: int, num_vectors: int) -> DenseIndex:
        """Returns the index that `to_bytes` wrote. The bytes must have passed their checksum before.

        FAISS trusts what it reads, so what it would allocate and loop over is bounded first, and what
        it made of the bytes is compared with what was expected.

        Raises:
            DatastoreCorrupt: another kind of index, other sizes, or bytes that FAISS refuses.
        """
        faiss = _faiss()
        _check_header(data, dimensions, num_vectors)
        try:
            with _bounded(faiss, data.shape[0], num_vectors):
                index = faiss.deserialize_index(np.ascontiguousarray(data))
        except (RuntimeError, MemoryError) as error:
            raise _corrupt("FAISS refuses it", str(error)[:200], "an index of this version") from error
        _check_index(faiss, index, dimensions, num_vectors)
        return cls(index, num_vectors)

    def with_vectors(self, vectors: Float32s) -> DenseIndex:
        """Returns an index over other vectors, float32[n, d], trained as this one is; n may be 0."""
        index = self._empty()
        if vectors.shape[0]:
            index.add(np.ascontiguousarray(vectors))
        return DenseIndex(index, vectors.shape[0])

    @classmethod
    def joined(cls, parts: Sequence[tuple[DenseIndex, NDArray[np.bool_]]]) -> DenseIndex:
        """Returns one index over those vectors of indexes trained alike that are kept, numbered anew.

        Nothing is encoded again: the bytes are those of an index that these vectors were added to at once.

        Args:
            parts: each index, and bool[n] which of its vectors are kept.
        """
        index = parts[0][0]._empty()
        num_vectors = 0
        for part, is_kept in parts:
            if part._has_lists:
                part._add_lists(index, is_kept, num_vectors)
            elif is_kept.any():
                index.add_sa_codes(np.ascontiguousarray(part._codes()[is_kept]))
            num_vectors += int(is_kept.sum())
        index.ntotal = num_vectors
        return cls(index, num_vectors)

    def is_trained_like(self, other: DenseIndex) -> bool:
        """Whether both turn every vector into the same bytes in the same list, and read as many lists."""
        ours, theirs = self._training(), other._training()
        return len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs))

    def _training(self) -> list[NDArray[Any]]:
        trained = [self._faiss.vector_to_array(self._index.sq.trained)]
        if self._has_lists:
            quantizer = self._faiss.downcast_index(self._index.quantizer)
            settings = [self._index.nlist, self._index.nprobe, self._index.by_residual]
            trained += [np.array(settings), quantizer.reconstruct_n(0, self._index.nlist)]
        return trained

    @property
    def _has_lists(self) -> bool:
        return hasattr(self._index, "invlists")

    def _empty(self) -> Any:
        index = self._faiss.clone_index(self._index)
        index.reset()
        return index

    def _codes(self) -> NDArray[np.uint8]:
        codes: NDArray[np.uint8] = self._faiss.vector_to_array(self._index.codes)
        return codes.reshape(self.num_vectors, self._index.code_size)

    def _add_lists(self, index: Any, is_kept: NDArray[np.bool_], offset: int) -> None:
        """Puts the kept vectors of every list into that list of `index`, numbered from `offset` on."""
        faiss, lists = self._faiss, self._index.invlists
        numbers = np.cumsum(is_kept) - 1 + offset
        for number in range(lists.nlist):
            size = lists.list_size(number)
            if not size:
                continue
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size).reshape(size, -1)
            chosen = is_kept[ids]
            new_ids = np.ascontiguousarray(numbers[ids[chosen]], np.int64)
            new_codes = np.ascontiguousarray(codes[chosen])
            if new_ids.shape[0]:
                index.invlists.add_entries(
                    number, new_ids.shape[0], faiss.swig_ptr(new_ids), faiss.swig_ptr(new_codes)
                )

    def to_bytes(self) -> NDArray[np.uint8]:
        """Returns uint8[m], the index as FAISS serialises it."""
        data: NDArray[np.uint8] = self._faiss.serialize_index(self._index)
        return data

    def search(self, query: Float32s, num_neighbours: int) -> tuple[NDArray[np.int64], Float32s]:
        """Returns numbers and similarities of the nearest vectors, nearest first, ties by number.

        Which they are does not hang on how many others are stored, or where: up to `_MAX_ASKED` vectors that
        are as near as the last one are looked at. Runs on the calling thread alone.
        """
        count = min(num_neighbours, self.num_vectors)
        if not count:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        numbers, vectors = self._candidates(query, count)
        # FAISS rounds a similarity in another way where it ends a block of vectors.
        similarities = (vectors.astype(np.float64) * query).sum(axis=1).astype(np.float32)
        order = np.lexsort((numbers, -similarities))[:count]
        return numbers[order], similarities[order]

    def _candidates(self, query: Float32s, count: int) -> tuple[NDArray[np.int64], Float32s]:
        """Returns numbers and vectors of at least the nearest, and of those that might be as near."""
        asked = min(count + _SPARE, self.num_vectors)
        most = min(max(_MAX_ASKED, asked), self.num_vectors)
        with _one_thread(self._faiss):
            while True:
                similarities, numbers, vectors = (
                    found[0] for found in self._index.search_and_reconstruct(query[None], asked)
                )
                is_clear = numbers[-1] < 0 or similarities[-1] < similarities[count - 1] - _ROUNDING
                if is_clear or asked == most:
                    break
                asked = min(4 * asked, most)
        inside = (numbers >= 0) & (numbers < self.num_vectors)
        return numbers[inside], vectors[inside]

    def recall(self, vectors: Float32s) -> float:
        """Returns recall@10: how many of the 10 nearest others of sampled vectors a search finds.

        `vectors` are those that the index was built from; what is nearest is computed exactly.
        """
        queries, wanted = _neighbours_of_samples(vectors)
        return self._recall(queries, wanted)

    def _recall(self, queries: NDArray[np.int64], wanted: list[tuple[Float32s, set[int]]]) -> float:
        vectors = np.stack([vector for vector, _ in wanted])
        _, found = self._index.search(vectors, min(RECALL_NEIGHBOURS + 1, self.num_vectors))
        hits = total = 0
        for number, row, (_, nearest) in zip(queries.tolist(), found, wanted, strict=True):
            others = [other for other in row.tolist() if other != number][:RECALL_NEIGHBOURS]
            hits += len(nearest.intersection(others))
            total += len(nearest)
        return hits / total if total else 1.0

    def _tune(self, vectors: Float32s) -> None:
        queries, wanted = _neighbours_of_samples(vectors)
        recalls = {}
        for reads in _LIST_READS:
            self._index.nprobe = reads
            recalls[reads] = self._recall(queries, wanted)
        best = max(recalls.values())
        self._index.nprobe = next(reads for reads, recall in recalls.items() if recall >= best - _ENOUGH)


def nearest(
    indexes: Sequence[DenseIndex], query: Float32s, num_neighbours: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Float32s]:
    """Returns which index, numbers and similarities of the nearest vectors of all, as if they were one index.

    Of equally near ones, those of the earlier index come first, and within it by number.
    """
    found = [index.search(query, num_neighbours) for index in indexes]
    owners = np.repeat(np.arange(len(indexes)), [numbers.shape[0] for numbers, _ in found])
    numbers = np.concatenate([numbers for numbers, _ in found])
    similarities = np.concatenate([similarities for _, similarities in found])
    order = np.argsort(-similarities, kind="stable")[:num_neighbours]
    return owners[order], numbers[order], similarities[order]


def check_trained_alike(indexes: Sequence[DenseIndex]) -> None:
    """Accepts indexes whose similarities can be compared.

    Raises:
        DatastoreCorrupt: one was trained on something else.
    """
    for number, index in enumerate(indexes[1:], 1):
        if not index.is_trained_like(indexes[0]):
            raise _corrupt("the segments do not fit each other", f"segment {number}", "one training")


def _neighbours_of_samples(vectors: Float32s) -> tuple[NDArray[np.int64], list[tuple[Float32s, set[int]]]]:
    """Returns numbers of evenly spread vectors, and each one with its nearest others."""
    num_vectors = vectors.shape[0]
    numbers = np.unique(np.linspace(0, num_vectors - 1, min(_RECALL_QUERIES, num_vectors)).astype(np.int64))
    wanted = []
    for number in numbers.tolist():
        similarities = vectors @ vectors[number]
        similarities[number] = -np.inf
        count = min(RECALL_NEIGHBOURS, num_vectors - 1)
        nearest = np.argpartition(-similarities, count)[:count] if count else np.zeros(0, np.int64)
        wanted.append((vectors[number], set(nearest.tolist())))
    return numbers, wanted


def _check_header(data: NDArray[np.uint8], dimensions: int, num_vectors: int) -> None:
    if data.shape[0] < _HEADER.size + _LISTS_HEADER.size:
        raise _corrupt("too short", f"{data.shape[0]} bytes", "an index")
    head = data[: _HEADER.size + _LISTS_HEADER.size].tobytes()
    fourcc, size, total, _, _, is_trained, metric = _HEADER.unpack_from(head)
    if fourcc not in _FOURCCS:
        raise _corrupt("of another kind", repr(fourcc), " or ".join(map(repr, _FOURCCS)))
    if (size, total, is_trained, metric) != (dimensions, num_vectors, 1, 0):
        raise _corrupt("of other sizes", (size, total, is_trained, metric), (dimensions, num_vectors, 1, 0))
    num_lists = 0
    if fourcc == b"IwSq":
        num_lists, reads, quantizer = _LISTS_HEADER.unpack_from(head, _HEADER.size)
        most = min(data.shape[0] // (4 * dimensions), _MAX_LISTS)  # each has its centroid in these bytes
        if not (1 <= num_lists <= most and 1 <= reads <= _LIST_READS[-1] and quantizer == b"IxFI"):
            got = f"{num_lists} lists, {reads} read, {quantizer!r}"
            raise _corrupt("of other lists", got, f"up to {most} lists of b'IxFI'")
    expected = _MAX_BYTES_A_VECTOR * num_vectors * max(dimensions // 64, 1) + (1 << 20)
    if data.shape[0] > expected + num_lists * (4 * dimensions + _MAX_BYTES_A_LIST):
        raise _corrupt("too large", f"{data.shape[0]} bytes", f"an index of {num_vectors} vectors")


def _check_index(faiss: Any, index: Any, dimensions: int, num_vectors: int) -> None:
    name = type(index).__name__
    parts: list[object] = [name in _FOURCCS.values(), index.d, index.ntotal, index.sq.d, index.sq.qtype]
    expected = [True, dimensions, num_vectors, dimensions, faiss.ScalarQuantizer.QT_8bit]
    if name == "IndexIVFScalarQuantizer":
        lists, quantizer = index.invlists, faiss.downcast_index(index.quantizer)
        parts += [quantizer.d, quantizer.ntotal, lists.nlist, lists.compute_ntotal(), lists.code_size]
        expected += [dimensions, index.nlist, index.nlist, num_vectors, dimensions]
    else:
        parts.append(index.codes.size())
        expected.append(dimensions * num_vectors)
    if parts != expected:
        raise _corrupt("its parts contradict each other", parts, expected)


@contextmanager
def _bounded(faiss: Any, num_bytes: int, num_vectors: int) -> Iterator[None]:
    """Lets FAISS allocate no more than the bytes can hold, and loop no more than they can ask for."""
    bounds = {
        "deserialization_vector_byte_limit": 2 * num_bytes + (1 << 20),
        "deserialization_loop_limit": num_bytes + num_vectors,
    }
    before = {}
    for name, bound in bounds.items():
        if hasattr(faiss, f"set_{name}"):  # older versions have no such limits
            before[name] = getattr(faiss, f"get_{name}")()
            getattr(faiss, f"set_{name}")(bound)
    try:
        yield
    finally:
        for name, bound in before.items():
            getattr(faiss, f"set_{name}")(bound)


@contextmanager
def _one_thread(faiss: Any) -> Iterator[None]:
    """A team of threads would spin beside the verifier, and gains nothing for one query."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingDependency(
            "dense datastores need faiss", remedy="pip install 'retrieval-spec[dense]'"
        ) from error
    return faiss


def _corrupt(what: str, got: object, expected: object) -> DatastoreCorrupt:
    return DatastoreCorrupt(
        f"the dense index cannot be used: {what}",
        got=got,
        expected=expected,
        remedy="rebuild it with `retrieval-spec build --kind dense`",
    )
