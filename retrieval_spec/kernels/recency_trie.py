"""A trie of the substrings of many texts in one int32 arena, of bounded size: what is oldest falls out.

The arena holds a header, the nodes and a hash table of nodes by parent and token.

    header   int32[8]        the words named below
    nodes    int32[n, 8]     token, parent, frequency, newest child, older and newer sibling, older and
                             newer node of all
    slots    int32[k]        a node, or 0; k is a power of two and at least twice n

Node 0 is the root. Children form a list by the time at which they last ended an occurrence, newest first.
All nodes but the root form another, in which every parent is newer than its children: the oldest is
always a leaf, and is what makes room.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel

MAX_NODES, NUM_NODES, SLOTS_AT, SLOT_MASK, NEWEST, OLDEST = range(6)
HEADER_WORDS, NODE_WORDS = 8, 8
TOKEN, PARENT, FREQUENCY, FIRST_CHILD, OLDER_SIBLING, NEWER_SIBLING, OLDER, NEWER = range(NODE_WORDS)


@inlined_kernel
def _word(node, field):
    return HEADER_WORDS + node * NODE_WORDS + field


@inlined_kernel
def _home(arena, parent, token):
    """Returns the slot in which the search for a node begins."""
    mixed = (parent * 0x9E3779B1 ^ np.int64(token) * 0x45EBCA77) & 0xFFFFFFFF
    return (mixed ^ (mixed >> 15)) & np.int64(arena[SLOT_MASK])


@inlined_kernel
def _slot_of(arena, parent, token):
    """Returns the slot of a child, or the free one that it would take."""
    at, mask, slots = _home(arena, parent, token), np.int64(arena[SLOT_MASK]), np.int64(arena[SLOTS_AT])
    while arena[slots + at] != 0:
        node = np.int64(arena[slots + at])
        if arena[_word(node, TOKEN)] == token and arena[_word(node, PARENT)] == parent:
            break
        at = (at + 1) & mask
    return slots + at


@inlined_kernel
def _free_slot(arena, slot):
    """Empties a slot and moves later ones up, so that no search stops at the gap."""
    slots, mask = np.int64(arena[SLOTS_AT]), np.int64(arena[SLOT_MASK])
    gap = slot - slots
    at = gap
    while True:
        at = (at + 1) & mask
        node = np.int64(arena[slots + at])
        if node == 0:
            break
        home = _home(arena, np.int64(arena[_word(node, PARENT)]), arena[_word(node, TOKEN)])
        if ((at - home) & mask) >= ((at - gap) & mask):
            arena[slots + gap] = node
            gap = at
    arena[slots + gap] = 0


@inlined_kernel
def _leave(arena, node, head, tail, older, newer):
    """Takes a node out of a list; `head` and `tail` are words that point to its ends."""
    before, after = np.int64(arena[_word(node, newer)]), np.int64(arena[_word(node, older)])
    if before != 0:
        arena[_word(before, older)] = after
    else:
        arena[head] = after
    if after != 0:
        arena[_word(after, newer)] = before
    elif tail >= 0:
        arena[tail] = before


@inlined_kernel
def _come_first(arena, node, head, tail, older, newer):
    """Puts a node that is in no list at the head of one."""
    second = np.int64(arena[head])
    arena[_word(node, older)] = second
    arena[_word(node, newer)] = 0
    if second != 0:
        arena[_word(second, newer)] = node
    elif tail >= 0:
        arena[tail] = node
    arena[head] = node


@inlined_kernel
def _touch(arena, node):
    """Makes a node the newest of all."""
    if arena[NEWEST] != node:
        _leave(arena, node, NEWEST, OLDEST, OLDER, NEWER)
        _come_first(arena, node, NEWEST, OLDEST, OLDER, NEWER)


@inlined_kernel
def _free_node(arena):
    """Returns the number of a node that is not in use; forgets the oldest one if all are."""
    if arena[NUM_NODES] < arena[MAX_NODES]:
        arena[NUM_NODES] += 1
        return np.int64(arena[NUM_NODES])
    node = np.int64(arena[OLDEST])
    parent = np.int64(arena[_word(node, PARENT)])
    _free_slot(arena, _slot_of(arena, parent, arena[_word(node, TOKEN)]))
    _leave(arena, node, _word(parent, FIRST_CHILD), -1, OLDER_SIBLING, NEWER_SIBLING)
    _leave(arena, node, NEWEST, OLDEST, OLDER, NEWER)
    return node


@inlined_kernel
def _add_child(arena, parent, token):
    node = _free_node(arena)
    # Only now: making room may have moved the slot.
    arena[_slot_of(arena, parent, token)] = node
    arena[_word(node, TOKEN)] = token
    arena[_word(node, PARENT)] = parent
    arena[_word(node, FREQUENCY)] = 0
    arena[_word(node, FIRST_CHILD)] = 0
    _come_first(arena, node, _word(parent, FIRST_CHILD), -1, OLDER_SIBLING, NEWER_SIBLING)
    _come_first(arena, node, NEWEST, OLDEST, OLDER, NEWER)
    return node


@allocation_free_kernel
def add_suffixes(arena, tokens):
    """Counts the string `tokens` and all its suffixes once more, longest first.

    Args:
        arena: int32[words]  see the module; room for many more nodes than `tokens` has.
        tokens: int32[n]  the last tokens of a text, the newest of them not counted yet.
    """
    for begin in range(tokens.shape[0]):
        node = np.int64(0)
        for at in range(begin, tokens.shape[0]):
            child = np.int64(arena[_slot_of(arena, node, tokens[at])])
            if child == 0:
                child = _add_child(arena, node, tokens[at])
            else:
                _touch(arena, child)  # or it might have to make room for its own child
            node = child
        arena[_word(node, FREQUENCY)] += 1
        head = _word(np.int64(arena[_word(node, PARENT)]), FIRST_CHILD)
        if arena[head] != node:
            _leave(arena, node, head, -1, OLDER_SIBLING, NEWER_SIBLING)
            _come_first(arena, node, head, -1, OLDER_SIBLING, NEWER_SIBLING)
        while node != 0:
            _touch(arena, node)
            node = np.int64(arena[_word(node, PARENT)])


@allocation_free_kernel
def walk(arena, tokens):
    """Returns the node of the string `tokens`, or -1 if it is not in the trie."""
    node = np.int64(0)
    for at in range(tokens.shape[0]):
        node = np.int64(arena[_slot_of(arena, node, tokens[at])])
        if node == 0:
            return np.int64(-1)
    return node
