"""`retrieval-spec admin`: what an operator asks of a running server's datastores and namespaces."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from retrieval_spec.client.credentials import Credentials
from retrieval_spec.client.transport import Method
from retrieval_spec.commands.connecting import read_token
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.progress import NoProgress
from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.encoding import batches_of, encoded
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.tree import Tokens
from retrieval_spec.v1 import datastore_pb2 as pb
from retrieval_spec.v1 import namespace_pb2
from retrieval_spec.wire import token_bytes

_MESSAGES = {"Forget": namespace_pb2}
"""Where the messages of a call are; of others, with the datastores'."""
_PATIENCE_S = {"List": 10.0, "Stats": 60.0}
_CHANGE_PATIENCE_S = 3_600.0
"""Checking a large datastore takes minutes; the server finishes a change whether or not it is waited for."""
MESSAGE_TOKENS = 1 << 20
MESSAGE_DOCUMENTS = 1 << 14

Facts = dict[str, Any]
Document = tuple[Tokens, str]


def admin_command(arguments: argparse.Namespace) -> Facts:
    """Asks the server; returns what it answered, ready for JSON.

    Raises:
        ServiceUnavailable: there is none, or not at this socket.
        RetrievalSpecError: what it refused the call for.
    """
    return _RUN[arguments.action](_Server(arguments.socket, arguments.token_file), arguments)


class _Server:
    """The services at an address; a call is made by its name."""

    def __init__(self, address: str, token_file: str | None) -> None:
        self._address = address
        self._credentials = Credentials(token=None if token_file is None else read_token(token_file))

    def __call__(self, call: str, /, **fields: Any) -> Any:
        messages: Any = _MESSAGES.get(call, pb)
        (service,) = messages.DESCRIPTOR.services_by_name.values()
        request, response = getattr(messages, f"{call}Request"), getattr(messages, f"{call}Response")
        with self._credentials.open_channel(self._address, ()) as channel:
            way = channel.unary_unary(
                f"/{service.full_name}/{call}", request.SerializeToString, response.FromString
            )
            method = Method(way, self._credentials.metadata)
            return method(request(**fields), _PATIENCE_S.get(call, _CHANGE_PATIENCE_S))


def _list(ask: _Server, arguments: argparse.Namespace) -> Facts:
    return {one.name: _facts(one) for one in ask("List").datastores}


def _load(ask: _Server, arguments: argparse.Namespace) -> Facts:
    return _facts(ask("Load", folder=arguments.folder, name=arguments.name or "").datastore)


def _unload(ask: _Server, arguments: argparse.Namespace) -> Facts:
    ask("Unload", name=arguments.name)
    return {"unloaded": arguments.name}


def _swap(ask: _Server, arguments: argparse.Namespace) -> Facts:
    answer = ask("Swap", name=arguments.name, folder=arguments.folder or "")
    return {"is_changed": answer.is_changed, **_facts(answer.datastore)}


def _append(ask: _Server, arguments: argparse.Namespace) -> Facts:
    tokenizer = load_tokenizer(arguments.tokenizer)
    corpus = Corpus(arguments.inputs, arguments.text_field)
    batches = batches_of(corpus.documents(NoProgress().advance, tokenizer))
    documents = ((ids, origin) for _, ids, origin, _ in encoded(batches, tokenizer))
    total: Facts = {"num_added": 0, "num_duplicates": 0}
    for origin, part in messages_of(documents):
        answer = ask(
            "Append",
            name=arguments.name,
            token_ids=token_bytes(np.concatenate(part).astype(np.int32)),
            document_lengths=token_bytes(np.array([len(ids) for ids in part], np.int32)),
            origin=origin,
            tokenizer_fingerprint=tokenizer.fingerprint,
        )
        total = {name: total[name] + getattr(answer, name) for name in ("num_added", "num_duplicates")}
        total |= _facts(answer.datastore)
    if "generation" not in total:
        raise InvalidRequest("no documents found: the inputs hold no text", remedy="name other inputs")
    return total


def _snapshot(ask: _Server, arguments: argparse.Namespace) -> Facts:
    answer = ask("Snapshot", name=arguments.name, folder=arguments.folder)
    return {"path": answer.path, **_facts(answer.datastore)}


def _stats(ask: _Server, arguments: argparse.Namespace) -> Facts:
    return {one.datastore.name: {**_facts(one.datastore), **_facts(one)} for one in ask("Stats").datastores}


def _forget(ask: _Server, arguments: argparse.Namespace) -> Facts:
    was_kept = ask("Forget", namespace=arguments.namespace).was_kept
    return {"namespace": arguments.namespace, "was_kept": was_kept, "is_kept": False}


_RUN: dict[str, Callable[[_Server, argparse.Namespace], Facts]] = {
    "list": _list,
    "load": _load,
    "unload": _unload,
    "swap": _swap,
    "append": _append,
    "snapshot": _snapshot,
    "stats": _stats,
    "forget": _forget,
}


def messages_of(documents: Iterable[Document]) -> Iterator[tuple[str, list[Tokens]]]:
    """Yields documents of one origin, as many as fit a message; a longer one goes by itself."""
    part: list[Tokens] = []
    origin, num_tokens = "", 0
    for token_ids, source in documents:
        is_full = num_tokens + len(token_ids) > MESSAGE_TOKENS or len(part) >= MESSAGE_DOCUMENTS
        if part and (is_full or source != origin):
            yield origin, part
            part, num_tokens = [], 0
        origin = source
        part.append(token_ids)
        num_tokens += len(token_ids)
    if part:
        yield origin, part


def _facts(message: Any) -> Facts:
    """Returns the plain fields of a message."""
    return {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if field.message_type is None and (not field.has_presence or message.HasField(field.name))
    }
