"""Environments of their own for the systems compared with, made by pip from the index that it is set up for.

Each lies in `.cache/bench/peers/environments/NAME` and is kept; one that cannot be made has a reason instead,
which the page states.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".cache" / "bench" / "peers"
FOLDER = KEPT / "environments"
TORCH = os.environ.get("TORCH") or "torch"

STAND_IN_TORCH = """
from types import SimpleNamespace
utils = SimpleNamespace(cmake_prefix_path="")
cuda = SimpleNamespace(is_available=lambda: False)
"""


class NotInstalled(Exception):
    """Why a system could not be installed."""


@dataclass(frozen=True)
class Environment:
    """What one system needs.

    Attributes:
        requirements: what pip installs as usual.
        finish: what else has to be done, with the environment's folder.
    """

    requirements: tuple[str, ...] = ()
    finish: Callable[[Path], None] | None = None


def run(*command: str, **environ: str) -> None:
    """Runs a command.

    Raises:
        NotInstalled: with what it said last.
    """
    settings = {"env": {**os.environ, **environ}, "text": True, "check": False}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **settings)
    if done.returncode:
        said = [line.strip() for line in done.stdout.splitlines() if "error" in line.lower()]
        raise NotInstalled((said or [f"{command[2]} failed"])[-1][:200])


def pip(folder: Path, *arguments: str, **environ: str) -> None:
    """Runs the environment's pip."""
    run(str(folder / "bin" / "python"), "-m", "pip", *arguments, "-q", **environ)


def build_arctic(folder: Path) -> None:
    """Builds the package as published.

    Its setup asks torch for a folder that only its CUDA part uses; a stand-in answers.
    """
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "torch.py").write_text(STAND_IN_TORCH)
        python = folder / "bin" / "python"
        source = ("--no-deps", "--no-build-isolation", "arctic-inference==0.3.0")
        pip(folder, "install", *source, PYTHONPATH=scratch, CMAKE_ARGS=f"-DPython_EXECUTABLE={python}")


def take_file(requirement: str, path: str, *how: str) -> Callable[[Path], None]:
    """Returns what downloads a package and keeps one file of it, and its version."""

    def finish(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            pip(folder, "download", "--no-deps", *how, requirement, "-d", scratch)
            (archive,) = Path(scratch).iterdir()
            taken = folder / "taken"
            taken.mkdir(exist_ok=True)
            (taken / Path(path).name).write_bytes(_read(archive, path))
            (taken / "VERSION").write_text(archive.name.removesuffix(".tar.gz").split("-")[1])

    return finish


def _read(archive: Path, path: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(path)
    with tarfile.open(archive) as source:
        (member,) = (entry for entry in source.getmembers() if entry.name.endswith(path))
        found = source.extractfile(member)
        assert found is not None
        return found.read()


ENVIRONMENTS = {
    "arctic": Environment(
        (
            "setuptools",
            "wheel",
            "ninja",
            "cmake",
            "nanobind==2.9.2",
            "protobuf==5.29.6",
            "grpcio-tools",
            "numpy",
        ),
        build_arctic,
    ),
    "transformers_lookup": Environment(("transformers==5.23.0", TORCH)),
    "vllm_ngram": Environment(
        ("numpy", "numba==0.65.0"), take_file("vllm==0.33.0", "vllm/v1/spec_decode/ngram_proposer.py")
    ),
    "llama_cpp_lookup": Environment(
        ("numpy",),
        take_file(
            "llama-cpp-python==0.3.36", "llama_cpp/llama_speculative.py", "--no-binary", "llama-cpp-python"
        ),
    ),
    "infini_gram": Environment(("infini-gram==2.6.0", "numpy")),
}


def python_of(name: str) -> str:
    """Returns the interpreter of a system's environment, which is made where there is none.

    Raises:
        NotInstalled: it cannot be made; what there is of it is removed.
    """
    if name == "ours":
        return sys.executable
    folder, stamp = FOLDER / name, FOLDER / name / "made"
    if not stamp.exists():
        print(f"installing {name}", file=sys.stderr, flush=True)
        try:
            _make(folder, ENVIRONMENTS[name])
        except (NotInstalled, OSError, ValueError, KeyError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise NotInstalled(_without_places(str(error))) from error
        stamp.touch()
    return str(folder / "bin" / "python")


def _make(folder: Path, environment: Environment) -> None:
    venv.create(folder, clear=True, with_pip=True)
    pip(folder, "install", *environment.requirements)
    if environment.finish is not None:
        environment.finish(folder)


def _without_places(said: str) -> str:
    """Leaves out words that name places of this machine or of its index."""
    return " ".join(word for word in said.split() if "/" not in word)
