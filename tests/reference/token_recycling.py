"""Token Recycling as its description has it: a dictionary of rows, a list of paths, one loop each."""

from __future__ import annotations

from collections.abc import Sequence

# "2.2.2": how many candidates, behind which ranks.
NUM_CHILDREN = {
    8: ("", "0", "00"),
    5: ("000",),
    4: ("1",),
    3: ("2", "01", "0000"),
    2: ("3", "02", "10", "001", "00000"),
    1: (
        *("4", "5", "6", "7"),
        *("03", "04", "05", "06", "07", "11", "20", "30", "40", "50"),
        *("002", "003", "004", "010", "020", "100", "200", "300"),
        *("0001", "0002", "0010", "0100", "1000", "00010"),
    ),
}
TREE = sorted(
    (ranks + str(rank) for num, places in NUM_CHILDREN.items() for ranks in places for rank in range(num)),
    key=len,
)


class ReferenceRecycling:
    def __init__(self) -> None:
        self.rows: dict[int, list[int]] = {}

    def update(self, tokens: Sequence[int], topk_ids: Sequence[Sequence[int]]) -> None:
        for token, row in zip(tokens, topk_ids, strict=True):
            self.rows[token] = list(row)

    def draft(self, root: int, tree: Sequence[str] = TREE) -> set[tuple[int, ...]]:
        """The paths of tokens; what has no row or repeats a sibling is left out with all below it."""
        found: dict[str, tuple[int, ...]] = {"": ()}
        for ranks in tree:
            path = found.get(ranks[:-1])
            if path is not None:
                row = self.rows.get(path[-1] if path else root, [])
                rank = int(ranks[-1])
                if rank < len(row) and row[rank] not in row[:rank]:
                    found[ranks] = (*path, row[rank])
        return {path for path in found.values() if path}
