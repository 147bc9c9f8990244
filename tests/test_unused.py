"""Who was unused longest: the same as sorting all by their last use."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from retrieval_spec.service.unused import Unused

ACTIONS = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 8)),
    st.tuples(st.just("use"), st.sets(st.integers(0, 8))),
    st.tuples(st.just("remove"), st.integers(0, 8)),
    st.tuples(st.just("ask"), st.tuples(st.floats(-1, 60), st.integers(0, 5))),
)


@example([(0.0, ("add", 0)), (0.0, ("remove", 0)), (0.0, ("add", 0)), (0.0, ("ask", (1.0, 2)))])
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 3.0]), ACTIONS), max_size=80))
def test_it_finds_what_sorting_all_finds(script):
    used_s: dict[int, float] = {}
    unused, now_s = Unused(used_s), 0.0
    for passed_s, (action, what) in script:
        now_s += passed_s
        if action == "add" and what not in used_s:
            used_s[what] = now_s
            unused.add(what)
        elif action == "use":
            used_s.update(dict.fromkeys(what & used_s.keys(), now_s))
        elif action == "remove" and what in used_s:
            del used_s[what]
            unused.remove(what)
        elif action == "ask":
            before_s, most = what
            idle = sorted((used, one) for one, used in used_s.items() if used < before_s)
            for _ in range(2):  # who is not dropped is found again
                found = unused.since(before_s, most)
                assert [used_s[one] for one in found] == [used for used, _ in idle[:most]]
                assert len(set(found)) == len(found)
        assert set(unused) == used_s.keys()
        assert len(unused) == len(used_s)


def test_ids_that_come_and_go_leave_nothing_behind():
    used_s = {0: 0.0}
    unused = Unused(used_s)
    unused.add(0)
    for one in range(1, 10_000):
        used_s[one] = float(one)
        unused.add(one)
        del used_s[one]
        unused.remove(one)
    assert len(unused._heap) < 100
    assert unused.since(1.0, 4) == [0]
