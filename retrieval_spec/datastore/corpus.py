"""A corpus: files and folders as one stream of documents, in the same order every time.

Chooses the files and passes on what their readers find; how a format is read stands in `readers/`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from retrieval_spec.datastore.chat_template import ChatTemplate
from retrieval_spec.datastore.files import CorpusFile, find_files
from retrieval_spec.datastore.patterns import Patterns
from retrieval_spec.datastore.readers.reading import Content, NotText, OnError, Reading, Skipped
from retrieval_spec.datastore.tokenizer import Tokenizer
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.tree import Tokens

MAX_DOCUMENT_CHARACTERS = 1 << 20
"""A longer text becomes several documents, cut after a line where there is one."""
MAX_DOCUMENT_TOKENS = 1 << 20
"""A longer vector of token ids becomes several documents."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus, or its token ids where the file holds those; and the file that it stands in."""

    text: str | None
    token_ids: Tokens | None
    source: str


class Corpus:
    """The documents of the inputs.

    Attributes:
        num_skipped_files: how many files turned out to be no text.
        skipped: what else was left out, by file; complete when all documents were read.
    """

    def __init__(
        self,
        inputs: Sequence[str | Path],
        text_field: str | None = None,
        exclude: Collection[str] = (),
        *,
        include: Collection[str] = (),
        on_error: OnError = "stop",
        skip_licence_headers: bool = False,
    ) -> None:
        """Finds the files.

        Args:
            inputs: files, and folders of files with known suffixes; hidden ones are left out. And datasets of
                the hub, `hf:NAME[@REVISION][:CONFIG[:SPLIT]]`.
            text_field: the JSON field or column with the document; without it see `readers/rows.py`.
            exclude: names or glob patterns of what is left out of folders; see `Patterns`.
            include: names or glob patterns of what alone is read in folders, whatever its suffix.
            on_error: whether what cannot be read stops the reading, or is counted and passed over.
            skip_licence_headers: whether source files are read without a licence comment at their top.

        Raises:
            MissingPath: an input does not exist.
            InvalidRequest: an input is of an unknown format, or there is no file at all.
        """
        if on_error not in ("stop", "skip"):
            raise InvalidRequest("on_error is wrong", got=on_error, expected="stop or skip")
        chosen = Patterns(include) if include else None
        found = (find_files(Path(name), chosen, Patterns(exclude)) for name in inputs)
        files = {file.path: file for some in found for file in some}
        if not files:
            raise InvalidRequest(
                "no documents found",
                got=", ".join(map(str, inputs)) or "no input",
                expected="text files, JSONL, parquet or Arrow files, token arrays, or folders of them",
            )
        self._files = list(files.values())
        self._text_field = text_field
        self._on_error: OnError = on_error
        self._skip_licence_headers = skip_licence_headers
        self.num_skipped_files = 0
        self.skipped: dict[Path, Skipped] = {}

    @property
    def num_bytes(self) -> int:
        """The size of all files as they are on disk."""
        return sum(file.num_bytes for file in self._files)

    def fingerprint(self) -> dict[str, object]:
        """Returns what the documents follow from, as far as can be told without reading them."""
        files = [file.state() for file in self._files]
        options = [self._text_field, self._on_error, self._skip_licence_headers]
        return {"files": files, "options": options}

    def slices(self, max_bytes: int) -> list[Corpus]:
        """Returns parts of at most so many bytes on disk, or of one file; together they are the whole."""
        parts: list[Corpus] = []
        num_bytes = 0
        for file in self._files:
            if not parts or num_bytes + file.num_bytes > max_bytes:
                parts.append(copy(self))
                parts[-1]._files, num_bytes = [], 0
            parts[-1]._files.append(file)
            num_bytes += file.num_bytes
        return parts

    def note_skipped(self, num_files: int, skipped: Mapping[Path, Skipped]) -> None:
        """Adds what was left out of a part that somebody else read."""
        if num_files:
            _log.warning("skipped: %d files that are no UTF-8 text", num_files)
        self.num_skipped_files += num_files
        self.skipped.update(skipped)

    def tell_skipped(self) -> None:
        """Writes to the log what was left out."""
        for path, skipped in self.skipped.items():
            _log.warning("skipped of %s: %s", path, skipped)

    def documents(
        self, advance: Callable[[int], None] | None = None, tokenizer: Tokenizer | None = None
    ) -> Iterator[Document]:
        """Yields the documents that are not empty.

        Args:
            advance: told how many bytes of files were read.
            tokenizer: the target model's, for its vocabulary and its chat template; without it any id passes,
                and chats lose their roles.

        Raises:
            InvalidRequest: a file is damaged, or a row has no document; not where errors are skipped.
            MissingDependency: a format needs a package that is not installed.
        """
        self.num_skipped_files, self.skipped = 0, {}
        chat = ChatTemplate(tokenizer.folder if tokenizer else None)
        for file in self._files:
            reading = Reading(file.path, advance or _ignore, self._text_field, self._on_error)
            reading.chat = chat
            reading.without_licence_header = self._skip_licence_headers
            if tokenizer is not None:
                reading.vocab_size = tokenizer.vocab_size
            for content in self._contents(file, reading):
                yield from _documents(content, reading)
            self._note(reading)
        self.tell_skipped()

    def _contents(self, file: CorpusFile, reading: Reading) -> Iterator[Content]:
        try:
            yield from file.reader(reading)
        except NotText as error:
            self.num_skipped_files += 1
            _log.warning("skipped: %s", error)
        except InvalidRequest as error:
            if self._on_error == "stop":
                raise
            reading.skipped.add_rest(error)

    def _note(self, reading: Reading) -> None:
        skipped = reading.skipped
        if skipped.num_empty_rows:
            _log.info("%s: %d documents are empty", reading.path, skipped.num_empty_rows)
        if skipped:
            self.skipped[reading.path] = skipped


def _ignore(num_bytes: int) -> None:
    """Tells nobody."""


def _documents(content: Content, reading: Reading) -> Iterator[Document]:
    source = str(reading.path)
    if not len(content):
        reading.skipped.num_empty_rows += 1
    elif isinstance(content, str):
        yield from (Document(piece, None, source) for piece in _pieces(content) if piece)
    else:
        for start in range(0, len(content), MAX_DOCUMENT_TOKENS):
            yield Document(None, content[start : start + MAX_DOCUMENT_TOKENS], source)


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > MAX_DOCUMENT_CHARACTERS:
        limit = start + MAX_DOCUMENT_CHARACTERS
        end = text.rfind("\n", start, limit) + 1 or limit
        yield text[start:end]
        start = end
    yield text[start:] if start else text
