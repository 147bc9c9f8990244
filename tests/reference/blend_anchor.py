"""Where a copy stood that a text left, as one would explain it: an edited copy often goes on there."""

from __future__ import annotations

from typing import NamedTuple

from tests.reference.blend_texts import Match, State

MIN_COPY_TOKENS = 6
MAX_SKIPPED, MAX_MISSES = 8, 8
MOST_FOLLOWED, MOST_MISSED = 5, 4
SUPPORTS = 4 + MOST_FOLLOWED + 2 * MOST_MISSED


class Anchor(NamedTuple):
    """A state of the text: tokens in turn that followed there, tokens that did not since the last one did."""

    state: State
    followed: int = 0
    missed: int = 0

    def after(self, token: int) -> Anchor | None:
        """Goes on with a token that follows here or, as if tokens of the copy were left out, further on."""
        for num_skipped, state in enumerate(_going_on(self.state, MAX_SKIPPED)):
            if token in state.next:
                return Anchor(state.next[token], 1 if num_skipped else self.followed + 1)
        return None if self.missed == MAX_MISSES else Anchor(self.state, 0, self.missed + 1)

    @property
    def length(self) -> int:
        """The match length that it is worth."""
        return min(2 + 3 * self.followed, 16)

    @property
    def ways(self) -> list[tuple[int, State]]:
        """Where the copy may go on, each with its stage: first where it stood, then past what was missed."""
        if self.followed:
            return [(min(self.followed, MOST_FOLLOWED) - 1, self.state)]
        stage = MOST_FOLLOWED + min(self.missed, MOST_MISSED) - 1
        past = _going_on(self.state, self.missed + 1)[self.missed :]
        return [(stage, self.state), *((stage + MOST_MISSED, state) for state in past)]


def anchor_after(anchor: Anchor | None, match: Match, token: int) -> Anchor | None:
    """The anchor after a token more; `match` is where the text stood before it.

    A long match that ends leaves an anchor; a long match that goes on needs none.
    """
    state, length = match
    if token not in state.next:
        anchor = Anchor(state) if length >= MIN_COPY_TOKENS else anchor
    elif length + 1 >= MIN_COPY_TOKENS:
        return None
    return anchor.after(token) if anchor else None


def anchor_support(anchor: Anchor | None, token: int) -> int:
    """What an anchor says of a token: nothing, that it is another one, or that it follows at some stage."""
    if anchor is None:
        return 0
    for stage, state in anchor.ways:
        if token in state.next:
            return 4 + stage
    return 1 + min(anchor.followed, 2)


def _going_on(state: State, num_states: int) -> list[State]:
    """A state and those after it in the copy, as the text went on the first time: so many at most."""
    states = [state]
    while len(states) < num_states and states[-1].order:
        states.append(states[-1].next[states[-1].order[0]])
    return states
