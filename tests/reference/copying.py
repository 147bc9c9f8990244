"""Copying from the own context, by brute force: every earlier occurrence of every suffix is looked at."""

from __future__ import annotations

from collections import Counter


def earlier_ends(context, length):
    """Where the last `length` tokens ended before: positions of their last token, counted from 0."""
    suffix = context[len(context) - length :]
    return [e for e in range(length - 1, len(context) - 1) if context[e - length + 1 : e + 1] == suffix]


def longest_match(context, max_match=None):
    length, ends = 0, range(len(context) - 1)
    while length != max_match:
        ends = [e for e in ends if e >= length and context[e - length] == context[-1 - length]]
        if not ends:
            break
        length += 1
    return length


def copied_chain(context, occurrence, min_match, max_match, chain_length, if_short):
    """The copied tokens; `chain_length` gives the wanted number of them for a match length."""
    longest = longest_match(context, max_match)
    if longest < min_match:
        return []
    size = chain_length(longest)
    if occurrence == "commonest":
        return commonest_chain(context, longest, size)
    pick = min if occurrence == "first" else max
    begin = pick(earlier_ends(context, longest)) + 1
    if if_short == "wrap":
        return [context[begin + step % (len(context) - begin)] for step in range(size)]
    if if_short in ("climb", "require"):
        begins = [min(earlier_ends(context, n)) + 1 for n in range(longest, min_match - 1, -1)]
        whole = [begin for begin in begins if len(context) - begin >= size]
        if not whole and if_short == "require":
            return []
        begin = whole[0] if whole else begins[-1]
    return context[begin : begin + size]


def commonest_chain(context, match_length, size):
    """At every step the token that most often followed the match and what was drafted so far."""
    path = list(context[len(context) - match_length :])
    for _ in range(size):
        starts = range(len(context) - len(path))
        counts = Counter(context[at + len(path)] for at in starts if context[at : at + len(path)] == path)
        if not counts:
            break
        path.append(min(counts, key=lambda token: (-counts[token], token)))
    return path[match_length:]


def prompt_lookup(context, max_match=3, size=10):
    """The 10 tokens after the leftmost window that equals the last 3 tokens, else 2, else 1."""
    for length in range(max_match, 0, -1):
        for at in range(len(context) - length + 1):
            begin = at + length
            is_earlier = begin < len(context) - length
            if context[at:begin] == context[-length:] and begin + size <= len(context) and is_earlier:
                return context[begin : begin + size]
    return []
