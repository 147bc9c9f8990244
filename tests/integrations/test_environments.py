"""The client installs beside what each host pins, and works with the versions that pip settles on there."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.integrations import hosts

pytestmark = [pytest.mark.long, pytest.mark.timeout(1_200)]

ROOT = Path(__file__).resolve().parents[2]
HOSTS = ("vllm", "sglang", "tensorrt-llm", "transformers", "llama-cpp-python")
OWN = ("numpy", "protobuf", "grpcio")
LEAST = {"numpy": "1.26.4", "protobuf": "5.29.6", "grpcio": "1.68.0"}  # and the oldest that vLLM 0.33 takes

USE = """
import sys
from types import SimpleNamespace
import numpy as np
from retrieval_spec import DraftClient
from retrieval_spec.integrations.vllm import RetrievalProposer

address, vocab_size = sys.argv[1], int(sys.argv[2])
text = [1, 2, 3, 4] * 9
with DraftClient(address, timeout_s=20.0) as client:
    session = client.open_session(text, "named")
    session.commit([1, 2])
    tree = session.draft(8)
    assert tree.token_ids[:2].tolist() == [3, 4], tree
    session.close()
model = SimpleNamespace(max_model_len=100, get_vocab_size=lambda: vocab_size, tokenizer="")
config = SimpleNamespace(
    speculative_config=SimpleNamespace(num_speculative_tokens=4),
    model_config=model,
    additional_config={"retrieval_spec": {"server": address, "timeout_s": 20.0}},
)
drafts = RetrievalProposer(config).propose([[4]], np.array([36]), np.array([text], np.int32))
assert drafts == [[1, 2, 3, 4]], drafts
print(sorted({"numba", "torch", "transformers", "pyarrow"} & sys.modules.keys()))
"""


def pip(*arguments: object, python: str | Path = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pip", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def needed(done: subprocess.CompletedProcess[str], what: str) -> None:
    """Skips where an index is out of reach, and fails where it says that versions do not fit."""
    if done.returncode == 0:
        return
    said = done.stderr.strip().splitlines() or ["nothing"]
    assert "ResolutionImpossible" not in done.stderr, done.stderr
    reason = next((line for line in said if "rror" in line), said[-1])
    pytest.skip(f"{what} is not to be had from here: {reason[:200]}")


@functools.cache
def own_wheel(folder: Path) -> Path:
    needed(pip("wheel", "--no-deps", "-q", "-w", folder, ROOT), "what builds the wheel")
    (wheel,) = folder.glob("retrieval_spec-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return own_wheel(tmp_path_factory.mktemp("wheel"))


def resolved(wheel: Path, report: Path, host: str) -> dict[str, str]:
    """What pip would install for a host and the client together."""
    options = ("--dry-run", "--ignore-installed", "-q", "--report", report)
    needed(pip("install", *options, host, wheel), host)
    found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {one["name"].lower().replace("_", "-"): one["version"] for one in found}


def check_client(folder: Path, wheel: Path, versions: dict[str, str], address: str) -> None:
    """Installs these versions and the client, and nothing else, and drafts from a real server."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pins = [f"{name}=={version}" for name, version in versions.items()]
    needed(pip("install", "-q", *pins, wheel, python=python), " ".join(pins))
    done = subprocess.run(
        [python, "-W", "error::UserWarning", "-c", USE, address, str(70_000)], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("host", HOSTS)
def test_the_client_installs_beside_a_host_and_works_with_its_versions(host, wheel, tmp_path, address):
    versions = resolved(wheel, tmp_path / "report.json", host)
    assert {"retrieval-spec", host, *OWN} <= set(versions)
    check_client(tmp_path / "venv", wheel, {name: versions[name] for name in OWN}, address)
    print(host, {name: versions.get(name) for name in (host, *OWN, "numba", "torch", "transformers")})


def test_the_client_works_with_the_oldest_versions_that_it_takes(wheel, tmp_path, address):
    check_client(tmp_path / "venv", wheel, LEAST, address)


@pytest.mark.parametrize("host", ["vllm", "sglang"])
def test_the_tests_of_a_host_pass_over_its_own_published_classes(host, tmp_path):
    needed(pip("download", "-q", "--no-deps", "-d", tmp_path, host), host)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", f"tests/integrations/test_{host}.py"],
        cwd=ROOT,
        env={**os.environ, hosts.FOLDER: str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "SKIPPED" not in done.stdout, done.stdout
