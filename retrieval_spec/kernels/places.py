"""Where a context, or a node drafted after it, stands in every text and in the trees of other sources.

A place is `PLACE_WORDS` words of a block: state and match length in each text, the node in the trees
counted from 1 with 0 for none, and the anchor in the own text.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.fusion import FIRST_CHILD, NEXT_SIBLING
from retrieval_spec.fusion import TOKEN as TRIE_TOKEN
from retrieval_spec.kernels.anchor import ANCHOR_WORDS, follow_anchor
from retrieval_spec.kernels.automaton import LAST, LENGTH, LINK, NONE, record_of, seek
from retrieval_spec.kernels.blend_tables import NUM_TEXTS, OUTPUTS, OWN
from retrieval_spec.kernels.jit import allocation_free_kernel, expanded_kernel, inlined_kernel

MAX_MATCH_TOKENS = 64
ANCHOR = 2 * NUM_TEXTS + 1
PLACE_WORDS = ANCHOR + ANCHOR_WORDS


@expanded_kernel
def text_of(kind, own, outputs, prompts):
    """Returns what a kind of text has among three."""
    return own if kind == OWN else (outputs if kind == OUTPUTS else prompts)


@inlined_kernel
def link_of(words, state):
    """Returns the state of the next shorter match, 0 below the shortest."""
    link = np.int64(words[record_of(state) + LINK])
    return np.int64(0) if link == NONE else link


@inlined_kernel
def begin(own, anchor, output_place, prompt_place, block, place):
    """Writes the place of a context: in its own text that is where its longest repeated suffix occurred."""
    state = np.int64(link_of(own, own[LAST]))
    block[place] = state
    block[place + 1] = np.int64(own[record_of(state) + LENGTH])
    for word in range(2):
        block[place + 2 + word] = output_place[word]
        block[place + 4 + word] = prompt_place[word]
    block[place + 2 * NUM_TEXTS] = 1
    for word in range(ANCHOR_WORDS):
        block[place + ANCHOR + word] = anchor[word]


@inlined_kernel
def follow(words, block, at, token):
    """Moves a place in a text on by one token, to the longest suffix that goes on so."""
    state, length = block[at], block[at + 1]
    found = seek(words, state, np.uint32(token))
    while (words[found] == 0 or words[found] == NONE) and state != 0:
        state = np.int64(words[record_of(state) + LINK])
        length = np.int64(words[record_of(state) + LENGTH])
        found = seek(words, state, np.uint32(token))
    if words[found] == 0 or words[found] == NONE:
        state, length = np.int64(0), np.int64(0)
    else:
        state, length = np.int64(words[found]), min(length + 1, MAX_MATCH_TOKENS)
    link = np.int64(words[record_of(state) + LINK])
    while link != NONE and length <= np.int64(words[record_of(link) + LENGTH]):
        state = link
        link = np.int64(words[record_of(state) + LINK])
    block[at] = state
    block[at + 1] = length


@inlined_kernel
def follow_tree(trie, place, block, token):
    """Moves a place in the trees on by one token; where none goes on so, they have no more to say."""
    node = block[place + 2 * NUM_TEXTS] - 1
    block[place + 2 * NUM_TEXTS] = 0
    if node < 0:
        return
    child = trie[FIRST_CHILD, node]
    while child > 0 and trie[TRIE_TOKEN, child] != token:
        child = trie[NEXT_SIBLING, child]
    if child > 0:
        block[place + 2 * NUM_TEXTS] = child + 1


@allocation_free_kernel
def follow_texts(own, outputs, prompts, block, place, token):
    """Moves a place on by one token in all texts."""
    follow_anchor(own, block, place, place + ANCHOR, token)
    for kind in range(NUM_TEXTS):
        words = text_of(kind, own, outputs, prompts)
        follow(words, block, place + 2 * kind, token)


@inlined_kernel
def follow_all(own, outputs, prompts, trie, block, place, token):
    """Moves a place on by one token in all texts and trees."""
    follow_texts(own, outputs, prompts, block, place, token)
    follow_tree(trie, place, block, token)
