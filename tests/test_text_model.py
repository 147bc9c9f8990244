"""A draft model of another vocabulary drafts through text: what it writes, in the target's tokens."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from retrieval_spec.client import LocalClient
from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.model import ModelDrafter
from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.drafters.text_model import TextModelDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest, TokenizerMismatch
from retrieval_spec.model_tree import Growth
from retrieval_spec.verifier.fused_source import FusedSource
from tests.pseudo_models import PseudoModel, counting_law, repeating_law
from tests.pseudo_tokenizers import Letters

VOCAB_SIZE = 311
TEXT = (
    "The quiet café in 東京 opens at nine; naïve guests, 🙂 as ever, come at ten.\n\n"
    "    def opens(at: int) -> str:\n        return f'{at} o clock à point'\n\nThe quiet guests come again. "
)
OTHER_TEXT = "Nine naïve cafés opened; the guest at the counter said: 東 is east, 京 is a capital 🙂.\n" * 3
PARTIAL = "\N{REPLACEMENT CHARACTER}"
DEEP = Growth(min_gain_tokens=0.0, max_depth_nodes=12)


def byte_level(text, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def sentence_piece_like(text, vocab_size):
    """Words begin with a mark that the beginning of a text gets too; unknown characters are bytes."""
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted(
        {letter for letter in text.replace(" ", "▁") if letter.isascii() or letter == "▁"} - {"\n"}
    )
    words = sorted({f"▁{word}" for word in ("the", "at", "guests", "quiet")})
    parts = sorted({word[:n] for word in words for n in range(2, len(word))} - {*letters})
    tokens += [*letters, *parts, *words]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [(piece[:-1], piece[-1]) for piece in [*parts, *words]]
    model = models.BPE(vocab, sorted(merges, key=lambda m: len(m[0])), unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    assert tokenizer.get_vocab_size() <= vocab_size
    return tokenizer


KINDS = {
    "merges": lambda: byte_level(TEXT * 3, VOCAB_SIZE),
    "other merges": lambda: byte_level(OTHER_TEXT, 290),
    "bytes": lambda: byte_level("", 258),
    "words": lambda: sentence_piece_like(TEXT + OTHER_TEXT, 400),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    def opened(name):
        path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        KINDS[name]().save(str(path))
        return load_tokenizer(path)

    return {name: opened(name) for name in KINDS}


def ids(values):
    return np.array(values, np.int32)


def knowing(tokenizer, text, prob=0.9, eos=None):
    """A model that goes on as `text` does after what it read, and ends with it."""

    def law(context):
        probs = np.full(tokenizer.vocab_size, (1 - prob) / (tokenizer.vocab_size - 1))
        for held_tokens in range(4):  # of a character that is not finished
            read = tokenizer.plain_text(context[: len(context) - held_tokens])[-20:]
            if read and not read.endswith(PARTIAL):
                break
        after = text[text.rfind(read) + len(read) :] if read in text else ""
        coming = inside(tokenizer, after)[held_tokens:] if after else []
        probs[coming[0] if coming else (0 if eos is None else eos)] = prob
        return probs

    return PseudoModel(tokenizer.vocab_size, law)


def inside(tokenizer, text):
    anchor = "a" if text[0].isspace() else "\n"
    with_anchor = tokenizer.encode_batch([anchor + text])[0].tolist()
    return with_anchor[len(tokenizer.encode_batch([anchor])[0]) :]


def opened(model, draft, target, **options):
    options = {"growth": DEEP, **options}
    return TextModelDrafter.open(target.vocab_size, model, draft, target, **options)


def drafted_text(target, context, tree):
    before = target.plain_text(context)
    text = target.plain_text([*context, *tree.token_ids.tolist()])
    return text.rstrip(PARTIAL)[len(before.rstrip(PARTIAL)) :]


PAIRS = [("merges", "other merges"), ("other merges", "merges"), ("words", "merges"), ("merges", "words")]
PAIRS += [("bytes", "merges"), ("merges", "bytes"), ("words", "bytes"), ("bytes", "words")]


@pytest.mark.parametrize(("draft_name", "target_name"), PAIRS)
def test_the_draft_spells_what_the_model_would_write(tokenizers, draft_name, target_name):
    draft, target = tokenizers[draft_name], tokenizers[target_name]
    drafter = opened(knowing(draft, TEXT), draft, target)
    context = target.encode_batch([TEXT])[0].tolist()
    lengths = []
    for length in range(1, len(context) - 10):
        tree = drafter.start(ids(context[:length])).propose(Budget(8)).check(target.vocab_size)
        before = target.plain_text(context[:length]).rstrip(PARTIAL)
        if len(before) < 20:  # too little for the model to know where it is
            continue
        assert TEXT[len(before) :].startswith(drafted_text(target, context[:length], tree))
        assert tree.parents.tolist() == list(range(-1, len(tree) - 1))
        lengths.append(len(tree))
    assert np.mean(lengths) > 1
    assert np.mean([length > 0 for length in lengths]) > 0.5


@pytest.mark.parametrize("name", ["merges", "words"])
def test_drafted_tokens_are_those_of_the_target_s_own_encoding(tokenizers, name):
    draft, target = tokenizers["other merges"], tokenizers[name]
    drafter = opened(knowing(draft, TEXT), draft, target)
    context = target.encode_batch([TEXT])[0].tolist()
    same = []
    for length in range(20, len(context) - 10):
        tokens = drafter.start(ids(context[:length])).propose(Budget(8)).token_ids.tolist()
        same.append(tokens == context[length : length + len(tokens)])
    assert np.mean(same) > 0.8


def test_a_character_in_the_middle_of_which_the_context_ends_is_finished(tokenizers):
    draft, target = tokenizers["words"], tokenizers["bytes"]
    drafter = opened(knowing(draft, TEXT), draft, target)
    before = TEXT[: TEXT.index("🙂")]
    context = target.encode_batch([before])[0].tolist()
    smile = target.encode_batch(["🙂 as"])[0].tolist()
    for num_bytes in range(4):
        tree = drafter.start(ids([*context, *smile[:num_bytes]])).propose(Budget(16))
        rest = smile[num_bytes:4]
        assert tree.token_ids.tolist()[: len(rest)] == rest
    wrong = drafter.start(ids([*context, *target.encode_batch(["東"])[0].tolist()[:1]]))
    assert len(wrong.propose(Budget(16))) == 0


def test_there_is_no_draft_without_a_text(tokenizers):
    draft, target = tokenizers["other merges"], tokenizers["merges"]
    drafter = opened(knowing(draft, TEXT), draft, target)
    for context in ([], [0], [0, 1]):  # nothing, and special tokens alone
        assert len(drafter.start(ids(context)).propose(Budget(8))) == 0
    spoken = drafter.start(ids([]))
    spoken.observe(target.encode_batch([TEXT[:40]])[0])
    assert len(spoken.propose(Budget(8))) > 0
    assert len(spoken.propose(Budget(0))) == 0


def test_special_tokens_of_the_context_are_no_text(tokenizers):
    draft, target = tokenizers["other merges"], tokenizers["merges"]
    drafter = opened(knowing(draft, TEXT), draft, target)
    first, second = (target.encode_batch([part])[0].tolist() for part in (TEXT[:30], TEXT[30:45]))
    plain = drafter.start(ids([*first, *second])).propose(Budget(8))
    assert len(plain) > 0
    assert drafter.start(ids([0, *first, 1, *second, 0])).propose(Budget(8)) == plain


def test_the_end_of_the_model_s_text_ends_the_draft(tokenizers):
    draft, target = tokenizers["other merges"], tokenizers["merges"]
    short = TEXT[:45]
    context = target.encode_batch([TEXT[:39]])[0]
    ended = opened(knowing(draft, short, eos=0), draft, target, eos_ids=[0])
    tree = ended.start(context).propose(Budget(16))
    assert drafted_text(target, context.tolist(), tree) == TEXT[39:45]  # to the last letter
    going_on = opened(knowing(draft, short, eos=0), draft, target)  # as a special token, it is skipped
    text = drafted_text(target, context.tolist(), going_on.start(context).propose(Budget(16)))
    assert TEXT[39:45].startswith(text)
    assert len(text) < 6


def test_a_special_token_that_is_spelled_out_is_not_drafted(tokenizers):
    target = tokenizers["merges"]
    spelled = TEXT[:40] + " so <|pad|> and more, and more"
    letters = Letters(0x3000, first=0)
    drafter = opened(knowing(letters, spelled), letters, target, growth=Growth(0.0, 24))
    tree = drafter.start(target.encode_batch([TEXT[:40]])[0]).propose(Budget(24))
    assert drafted_text(target, target.encode_batch([TEXT[:40]])[0].tolist(), tree) == " so "
    assert not {0, 1} & set(tree.token_ids.tolist())


def test_probabilities_are_the_model_s_own_over_the_same_text(tokenizers):
    letters = Letters(0x3000, first=0)
    target = tokenizers["merges"]
    drafter = opened(knowing(letters, TEXT, prob=0.9), letters, target)
    context = target.encode_batch([TEXT[:30]])[0].tolist()
    tree = drafter.start(ids(context)).propose(Budget(16))
    for node, path_prob in enumerate(tree.path_probs().tolist()):
        text = drafted_text(target, context, tree.prefix(node + 1))
        assert path_prob == pytest.approx(0.9 ** len(text), rel=1e-5)  # one draft token a letter


@given(cuts=st.lists(st.integers(0, 150), max_size=12), length=st.integers(0, 150), seed=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_how_the_tokens_came_does_not_matter(tokenizers, cuts, length, seed):
    """Also where the tokens are no text: bytes at random."""
    draft, target = tokenizers["other merges"], tokenizers["merges"]
    model = knowing(draft, TEXT)
    drafter = opened(model, draft, target)
    context = target.encode_batch([TEXT])[0].tolist()
    if seed:
        noise = np.random.default_rng(seed).integers(0, target.vocab_size, 40).tolist()
        context = [*context[:20], *noise, *context[20:]]
    context = context[:length]
    in_pieces = drafter.start(ids([]))
    edges = [0, *sorted(min(cut, len(context)) for cut in cuts), len(context)]
    for begin, end in pairwise(edges):
        in_pieces.propose(Budget(3))
        in_pieces.observe(ids(context[begin:end]))
    at_once = drafter.start(ids(context))
    assert in_pieces.propose(Budget(8)) == at_once.propose(Budget(8))
    read = [predictions.context for predictions in model.started[-2:]]
    assert read[0] == read[1]


@pytest.mark.row("A2")
def test_a_step_costs_the_same_however_long_the_context_is(tokenizers):
    draft, target = tokenizers["other merges"], tokenizers["merges"]
    sizes = []

    class Spy:
        def __init__(self, tokenizer):
            self.tokenizer, self.vocab_size = tokenizer, tokenizer.vocab_size
            self.prefix_ids = tokenizer.prefix_ids

        def encode_batch(self, texts):
            sizes.extend(map(len, texts))
            return self.tokenizer.encode_batch(texts)

        def plain_text(self, tokens):
            sizes.append(len(tokens))
            return self.tokenizer.plain_text(tokens)

    model = PseudoModel(draft.vocab_size, repeating_law(draft.vocab_size))
    drafter = opened(model, Spy(draft), Spy(target))
    for text in (TEXT * 20, "x" * 4000, "東" * 2000, " " * 4000):
        cursor = drafter.start(target.encode_batch([text])[0])
        cursor.propose(Budget(8))
        context = model.started[-1].context.copy()
        cursor.observe(target.encode_batch(["or"])[0])
        cursor.propose(Budget(8))
        kept = sum(1 for old, new in zip(context, model.started[-1].context, strict=False) if old == new)
        assert len(context) - kept <= 3 * 64
    assert max(sizes) <= 2 * 64 * 3 + 64


def test_a_drafter_that_cannot_work_is_refused(tokenizers):
    draft, target = tokenizers["other merges"], tokenizers["merges"]
    model = knowing(draft, TEXT)
    with pytest.raises(InvalidRequest, match="both tokenizers"):
        TextModelDrafter.open(VOCAB_SIZE, model)
    with pytest.raises(TokenizerMismatch, match="tokenizer of the target model"):
        TextModelDrafter.open(target.vocab_size - 1, model, draft, target)
    with pytest.raises(TokenizerMismatch, match="tokenizer of the draft model"):
        opened(PseudoModel(9, counting_law(9)), draft, target)

    class Forward(PseudoModel):
        def start(self):
            return object()

    with pytest.raises(InvalidRequest, match="cannot go back"):
        opened(Forward(draft.vocab_size, counting_law(draft.vocab_size)), draft, target)


def test_a_model_with_another_tokenizer_is_not_used_by_its_ids(tokenizers):
    draft, target = tokenizers["other merges"], tokenizers["merges"]
    model = knowing(draft, TEXT)
    known = {"tokenizer_fingerprint": target.fingerprint}
    for open_with in (
        lambda: ModelDrafter.open(target.vocab_size, model, **known),
        lambda: FusedSource([], model, **known),
        lambda: Engine(target.vocab_size, preset=Preset((Source("model", {"model": model, **known}),))),
    ):
        model.tokenizer_fingerprint = draft.fingerprint
        with pytest.raises(TokenizerMismatch, match="TextModelDrafter"):
            open_with()
        for fingerprint in (target.fingerprint, ""):  # the same, and unknown
            model.tokenizer_fingerprint = fingerprint
            open_with()


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.verifier import HuggingFaceDraftModel, NoDrafts, generate
from tests.tiny_models import tiny_model

PROMPT = TEXT[:60]


def through_text(model, draft, target, vocab_size, **options):
    params = {"model": model, "draft_tokenizer": draft, "target_tokenizer": target, "growth": DEEP, **options}
    return LocalClient(Engine(vocab_size, preset=Preset((Source("text_model", params),))))


def hugging_face_draft(tokenizer):
    return HuggingFaceDraftModel(tiny_model("Qwen2", "float64", vocab_size=tokenizer.vocab_size))


@pytest.mark.parametrize("target_name", ["merges", "bytes"])
def test_the_draft_is_the_beginning_of_the_model_s_greedy_text(tokenizers, target_name):
    """By a twin: the whole text encoded at once, one plain pass a token."""
    draft, target = tokenizers["words"], tokenizers[target_name]
    model = HuggingFaceDraftModel(copy.deepcopy(hugging_face_draft(draft).model))
    with torch.no_grad():
        model.model.lm_head.weight[:258] = 0  # letters and words, not bytes
    cursor = opened(model, draft, target, growth=Growth(0.0, 6)).start(ids([]))
    context = target.encode_batch([TEXT])[0].tolist()
    num_texts = 0
    for length in range(0, len(context) - 5, 5):
        cursor.observe(ids(context[length : length + 5]))
        so_far = target.plain_text(context[: length + 5]).rstrip(PARTIAL)
        read = draft.encode_batch([so_far])[0].tolist()
        written = read.copy()
        for _ in range(7):
            with torch.inference_mode():
                written.append(int(model.model(torch.tensor([written])).logits[0, -1].argmax()))
        greedy = draft.plain_text(written)[len(draft.plain_text(read)) :]
        found = drafted_text(target, context[: length + 5], cursor.propose(Budget(16)))
        assert greedy.startswith(found)
        num_texts += len(found) > 1
    assert num_texts > len(context) // 10


def test_predictions_that_went_back_are_those_of_what_is_left():
    model = HuggingFaceDraftModel(tiny_model("Llama", "float64", vocab_size=37))
    back, straight = model.start(), model.start()
    back.observe(ids([5, 9, 17, 3]))
    back.next_probs([()])
    back.next_probs([(4,)])
    back.observe(ids([6]))
    for length, then in ((3, [7, 8]), (5, [1]), (2, [])):
        back.truncate(length)
        back.observe(ids(then))
        straight = model.start()
        straight.observe(ids(back._tokens))
        assert np.abs(back.next_probs([()]) - straight.next_probs([()])).max() < 1e-7
        assert np.abs(back.next_probs([(4,)]) - straight.next_probs([(4,)])).max() < 1e-7


OPTIONS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.7, "seed": 3},
}


@pytest.mark.row("L1")
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("draft_name", "target_name"), [("other merges", "merges"), ("merges", "words")])
def test_the_output_is_that_of_plain_decoding(tokenizers, draft_name, target_name, name):
    draft, target = tokenizers[draft_name], tokenizers[target_name]
    model = tiny_model("Llama", vocab_size=target.vocab_size)
    prompt = target.encode_batch([PROMPT])[0]
    options = {"max_new_tokens": 24, **OPTIONS[name]}
    plain = generate(model, prompt, NoDrafts(target.vocab_size), **options).token_ids.tolist()
    for drafter in (hugging_face_draft(draft), knowing(draft, target.plain_text(plain))):
        source = through_text(drafter, draft, target, target.vocab_size)
        found = generate(model, prompt, FusedSource([source]), max_nodes=8, **options)
        assert found.token_ids.tolist() == plain


@pytest.fixture(scope="module")
def demo():
    folder = demo_model_dir()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, load_tokenizer(folder)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_shipped_model_accepts_text_of_another_vocabulary(tokenizers, demo, name):
    model, target = demo
    draft = tokenizers["words"]
    options = {"max_new_tokens": 24, **OPTIONS[name]}
    vocab_size = model.config.vocab_size
    prompt = target.encode_batch(["The quick brown fox was in the garden, and then the"])[0]
    plain = generate(model, prompt, NoDrafts(vocab_size), **options)
    text = target.plain_text(plain.token_ids.tolist())
    accepted = []
    for drafter in (hugging_face_draft(draft), knowing(draft, text)):
        source = through_text(drafter, draft, target, vocab_size)
        found = generate(model, prompt, source, max_nodes=8, **options)
        assert found.token_ids.tolist() == plain.token_ids.tolist()
        accepted.append(found.mean_acceptance_length)
    assert accepted[1] > 1.5  # a model that knows the text
