"""Cards: where the arrays of a session lie, so that one kernel can go over many sessions.

A card is int64[CARD_WORDS]: addresses, lengths, and what the session drafted last. What sessions share, and
what grows, has words of its own, to which cards point. Whoever fills words in keeps the arrays alive, and
fills them in anew when one is replaced.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from retrieval_spec.kernels.blend_tables import NUM_TEXTS

CONTEXT_AT, CONTEXT_LENGTH, CONTEXT_ROOM, NOTICE_LENGTH, CONTEXT_WORDS = range(5)
"""Words of a context: where its tokens lie, how many there are and have room, and from what length on
somebody wants to look at it."""

ARENA, ARENA_WORDS, ROWS, NUM_ROWS, TABLE_BYTES, VERSION, NUMBER, TEXT_WORDS = range(8)
"""Words of a text: its automaton; its commonest continuations, the rows of a table of them and how far apart
the tables of two parts lie, 0 if there is but one; what changes whenever it grows, and what only when the
automaton is another one. A text that is not there has no row."""

SEEN_VERSION, SEEN_NUMBER, PLACE_WORDS = range(2, 5)
"""Words of a place in a text that sessions share, behind state and match: the text's when it was found."""

(
    TABLES,  # float32[NUM_CELLS]
    RECORDS,  # int32[2, RECORDS_WORDS]: what is to be learned from, on two sides
    RECORDS_WORDS,
    DRAFTED,  # int32[2, 3, DRAFTED_ROOM]: token ids, parents and path probabilities of the trees they are of
    DRAFTED_ROOM,
    SIDE,  # where the tree drafted last lies; on the other one, the last tree whose outcome is known
    NUM_DRAFTED,  # nodes of the tree drafted last; negative once its outcome is known
    NUM_KEPT,  # so many of them go to the target
    FLOOR,  # float64: what its nodes had to reach in a batch; below 0 if all were wanted
    NUM_UNLEARNED,  # nodes of the last tree whose outcome is known; negative once it is learned
    LAST_KEPT,  # so many of them went to the target
    LAST_FLOOR,  # what had to be reached there
    OUTCOME_BEGIN,  # where the tokens that followed it begin in the context
    OUTCOME_END,
    TRIE,  # int32[TRIE_ROWS, TRIE_COLUMNS]: what sources propose that kernels cannot ask
    TRIE_COLUMNS,
    CONTEXT,  # int64[CONTEXT_WORDS]
    NUM_WORKED_IN,  # tokens of the context that the texts and tables know of
    BITS,  # the source bit of each text
) = range(19)

TEXTS = BITS + NUM_TEXTS
"""int64[TEXT_WORDS] of each text."""
PLACES = TEXTS + NUM_TEXTS
"""Where the context stands in each: int64[PLACE_WORDS], and in its own text int64[ANCHOR_WORDS]."""
CARD_WORDS = PLACES + NUM_TEXTS

(
    TOKENS,
    NUM_TOKENS,
    IS_WIDE,  # whether tokens are int32, not uint16
    POSITIONS,
    NUM_POSITIONS,
    BUCKETS,
    NUM_BUCKETS,
    SORTED_TOKENS,  # how many tokens of a context the order considers
    CORPUS_BIT,
    CORPUS_WORDS,
) = range(10)
"""Words of a corpus that kernels search themselves."""


if config.DISABLE_JIT:

    def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        """Returns the array of this shape at an address."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * num_bytes).from_address(int(address)), dtype).reshape(shape)

else:

    @intrinsic  # type: ignore[untyped-decorator]
    def array_at(typing_context, address, shape, dtype):  # type: ignore[no-untyped-def]
        """Returns the array of this shape at an address."""
        # As `numba.carray` does, which kernels without reference counts may not call.
        array_type = types.Array(dtype.dtype, len(shape), "C")

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            item_type = context.get_data_type(array_type.dtype)
            item_bytes = context.get_constant(types.intp, context.get_abi_sizeof(item_type))
            lengths = cgutils.unpack_tuple(builder, arguments[1], len(shape))
            strides = [item_bytes]
            for length in reversed(lengths[1:]):
                strides.insert(0, builder.mul(strides[0], length))
            array = make_array(array_type)(context, builder)
            data = builder.inttoptr(arguments[0], item_type.as_pointer())
            populate_array(array, data, lengths, strides, item_bytes, None)
            return array._getvalue()

        return array_type(types.int64, shape, dtype), generate
