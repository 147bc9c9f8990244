"""Cards: where the arrays of a session lie, so that one kernel can go over many sessions.

A card is int64[CARD_WORDS]: addresses, lengths, and what the session drafted last. Whoever fills one in
keeps the arrays alive, and fills it in anew when one of them is replaced.
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

ARENA, ROWS, PLACE, ARENA_WORDS, NUM_ROWS, SUFFIX, NUM_SUFFIX, TEXT_WORDS = range(8)
"""Words of each text: its automaton, its commonest continuations, and where the context stands in it.

A text that is not there has no row of commonest continuations. If it has grown since the place was found, the
last tokens of the context lie at `SUFFIX`; else there are none.
"""

BITS = NUM_TEXTS * TEXT_WORDS
"""The source bit of each text."""
(
    TABLES,  # float32[NUM_CELLS]
    RECORDS,  # int32[RECORDS_WORDS]
    RECORDS_WORDS,
    DRAFTED,  # int32[3, DRAFTED_ROOM]: token ids, parents and path probabilities of the tree drafted last
    DRAFTED_ROOM,
    NUM_DRAFTED,  # its nodes; negative once its outcome is known
    NUM_KEPT,  # so many of them go to the target
    LAST_KEPT,  # and so many did of the tree whose outcome came last
    TRIE,  # int32[TRIE_ROWS, TRIE_COLUMNS]: what sources propose that kernels cannot ask
    TRIE_COLUMNS,
    CORPORA,  # int64[NUM_CORPORA, CORPUS_WORDS]: those that kernels ask themselves
    NUM_CORPORA,
    CARD_WORDS,
) = range(BITS + NUM_TEXTS, BITS + NUM_TEXTS + 13)

(
    TOKENS,
    NUM_TOKENS,
    IS_WIDE,  # whether tokens are int32, not uint16
    POSITIONS,
    NUM_POSITIONS,
    BUCKETS,
    NUM_BUCKETS,
    SORTED_TOKENS,  # how many tokens of a context the order considers
    CONTEXT,
    NUM_CONTEXT,
    CORPUS_BIT,
    CORPUS_WORDS,
) = range(12)


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
