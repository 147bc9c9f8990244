"""The demonstration model that ships with the package: whole, small, and as good as its card says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from retrieval_spec.demo_model import demo_draft_model_dir, demo_model_dir

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))
from demo_model import corpus, measure, tokens  # noqa: E402

LARGEST_BYTES = 10_000_000
# Another CPU or thread count rounds the sums differently; a wrong weight shows at once.
PERPLEXITY_TOLERANCE = 1e-3
FILES = {
    *("MODEL_CARD.md", "config.json", "generation_config.json", "held_out.txt"),
    *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
}


@pytest.fixture(scope="module")
def model():
    loaded = transformers.AutoModelForCausalLM.from_pretrained(demo_model_dir(), dtype=torch.float32)
    return loaded.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(demo_model_dir())


@pytest.fixture(scope="module")
def card():
    return (demo_model_dir() / "MODEL_CARD.md").read_text()


@pytest.fixture(scope="module")
def held_out(card):
    """The held-out documents, where this interpreter's library has the text of the card."""
    root = corpus.standard_library()
    names = (demo_model_dir() / "held_out.txt").read_text().split()
    texts = [(name, corpus.read_source(root / name)) for name in names if (root / name).exists()]
    documents = tuple((name, text) for name, text in texts if text is not None)
    if f"| held-out text SHA-256 | `{corpus.text_sha256(documents)}` |" not in card:
        pytest.skip("this Python's standard library differs from the one in the model card")
    return documents


def continued(model, tokenizer, prompt, **how):
    ids = tokenizer(prompt, return_tensors="pt")
    torch.manual_seed(0)
    return tokenizer.batch_decode(model.generate(**ids, **how))


def test_the_folder_is_whole_and_small():
    files = [path for path in demo_model_dir().rglob("*") if path.is_file()]
    assert {path.relative_to(demo_model_dir()).as_posix() for path in files} >= FILES | {
        f"draft/{name}" for name in FILES
    }
    assert sum(path.stat().st_size for path in files) <= LARGEST_BYTES


def test_the_draft_model_is_small_and_shares_the_tokenizer(tokenizer):
    draft = transformers.AutoModelForCausalLM.from_pretrained(demo_draft_model_dir())
    assert (demo_draft_model_dir() / "model.safetensors").stat().st_size <= 1_000_000
    assert draft.config.vocab_size == len(tokenizer)
    own, its = (
        (folder / "tokenizer.json").read_bytes() for folder in (demo_model_dir(), demo_draft_model_dir())
    )
    assert own == its


def test_model_and_tokenizer_belong_together(model, tokenizer, card):
    assert model.config.model_type == "llama"
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokens.END_OF_TEXT_ID
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert f"| parameters | {parameters:,} |" in card


def test_it_loads_in_float32_unasked_and_float32_is_exact(model):
    unasked = transformers.AutoModelForCausalLM.from_pretrained(demo_model_dir())
    assert unasked.dtype == torch.float32
    for one, other in zip(model.parameters(), unasked.parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, one.half().float())


def test_the_tokenizer_adds_nothing_and_loses_nothing(tokenizer):
    text = "class Queue:\n\tdef put(self, item):  # é\n        self._items.append( item )\n\n\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos_token_id not in ids


def test_the_tokenizer_is_the_one_the_tool_reads(tokenizer):
    text = Path(__file__).read_text()
    plain = tokens.Tokenizer.from_file(str(demo_model_dir() / "tokenizer.json"))
    assert plain.encode(text).ids == tokenizer(text).input_ids


def test_the_perplexity_on_the_card_is_reproduced(model, tokenizer, held_out, card):
    stream = tokens.token_stream(tokenizer.backend_tokenizer, held_out)
    scored = measure.held_out(model, stream, windows=measure.SAMPLE_WINDOWS)
    row = rf"\| its first {measure.SAMPLE_WINDOWS} windows \| {scored.tokens:,} \| \S+ \| (\S+) \|"
    stated = re.search(row, card)
    assert stated is not None
    assert scored.perplexity == pytest.approx(float(stated[1]), rel=PERPLEXITY_TOLERANCE)


def test_no_held_out_file_was_trained_on():
    names = (demo_model_dir() / "held_out.txt").read_text().split()
    assert names
    assert all(corpus.is_held_out(name) and corpus.is_wanted(name) for name in names)


def test_it_writes_recognisable_python(model, tokenizer):
    prompt = "class Queue:\n    def __init__(self"
    how = {"do_sample": True, "temperature": 0.8, "max_new_tokens": 48}
    texts = continued(model, tokenizer, prompt, num_return_sequences=16, **how)
    # Each closes the signature, opens a block and indents it; most use self in it.
    blocks = [text for text in texts if re.match(r"[^\n]*\):\n {8}\S", text[len(prompt) :])]
    assert len(blocks) >= 8
    assert sum("self." in block for block in blocks) >= 6


def test_text_past_the_training_window_stays_text(model, tokenizer, held_out):
    ids = tokenizer(dict(held_out)["warnings.py"]).input_ids[:1100]
    how = {"do_sample": True, "temperature": 0.8, "max_new_tokens": 96, "min_new_tokens": 96}
    (text,) = continued(model, tokenizer, tokenizer.decode(ids), **how)
    end = text[-200:]
    assert "\ufffd" not in end
    assert len(set(end.split())) > 8
