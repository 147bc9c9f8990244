"""A reader of datastores written from FORMAT.md alone, with json and numpy, to compare the package with."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise

import numpy as np


class Damaged(Exception):
    """A rule of FORMAT.md is broken."""


def require(rule, what):
    if not rule:
        raise Damaged(what)


def sealed(path, key, format_name):
    require(path.is_file() and not path.is_symlink(), f"{path.name} is no regular file")
    data = path.read_bytes()
    require(len(data) <= 1_048_576, f"{path.name} is too large")
    fields = json.loads(data.decode("utf-8"))
    require(fields["format"] == format_name and fields["version"] == 1, f"{path.name} is of another format")
    seal = fields[key].encode()
    require(re.fullmatch(rb"[0-9a-f]{64}", seal) and data.count(seal) == 1, "no seal")
    require(
        hashlib.sha256(data.replace(seal, b"0" * 64)).hexdigest().encode() == seal, f"{path.name} was altered"
    )
    return fields


class Segment:
    """One directory with a manifest."""

    def __init__(self, folder):
        self.manifest = sealed(folder / "manifest.json", "manifest_sha256", "retrieval-spec-datastore")
        self.sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
        self.columns = {}
        for name, entry in self.manifest["files"].items():
            require(
                re.fullmatch(r"[a-z0-9._-]{1,64}", name) and ".." not in name, "a file name is not allowed"
            )
            require(
                (folder / name).is_file() and not (folder / name).is_symlink(), f"{name} is no regular file"
            )
            data = (folder / name).read_bytes()
            require(len(data) == entry["bytes"], f"{name} has another size")
            require(hashlib.sha256(data).hexdigest() == entry["sha256"], f"{name} was altered")
            self.columns[entry["column"]] = np.frombuffer(data, entry["dtype"]).reshape(entry["shape"])
        self.tokens = self.columns["tokens"].tolist()
        self.separator = {"<u2": 65_535, "<i4": 2_147_483_647}[self.manifest["token_dtype"]]
        require(len(self.tokens) == self.manifest["num_tokens"], "another number of tokens")
        require(
            len(self.columns["documents"]) == self.manifest["num_documents"], "another number of documents"
        )

    def documents(self):
        edges = [*self.columns["documents"].tolist(), len(self.tokens)]
        return [self.tokens[start : stop - 1] for start, stop in pairwise(edges)]

    def ids(self):
        return self.columns["ids"].tolist() if "ids" in self.columns else None

    def origins(self):
        if "origins" not in self.columns:
            return [None] * self.manifest["num_documents"]
        names = self.columns["origin_names"].tobytes().decode("utf-8").split("\0")
        return [names[number] for number in self.columns["origins"].tolist()]

    def context(self, place):
        """What stands before a place, read backwards; the beginning of a document is larger than every id."""
        found = []
        while len(found) < self.manifest["depth_tokens"]:
            if place == 0 or self.tokens[place - 1] == self.separator:
                return [*found, 2**32]
            place -= 1
            found.append(self.tokens[place])
        return found

    def longest(self, query):
        """How many last tokens of the query stand before some place, and what follows all such places."""
        wanted = query[::-1][: self.manifest["depth_tokens"]]
        buckets, positions = self.columns["buckets"].tolist(), self.columns["positions"].tolist()
        if not wanted or wanted[0] + 1 >= len(buckets):
            return 0, []
        low, high = buckets[wanted[0]], buckets[wanted[0] + 1]
        for length in range(len(wanted), 0, -1):
            first = self.border(positions, low, high, [*wanted[:length]])
            last = self.border(positions, low, high, [*wanted[: length - 1], wanted[length - 1] + 1])
            if first < last:
                followers = [self.tokens[place] for place in positions[first:last]]
                return length, [-1 if token == self.separator else token for token in followers]
        return 0, []

    def border(self, positions, low, high, key):
        """The first of the sorted places in low .. high whose context is not smaller than the key."""
        while low < high:
            middle = (low + high) // 2
            if self.context(positions[middle])[: len(key)] < key:
                low = middle + 1
            else:
                high = middle
        return low


class Store:
    """A datastore of one segment or of several."""

    def __init__(self, folder):
        self.generation, self.segments = 0, []
        if not (folder / "generation.json").exists():
            self.segments = [Segment(folder)]
            return
        fields = sealed(folder / "generation.json", "generation_sha256", "retrieval-spec-generation")
        self.generation = fields["generation"]
        require(1 <= fields["num_segments"] == len(fields["segments"]) <= 2048, "another number of segments")
        for number in range(fields["num_segments"]):
            listed = fields["segments"][str(number)]
            require(re.fullmatch(r"\.|segments/[0-9a-f]{16}", listed["place"]), "a place outside the store")
            segment = Segment(folder / listed["place"])
            require(segment.sha256 == listed["manifest_sha256"], "another segment")
            for key in ("num_tokens", "num_documents"):
                require(segment.manifest[key] == listed[key], f"another {key}")
            self.segments.append(segment)
        alike = {
            (
                s.manifest["kind"],
                s.manifest["tokenizer"]["fingerprint"],
                s.manifest["depth_tokens"],
                s.manifest.get("pruned_ngram_tokens"),
            )
            for s in self.segments
        }
        require(len(alike) == 1, "segments that do not fit each other")

    def documents(self):
        return [document for segment in self.segments for document in segment.documents()]

    def origins(self):
        return [origin for segment in self.segments for origin in segment.origins()]

    def longest(self, query):
        found = [segment.longest(query) for segment in self.segments]
        length = max(length for length, _ in found)
        followers = sorted(token for at, tokens in found if at == length for token in tokens)
        return length, followers if length else []
