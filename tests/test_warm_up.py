"""A server that reports SERVING has compiled everything: no draft waits seconds for a compiler."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.stores import write_corpus

CODE = """
import importlib, pkgutil, sys
import numpy as np
from numba.core.dispatcher import Dispatcher
import retrieval_spec.kernels
from retrieval_spec import wire
from retrieval_spec.engine import Engine
from retrieval_spec.service.server import Servicer, warm_up
from retrieval_spec.v1 import draft_pb2 as pb

def compiled():
    names = [module.name for module in pkgutil.iter_modules(retrieval_spec.kernels.__path__)]
    modules = [importlib.import_module(f"retrieval_spec.kernels.{name}") for name in names]
    found = [(m.__name__ + "." + name, value) for m in modules for name, value in vars(m).items()]
    return {name: len(value.signatures) for name, value in found if isinstance(value, Dispatcher)}

servicer = Servicer(Engine(1_000, datastores=sys.argv[1:]))
warm_up(servicer)
before = compiled()
prompt = np.array([7, 8, 9] * 400, np.int32)
request = pb.OpenSessionRequest(prompt_token_ids=wire.token_bytes(prompt))
drafted = 0
random = np.random.default_rng(0)
for round_ in range(300):
    if round_ % 100 == 0:
        session_id, length = servicer.open_session(request).session_id, prompt.size
    step, result = pb.DraftStep(), pb.DraftStepResult()
    known = [1, 2, 3] if round_ == 50 else [7, 8, 9]  # the first to the corpus alone
    commit = np.array([*random.integers(10, 900, 5), *known], np.int32)
    wire.write_step(step, [wire.SessionStep(session_id, length, commit, 16)], 16)
    servicer.answer(step, result)
    length += commit.size
    tree = wire.read_result(result, [16], 16, 1_000, servicer.engine.source_names)[0]
    drafted |= int(np.bitwise_or.reduce(tree.sources))
    if round_ % 100 == 99:
        servicer.close(session_id)
assert drafted == 2 ** len(servicer.engine.source_names) - 1, drafted
late = {name: count for name, count in compiled().items() if count != before[name]}
print(late)
"""


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_nothing_is_compiled_after_the_warm_up(tmp_path, dtype):
    documents = [[7, 8, 9, 5, 7, 8, 9, 6], [1, 2, 3, 4]]
    store = write_corpus(tmp_path / "store", documents, vocab_size=1_000, dtype=dtype)
    done = subprocess.run([sys.executable, "-c", CODE, store], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{}\n"
