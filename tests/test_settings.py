"""One schema for `serve`: what flags, file and defaults say together, and what is said of mistakes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from retrieval_spec.commands.arguments import new_parser
from retrieval_spec.commands.serve import server_config
from retrieval_spec.commands.settings import LIMITS, SETTINGS, flag, settings_of, type_of
from retrieval_spec.errors import InvalidRequest, MissingPath
from retrieval_spec.limits import Limits


def settings(*flags, file=None, tmp_path=None):
    arguments = ["serve", *flags]
    if file is not None:
        (tmp_path / "server.toml").write_text(file)
        arguments += ["--config", str(tmp_path / "server.toml")]
    return settings_of(new_parser().parse_args(arguments))


FILE = """
listen = "unix:/run/drafts.sock"
datastore = ["docs", "/abs/code"]
vocab_size = 1000
insecure = true
grace_s = 5
[limits]
max_sessions = 7
max_nodes = 32
"""


def test_defaults_hold_where_nobody_says_anything():
    said, limits = settings()
    assert {name: getattr(said, name) for name in SETTINGS} == {
        name: entry.default for name, entry in SETTINGS.items()
    }
    assert limits == Limits()


def test_a_file_says_it_and_flags_go_before_it(tmp_path):
    said, limits = settings(file=FILE, tmp_path=tmp_path)
    assert said.listen == "unix:/run/drafts.sock"
    assert said.datastore == (str(tmp_path / "docs"), "/abs/code")
    assert (said.vocab_size, said.insecure, said.grace_s) == (1000, True, 5)
    assert (limits.max_sessions, limits.max_nodes, limits.max_topk) == (7, 32, Limits().max_topk)
    flags = ("--listen", "127.0.0.1:0", "--no-insecure", "--max-nodes", "9", "--datastore", "x")
    said, limits = settings(*flags, file=FILE, tmp_path=tmp_path)
    assert (said.listen, said.insecure, said.datastore) == ("127.0.0.1:0", False, ("x",))
    assert (limits.max_sessions, limits.max_nodes) == (7, 9)


@pytest.mark.row("C1")
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_can_be_said_by_flag_and_by_file(name, tmp_path):
    entry = SETTINGS[name]
    value = {str: "/some", int: 3, float: 1.5, bool: True, tuple: ["/some"]}[type_of(entry)]
    value = entry.metadata["choices"][-1] if entry.metadata["choices"] else value
    in_file = {"True": "true"}.get(str(value), repr(value))
    said_by_file, _ = settings(file=f"{name} = {in_file}", tmp_path=tmp_path)
    words = [] if value is True else [str(value[0] if isinstance(value, list) else value)]
    said_by_flag, _ = settings(flag(name), *words)
    assert said_by_file == said_by_flag
    assert getattr(said_by_flag, name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.row("C1")
@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_can_be_said_by_flag_and_by_file(name, tmp_path):
    _, by_file = settings(file=f"[limits]\n{name} = 5", tmp_path=tmp_path)
    _, by_flag = settings(flag(name), "5")
    assert by_file == by_flag
    assert getattr(by_flag, name) == 5


MISTAKES = {
    "unknown setting": ('lissten = "x"', "did you mean listen"),
    "dashes": ('tls-key = "x"', "did you mean tls_key"),
    "nothing like it": ("zzz = 1", "expected datastore, preset"),
    "unknown limit": ("[limits]\nmax_session = 1", "did you mean max_sessions"),
    "wrong type": ("vocab_size = '3'", "vocab_size is wrong; got '3'; expected a whole number; change"),
    "a bool is no number": ("vocab_size = true", "expected a whole number"),
    "wrong list": ("datastore = 'docs'", "expected a list of texts"),
    "wrong choice": ("load = 'fast'", "expected auto or mmap or memory"),
    "limit out of range": ("[limits]\nmax_nodes = 0", "limit max_nodes is out of range; got 0"),
    "limit of a wrong type": ("[limits]\nmax_nodes = 1.5", "a whole number from 1 to 4096"),
    "limits are no table": ("limits = 3", "expected a table"),
    "no TOML": ("listen = ", "expected TOML"),
}


@pytest.mark.row("C1")
@pytest.mark.parametrize(("file", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_the_file_are_named(file, words, tmp_path):
    with pytest.raises(InvalidRequest) as caught:
        settings(file=file, tmp_path=tmp_path)
    assert words in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(MissingPath, match=r"nowhere\.toml"):
        settings("--config", "nowhere.toml")


@pytest.mark.row("C1")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--tls-certificate", "x"), "two files"),
        (("--tls-client-ca", "x"), "need TLS"),
        (("--grace-s", "-1"), "grace_s"),
        (("--grace-s", "nan"), "grace_s"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(flags, words):
    said, _ = settings(*flags)
    with pytest.raises(InvalidRequest, match=words):
        server_config(said)


def test_the_command_refuses_to_let_other_machines_in():
    command = [sys.executable, "-m", "retrieval_spec.cli", "serve", "--vocab-size", "100"]
    command += ["--preset", "session", "--listen", "0.0.0.0:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "--insecure" in done.stderr
    assert len(done.stderr.splitlines()) == 1
