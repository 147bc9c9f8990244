"""Where the process of a host gets its drafts: settings, checks at its start, and no exception after that.

Knows no host. Hosts start their workers themselves, so settings come from the environment, or from an option
of the host that carries JSON.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retrieval_spec.budget import CostCurve
from retrieval_spec.client import Credentials, DraftClient, LocalClient
from retrieval_spec.client.interface import DraftSession, DraftSource, TokenIds
from retrieval_spec.errors import (
    InvalidRequest,
    InvalidTokens,
    MissingDependency,
    MissingPath,
    RetrievalSpecError,
    ServiceUnavailable,
    TokenizerMismatch,
)
from retrieval_spec.integrations.tokenizers import check_datastores
from retrieval_spec.tree import DraftTree

logger = logging.getLogger(__name__)

PREFIX = "RETRIEVAL_SPEC_"
LOCAL = "local"
"""As the server's address: drafts are made in the host's own process."""

PADDED_SHARE = 1 / 8
"""So much smaller than the host's the vocabulary behind the drafts may be: models pad theirs."""

RETRY_S = 1.0
"""Between two attempts to reach a server that has never answered; no step waits for them."""

_EMPTY = DraftTree.empty()
T = TypeVar("T")


@dataclass(frozen=True)
class HostSettings:
    """Where drafts come from. Each is an environment variable, `RETRIEVAL_SPEC_` and its name in capitals.

    Attributes:
        server: `unix:/path/to.sock` or `host:port`; `local` drafts in this process.
        datastores: folders for `local`, separated as in PATH.
        preset: which sources draft, for `local`.
        namespace: whose learned text is used and added to.
        cost_per_node: what one more verified token costs a step, as a share of it; 0 drafts all there is room
            for, else only as many nodes as pay.
        transport: as of `DraftClient`: `unix:PATH` where the server takes frames, else as it is.
        timeout_s: asks in every step and waits so long at most; 0 waits as long as it pays.
        tls_ca, tls_certificate, tls_key, tls_server_name: as of `Credentials`.
        token_file: holds the token, where the server asks for one.
    """

    server: str = ""
    transport: str = "stream"
    datastores: str = ""
    preset: str = "default"
    namespace: str = "default"
    cost_per_node: float = 0.0
    timeout_s: float = 0.0
    tls_ca: str | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_server_name: str | None = None
    token_file: str | None = None

    @property
    def cost_curve(self) -> CostCurve | None:
        """What a step costs by its nodes; None if that is not told."""
        return CostCurve.linear(self.cost_per_node) if self.cost_per_node > 0 else None


def read_settings(
    options: Mapping[str, Any] | None = None, environment: Mapping[str, str] = os.environ
) -> HostSettings:
    """Returns the settings: what the host's own option says, else the environment.

    Raises:
        InvalidRequest: an option that is none, or a number that is none.
    """
    names = {field.name for field in fields(HostSettings)}
    if unknown := sorted(set(options or ()) - names):
        raise InvalidRequest("no such setting", got=unknown, expected=sorted(names))
    found: dict[str, Any] = {
        name: environment[PREFIX + name.upper()] for name in names if environment.get(PREFIX + name.upper())
    }
    found.update(options or {})
    for name in ("cost_per_node", "timeout_s"):
        found[name] = _number(name, found.get(name, 0.0))
    return HostSettings(**found)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise InvalidRequest(f"{name} is no such number", got=value, expected=">= 0")
    return number


def open_source(settings: HostSettings, vocab_size: int) -> DraftClient | LocalClient:
    """Returns a client of the server, or an engine in this process.

    Raises:
        InvalidRequest: nothing says where drafts come from.
        MissingDependency: drafts are to be made here, and what that needs is not installed.
        DatastoreError, MissingPath: a datastore or a credential cannot be used.
    """
    if not settings.server:
        raise InvalidRequest(
            "nothing says where drafts come from",
            remedy=f"set {PREFIX}SERVER to a server's address, or to {LOCAL}",
        )
    if settings.server != LOCAL:
        timeout_s, credentials = settings.timeout_s or None, _credentials(settings)
        return DraftClient(
            settings.server, timeout_s=timeout_s, transport=settings.transport, credentials=credentials
        )
    try:
        from retrieval_spec.engine import Engine
    except ImportError as error:
        raise MissingDependency(
            f"{error.name} is missing", remedy="pip install 'retrieval-spec[server]', or use a server"
        ) from error
    datastores = [path for path in settings.datastores.split(os.pathsep) if path]
    return LocalClient(Engine(vocab_size, preset=settings.preset, datastores=datastores))


def _credentials(settings: HostSettings) -> Credentials:
    token = None
    if settings.token_file is not None:
        try:
            token = Path(settings.token_file).read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            raise MissingPath("cannot read the file of the token", got=settings.token_file) from error
    return Credentials(
        settings.tls_ca, settings.tls_certificate, settings.tls_key, token, settings.tls_server_name
    )


class HostDrafts:
    """Drafts for a host that must never stop for their sake. Belongs to one thread.

    What is wrong when the host starts is an error, with one exception: a server that does not answer yet is
    looked for on a thread of its own. From then on trouble costs drafts and one warning.

    Attributes:
        settings: where drafts come from.

    Args:
        vocab_size: of the target model, padding included.
        tokenizer: its folder, or its name on the hub, if known.

    Raises:
        TokenizerMismatch: drafts would be of another vocabulary than the model's.
        RetrievalSpecError: settings or credentials that the server refuses, or what `open_source` raises.
    """

    def __init__(self, settings: HostSettings, vocab_size: int, tokenizer: str = "") -> None:
        self.settings = settings
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer_folder(tokenizer)
        self._source = open_source(settings, vocab_size)
        self._is_ready = False
        self._has_warned = False
        self._closing = threading.Event()
        try:
            self._check()
        except ServiceUnavailable as error:
            self.warn(error)
            threading.Thread(target=self._look_for_server, daemon=True).start()
        except BaseException:
            self._source.close()
            raise

    @property
    def source_names(self) -> tuple[str, ...]:
        """The drafter behind each bit of a tree's `sources`, once that is known."""
        return self._source.source_names if self._is_ready else ()

    def _check(self) -> None:
        """Refuses what could only draft nonsense, or nothing; drafts begin if nothing is wrong."""
        check_vocabulary(self._source.vocab_size, self._vocab_size)
        check_datastores(self._source, self._tokenizer)
        # What a server would refuse in each step, it refuses here: the namespace, the token.
        session = self._source.open_session([], self.settings.namespace)
        session.draft(1)  # and what is compiled at the first draft is compiled here
        session.close()
        self._is_ready = True

    def _look_for_server(self) -> None:
        while not self._closing.wait(RETRY_S):
            try:
                self._check()
            except ServiceUnavailable:
                continue
            except RetrievalSpecError as error:
                logger.error("no drafts from %s: %s", self.settings.server, error)
            else:
                logger.warning("drafts from %s begin", self.settings.server)
            return

    def open(self, context: TokenIds) -> DraftSession | None:
        """Returns a session of a generation; None if that cannot be, just now or at all."""
        return self._guarded(lambda: self._source.open_session(context, self.settings.namespace), None)

    def commit(self, session: DraftSession, token_ids: TokenIds) -> bool:
        """Appends decided tokens; whether the session holds them now."""

        def ask() -> bool:
            session.commit(token_ids)
            return True

        return self._guarded(ask, False)

    def end(self, session: DraftSession) -> None:
        """Ends a session, which teaches."""
        self._guarded(session.close, None)

    def draft_sessions(self, sessions: Sequence[DraftSession], max_nodes: int) -> list[DraftTree] | None:
        """Returns one tree a session of at most `max_nodes` nodes; None if the sessions are worth nothing."""
        total_nodes, curve = max_nodes * len(sessions), self.settings.cost_curve
        source: DraftSource = self._source

        def ask() -> list[DraftTree] | None:
            return source.draft_batch(sessions, total_nodes, curve, max_nodes) if sessions else []

        return self._guarded(ask, None)

    def draft_rows(self, contexts: Sequence[TokenIds], max_nodes: int) -> list[DraftTree]:
        """Returns one tree a row of at most `max_nodes` nodes; none for rows with ids unknown there."""
        return self._guarded(lambda: self._draft_rows(contexts, max_nodes), [_EMPTY] * len(contexts))

    def _draft_rows(self, contexts: Sequence[TokenIds], max_nodes: int) -> list[DraftTree]:
        curve, namespace = self.settings.cost_curve, self.settings.namespace
        ask = self._source.draft_suffixes
        try:
            return ask(contexts, max_nodes, None, curve, namespace)
        except InvalidTokens:
            known = self._source.vocab_size
            sound = [_fits(row, known) for row in contexts]
            rows = [row for row, is_sound in zip(contexts, sound, strict=True) if is_sound]
            drafted = iter(ask(rows, max_nodes, None, curve, namespace))
            return [next(drafted) if is_sound else _EMPTY for is_sound in sound]

    def _guarded(self, ask: Callable[[], T], otherwise: T) -> T:
        if not self._is_ready:
            return otherwise
        try:
            return ask()
        except Exception as error:  # whatever it is, the host generates
            self.warn(error)
            return otherwise

    def warn(self, error: Exception) -> None:
        """Says once what costs drafts."""
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        logger.log(level, "no drafts from %s: %s; generation goes on without", self.settings.server, error)

    def close(self) -> None:
        """Ends what was opened here; sessions are closed by those who opened them."""
        self._closing.set()
        self._is_ready = False
        self._source.close()


def check_vocabulary(drafted_size: int, host_size: int) -> None:
    """Refuses drafts of another vocabulary than the host's; a smaller one may be the same without padding.

    Raises:
        TokenizerMismatch: it is larger, or much smaller.
    """
    if not (1 - PADDED_SHARE) * host_size <= drafted_size <= host_size:
        raise TokenizerMismatch(
            "drafts would be of another vocabulary than the model's",
            got=f"{drafted_size} ids",
            expected=f"{host_size}, or fewer by the model's padding",
            remedy="serve datastores built with the model's tokenizer, with its --vocab-size",
        )


def tokenizer_folder(tokenizer: str) -> str:
    """Returns where the host's tokenizer stands on this machine; what was given if that is not known."""
    if tokenizer and not Path(tokenizer).is_dir():
        try:
            from huggingface_hub import try_to_load_from_cache  # where hosts load theirs from

            return str(Path(str(try_to_load_from_cache(tokenizer, "tokenizer.json"))).parent)
        except Exception as error:  # the library raises nothing more specific; drafts would only be worse
            logger.info("the tokenizers of model and datastores are not compared: %s", error)
    return tokenizer


def _fits(row: TokenIds, vocab_size: int) -> bool:
    tokens = np.asarray(row)
    return tokens.size == 0 or (int(tokens.min()) >= 0 and int(tokens.max()) < vocab_size)
