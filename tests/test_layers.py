"""The layers as drawn: who may import whom, inside the package and outside."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import retrieval_spec

PACKAGE = Path(retrieval_spec.__file__).parent

# Module or folder -> what it may import of the package. Above all: nothing further up.
ALLOWED: dict[str, set[str]] = {
    "__init__": {"errors", "tree"},
    "errors": set(),
    "limits": {"errors"},
    "ledger": {"limits", "errors"},
    "memory": {"limits", "drafters", "tree"},
    "tree": {"errors"},
    "feedback": {"tree", "errors"},
    "projection": {"tree", "errors"},
    "target_states": {"errors"},
    "fusion": {"tree"},
    "model_tree": {"tree", "errors"},
    "calibration": {"tree"},
    "budget": {"tree", "errors"},
    "step_costs": {"budget", "errors"},
    "kernels": {"kernels", "fusion"},
    "structures": {"structures", "kernels", "tree", "errors", "calibration"},
    "datastore": {"datastore", "errors", "tree"},
    "drafters": {
        "limits",
        "feedback",
        "projection",
        "drafters",
        "fusion",
        "model_tree",
        "structures",
        "kernels",
        "datastore",
        "calibration",
        "tree",
        "errors",
    },
    "ahead": {"drafters", "budget", "tree"},
    "roster": {"drafters"},
    "session": {
        "ahead",
        "feedback",
        "limits",
        "memory",
        "drafters",
        "structures",
        "budget",
        "tree",
        "errors",
    },
    "engine": {
        "session",
        "roster",
        "feedback",
        "projection",
        "limits",
        "ledger",
        "memory",
        "drafters",
        "fusion",
        "kernels",
        "calibration",
        "budget",
        "tree",
        "errors",
    },
    "traces": {"datastore", "tree", "errors"},
    "match_lengths": {"text_matches", "traces", "tree"},
    "text_matches": {"structures", "tree"},
    "cost_file": {"budget", "errors"},
    "replay": {"traces", "engine", "budget", "tree"},
    "report": {
        "report",
        "match_lengths",
        "text_matches",
        "replay",
        "traces",
        "drafters",
        "structures",
        "datastore",
        "budget",
        "tree",
        "errors",
    },
    "shelf": {"engine", "drafters", "datastore", "projection", "tree", "errors"},
    "suffixes": {"engine", "session", "budget", "tree", "errors"},
    "near_duplicates": {"kernels", "errors"},
    "encoding": {"near_duplicates", "datastore", "errors", "tree"},
    "indexing": {"encoding", "structures", "datastore", "errors"},
    "spread": {"encoding", "indexing", "datastore", "errors"},
    "cluster": {"spread", "errors"},
    "build": {
        "near_duplicates",
        "encoding",
        "indexing",
        "spread",
        "structures",
        "datastore",
        "errors",
        "tree",
    },
    "translate": {"encoding", "indexing", "datastore", "errors"},
    "rewriting": {"indexing", "structures", "datastore", "errors"},
    "grow": {"near_duplicates", "encoding", "indexing", "rewriting", "datastore", "tree", "errors"},
    "export": {"structures", "datastore", "errors", "tree"},
    "corpus_stats": {"structures", "kernels", "datastore", "errors", "tree"},
    "leave_one_out": {"corpus_stats", "structures", "kernels", "tree"},
    "own_documents": {
        "leave_one_out",
        "corpus_stats",
        "drafters",
        "structures",
        "datastore",
        "tree",
        "errors",
    },
    "dense_states": {"projection", "target_states", "datastore", "errors", "tree"},
    "dense_build": {
        "dense_states",
        "encoding",
        "projection",
        "structures",
        "drafters",
        "datastore",
    },
    "dense_grow": {
        "dense_build",
        "dense_states",
        "grow",
        "encoding",
        "projection",
        "target_states",
        "structures",
        "drafters",
        "datastore",
    },
    "v1": {"v1"},
    "wire": {"wire", "budget", "feedback", "projection", "v1", "tree", "errors"},
    "client": {
        "budget",
        "feedback",
        "projection",
        "fusion",
        "suffixes",  # in process only, where the engine is
        "client",
        "wire",
        "v1",
        "tree",
        "errors",
    },
    "service": {
        "limits",
        "memory",
        "budget",
        "feedback",
        "projection",
        "service",
        "shelf",
        "grow",
        "engine",
        "session",
        "suffixes",
        "wire",
        "v1",
        "datastore",
        "tree",
        "errors",
    },
    "verifier": {
        "feedback",
        "projection",
        "target_states",
        "verifier",
        "client",
        "budget",
        "step_costs",
        "fusion",
        "model_tree",
        "tree",
        "errors",
    },
    "integrations": {
        "budget",
        "step_costs",
        "feedback",
        "integrations",
        "verifier",
        "client",
        "engine",  # in process only
        "datastore",  # fingerprints of tokenizers
        "tree",
        "errors",
    },
    "demo_model": set(),
}
# The command line and what it alone starts stand on top and may use everything.
TOP = {"cli", "commands"}
# What may be imported at the top of a module besides the standard library.
OUTSIDE: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "limits": set(),
    "ledger": set(),
    "memory": set(),
    "tree": {"numpy"},
    "feedback": {"numpy"},
    "projection": {"numpy"},
    "target_states": set(),
    "fusion": {"numpy"},
    "model_tree": {"numpy"},
    "calibration": {"numpy"},
    "budget": {"numpy"},
    "step_costs": set(),
    "kernels": {"numpy", "numba"},
    "structures": {"numpy"},
    "datastore": {"numpy"},
    "drafters": {"numpy"},
    "ahead": {"numpy"},
    "roster": {"numpy"},
    "session": {"numpy"},
    "engine": {"numpy"},
    "suffixes": {"numpy"},
    "traces": {"numpy"},
    "match_lengths": {"numpy"},
    "text_matches": {"numpy"},
    "cost_file": set(),
    "replay": {"numpy"},
    "report": {"numpy"},
    "shelf": {"numpy"},
    "build": set(),
    "near_duplicates": {"numpy"},
    "encoding": set(),
    "indexing": set(),
    "spread": {"numpy"},
    "cluster": set(),
    "translate": {"numpy"},
    "grow": {"numpy"},
    "export": {"numpy"},
    "corpus_stats": {"numpy"},
    "leave_one_out": {"numpy"},
    "own_documents": {"numpy"},
    "rewriting": {"numpy"},
    "dense_states": {"numpy"},
    "dense_build": {"numpy"},
    "dense_grow": set(),
    "v1": {"google", "grpc"},
    "wire": {"numpy", "google"},
    "client": {"numpy", "grpc"},
    "service": {"numpy", "grpc", "grpc_health", "grpc_reflection", "google"},
    "verifier": {"numpy", "torch", "transformers"},  # behind the lazy names of its __init__
    "integrations": {"numpy"},
    "demo_model": set(),
}


def layer_of(path: Path) -> str:
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "client" if name.startswith("client") else name


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if layer_of(path) not in TOP)


def imported(nodes: list[ast.stmt] | ast.AST) -> set[str]:
    found = set()
    for node in nodes if isinstance(nodes, list) else ast.walk(nodes):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            found.add(node.module or "")
            found.update(
                f"{node.module}.{alias.name}" for alias in node.names if node.module == "retrieval_spec"
            )
    return found


def type_checking_only(tree: ast.Module) -> set[str]:
    blocks = [
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    return {name for block in blocks for name in imported(block.body)}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_upward(path):
    tree = ast.parse(path.read_text())
    layer = layer_of(path)
    inside = {
        name for name in imported(tree) - type_checking_only(tree) if name.startswith("retrieval_spec.")
    }
    layers = {
        layer_of(PACKAGE / name.split(".")[1]) for name in inside if (PACKAGE / name.split(".")[1]).exists()
    }
    layers |= {layer_of(PACKAGE / f"{name.split('.')[1]}.py") for name in inside}
    known = {name for name in layers if name in ALLOWED or name in TOP}
    assert known <= ALLOWED[layer], f"{layer} must not import {known - ALLOWED[layer]}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_packages_are_not_imported_at_the_top(path):
    tree = ast.parse(path.read_text())
    outside = {name.split(".")[0] for name in imported(tree.body)} - {"retrieval_spec", ""}
    outside -= set(sys.stdlib_module_names)
    assert outside <= OUTSIDE[layer_of(path)]


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


HEAVY = {
    "numba",
    "torch",
    "transformers",
    "pyarrow",
    "faiss",
    "datasets",
    "tokenizers",
    "ray",
    "tqdm",  # grpc_health and grpc_tools are not among them: grpc itself imports them where they exist
}


@pytest.mark.parametrize("statement", ["import retrieval_spec", "from retrieval_spec import DraftClient"])
def test_the_client_pulls_in_numpy_grpc_and_protobuf_alone(statement):
    assert loaded_after(statement) & HEAVY == set()


def test_the_engine_knows_no_transport_and_no_torch():
    assert loaded_after("import retrieval_spec.engine") & {"grpc", "google", "torch", "transformers"} == set()


def test_the_command_line_imports_nothing_before_it_must():
    assert loaded_after("import retrieval_spec.cli") & (HEAVY | {"numpy", "grpc"}) == {"numpy"}


def test_no_file_of_the_package_is_longer_than_400_lines():
    sizes = {
        path.relative_to(PACKAGE): len(path.read_text().splitlines())
        for path in MODULES
        if layer_of(path) != "v1"
    }
    assert {path: size for path, size in sizes.items() if size > 400} == {}


def test_functions_are_short():
    lengths = []
    for path in MODULES:
        if layer_of(path) in {"v1", "kernels"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                lengths.append(node.end_lineno - node.lineno + 1 - docstring.count("\n"))
    lengths.sort()
    assert lengths[len(lengths) // 2] <= 10
    assert lengths[len(lengths) * 9 // 10] <= 30
    assert lengths[-1] <= 60


def test_no_module_is_a_dumping_ground():
    assert [path for path in MODULES if path.stem in {"utils", "helpers", "common", "misc"}] == []
