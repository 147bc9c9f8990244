"""Reports: what is recorded of a replay, where tokens stood before, the curves, the page and the command."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec import report
from retrieval_spec.budget import CostCurve
from retrieval_spec.build import build_datastore
from retrieval_spec.cli import main
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.segments import open_segments
from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.engine import Engine
from retrieval_spec.grow import append_documents
from retrieval_spec.match_lengths import MatchLengths
from retrieval_spec.replay import Tally, replay
from retrieval_spec.report import summary as summary_module
from retrieval_spec.report.curves import BATCH_SIZES, StepSample, batch_curves, curve_of_batch
from retrieval_spec.report.matches import CorpusMatches
from retrieval_spec.report.page import embedded, page_of
from retrieval_spec.report.recording import NO_PROB, Recorder, Step, choose, telling
from retrieval_spec.report.summary import Asked, Replayed, summary_of
from retrieval_spec.report.texts import TokenTexts
from retrieval_spec.text_matches import TextMatches
from retrieval_spec.traces import Trace
from retrieval_spec.tree import DraftTree
from tests.conftest import REPOSITORY
from tests.fake_drafters import CountingDrafter
from tests.stores import write_corpus
from tests.strategies import as_int32
from tests.word_tokenizers import write_tokenizer

MODEL = REPOSITORY / "retrieval_spec" / "demo_model"
PAGE = files(report).joinpath("page")
HOSTILE = "</script><script>window.ran=1</script><img src=x onerror=window.ran=2><!-- \u2028 \ud800 &lt;"


def trace(prompt, output, family="code") -> Trace:
    return Trace(family, as_int32(prompt), as_int32(output))


def recorded(traces, *, max_tokens=100, max_nodes=4, drafters=None, stores=()) -> Replayed:
    engine = Engine(100, drafters=drafters or {"counting": CountingDrafter(100, 0.5)})
    recorder, tally = Recorder(range(len(traces)), max_tokens, max_nodes, CorpusMatches(stores)), Tally()
    lengths = MatchLengths()
    replay(engine, traces, max_nodes, tally=tally, observers=[recorder, lengths])
    recorder.close()
    return Replayed(tally, recorder, lengths.counts)


def test_every_token_is_noted_with_who_decided_it_and_how_probable_it_was():
    [one] = recorded([trace([10], [11, 12, 13, 50, 70, 71, 72])]).recorder.shown
    assert one.token_ids == [11, 12, 13, 50, 70, 71, 72]
    assert one.masks == [1, 1, 1, 0, 0, 1, 1]
    assert one.percents == [50, 25, 12, 6, 50, 50, 25]  # of 50 and 70 what was drafted there instead
    assert one.rejected_ids == [14, 51]
    assert (one.num_steps, one.num_accepted, one.prompt_tokens, one.output_tokens) == (3, 5, 1, 7)
    assert [(name, step.at, step.path) for name, step in one.trees] == [
        ("best", 0, [0, 1, 2]),
        ("worst", 4, []),
        ("usual", 5, [0, 1]),
    ]


def test_a_token_that_nothing_was_drafted_for_has_no_probability():
    [one] = recorded([trace([], [5])]).recorder.shown
    assert (one.masks, one.percents, one.rejected_ids, one.trees) == ([0], [NO_PROB], [], [])


def test_outputs_are_cut_but_counted_whole():
    [first, second] = recorded(
        [trace([10], range(11, 60)), trace([3], [9] * 20)], max_tokens=6
    ).recorder.shown
    assert len(first.token_ids) == 10  # the step that goes beyond it is shown whole
    assert first.num_accepted == 40
    assert first.num_steps == 10
    assert second.output_tokens == 20
    assert len(second.token_ids) == 6


def test_generations_that_are_not_shown_are_texts_to_match_all_the_same():
    recorder = Recorder([1], 100, 4, CorpusMatches([]))
    engine = Engine(100, drafters={"counting": CountingDrafter(100)})
    replay(engine, [trace([1, 2], [3, 4, 5, 90]), trace([2], [3, 4, 5, 91])], 4, observers=[recorder])
    [one] = recorder.shown
    assert one.number == 1
    assert one.match_tokens == [1, 2, 3, 4]
    assert one.generations == [0] * 4


@settings(max_examples=60)
@given(st.lists(st.tuples(*[st.lists(st.integers(0, 2), max_size=8)] * 2), min_size=1, max_size=4))
def test_a_match_is_the_longest_run_that_stood_before_and_where_it_did_first(texts):
    matches, before = TextMatches(1 << 20), []
    for number, (prompt, output) in enumerate(texts):
        matches.begin(as_int32(prompt))
        now = list(prompt)
        for token in (*output, None):
            # Strings of one character a token; a generation's own text counts up to its last token.
            everything = [*map(bytes, before), bytes(now)]
            found = (0, -1)
            for length in range(len(now), 0, -1):
                end = bytes(now[-length:])
                sites = [
                    at for at, text in enumerate(everything) if end in (text[:-1] if at == number else text)
                ]
                if sites:
                    found = (length, sites[0])
                    break
            assert tuple(matches.here()) == found
            if token is not None:
                matches.append(as_int32([token]))
                now.append(token)
        before.append(now)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of words, and a datastore of two segments that names its files."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer = write_tokenizer(folder / "model", {f"w{n}": n for n in range(61)})
    for name, lines in (("one", ["w1 w2 w3 w4", "w9 w3 w5"]), ("two", ["w2 w3 w5 w6"])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    store = build_datastore(Corpus([folder / "one.jsonl"]), tokenizer=tokenizer, out=folder / "words")
    append_documents(store, Corpus([folder / "two.jsonl"]), tokenizer=tokenizer)
    return tokenizer, store


@pytest.mark.parametrize(
    ("before", "token", "num_tokens", "name"),
    [
        ([7, 1, 2, 3], 4, 3, "one.jsonl"),
        ([7, 9, 3], 5, 2, "one.jsonl"),
        ([1, 2, 3], 5, 2, "two.jsonl"),
        ([60], 6, 0, "two.jsonl"),
    ],
)
def test_a_document_has_the_token_after_the_longest_run(words, before, token, num_tokens, name):
    found = CorpusMatches([open_segments(words[1])]).find("corpus:words", as_int32(before), token)
    assert found is not None
    assert found.num_tokens == num_tokens
    assert found.document.endswith(name)


def test_a_token_that_a_datastore_does_not_have_has_no_document(words, tmp_path):
    matches = CorpusMatches([open_segments(words[1])])
    assert matches.find("corpus:words", as_int32([1]), 40) is None
    assert matches.knows("corpus:words")
    assert not matches.knows("session")
    older = CorpusMatches([open_segments(write_corpus(tmp_path / "older", [[1, 2], [3, 4]], 10))])
    assert older.find("corpus:older", as_int32([3]), 4) == (1, "document 2")


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 30), min_size=1),
    st.integers(1, 60),
)
def test_as_many_generations_are_shown_as_there_is_room_for_spread_over_all(sizes, room):
    chosen = choose(sizes, room)
    assert sum(map(len, chosen.values())) == min(room, sum(sizes.values()))
    for name, numbers in chosen.items():
        assert numbers == sorted(set(numbers))
        assert all(0 <= number < sizes[name] for number in numbers)
    shares = [len(chosen[name]) for name in sizes if len(chosen[name]) < sizes[name]]
    assert max(shares, default=0) - min(shares, default=0) <= 1


def test_what_goes_to_other_processes_has_no_texts_and_no_datastores(words):
    store = open_segments(words[1])
    sizes = []
    for num_tokens in (8, 4000):
        recorder = recorded([trace([1], np.arange(num_tokens) % 7)], max_tokens=4, stores=[store]).recorder
        sizes.append(len(pickle.dumps((recorder._texts, recorder._corpora, recorder.shown))))
    assert max(sizes) < 20_000


def test_no_step_tells_two_things():
    def step(at, accepted):
        return Step(at, DraftTree.chain([1, 2, 3]), list(range(accepted)), 1.0)

    assert [(name, one.at) for name, one in telling([step(0, 0), step(1, 1), step(2, 1), step(3, 3)])] == [
        ("best", 3),
        ("worst", 0),
        ("usual", 2),
    ]
    assert [name for name, _ in telling([step(0, 2)])] == ["best"]
    assert [(name, one.at) for name, one in telling([step(0, 0), step(1, 0)])] == [("worst", 0), ("usual", 1)]
    assert telling([Step(0, DraftTree.empty(), [], 1.0)]) == []


def sampled(*steps: tuple[list[float], int]) -> StepSample:
    """Steps that each drafted a chain of these probabilities and accepted so many."""
    sample = StepSample(4)
    for probs, accepted in steps:
        sample.add(DraftTree.chain(list(range(len(probs))), probs), list(range(accepted)))
    return sample


def test_trees_are_cut_to_their_best_nodes():
    sample = sampled(([0.9] * 4, 3), ([0.5, 0.5], 1), ([], 0), ([0.1], 0))
    assert sample.lengths_by_nodes() == [1, 1.5, 1.75, 2, 2]
    curve = batch_curves({1: CostCurve.linear(0.1)})
    alone = sample.speedups(curve, 2)[0]
    assert alone == pytest.approx((4 + 2 + 1) / (1.2 + 1.2 + 1 + 1.1))
    pair = sample.speedups(curve, 2)[1]
    # Two sessions: a plain pass of both costs 1.1 of one, and the batches are steps 0 and 2, 1 and 3.
    assert pair == pytest.approx((4 + 3) / 2 / ((1.3 + 1.4) / 1.1))


def test_what_pays_is_never_worse_than_nothing_where_probabilities_are_true():
    sample = sampled(*[([1.0, 1.0, 0.0, 0.0], 2)] * 8)
    assert sample.speedups(batch_curves({1: CostCurve.linear(0.01)}))[0] == pytest.approx(3 / 1.02)
    dear = batch_curves({1: CostCurve.linear(100.0)})
    assert sample.speedups(dear) == StepSample(4).speedups(dear) == [1.0] * len(BATCH_SIZES)


def test_a_pass_of_several_sessions_costs_what_the_curve_says_of_as_many_tokens():
    curve = CostCurve((0, 4, 8), (10.0, 12.0, 20.0))
    for batch_size in (1, 3, 6, 20):
        shifted = curve_of_batch(curve, batch_size)
        assert [shifted.at(n) for n in range(12)] == pytest.approx(
            [curve.at(n + batch_size - 1) for n in range(12)]
        )


def test_measured_batches_are_taken_as_they_are():
    measured = {1: CostCurve((0, 2), (1.0, 1.5)), 3: CostCurve((0, 2), (2.0, 5.0))}
    assert batch_curves(measured)[3].at(3) == pytest.approx(3.5)  # one node in each of three rows
    assert sampled(*[([0.9, 0.5], 1)] * 3).speedups(batch_curves(measured), 2) == pytest.approx(
        [2 / 1.5, 0.8]
    )


@settings(max_examples=8)
@given(st.integers(1, 4200), st.integers(1, 4200))
def test_samples_stay_small_and_families_weigh_by_their_steps(num_ours, num_theirs):
    ours, theirs = (sampled() for _ in range(2))
    hit, miss = DraftTree.chain([1], [0.5]), DraftTree.chain([1], [0.5])
    for sample, number, tree, path in ((ours, num_ours, hit, [0]), (theirs, num_theirs, miss, [])):
        for _ in range(number):
            sample.add(tree, path)
    ours.merge(theirs)
    assert len(ours) <= 2048
    share = ours.lengths_by_nodes()[1] - 1
    assert share == pytest.approx(num_ours / (num_ours + num_theirs), abs=0.02 if len(ours) > 500 else 0.6)


@pytest.mark.parametrize("text", ["def f(x):\n    return x  # plain\n", "Grüße, 世界 🙂🏳️‍🌈\tend"])
def test_texts_of_tokens_put_together_are_the_text(text):
    tokenizer = load_tokenizer(MODEL)
    [ids] = tokenizer.encode_batch([text])
    texts = TokenTexts(tokenizer)
    whole = tokenizer.decode_batch([ids])[0]
    assert "".join(texts.pool[number] for number in texts.numbers_of(ids.tolist())) == whole
    assert texts.text_of(ids.tolist()) == whole


def test_without_a_tokenizer_tokens_are_their_ids():
    texts = TokenTexts(None)
    assert [texts.pool[number] for number in texts.numbers_of([7, 12, 7])] == ["7 ", "12 ", "7 "]
    assert texts.text_of([7, 12]) == "7 12 "
    assert texts.text_of([]) == ""


def a_summary(texts: list[str] | None = None) -> dict:
    families = {
        name: recorded([trace([10], [11, 12, 13, 50, 70, 71, 72], name), trace([5, 6], [7, 7], name)])
        for name in ("code", "chat")
    }
    summary = summary_of(families, Asked("default", 4))
    if texts:
        summary["texts"] = [texts[number % len(texts)] for number in range(len(summary["texts"]))]
    return json.loads(json.dumps(summary))


def test_totals_are_those_of_the_tally_and_every_list_has_an_entry_for_every_token():
    summary = a_summary()
    assert list(summary["totals"]) == ["all", "code", "chat"]
    everything = summary["totals"]["all"]
    assert (everything["traces"], everything["tokens"], everything["steps"]) == (4, 18, 8)
    assert everything["sources"] == {"counting": [32, 12, 12]}
    assert everything["mean_acceptance_length"] == 2.5
    assert len(everything["speedups"]) == 3
    assert everything["match_lengths"][0] == ["0", 8, 2.5]  # no token of these texts comes twice
    for one in summary["generations"]:
        size = len(one["tokens"])
        assert size == len(one["masks"]) == len(one["percents"]) == len(one["match"])
        assert len(one["generations"]) == np.count_nonzero(one["match"])
        undrafted = [p for mask, p in zip(one["masks"], one["percents"], strict=True) if not mask]
        assert len(one["rejected"]) == sum(p >= 0 for p in undrafted)


def test_of_many_large_trees_the_best_nodes_are_drawn(monkeypatch):
    monkeypatch.setattr(summary_module, "MAX_TREE_NODES", 2)
    [one] = summary_of({"code": recorded([trace([10], [11, 12, 13, 14])])}, Asked("default", 4))[
        "generations"
    ]
    [tree] = one["trees"]
    assert (len(tree["tokens"]), tree["path"], tree["accepted"], tree["nodes"]) == (2, [0, 1], 4, 4)


class Outline(HTMLParser):
    """Elements with their attributes, and the text of scripts, styles and headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def test_the_page_is_whole_by_itself_and_well_formed():
    page = page_of(a_summary())
    outline = Outline(page)
    assert not outline.open
    tags = [tag for tag, _ in outline.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("title") == 1
    assert not {"link", "img", "iframe", "object"} & set(tags)
    attributes = [attribute for _, found in outline.elements for attribute in found]
    assert not {"src", "style"} & set(attributes)
    assert not [name for name in attributes if name.startswith("on")]
    ids = [found["id"] for _, found in outline.elements if "id" in found]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'byId\("([a-z-]+)"\)', page)) <= set(ids)
    targets = [found["href"] for _, found in outline.elements if "href" in found]
    assert all(target[0] == "#" and target[1:] in ids for target in targets)
    assert len(re.findall(r"<label>[^<]+<select", page)) == tags.count("select") == 2
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"url\(|@import|fetch\(|innerHTML|eval\(|document\.write", page) == []


def test_nothing_but_the_pages_own_script_and_style_may_run():
    outline = Outline(page_of(a_summary()))
    policy = next(found["content"] for _, found in outline.elements if "http-equiv" in found)
    assert policy.startswith("default-src 'none'; ")
    for text in (outline.texts["style"][0], outline.texts["script"][-1]):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_text_of_traces_is_data_and_nothing_else():
    summary = a_summary([HOSTILE])
    page = page_of(summary)
    assert page.count("<script") == page.count("</script") == 2
    assert "<img" not in page
    assert json.loads(Outline(page).texts["script"][0]) == summary
    page.encode("utf-8")


@settings(max_examples=60)
@given(st.text(st.characters()))
def test_embedded_json_means_the_same_and_has_no_markup(text):
    spelled = embedded([text])
    assert json.loads(spelled) == [text]
    assert not set("<>&\u2028\u2029") & set(spelled)
    spelled.encode("utf-8")


def contrast(first: str, second: str) -> float:
    """The contrast of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(part * weight for part, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))

    high, low = sorted(map(luminance, (first, second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_on_every_ground_in_light_and_dark():
    blocks = re.findall(r":root \{(.*?)\}", PAGE.joinpath("page.css").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
        grounds = [colours[name] for name in colours if name in ("page", "raised") or name[0] == "t"]
        assert len(grounds) == 10
        assert min(contrast(colours["ink"], ground) for ground in grounds) >= 7
        assert min(contrast(colours["quiet"], ground) for ground in grounds) >= 4.5
        assert contrast(colours["link"], colours["page"]) >= 4.5
        for number in range(8):  # lines and bars
            assert contrast(colours[f"c{number}"], colours["page"]) >= 3
            assert contrast(colours[f"c{number}"], colours[f"t{number}"]) >= 3


def test_no_file_of_the_page_is_longer_than_400_lines():
    sizes = {path.name: len(path.read_text().splitlines()) for path in PAGE.iterdir()}
    assert len(sizes) >= 7
    assert max(sizes.values()) <= 400


@pytest.fixture
def traces(tmp_path):
    rng = np.random.default_rng(1)
    rows = [
        {
            "family": family,
            "prompt_ids": rng.integers(0, 4, 20).tolist(),
            "output_ids": rng.integers(0, 4, 30).tolist(),
        }
        for family in ("code", "chat")
        for _ in range(3)
    ]
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def data_of(page: str) -> dict:
    return json.loads(Outline(page).texts["script"][0])


def test_the_command_writes_a_page_plots_and_a_short_version(traces, words, tmp_path, capsys):
    output, plots = tmp_path / "report.html", tmp_path / "plots"
    output.write_text("an older one")
    arguments = ["report", traces, "--output", str(output), "--png", str(plots), "--show", "4"]
    arguments += ["--tokenizer", str(words[0]), "--datastore", str(words[1]), "--cost-per-node", "0.01"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "code" in said
    assert "Speed-up over batch size" in said
    assert str(output) in said.replace("\n", "")
    data = data_of(output.read_text())
    assert len(data["generations"]) == 4
    assert data["has_costs"]
    assert next(iter(data["totals"]["all"]["speedups"])) == "what pays"
    assert any(one["documents"] for one in data["generations"])
    assert sorted(path.name for path in plots.iterdir()) == [
        f"{name}.png" for name in ("lengths", "positions", "reliability", "sources", "speedups")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in plots.iterdir())


def test_a_report_counts_what_a_replay_counts(traces, tmp_path, capsys):
    output = tmp_path / "report.html"
    assert main(["report", traces, "--output", str(output), "--json", "--processes", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == output.stat().st_size
    assert told["totals"] == data_of(output.read_text())["totals"]
    assert main(["replay", traces, "--json"]) == 0
    replayed = json.loads(capsys.readouterr().out)
    for name, facts in (("all", replayed["all"]), *replayed["families"].items()):
        totals = told["totals"][name]
        assert totals["steps"] == facts["steps"]
        assert totals["mean_acceptance_length"] == pytest.approx(facts["mean_acceptance_length"], abs=1e-4)
        assert totals["positions"][:3] == pytest.approx(facts["acceptance_by_position"][:3], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--show", "0"], "--show is out of range"),
        (["--show", "1001"], "--show is out of range"),
        (["--show-tokens", "0"], "--show-tokens is out of range"),
        (["--preset", "nobody"], "nobody"),
        (["--output", "nowhere/report.html"], "nowhere"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(traces, tmp_path, capsys, arguments, words):
    assert main(["report", traces, "--json", "--output", str(tmp_path / "r.html"), *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert said.startswith("retrieval-spec report: ")
    assert "\n" not in said
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("missing", "arguments"), [("rich", []), ("matplotlib", ["--json", "--png", "plots"])]
)
def test_what_is_not_installed_is_said_before_anything_is_replayed(
    traces, tmp_path, capsys, monkeypatch, missing, arguments
):
    for name in (missing, "rich.console", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        if name.startswith(missing):
            monkeypatch.setitem(__import__("sys").modules, name, None)
    monkeypatch.chdir(tmp_path)
    assert main(["report", traces, *arguments]) == 2
    assert f"{missing} is not installed" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
