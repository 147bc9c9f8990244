"""`retrieval-spec serve`: opens an engine and serves it until SIGTERM."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, cast

from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.commands.settings import ServeSettings, settings_of
from retrieval_spec.datastore.background import Background, let_others_go_first
from retrieval_spec.datastore.loading import Load
from retrieval_spec.datastore.manifest import Manifest
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.segments import Segments, open_segments
from retrieval_spec.datastore.tokenizer import check_same_tokenizer, load_tokenizer
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.service.listen import expect_safe, listener
from retrieval_spec.service.logs import write_json_logs

if TYPE_CHECKING:  # they load kernels
    from retrieval_spec.drafters.preset import Preset
    from retrieval_spec.limits import Limits
    from retrieval_spec.shelf import Shelf


def serve_command(arguments: argparse.Namespace) -> None:
    """Checks the datastores, opens the engine and serves; prints one line when it is ready."""
    gc.disable()  # nearly all that is loaded stays: looking for garbage in it takes a tenth of the start
    try:
        open_and_serve(arguments)
    finally:
        gc.enable()


def open_and_serve(arguments: argparse.Namespace) -> None:
    """Does what `serve_command` says, with no garbage collected before the server is ready."""
    settings, limits = settings_of(arguments)
    config = server_config(settings)
    expect_safe(listener(settings.listen), config)
    preset = preset_with_groups(settings)
    if settings.log_format == "json":
        write_json_logs()
    if config.admin is not None:
        from retrieval_spec.service.admin import admin_place

        admin_place(config)  # refused before anything takes long
    shelf = open_shelf(settings, preset, limits)
    from retrieval_spec.service.server import serve

    serve(shelf.engine, settings.listen, announce, config, shelf)


def open_shelf(settings: ServeSettings, preset: str | Preset, limits: Limits) -> Shelf:
    """Opens and checks the datastores; only what is returned keeps them, so that they can be replaced."""
    load = cast(Load, settings.load)
    stores = {path: open_segments(path, load) for path in settings.datastore}
    manifests = {path: store.manifest for path, store in stores.items()}
    with progress_bar() as progress:
        checked = Background(lambda: verify(settings.trust_datastores, list(stores.values()), progress))
        load_kernels()
        checked.result()
    if settings.model:
        check_tokenizers(settings.model, manifests)
    from retrieval_spec.engine import Engine
    from retrieval_spec.shelf import Shelf

    engine = Engine(
        vocab_size_for(settings.vocab_size, settings.model, list(manifests.values())),
        preset=preset,
        datastores=list(stores.values()),
        limits=limits,
    )
    return Shelf(engine, stores.values(), load, settings.trust_datastores)


def server_config(settings: ServeSettings) -> ServerConfig:
    """Returns those settings that concern the server alone."""
    return ServerConfig(**{entry.name: getattr(settings, entry.name) for entry in fields(ServerConfig)})


def preset_with_groups(settings: ServeSettings) -> str | Preset:
    """Returns the preset, with what tenants share on purpose if they do.

    Raises:
        InvalidRequest: malformed groups, or a preset that cannot have any.
    """
    if not settings.group:
        return settings.preset
    from retrieval_spec.drafters.group import members_of
    from retrieval_spec.drafters.presets import preset, with_groups

    members = members_of(settings.group)
    return with_groups(preset(settings.preset), members, settings.group_min_tenants)


def verify(is_trusted: bool, stores: Sequence[Segments], progress: Progress) -> None:
    """Reads every byte of what is open, and so of what will be served, unless it is to be trusted."""
    let_others_go_first()
    for store in stores:
        if is_trusted:
            store.prefault()
        else:
            store.check(progress)


def load_kernels() -> None:
    """Imports the server and warms up what needs no datastore: as long a work as the checksums'."""
    with without_scipy():
        from retrieval_spec.engine import Engine
        from retrieval_spec.service.server import warm_up
        from retrieval_spec.service.servicer import Servicer

        warm_up(Servicer(Engine(vocab_size=1_000)))


@contextmanager
def without_scipy() -> Iterator[None]:
    """Hides scipy from numba, which else loads it, slowly, to find a BLAS that no kernel calls."""
    loaded = sys.modules.get("scipy")
    if loaded is None:
        sys.modules["scipy"] = None  # type: ignore[assignment]  # what the import system calls blocked
    try:
        yield
    finally:
        if loaded is None:
            del sys.modules["scipy"]


def announce(address: str) -> None:
    """Prints the line that scripts wait for, and collects garbage from now on: only what comes now."""
    gc.freeze()
    gc.enable()
    print(f"serving on {address}", flush=True)


def check_tokenizers(model: str | Path, manifests: dict[str, Manifest]) -> None:
    """Refuses datastores whose ids mean other text to the model.

    Raises:
        TokenizerMismatch: a datastore was built with another tokenizer.
    """
    tokenizer = load_tokenizer(model)
    for path, manifest in manifests.items():
        check_same_tokenizer(tokenizer, manifest, path)


def vocab_size_for(asked: int | None, model: str | Path | None, manifests: list[Manifest]) -> int:
    """Returns the vocabulary size to serve: the one asked for, else the largest that is known.

    Raises:
        InvalidRequest: nothing says how large the vocabulary is.
    """
    if asked is not None:
        return asked
    sizes = [manifest.vocab_size for manifest in manifests]
    if model:
        sizes.append(load_tokenizer(model).vocab_size)
    if not sizes:
        raise InvalidRequest(
            "nothing says how large the vocabulary is", remedy="give --vocab-size, --model or a --datastore"
        )
    return max(sizes)
