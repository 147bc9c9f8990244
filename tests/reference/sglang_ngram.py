"""SGLang's NGRAM as its documentation and issues describe it: a trie of nodes with dictionaries."""

from __future__ import annotations

from collections import deque

Path = tuple[int, ...]


class Node:
    def __init__(self, parent: Node | None, token: int) -> None:
        self.parent, self.token = parent, token
        self.children: dict[int, Node] = {}  # the newest last
        self.frequency = self.touched = 0


class Trie:
    def __init__(self, depth: int, capacity: int) -> None:
        self.depth, self.capacity = depth, capacity
        self.root, self.clock, self.nodes = Node(None, -1), 0, set[Node]()

    def touch(self, node: Node) -> None:
        self.clock += 1
        node.touched = self.clock

    def insert(self, window: list[int]) -> None:
        for begin in range(len(window)):
            node = self.root
            for token in window[begin:]:
                if token not in node.children:
                    self.make_room()
                    node.children[token] = Node(node, token)
                    self.nodes.add(node.children[token])
                node = node.children[token]
                self.touch(node)
            node.frequency += 1
            siblings = node.parent.children
            siblings[node.token] = siblings.pop(node.token)
            while node.parent:  # a parent is always newer than its children
                self.touch(node)
                node = node.parent

    def make_room(self) -> None:
        if len(self.nodes) == self.capacity:
            oldest = min((node for node in self.nodes if not node.children), key=lambda node: node.touched)
            self.nodes.remove(oldest)
            del oldest.parent.children[oldest.token]

    def anchors(self, context: list[int]):
        for length in range(min(len(context), self.depth), 0, -1):
            node: Node | None = self.root
            for token in context[-length:]:
                node = node.children.get(token) if node else None
            if node:
                yield length, node

    def newest(self, context: list[int], size: int, min_breadth: int, max_breadth: int) -> list[Path]:
        drafted: list[Path] = []
        scale = (max_breadth - min_breadth) / self.depth
        for length, anchor in self.anchors(context):
            queue = deque([((), anchor, (self.depth - length) * scale + min_breadth)])
            while queue:
                path, node, breadth = queue.popleft()
                for child in [*reversed(node.children.values())][: max(1, int(breadth))]:
                    longer = (*path, child.token)
                    if longer not in drafted:
                        if len(drafted) == size:
                            return drafted
                        drafted.append(longer)
                    queue.append((longer, child, breadth - scale))
        return drafted

    def frequent(self, context: list[int], size: int, max_breadth: int) -> list[Path]:
        drafted: list[Path] = []
        for _, anchor in self.anchors(context):
            waiting: list[tuple[float, Path, Node]] = []
            path, prob, node = (), 1.0, anchor
            while len(drafted) < size:
                newest_first = [*reversed(node.children.values())]
                kept = sorted(newest_first, key=lambda child: -child.frequency)[:max_breadth]
                total = max(sum(child.frequency for child in kept), 1)
                waiting += [(prob * (child.frequency / total), (*path, child.token), child) for child in kept]
                if not waiting:
                    break
                best = max(waiting, key=lambda entry: entry[0])  # the first of equals
                waiting.remove(best)
                prob, path, node = best
                if path not in drafted:
                    drafted.append(path)
        return drafted
