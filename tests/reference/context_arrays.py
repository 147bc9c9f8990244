"""Several context arrays as one corpus, readable: the longest matches of all, earlier segments first."""

from __future__ import annotations


class ReferenceContextArrays:
    """Takes the place of a `ReferenceContextArray` in `reference_draft`; an occurrence names its segment."""

    def __init__(self, segments):
        self.segments = segments

    def continuation(self, occurrence):
        segment, position = occurrence
        return self.segments[segment].continuation(position)

    def nearest(self, context, k):
        found = [
            ((index, position), length)
            for index, segment in enumerate(self.segments)
            for position, length in segment.nearest(context, k)
        ]
        return sorted(found, key=lambda one: -one[1])[:k]
