"""The source that learns from the target's top-k: the published one against its twin, ours by example."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval_spec.drafters.base import Budget, TopKDrafter
from retrieval_spec.drafters.recycling import RankTree, RecyclingDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from tests.reference.token_recycling import ReferenceRecycling
from tests.replay import drafted_paths, recorded
from tests.strategies import as_int32 as ids
from tests.threads import in_threads

VOCAB_SIZE = 151_936
NUM_TRACES = 20
TRACE_TOKENS = 200


class PseudoModel:
    """A target whose eight most probable tokens are a hash of the last two; now and then one repeats."""

    def __init__(self, alphabet, repeats=False):
        self.alphabet = alphabet
        self.repeats = repeats

    def topk(self, previous, token):
        found, state = [], (previous + 1) * 7_919 + token * 104_729 + 13
        while len(found) < 8:
            state = (state * 1_103_515_245 + 12_345) & 0x7FFFFFFF
            candidate = self.alphabet[(state >> 8) % len(self.alphabet)]
            if self.repeats or candidate not in found:
                found.append(candidate)
        return found


def verify(tree, context, model, truth=None):
    """The decided tokens and the feedback of one step; `truth` is what the target decides, else its top 1."""
    nodes = [context[-1], *tree.token_ids.tolist()]
    parents = [-1, *(parent + 1 for parent in tree.parents.tolist())]
    before = [context[-2] if len(context) > 1 else 0, *(nodes[parent] for parent in parents[1:])]
    rows = [model.topk(previous, token) for previous, token in zip(before, nodes, strict=True)]
    node, decided = 0, []
    while True:
        wanted = rows[node][0] if truth is None else truth[len(decided)]
        rows[node] = [wanted, *(token for token in rows[node] if token != wanted)][:8]
        rows[node] += [wanted] * (8 - len(rows[node]))
        decided.append(wanted)
        children = {nodes[child]: child for child in range(1, len(nodes)) if parents[child] == node}
        if wanted not in children or (truth is not None and len(decided) == len(truth)):
            return decided, Feedback(ids(nodes), ids(parents), ids(rows))
        node = children[wanted]


def replay(session, twin, context, model, num_steps, truth=None):
    """Drafts, compares, verifies and commits; returns how many steps had a draft and all accepted tokens."""
    num_drafts = num_accepted = 0
    for _ in range(num_steps):
        tree = session.draft(80).check(VOCAB_SIZE)
        assert drafted_paths(tree) == twin.draft(context[-1])
        num_drafts += len(tree) > 0
        decided, feedback = verify(tree, context, model, truth)
        session.commit(decided, feedback)
        twin.update(feedback.node_token_ids.tolist(), feedback.topk_ids.tolist())
        context.extend(decided)
        num_accepted += len(decided) - 1
        truth = None if truth is None else truth[len(decided) :]
        if truth is not None and not truth:
            break
    return num_drafts, num_accepted


@pytest.mark.parametrize("repeats", [False, True], ids=["distinct ids", "ids that repeat"])
@pytest.mark.parametrize("size", [9, 12, 20, 60, 400])
def test_random_contexts_give_the_drafts_of_the_twin(size, repeats):
    rng = np.random.default_rng(size)
    alphabet = rng.choice(VOCAB_SIZE, size, replace=False).tolist()
    engine, twin = Engine(VOCAB_SIZE, preset="token-recycling"), ReferenceRecycling()
    model = PseudoModel(alphabet, repeats)
    num_drafts = 0
    for _ in range(50):  # 500 contexts in all, rows shared by those of one alphabet
        context = rng.choice(alphabet, rng.integers(1, 30)).tolist()
        session = engine.open_session(context)
        num_drafts += replay(session, twin, context, model, num_steps=4)[0]
        session.close()
    assert num_drafts > 100


def test_real_outputs_give_the_drafts_of_the_twin(data_dir):
    families = sorted(path.stem for path in (data_dir / "tok_qwen2").glob("*.jsonl"))
    traces = [trace for family in families for trace in recorded(data_dir, family, 2)]
    model = PseudoModel(list(range(VOCAB_SIZE)))
    engine, twin = Engine(VOCAB_SIZE, preset="token-recycling"), ReferenceRecycling()
    num_accepted = 0
    for prompt, output in traces[:NUM_TRACES]:
        context, truth = prompt[-50:], output[:TRACE_TOKENS]
        session = engine.open_session(context)
        num_accepted += replay(session, twin, list(context), model, TRACE_TOKENS, truth)[1]
        session.close()
    assert len(traces) >= NUM_TRACES
    assert num_accepted > 150


def top8(first):
    return list(range(first, first + 8))


def feedback_of(nodes, rows, parents=None, logprobs=None):
    parents = list(range(-1, len(nodes) - 1)) if parents is None else parents
    logprobs = np.zeros((0, 0)) if logprobs is None else np.array(logprobs)
    return Feedback(ids(nodes), ids(parents), ids(rows), logprobs.astype(np.float32)).check(VOCAB_SIZE)


def published():
    return RecyclingDrafter.open(VOCAB_SIZE, RankTree())


def test_an_unknown_row_is_no_token_zero():
    cursor = published().start(ids([5]))
    assert len(cursor.propose(Budget(80))) == 0
    cursor.observe(ids([6]), feedback_of([5], [top8(100)]))
    assert len(cursor.propose(Budget(80))) == 0  # 6 has no row yet
    cursor.observe(ids([5]), None)
    tree = cursor.propose(Budget(80))
    assert tree.token_ids.tolist() == top8(100)
    assert tree.parents.tolist() == [-1] * 8


def test_of_two_nodes_with_one_token_the_later_one_keeps_the_row():
    cursor = published().start(ids([5]))
    cursor.observe(ids([6, 5]), feedback_of([5, 6, 5], [top8(100), top8(200), top8(300)]))
    assert cursor.propose(Budget(8)).token_ids.tolist() == top8(300)


def test_the_published_tree_has_80_nodes_in_6_levels():
    template = RankTree().template()
    assert np.bincount(template.nodes[2])[1:].tolist() == [8, 21, 25, 15, 8, 3]
    cursor = published().start(ids([0]))
    nodes = list(range(8))
    rows = [[(node * 3 + rank) % 8 for rank in range(8)] for node in nodes]
    cursor.observe(ids([0]), feedback_of(nodes, rows))
    tree = cursor.propose(Budget(80))
    assert len(tree) == 80
    assert cursor.propose(Budget(80, max_depth_nodes=3)).depths().max() == 3
    assert cursor.propose(Budget(30)) == tree.prefix(30)


def test_the_published_source_learns_from_nothing_but_feedback():
    cursor = published().start(ids([5, 6, 5, 6, 5]))
    cursor.observe(ids([6, 5]))
    assert len(cursor.propose(Budget(80))) == 0


@pytest.mark.parametrize(
    "rule",
    [
        RankTree(children=(("", 9),)),
        RankTree(children=(("", 1), ("1", 1))),
        RankTree(children=(("", 2), ("", 1))),
        RankTree(share=1.0),
    ],
)
def test_a_tree_that_is_none_is_refused(rule):
    with pytest.raises(InvalidRequest, match="no tree of ranks"):
        RecyclingDrafter.open(VOCAB_SIZE, rule)


def test_a_vocabulary_without_bounds_is_refused():
    with pytest.raises(InvalidRequest, match="too large for adjacency rows"):
        RecyclingDrafter.open(2**31 - 1).start(ids([]))


def test_it_asks_the_verifier_for_eight_ids_a_node():
    assert isinstance(published(), TopKDrafter)
    assert Engine(VOCAB_SIZE, preset="token-recycling").wanted_topk == 8
    assert Engine(VOCAB_SIZE).wanted_topk == 0


def ours(context, namespace="default", drafter=None):
    return (drafter or RecyclingDrafter.open(VOCAB_SIZE)).start(ids(context), namespace)


def test_text_moves_to_the_front_and_two_tokens_say_more_than_one():
    cursor = ours([1, 9, 20, 2, 9, 30, 1, 9])
    tree = cursor.propose(Budget(2))
    assert tree.token_ids.tolist()[0] == 20  # after 1 9, though 30 came after 9 later
    assert {20, 30} <= set(cursor.propose(Budget(16)).token_ids.tolist())
    cursor.observe(ids([30, 1, 9]))
    assert cursor.propose(Budget(1)).token_ids.tolist() == [30]


def test_a_pair_that_is_not_known_falls_back_to_its_last_token():
    cursor = ours([1, 9, 20, 7, 9])
    assert cursor.propose(Budget(1)).token_ids.tolist() == [20]


def test_rejected_nodes_teach_too():
    cursor = ours([1, 5])
    cursor.observe(ids([77]), feedback_of([5, 6], [[77, *top8(100)[1:]], top8(200)]))
    cursor.observe(ids([6]))
    assert set(cursor.propose(Budget(8)).token_ids.tolist()) == set(top8(200))


def test_told_probabilities_order_candidates():
    cursor = ours([1, 5])
    sure = [[-0.01, *[-7.0] * 7], [-0.9, -1.6, *[-5.0] * 6]]
    cursor.observe(ids([100]), feedback_of([5, 8], [top8(100), top8(200)], [-1, 0], sure))
    cursor.observe(ids([5]))
    first = cursor.propose(Budget(1)).probs[0]
    cursor.observe(ids([8]))
    second = cursor.propose(Budget(2)).probs
    assert first > 0.5 > second[0] > second[1] > 0.1


def test_what_was_right_in_this_session_changes_the_probabilities():
    text = [2, 3, 4, 1] * 60
    cursor = ours([1, 2, 3, 4, 1])
    before = cursor.propose(Budget(1)).probs[0]
    cursor.observe(ids(text))
    assert cursor.propose(Budget(1)).probs[0] > max(before, 0.9)


def test_a_closed_session_leaves_its_shares_to_the_next_of_its_namespace():
    drafter = RecyclingDrafter.open(VOCAB_SIZE)
    probs = {}
    for namespace in ("taught", "fresh"):
        cursor = ours([1, 2, 3, 4], namespace, drafter)
        if namespace == "taught":
            cursor.observe(ids([1, 2, 3, 4] * 60))
        cursor.close()
        probs[namespace] = ours([7, 8, 7], namespace, drafter).propose(Budget(1)).probs[0]
    assert probs["taught"] > probs["fresh"]


@pytest.mark.row("T1")
@pytest.mark.parametrize("rule", [None, RankTree()], ids=["ours", "published"])
def test_no_namespace_sees_another(rule):
    drafter = RecyclingDrafter.open(VOCAB_SIZE, rule)
    cursor = drafter.start(ids([5, 6, 5]), "one")
    cursor.observe(ids([6, 5]), feedback_of([5, 6], [top8(100), top8(200)]))
    assert len(cursor.propose(Budget(80))) > 0
    assert len(drafter.start(ids([5]), "one").propose(Budget(80))) > 0
    assert len(drafter.start(ids([5]), "another").propose(Budget(80))) == 0


def test_equal_histories_give_equal_trees():
    trees = []
    for _ in range(2):
        rng = np.random.default_rng(3)
        cursor = ours(rng.integers(0, 50, 300))
        for _ in range(20):
            nodes, parents = rng.integers(0, 50, 30), [-1, *rng.integers(0, 1, 29)]
            rows = [rng.permutation(50)[:8] for _ in nodes]
            cursor.observe(ids(rng.integers(0, 50, 3)), feedback_of(nodes, rows, parents))
        trees.append(cursor.propose(Budget(80)).check(VOCAB_SIZE))
    assert trees[0] == trees[1]


@pytest.mark.row("K2")
@pytest.mark.parametrize("rule", [None, RankTree()], ids=["ours", "published"])
def test_threads_share_a_namespace(rule):
    drafter = RecyclingDrafter.open(VOCAB_SIZE, rule)

    def work(seed):
        rng = np.random.default_rng(seed)
        cursor = drafter.start(ids(rng.integers(0, 30, 20)))
        for _ in range(200):
            cursor.propose(Budget(80)).check(VOCAB_SIZE)
            nodes = rng.integers(0, 30, 20)
            rows = rng.integers(0, 30, (20, 8))
            parents = [-1, *np.zeros(19, int)]
            cursor.observe(ids(rng.integers(0, 30, 2)), feedback_of(nodes, rows, parents))
        cursor.close()

    in_threads(work, range(4))
