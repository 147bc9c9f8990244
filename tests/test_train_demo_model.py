"""The training tool on a tiny setting: deterministic, resumable, refuses bad input."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
transformers = pytest.importorskip("transformers")
TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
import train_demo_model as tool  # noqa: E402
from demo_model import corpus, measure, optimiser, settings, tokens, training  # noqa: E402

from tests import warm_processes  # noqa: E402

TINY = [
    *("--batch-windows", "2", "--window-tokens", "32", "--vocabulary", "300", "--hidden", "32"),
    *("--layers", "1", "--heads", "2", "--key-value-heads", "1", "--feed-forward", "48"),
    *("--warmup-steps", "2", "--threads", "1", "--save-every-steps", "2"),
]


@pytest.fixture(autouse=True)
def _torch_as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Sixty small modules; by their names three are held out."""
    folder = tmp_path_factory.mktemp("sources")
    draw = random.Random(5)
    words = ["queue", "path", "value", "name", "index", "token"]
    for number in range(60):
        lines = [f"def {draw.choice(words)}_{k}(self):\n    return {k}\n" for k in range(12)]
        (folder / f"module_{number}.py").write_text("\n\n".join(lines))
    return folder


def arguments(sources, folder, *more):
    return [
        *("--corpus", str(sources), "--out", str(folder / "out"), "--work", str(folder / "work")),
        *(*TINY, *more),
    ]


def digests(folder):
    """Digest of every file but the card, which tells the time the run took."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix != ".md")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def uninterrupted(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert tool.main(arguments(sources, folder, "--steps", "8")) == 0
    return folder / "out"


def test_it_writes_a_whole_model_folder_with_a_card(uninterrupted):
    assert set(digests(uninterrupted)) == {
        *("config.json", "generation_config.json", "held_out.txt", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    card = (uninterrupted / "MODEL_CARD.md").read_text()
    assert "the folder `" in card
    assert "(8 steps of 64;" in card


DIE_IN_THE_THIRD_SAVE = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import train_demo_model
from demo_model import training

whole = training.torch.save
saves = []

def save(state, file):
    saves.append(file)
    if len(saves) < 3:
        return whole(state, file)
    file.write(b"half a checkpoint")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

training.torch.save = save
train_demo_model.main(sys.argv[1:])
"""


def test_a_run_killed_while_saving_goes_on_to_the_weights_of_an_uninterrupted_one(
    sources, tmp_path, uninterrupted
):
    command = arguments(sources, tmp_path, "--steps", "8")
    died = warm_processes.run("-c", DIE_IN_THE_THIRD_SAVE, TOOLS, *command)
    assert died.returncode == -signal.SIGKILL
    checkpoint = tmp_path / "work" / training.CHECKPOINT_NAME
    assert torch.load(checkpoint, weights_only=True)["step"] == 4
    assert tool.main(command) == 0
    assert digests(tmp_path / "out") == digests(uninterrupted)


def test_steps_and_decay_may_change_before_the_decay(sources, tmp_path, uninterrupted, monkeypatch):
    whole = training.Trainer._step

    def stop_at_step_4(trainer, step, loss_of):
        if step == 4:
            raise KeyboardInterrupt
        return whole(trainer, step, loss_of)

    monkeypatch.setattr(training.Trainer, "_step", stop_at_step_4)
    with pytest.raises(KeyboardInterrupt):
        tool.main(arguments(sources, tmp_path, "--steps", "30", "--decay-fraction", "0.2"))
    monkeypatch.undo()
    assert tool.main(arguments(sources, tmp_path, "--steps", "8")) == 0
    assert digests(tmp_path / "out") == digests(uninterrupted)


def test_a_finished_run_is_exported_again_without_training(sources, tmp_path, uninterrupted, monkeypatch):
    command = arguments(sources, tmp_path, "--steps", "8")
    assert tool.main(command) == 0
    monkeypatch.setattr(training.Trainer, "_step", None)
    assert tool.main(command) == 0
    assert digests(tmp_path / "out") == digests(uninterrupted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--corpus", "no/such/folder"), "--corpus no/such/folder is not a folder"),
        (("--hidden", "33"), "hidden must be a multiple of heads"),
        (("--steps", "0"), "steps is 0; expected 1 or more"),
        (("--window-tokens", "4096"), "window_tokens is 4096; expected 2048 at most"),
        (("--vocabulary", "200"), "vocabulary is 200; expected 300 or more"),
        (("--vocabulary", "4000"), "choose a smaller --vocabulary"),
        (
            ("--window-tokens", "2048", "--steps", "1", "--corpus", str(TOOLS / "demo_model")),
            "0 held-out files",
        ),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(sources, tmp_path, capsys, change, said):
    assert tool.main(arguments(sources, tmp_path, *change)) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_settings_is_refused(sources, tmp_path, capsys):
    assert tool.main(arguments(sources, tmp_path, "--steps", "2")) == 0
    assert tool.main(arguments(sources, tmp_path, "--steps", "2", "--seed", "1")) == 2
    assert "seed = 0, this run has 1" in capsys.readouterr().err
    assert tool.main(arguments(sources, tmp_path, "--steps", "9")) == 2
    assert "--steps and --decay-fraction can no longer change" in capsys.readouterr().err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main(["--help"])
    assert stop.value.code == 0
    assert "Example:\n    python tools/train_demo_model.py --out" in capsys.readouterr().out


def test_the_exported_weights_are_those_the_card_measured(sources, uninterrupted):
    model = transformers.AutoModelForCausalLM.from_pretrained(uninterrupted)
    tokenizer = tokens.Tokenizer.from_file(str(uninterrupted / "tokenizer.json"))
    stream = tokens.token_stream(tokenizer, corpus.read_corpus(sources).held_out)
    scored = measure.held_out(model.eval(), stream, windows=len(stream))
    assert model.dtype == torch.float32
    assert json.loads((uninterrupted / "config.json").read_text())["dtype"] == "float32"
    card = (uninterrupted / "MODEL_CARD.md").read_text()
    row = f"| all held-out text | {scored.tokens:,} | {scored.nats_per_token:.5f} |"
    assert row in card


def test_held_out_files_are_not_trained_on(sources, uninterrupted):
    texts = corpus.read_corpus(sources)
    held_out = (uninterrupted / "held_out.txt").read_text().split()
    assert held_out == [name for name, _ in texts.held_out]
    assert held_out
    assert not set(held_out) & {name for name, _ in texts.training}
    assert len(texts.held_out) + len(texts.training) == 60


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("json/decoder.py", True),
        ("pydoc_data/topics.py", True),
        ("encodings/utf_8.py", True),
        ("encodings/cp1252.py", False),
        ("test/test_json.py", False),
        ("unittest/test/test_case.py", False),
        ("site-packages/numpy/__init__.py", False),
        ("_sysconfigdata__linux_x86_64-linux-gnu.py", False),
    ],
)
def test_only_modules_that_a_person_wrote_are_read(name, wanted):
    assert corpus.is_wanted(name) is wanted


def test_every_window_of_an_epoch_is_seen_once_and_the_step_alone_decides_which():
    stream = np.arange(10 * 8 + 3)
    windows = tokens.Windows(stream, window_tokens=8, seed=3)
    starts = [windows.start(index) for index in range(windows.count)]
    assert windows.count == 9
    assert sorted(starts) == [min(starts) + 8 * k for k in range(9)]
    assert starts != sorted(starts)
    again = tokens.Windows(stream, window_tokens=8, seed=3).batch(step=2, windows=3)
    assert again.tolist() == [list(range(s, s + 9)) for s in starts[6:9]]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 400))
def test_the_rates_do_not_depend_on_the_steps_until_the_decay(one_steps, other_steps, step):
    one = settings.Settings(steps=one_steps)
    other = settings.Settings(steps=other_steps)
    if step <= min(one.decay_start, other.decay_start):
        assert one.rate_factor(step) == other.rate_factor(step)
    assert settings.Settings(steps=one_steps).rate_factor(one_steps) == 0


def test_orthogonalised_brings_singular_values_near_one():
    stack = torch.randn(3, 16, 40, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optimiser.orthogonalised(stack))
    assert values.min() > 0.3
    assert values.max() < 1.3


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.train_tokenizer(["def f(self):\n    return self.x  # the x\n"] * 9, 300)


@given(text=st.text(max_size=60) | st.text(alphabet="def (x1):\n\t ", max_size=60))
def test_the_tokenizer_loses_nothing(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_indentation_is_one_token_and_no_token_spans_a_line_end(tokenizer):
    pieces = tokenizer.encode("def f(self):\n    return self.x\n").tokens
    assert "Ġ" * 4 in pieces
    assert all(set(piece) == {"Ċ"} for piece in pieces if "Ċ" in piece)
