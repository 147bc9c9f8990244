"""The command line as people type it: real processes, real files, one line for what went wrong."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval_spec.demo_model import demo_model_dir
from tests import warm_processes

TEXT = "def add(first, second):\n    return first + second\n\n\n" * 40


run = functools.partial(warm_processes.run, "retrieval_spec.cli")


def run_cold(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "retrieval_spec.cli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text").mkdir()
    (folder / "text" / "add.py").write_text(TEXT)
    (folder / "more.jsonl").write_text(json.dumps({"text": TEXT[:100]}) + "\n")
    out = folder / "store"
    done = run(
        "build",
        folder / "text",
        folder / "more.jsonl",
        "--tokenizer",
        demo_model_dir(),
        "--out",
        out,
        "--json",
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["num_documents"] == 2
    return out


def damaged(store: Path, target: Path, file: str, change) -> Path:
    shutil.copytree(store, target)
    path = target / file
    path.write_bytes(change(path.read_bytes()))
    return target


def flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_inspect_and_verify_say_what_is_there(store):
    facts = json.loads(run("inspect", store, "--json").stdout)
    assert facts["kind"] == "context_array"
    assert "num" in run("inspect", store).stdout
    assert json.loads(run("verify", store, "--json").stdout)["intact"] is True


def test_every_command_shows_an_example():
    for command in ("build", "inspect", "verify", "serve", "history", "generate", "demo"):
        done = run_cold(command, "--help")
        assert done.returncode == 0
        assert f"retrieval-spec {command}" in done.stdout.split("example:")[1]


def newer(data: bytes) -> bytes:
    from retrieval_spec.datastore.sealed_json import seal

    unsealed = json.loads(data)
    unsealed["version"] = 99
    unsealed["manifest_sha256"] = "0" * 64
    return seal(json.dumps(unsealed, indent=2, sort_keys=True).encode() + b"\n")


TRANSLATE = ("build", "--from-datastore")
BAD_INPUT = {
    "no command": ((), "COMMAND"),
    "unknown command": (("fly",), "invalid choice"),
    "nothing to build": (("build",), "INPUTS is missing"),
    "no tokenizer": (("build", "{text}", "--out", "{new}"), "--tokenizer is missing"),
    "missing input": (("build", "{nowhere}", "--tokenizer", "{model}", "--out", "{new}"), "nowhere"),
    "missing tokenizer": (("build", "{text}", "--tokenizer", "{nowhere}", "--out", "{new}"), "nowhere"),
    "malformed JSONL": (
        ("build", "{malformed}", "--tokenizer", "{model}", "--out", "{new}"),
        "malformed.jsonl:2",
    ),
    "taken place": (("build", "{text}", "--tokenizer", "{model}", "--out", "{store}"), "--replace"),
    "only the old tokenizer": (("build", "--from-tokenizer", "{model}"), "--from-datastore is missing"),
    "no old tokenizer": (
        ("build", "--from-datastore", "{store}", "--tokenizer", "{model}"),
        "--from-tokenizer is missing",
    ),
    "no new tokenizer": (
        ("build", "--from-datastore", "{store}", "--from-tokenizer", "{model}"),
        "--tokenizer is missing",
    ),
    "wrong old tokenizer": (
        (*TRANSLATE, "{foreign}", "--from-tokenizer", "{model}", "--tokenizer", "{model}", "--out", "{new}"),
        "built with another tokenizer",
    ),
    "nothing to translate": (
        (*TRANSLATE, "{store}", "--from-tokenizer", "{model}", "--tokenizer", "{model}", "--out", "{new}"),
        "as it is",
    ),
    "missing old datastore": (
        (*TRANSLATE, "{nowhere}", "--from-tokenizer", "{model}", "--tokenizer", "{model}"),
        "nowhere",
    ),
    "text and a datastore": (
        ("build", "{text}", *TRANSLATE[1:], "{store}", "--from-tokenizer", "{model}"),
        "leave inputs and recipe out",
    ),
    "no datastore": (("inspect", "{nowhere}"), "nowhere"),
    "a file, not a datastore": (("verify", "{malformed}"), "malformed"),
    "truncated": (("verify", "{truncated}"), "tokens.bin"),
    "truncated, served": (("serve", "--datastore", "{truncated}"), "tokens.bin"),
    "altered": (("verify", "{altered}"), "positions.bin"),
    "an unknown order": (("verify", "{store}", "--order", "half"), "--order"),
    "altered, served": (("serve", "--datastore", "{altered}"), "positions.bin"),
    "newer format": (("inspect", "{newer}"), "99"),
    "nothing to serve": (("serve",), "--vocab-size"),
    "vocabulary too small": (("serve", "--datastore", "{store}", "--vocab-size", "10"), "vocab"),
    "bad vocabulary": (("serve", "--vocab-size", "-5"), "vocabulary"),
    "bad address": (("serve", "--vocab-size", "10", "--listen", "nonsense"), "nonsense"),
    "bad preset": (("serve", "--vocab-size", "10", "--preset", "fast"), "preset"),
    "another tokenizer": (("serve", "--datastore", "{foreign}", "--model", "{model}"), "another tokenizer"),
    "missing model": (("generate", "--model", "{nowhere}", "--prompt", "a"), "nowhere"),
    "missing draft model": (
        ("generate", "--model", "{model}", "--prompt", "a", "--draft-model", "{nowhere}"),
        "--draft-model",
    ),
    "draft model of another tokenizer": (
        ("generate", "--model", "{model}", "--prompt", "a", "--draft-model", "{foreign_model}"),
        "the draft model has another tokenizer",
    ),
    "a preset for the server": (
        ("generate", "--model", "{model}", "--prompt", "a", "--server", "unix:x", "--preset", "pld"),
        "retrieval-spec serve",
    ),
    "missing prompt file": (("generate", "--model", "{model}", "--prompt", "@{nowhere}"), "nowhere"),
    "no server": (
        ("generate", "--model", "{model}", "--prompt", "a", "--server", "unix:{nowhere}"),
        "server",
    ),
    "no new tokens": (("generate", "--model", "{model}", "--prompt", "a", "--max-new-tokens", "0"), ">= 1"),
    "server and datastore": (
        ("generate", "--model", "{model}", "--prompt", "a", "--server", "unix:x", "--datastore", "{store}"),
        "not both",
    ),
    "unknown node budget": (
        ("generate", "--model", "{model}", "--prompt", "a", "--node-budget", "x"),
        "--node-budget",
    ),
    "no number": (("generate", "--model", "{model}", "--prompt", "a", "--max-nodes", "x"), "--max-nodes"),
    "no prompts": (("demo", "--prompts", "0"), "prompt"),
}


def with_fewer_merges(folder: Path) -> Path:
    """A model folder as far as is read before the model is loaded, with a tokenizer of its own."""
    folder.mkdir()
    fields = json.loads((demo_model_dir() / "tokenizer.json").read_text())
    fields["model"]["merges"] = fields["model"]["merges"][:50]
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    shutil.copy(demo_model_dir() / "config.json", folder)
    return folder


@pytest.fixture(scope="module")
def places(store, tmp_path_factory) -> dict[str, Path]:
    from tests.stores import write_corpus

    folder = tmp_path_factory.mktemp("bad")
    (folder / "malformed.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    return {
        "text": store.parent / "text",
        "model": demo_model_dir(),
        "store": store,
        "nowhere": folder / "nowhere",
        "new": folder / "new",
        "malformed": folder / "malformed.jsonl",
        "truncated": damaged(store, folder / "truncated", "tokens.bin", lambda data: data[:-1]),
        "altered": damaged(store, folder / "altered", "positions.bin", flip_last_bit),
        "newer": damaged(store, folder / "newer", "manifest.json", newer),
        "foreign_model": with_fewer_merges(folder / "foreign_model"),
        "foreign": write_corpus(folder / "foreign", [[1, 2, 3]], vocab_size=100),
    }


def first_of_each_command(cases: dict[str, tuple[tuple[str, ...], str]]) -> set[str]:
    names = {arguments[0]: name for name, (arguments, _) in reversed(cases.items()) if arguments}
    return set(names.values())


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_ends_with_one_line_and_exit_code_2(name, places):
    arguments, says = BAD_INPUT[name]
    way = run_cold if name in first_of_each_command(BAD_INPUT) else run
    done = way(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert says in done.stderr
    assert not places["new"].exists()
    assert sorted(path.name for path in places["new"].parent.iterdir() if path.name.startswith(".")) == []


def test_a_datastore_is_translated_and_used_again(store, tmp_path):
    other = with_fewer_merges(tmp_path / "other")
    shutil.copytree(store, tmp_path / "store")
    options = (*TRANSLATE, tmp_path / "store", "--from-tokenizer", demo_model_dir(), "--tokenizer", other)
    first, again = (run(*options, "--json") for _ in range(2))
    assert first.returncode == 0, first.stderr
    facts = json.loads(first.stdout)
    assert json.loads(again.stdout) == facts
    assert facts["num_documents"] == 2
    assert facts["num_tokens"] > json.loads(run("inspect", store, "--json").stdout)["num_tokens"]
    refused = run("serve", "--datastore", store, "--model", other)
    assert "--from-datastore" in refused.stderr
    named = run(*options, "--out", facts["path"])
    assert named.returncode == 2
    assert "--replace" in named.stderr


@pytest.fixture
def server(store, tmp_path):
    address = f"unix:{tmp_path}/server.sock"
    command = ("serve", "--listen", address, "--datastore", store)
    with warm_processes.start("retrieval_spec.cli", *command) as process:
        assert process.stdout.readline() == f"serving on {address}\n"
        yield address
        process.terminate()
        assert process.wait(timeout=20) == 0


def test_generate_gives_the_same_text_wherever_the_drafts_come_from(server, store):
    options = (
        "generate",
        "--model",
        demo_model_dir(),
        "--prompt",
        "def add(first",
        "--max-new-tokens",
        24,
        "--json",
    )
    draft_model = ("--draft-model", demo_model_dir() / "draft")
    ways = [
        ("--server", server),
        ("--max-nodes", 0),
        ("--datastore", store, *draft_model),
        ("--preset", "session+recycling", "--node-budget", "measured", "--max-nodes", 8),
    ]
    results = [json.loads(run(*options, *way).stdout) for way in ways]
    assert len({result["text"] for result in results}) == 1
    # A busy machine may make the client give up on a draft or two, but not on all.
    steps = [result["steps"] for result in results]
    assert max(steps[0], steps[2]) < steps[1]


@pytest.mark.row("F8")
def test_a_server_with_datastores_of_another_tokenizer_is_refused(tmp_path):
    from tests.stores import write_corpus

    foreign = write_corpus(tmp_path / "foreign", [[1, 2, 3]], vocab_size=100)
    address = f"unix:{tmp_path}/server.sock"
    command = ("serve", "--listen", address, "--datastore", foreign)
    with warm_processes.start("retrieval_spec.cli", *command) as process:
        assert process.stdout.readline().startswith("serving")
        done = run("generate", "--model", demo_model_dir(), "--prompt", "a", "--server", address)
        process.terminate()
    assert done.returncode == 2
    assert "another tokenizer" in done.stderr


def test_a_sampled_generation_is_repeated_by_its_seed(store):
    options = (
        "generate",
        "--model",
        demo_model_dir(),
        "--prompt",
        "import ",
        "--max-new-tokens",
        16,
        "--json",
    )
    sampled = ("--temperature", "0.8", "--top-k", "50", "--seed", "7", "--datastore", store)
    texts = [json.loads(run(*options, *sampled).stdout)["text"] for _ in range(2)]
    assert texts[0] == texts[1]
