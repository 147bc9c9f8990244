"""The trained model of this package on real text: real drafts, in process and from a server process."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.budget import CostCurve
from retrieval_spec.client import DraftClient, LocalClient
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.step_costs import StepCostMeter
from retrieval_spec.verifier import NoDrafts, generate
from tests.exactness.sources import FakeSource, all_wrong, bushy, empty, oracle
from tests.warm_processes import start

torch.set_num_threads(1)  # sums in one order, whatever the shape
NEW_TOKENS = 24
PROMPT_TOKENS = 120
FAKES = (empty, all_wrong, oracle, bushy)
MODULES = ("fnmatch.py", "struct.py")
MODES = {
    "greedy": {"do_sample": False},
    "penalty": {"do_sample": False, "repetition_penalty": 1.1, "no_repeat_ngram_size": 6},
    "sampled": {"do_sample": True, "temperature": 0.5, "top_k": 50, "top_p": 0.95},
}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_dir())
    folder = Path(sysconfig.get_path("stdlib"))
    return [tokenizer((folder / name).read_text()).input_ids[-PROMPT_TOKENS:] for name in MODULES]


@pytest.fixture(scope="module", params=["float32", "float64"])
def model(request):
    dtype = getattr(torch, request.param)
    return transformers.AutoModelForCausalLM.from_pretrained(demo_model_dir(), dtype=dtype).eval()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a draft server in a process of its own."""
    address = f"unix:{tmp_path_factory.mktemp('server')}/s.sock"
    command = ("serve", "--vocab-size", "4096", "--listen", address)
    with start("retrieval_spec.cli", *command) as process:
        try:
            assert "serving on" in process.stdout.readline()
            yield address
        finally:
            process.terminate()


def plain_output(model, prompt, options) -> list[int]:
    if options["do_sample"]:
        return generate(
            model, prompt, NoDrafts(model.config.vocab_size), seed=4, **options
        ).token_ids.tolist()
    return model.generate(torch.tensor([prompt]), **options)[0].tolist()


@pytest.mark.row("L1")
@pytest.mark.parametrize("mode", MODES)
def test_no_draft_changes_a_token_of_the_shipped_model(model, prompts, server, mode):
    vocab_size = model.config.vocab_size
    options = {**MODES[mode], "max_new_tokens": NEW_TOKENS}
    with DraftClient(server, timeout_s=5.0) as remote:
        for number, prompt in enumerate(prompts):
            # The server learns, so every comparison with a fresh engine has a namespace of its own.
            with_namespace = {**options, "namespace": f"{mode}-{model.dtype}-{number}".replace(".", "-")}
            truth = plain_output(model, prompt, options)
            sources = {make.__name__: FakeSource(vocab_size, make(truth, vocab_size)) for make in FAKES}
            sources |= {"local": LocalClient(Engine(vocab_size)), "remote": remote}
            found = {
                name: generate(model, prompt, source, seed=4, **with_namespace)
                for name, source in sources.items()
            }
            for name, generation in found.items():
                assert generation.token_ids.tolist() == truth, name
            # One path through the code, one tree: a server process drafts what the engine drafts here.
            local, remote_found = found["local"], found["remote"]
            assert (local.steps, local.drafted_nodes) == (remote_found.steps, remote_found.drafted_nodes)


class Loaded(StepCostMeter):
    """A machine whose load changes all the time: every step is told other costs."""

    def observe(self, num_nodes, cost):
        number = self._num_steps
        super().observe(num_nodes, 1.0 + num_nodes * (0.0, 0.01, 0.2, 2.0)[number // 16 % 4])


@pytest.mark.row("L1")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "model", ["float32"], indirect=True
)  # where sums differ more; a budget knows no dtype
def test_no_node_budget_changes_a_token(model, prompts, server, mode):
    options = {**MODES[mode], "max_new_tokens": 80}
    budgets = {
        "free": lambda: CostCurve.linear(0.0),
        "curve": lambda: CostCurve((0, 4, 5, 16), (1.0, 1.1, 1.5, 2.0)),
        "dear": lambda: CostCurve.linear(5.0),
        "measured": StepCostMeter,
        "loaded": Loaded,
    }
    prompt = prompts[0]
    truth = plain_output(model, prompt, options)
    with DraftClient(server, timeout_s=5.0) as remote:
        for name, make in budgets.items():
            found = []
            for source in (LocalClient(Engine(model.config.vocab_size)), remote):
                namespace = f"{mode}-{model.dtype}-{name}".replace(".", "-")
                found.append(
                    generate(model, prompt, source, seed=4, step_costs=make(), namespace=namespace, **options)
                )
                assert found[-1].token_ids.tolist() == truth, name
            if name != "measured":  # real times differ from run to run
                assert found[0].drafted_nodes == found[1].drafted_nodes
            assert (found[0].drafted_nodes == 0) == (name == "dear")


def test_what_is_no_cost_of_a_step_is_refused(model, prompts):
    with pytest.raises(InvalidRequest, match="StepCostMeter"):
        generate(model, prompts[0], NoDrafts(model.config.vocab_size), step_costs=0.1)


def test_real_text_has_something_to_draft(model, prompts):
    source = LocalClient(Engine(model.config.vocab_size))
    found = [generate(model, prompt, source, do_sample=False, max_new_tokens=60) for prompt in prompts]
    assert sum(generation.accepted_tokens for generation in found) > 5
