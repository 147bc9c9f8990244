"""What a server says of itself."""

from __future__ import annotations

import retrieval_spec
from retrieval_spec.engine import Engine
from retrieval_spec.v1 import draft_pb2 as pb


def server_info(engine: Engine, incarnation: int) -> pb.ServerInfo:
    """Returns what an engine drafts from now."""
    return pb.ServerInfo(
        version=retrieval_spec.__version__,
        incarnation=incarnation,
        vocab_size=engine.vocab_size,
        source_names=engine.source_names,
        datastores=[
            pb.Datastore(name=name, tokenizer_fingerprint=fingerprint)
            for name, fingerprint in engine.datastores.items()
        ],
        wanted_topk=engine.wanted_topk,
        state_dimensions=engine.state_dimensions,
        takes_ended=True,
    )
