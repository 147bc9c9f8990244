"""Text into token ids, and the fingerprint that says whether two tokenizers give the same ids.

Knows `tokenizer.json`; nothing of corpora or of how ids are stored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.manifest import TRANSLATE, Manifest, TokenizerFacts
from retrieval_spec.errors import InvalidRequest, MissingDependency, MissingPath, TokenizerMismatch
from retrieval_spec.tree import Tokens

TOKENIZER_NAME = "tokenizer.json"
_SCHEME = 1
# How an offset into the text is reported; the ids are the same.
_WITHOUT_EFFECT = ("trim_offsets",)
# What older files leave out because it is what happens anyway.
_DEFAULTS = {"use_regex": True}


class Tokenizer:
    """A tokenizer without its special tokens around a text, without truncation, without padding.

    A control token that is spelled out inside a text becomes that token's id, as in the target model's
    own tokenizer: a corpus of recorded chats keeps its turns. Safe to use from several threads.
    `folder` is where its file stands, beside which a model folder has more, such as its chat template.
    """

    def __init__(self, backend: Any, facts: TokenizerFacts, folder: Path | None = None) -> None:
        self._backend = backend
        self.folder = folder
        self._encode_batch = getattr(backend, "encode_batch_fast", backend.encode_batch)
        self.facts = facts

    @property
    def fingerprint(self) -> str:
        """`sha256:` and 64 hexadecimal digits; equal exactly if the same text gives the same ids."""
        return self.facts.fingerprint

    @property
    def vocab_size(self) -> int:
        """The largest id plus one, added tokens included; a model may have more ids, padded."""
        return self.facts.vocab_size

    def encode_batch(self, texts: Sequence[str]) -> list[Tokens]:
        """Returns int32[n] ids for each text."""
        encodings = self._encode_batch(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode_batch(self, documents: Sequence[NDArray[Any]]) -> list[str]:
        """Returns the text of each vector of ids, control tokens spelled out."""
        ids = [document.tolist() for document in documents]
        texts: list[str] = self._backend.decode_batch(ids, skip_special_tokens=False)
        return texts

    def plain_text(self, ids: Sequence[int]) -> str:
        """Returns the text of ids, control tokens left out; a part of a character becomes U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text

    def prefix_ids(self) -> Tokens:
        """Returns int32[n], the special tokens that the model's own tokenizer puts before a text."""
        encoding = self._backend.encode("a", add_special_tokens=True)
        first = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
        return np.array(encoding.ids[:first], np.int32)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Opens a `tokenizer.json`, or the one in a model folder.

    Raises:
        MissingPath: no such file, or none in the folder.
        MissingDependency: the `tokenizers` package is not installed.
        InvalidRequest: the file is no tokenizer.
    """
    file = _tokenizer_file(Path(path))
    try:
        data = file.read_bytes()
        canonical = _canonical(json.loads(data))
        backend = _backend(data)
        facts = _describe(canonical, backend)
    except MissingDependency:
        raise
    except Exception as error:  # the library raises nothing more specific
        raise InvalidRequest(
            f"{file} is no tokenizer", got=error, expected="the tokenizer.json of a model"
        ) from error
    return Tokenizer(backend, facts, file.parent)


def check_same_tokenizer(
    tokenizer: Tokenizer, manifest: Manifest, path: str | Path, *, remedy: str = TRANSLATE
) -> None:
    """Accepts the datastore at `path` only if its ids mean the same text to the tokenizer.

    Raises:
        TokenizerMismatch: the fingerprints differ.
    """
    if tokenizer.fingerprint != manifest.tokenizer.fingerprint:
        raise TokenizerMismatch(
            f"datastore {path} was built with another tokenizer",
            got=_summary(manifest.tokenizer),
            expected=_summary(tokenizer.facts),
            remedy=remedy,
        )


def fingerprint_of(fields: Mapping[str, Any]) -> str:
    """Returns the fingerprint of a parsed `tokenizer.json`; FORMAT.md says how it is made."""
    return _digest(_canonical(fields))


def _digest(canonical: Mapping[str, Any]) -> str:
    octets = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    return f"sha256:{hashlib.sha256(octets).hexdigest()}"


def _describe(canonical: Mapping[str, Any], backend: Any) -> TokenizerFacts:
    return TokenizerFacts(
        fingerprint=_digest(canonical),
        model=str(canonical["model"].get("type", "unknown")),
        # The library's own ids: it numbers added tokens anew where the file's numbers leave a gap.
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        num_added_tokens=len(canonical["added_tokens"]),
        num_merges=len(canonical["merges"]),
        normalizer=_type_name(canonical["normalizer"]),
        pre_tokenizer=_type_name(canonical["pre_tokenizer"]),
    )


def _canonical(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns everything that decides the ids of a plain text, and nothing else.

    Left out: what stands around a text (post-processor, truncation, padding) and the way back (decoder).
    """
    model = fields["model"]
    rest = {
        key: value
        for key, value in model.items()
        if key not in ("vocab", "merges") and _says_something(value)
    }
    return {
        "scheme": _SCHEME,
        "model": rest,
        "vocabulary": _vocabulary(model["vocab"]),
        "merges": [
            pair.split(" ") if isinstance(pair, str) else list(pair) for pair in model.get("merges") or ()
        ],
        "added_tokens": [dict(token) for token in fields.get("added_tokens") or ()],
        "normalizer": _component(fields.get("normalizer")),
        "pre_tokenizer": _component(fields.get("pre_tokenizer")),
    }


def _says_something(value: Any) -> bool:
    # Older files leave out what newer ones spell as null, false or "".
    return value is not None and value is not False and value != ""


def _vocabulary(vocab: Any) -> list[list[Any]]:
    """Returns [id, token] by id, or [id, token, score] where the model lists its tokens with scores."""
    if isinstance(vocab, list):
        return [[index, token, score] for index, (token, score) in enumerate(vocab)]
    return sorted([int(index), str(token)] for token, index in vocab.items())


def _component(value: Any) -> Any:
    """Returns a normaliser or pre-tokeniser without the fields that change no id."""
    if isinstance(value, list):
        return [_component(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _component(part)
        for key, part in value.items()
        if part is not None
        and key not in _WITHOUT_EFFECT
        and not (key in _DEFAULTS and part is _DEFAULTS[key])
    }


def _type_name(component: Any) -> str:
    if not isinstance(component, dict):
        return "none"
    parts = component.get("normalizers") or component.get("pretokenizers") or ()
    name = str(component.get("type", "unknown"))
    return f"{name}({', '.join(map(_type_name, parts))})"[:128] if parts else name


def _tokenizer_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingPath("no such tokenizer", got=path, expected=f"a {TOKENIZER_NAME} or a model folder")
    if not (path / TOKENIZER_NAME).is_file():
        raise MissingPath(
            f"the model folder has no {TOKENIZER_NAME}",
            got=path,
            remedy="write one with AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
        )
    return path / TOKENIZER_NAME


def _backend(data: bytes) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingDependency(
            "tokenizers is not installed", remedy="pip install 'retrieval-spec[server]'"
        ) from error
    backend = tokenizers.Tokenizer.from_buffer(data)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _summary(facts: TokenizerFacts) -> str:
    short = facts.fingerprint.partition(":")[2][:12]
    return f"{facts.model} of {facts.vocab_size} ids, fingerprint {short}"
