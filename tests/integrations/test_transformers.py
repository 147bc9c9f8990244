"""`custom_generate` and the candidate generator under the host's own `generate`: equal, or refused."""

from __future__ import annotations

import json
import logging
import shutil

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.build import build_datastore
from retrieval_spec.client import DraftClient, LocalClient
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest, MissingDependency, TokenizerMismatch, UnsupportedModel
from retrieval_spec.integrations import transformers as integration
from retrieval_spec.integrations.transformers import attach, generate
from retrieval_spec.verifier import NoDrafts
from retrieval_spec.verifier.candidates import RetrievalCandidateGenerator
from retrieval_spec.verifier.statistics import Statistics
from tests.exactness.sources import FakeSource, bushy, empty, oracle, partly_wrong
from tests.tiny_models import VOCAB_SIZE, tiny_model

PROMPT = [5, 9, 17, 3, 5, 9, 17, 8, 44, 5, 9]
IDS = torch.tensor([PROMPT])
GREEDY = {"do_sample": False, "max_new_tokens": 16}


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.pieces = []
        self.is_ended = False

    def put(self, value):
        self.pieces.append(value.flatten().tolist())

    def end(self):
        self.is_ended = True


def plain(model, ids=IDS, **options):
    return model.generate(ids, **{**GREEDY, **options})[0].tolist()


def source_of(truth, maker=bushy):
    return FakeSource(VOCAB_SIZE, maker(truth, VOCAB_SIZE))


def refused(error, match, model=None, **options):
    options = {"custom_generate": generate, "draft_source": NoDrafts(VOCAB_SIZE), **GREEDY, **options}
    with pytest.raises(error, match=match) as caught:
        (model or tiny_model()).generate(IDS, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def shipped():
    folder = demo_model_dir()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def datastore(tmp_path_factory):
    """Python text, encoded by the shipped model's tokenizer."""
    folder = tmp_path_factory.mktemp("stores")
    text = folder / "text.py"
    text.write_text("".join(f"def add_{n}(self, value):\n    return self + value\n\n" for n in range(40)))
    build_datastore(Corpus([text]), tokenizer=demo_model_dir(), out=folder / "store")
    return folder / "store"


@pytest.mark.row("L2")
def test_ids_and_model_outputs_are_the_host_s_own():
    model = tiny_model()
    truth = plain(model)
    statistics = Statistics()
    options = {**GREEDY, "custom_generate": generate, "draft_source": source_of(truth), "max_nodes": 12}
    assert model.generate(IDS, statistics=statistics, **options)[0].tolist() == truth
    assert statistics.accepted_tokens > 8
    assert statistics.mean_acceptance_length == 1 + statistics.accepted_tokens / statistics.steps
    options |= {"return_dict_in_generate": True, "output_scores": True}
    found = model.generate(IDS, **options)
    assert type(found).__name__ == "GenerateDecoderOnlyOutput"
    assert found.sequences[0].tolist() == truth
    assert len(found.scores) == 16


def test_a_streamer_of_our_own_keyword_gets_the_prompt_and_every_token():
    model, recorder = tiny_model(), Recorder()
    truth = plain(model)
    options = {"custom_generate": generate, "draft_source": source_of(truth), "draft_streamer": recorder}
    model.generate(IDS, **GREEDY, **options)
    assert recorder.pieces == [PROMPT, *([token] for token in truth[len(PROMPT) :])]
    assert recorder.is_ended


def test_a_text_streamer_of_the_host_writes_what_the_plain_run_writes(shipped, capsys):
    model, tokenizer = shipped
    inputs = tokenizer("def read(self, size):\n", return_tensors="pt")
    options = {"do_sample": False, "max_new_tokens": 12}
    model.generate(**inputs, streamer=transformers.TextStreamer(tokenizer), **options)
    expected = capsys.readouterr().out
    client = LocalClient(Engine(model.config.vocab_size))
    streamer = transformers.TextStreamer(tokenizer)
    model.generate(
        **inputs, custom_generate=generate, draft_source=client, draft_streamer=streamer, **options
    )
    assert capsys.readouterr().out == expected


def test_prompts_of_a_chat_template(shipped):
    model, tokenizer = shipped
    template = "{% for m in messages %}# {{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    chat = [
        {"role": "user", "content": "def add(self, value):\n    return self.items.append(value)"},
        {"role": "assistant", "content": "def add_all(self, values):\n    for value in values:"},
    ]
    inputs = tokenizer.apply_chat_template(
        chat, chat_template=template, return_tensors="pt", return_dict=True, add_generation_prompt=True
    )
    options = {"do_sample": False, "max_new_tokens": 20}
    expected = model.generate(**inputs, **options)
    client = LocalClient(Engine(model.config.vocab_size))
    found = model.generate(**inputs, custom_generate=generate, draft_source=client, **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("do_sample", [False, True])
def test_an_assistant_model_beside_retrieval(do_sample):
    model, assistant = tiny_model(), tiny_model("Qwen2", initializer_range=0.2)
    options = {**GREEDY, "do_sample": do_sample, "custom_generate": generate, "seed": 3}
    truth = model.generate(IDS, draft_source=NoDrafts(VOCAB_SIZE), **options)[0].tolist()
    if not do_sample:
        assert truth == plain(model)
    for maker in (empty, partly_wrong):
        found = model.generate(IDS, draft_source=source_of(truth, maker), draft_model=assistant, **options)
        assert found[0].tolist() == truth
    statistics = Statistics()
    model.generate(
        IDS, draft_source=NoDrafts(VOCAB_SIZE), draft_model=model, statistics=statistics, **options
    )
    assert statistics.accepted_tokens > 6, "a model is its own best draft model"


@pytest.mark.parametrize("name", ["streamer", "assistant_model", "synced_gpus"])
def test_arguments_that_the_host_keeps_to_itself_are_refused_with_the_remedy(name):
    given = {"streamer": Recorder(), "assistant_model": tiny_model("Qwen2"), "synced_gpus": True}[name]
    assert "draft_" in refused(InvalidRequest, name, **{name: given}) or name == "synced_gpus"


def test_no_source_is_refused():
    refused(InvalidRequest, "draft_source", draft_source=None)


def test_a_recurrent_model_is_refused_at_the_start():
    config = transformers.MambaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=1, state_size=4, pad_token_id=0
    )
    model = transformers.MambaForCausalLM(config)
    assert "without drafts" in refused(UnsupportedModel, "recurrent state", model)
    with pytest.raises(UnsupportedModel, match="recurrent state"), attach(model, NoDrafts(VOCAB_SIZE)):
        pass


def test_beam_search_is_refused_with_the_remedy():
    assert "leave out num_beams" in refused(InvalidRequest, "beam_search", num_beams=2)


@pytest.mark.parametrize(
    ("module", "name"),
    [("generation.GenerationMixin", "_extract_generation_mode_kwargs"), ("cache_utils", "DynamicLayer")],
)
def test_a_host_that_is_too_old_is_refused_by_what_it_lacks(monkeypatch, module, name):
    holder = transformers
    for part in module.split("."):
        holder = getattr(holder, part)
    monkeypatch.delattr(holder, name)
    with pytest.raises(MissingDependency, match=f"{name}.*pip install -U transformers"):
        integration.check_host()


@pytest.mark.row("F8")
def test_a_datastore_of_another_tokenizer_is_refused_with_the_remedy(shipped, datastore, tmp_path):
    model, tokenizer = shipped
    client = LocalClient(Engine(model.config.vocab_size, datastores=[datastore]))
    prompt = tokenizer("def add_41(self, value):\n    return", return_tensors="pt").input_ids
    options = {**GREEDY, "custom_generate": generate, "draft_source": client}
    expected = model.generate(prompt, **GREEDY)
    assert torch.equal(model.generate(prompt, **options), expected)
    for tokens in (tokenizer, demo_model_dir()):
        assert torch.equal(model.generate(prompt, draft_tokenizer=tokens, **options), expected)
    folder = shutil.copytree(demo_model_dir(), tmp_path / "other")
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["model"]["merges"] = fields["model"]["merges"][:-5]
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    other = transformers.AutoTokenizer.from_pretrained(folder)
    with pytest.raises(TokenizerMismatch, match=r"another tokenizer.*--from-datastore"):
        model.generate(prompt, draft_tokenizer=other, **options)
    with (
        pytest.raises(TokenizerMismatch, match="another tokenizer"),
        attach(model, client, draft_tokenizer=other),
    ):
        pass
    # The model was loaded from a folder that has the tokenizer: nobody need say which it is.
    stranger = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with pytest.raises(TokenizerMismatch, match="another tokenizer"):
        stranger.generate(prompt, **options)


def test_a_source_of_a_larger_vocabulary_is_refused():
    refused(InvalidRequest, "larger vocabulary", draft_source=NoDrafts(VOCAB_SIZE + 1))
    with pytest.raises(InvalidRequest, match="larger"), attach(tiny_model(), NoDrafts(VOCAB_SIZE + 1)):
        pass


@pytest.mark.row("V1")
@pytest.mark.parametrize("way", ["custom_generate", "attach", "batch"])
def test_without_a_server_the_output_is_plain_after_one_warning(tmp_path, caplog, way):
    model = tiny_model()
    with caplog.at_level(logging.WARNING), DraftClient(f"unix:{tmp_path}/none.sock") as client:
        if way == "attach":
            with attach(model, client):
                found = model.generate(IDS, **GREEDY)
        else:
            ids = IDS.repeat(3, 1) if way == "batch" else IDS
            found = model.generate(ids, custom_generate=generate, draft_source=client, **GREEDY)
    assert all(row.tolist() == plain(model) for row in found)
    assert len([record for record in caplog.records if record.name.startswith("retrieval_spec")]) == 1


@pytest.mark.row("L1")
@pytest.mark.parametrize("maker", [empty, oracle, bushy, partly_wrong])
@pytest.mark.parametrize("architecture", ["Llama", "Mistral"])
def test_assisted_decoding_of_the_host_drafts_the_best_path(architecture, maker):
    changes = {"sliding_window": 20} if architecture == "Mistral" else {}
    model = tiny_model(architecture, **changes)
    truth = plain(model)
    source = source_of(truth, maker)
    with attach(model, source) as attached:
        assert attached.generate(IDS, **GREEDY)[0].tolist() == truth
        config = transformers.GenerationConfig(pad_token_id=0, **GREEDY)
        assert attached.generate(IDS, generation_config=config)[0].tolist() == truth
    assert [session.context for session in source.sessions] == [truth, truth]
    assert all(session.is_closed for session in source.sessions)
    assert plain(model) == truth
    assert len(source.sessions) == 2
    assert model.generation_config.prompt_lookup_num_tokens is None


def test_a_generation_that_ends_before_its_first_step_opens_no_session():
    source = source_of([1], oracle)
    RetrievalCandidateGenerator(source, VOCAB_SIZE, 8).close()
    assert source.sessions == []


def test_assisted_decoding_takes_fewer_passes_and_keeps_the_host_s_options():
    model = tiny_model()
    options = {**GREEDY, "repetition_penalty": 1.3}
    truth = plain(model, **options)
    passes = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    try:
        with attach(model, source_of(truth, oracle)):
            assert model.generate(IDS, **options)[0].tolist() == truth
    finally:
        handle.remove()
    assert len(passes) == 3
    for new_tokens in (1, 2, 7, 8):
        with attach(model, source_of(truth, oracle)):
            found = model.generate(IDS, **{**options, "max_new_tokens": new_tokens})
        assert found[0].tolist() == truth[: len(PROMPT) + new_tokens]
    end_id = truth[len(PROMPT) + 4]
    with attach(model, source_of(truth, oracle)):
        found = model.generate(IDS, eos_token_id=end_id, **options)[0].tolist()
    assert found == plain(model, eos_token_id=end_id, **options)
