"""Asking for memory before it is read, so that waits for it overlap.

Most of what a draft reads of large texts is in no cache, and what is read next follows from what was read
before: a kernel would wait each time.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import config
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_TO_READ, _KEEP, _DATA = 0, 3, 1
"""What `llvm.prefetch` is told: what for, how near it should stay, and that it is no code."""

if config.DISABLE_JIT:

    def prefetch(array: Any, index: int) -> None:
        """Does nothing: plain Python waits for no cache."""

else:

    @intrinsic  # type: ignore[untyped-decorator]
    def prefetch(typing_context, array, index):  # type: ignore[no-untyped-def]
        """Asks for the cache line of an item and goes on; an index out of range does no harm."""

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            from llvmlite import ir

            item = builder.gep(make_array(array)(context, builder, arguments[0]).data, [arguments[1]])
            place = builder.bitcast(item, ir.IntType(8).as_pointer())
            number = ir.IntType(32)
            parameters = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
            asked = builder.module.declare_intrinsic("llvm.prefetch", [place.type], parameters)
            builder.call(asked, [place, number(_TO_READ), number(_KEEP), number(_DATA)])
            return context.get_dummy_value()

        return types.void(array, types.int64), generate
