"""A pytest plugin that chooses tests of kernels for plain Python, and gives them few examples.

NUMBA_DISABLE_JIT=1 python -m pytest -p tests.plain_kernels

Coverage is measured this way (`tools/measure_coverage.py`): what is compiled cannot be traced.
"""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

MAX_EXAMPLES = 3
ROOT = Path(__file__).resolve().parent

TESTS: dict[str, tuple[str, ...]] = {
    "contract/test_drafters.py": (),
    "test_fusion.py": (),
    "test_commonest.py": (),
    "test_shared_automaton.py": (),
    "test_ngram_table.py": (),
    "test_blend.py": (
        "test_drafts_and_tables_are_those_of_the_twin",
        "test_the_twin_is_compared_on_drafts_that_say_something",
        "test_a_token_is_looked_for_after_so_many_shorter_matches",
        "test_where_no_context_is_known_the_commonest_tokens_of_every_text_follow",
    ),
    "test_blend_drafter.py": (
        "test_what_another_source_proposes_is_drafted_beside_texts",
        "test_any_text_may_stand_alone",
        "test_a_run_of_one_token_is_drafted_on",
        "test_what_was_committed_last_is_learned_although_no_draft_follows",
        "test_of_a_batch_the_most_probable_nodes_are_drafted_and_no_more",
    ),
    "test_blend_edits.py": (
        "test_what_follows_an_insertion_is_drafted_unless_it_is_long",
        "test_a_copy_that_leaves_out_some_tokens_moves_its_anchor_along",
        "test_at_the_end_of_a_text_an_anchor_knows_no_further",
        "test_an_anchor_is_forgotten_when_nothing_was_drafted",
    ),
    "test_context_order.py": (
        "test_the_whole_order_accepts_what_the_builder_sorted_and_nothing_else",
        "test_any_other_positions_are_refused_without_a_crash",
        "test_golden_stores_are_in_order",
    ),
    "test_context_array.py": ("test_drafts_equal_the_reference", "test_counts_are_exact"),
    "test_context_arrays.py": (),
    "test_pruning.py": (
        "test_the_array_holds_what_the_plain_way_keeps",
        "test_what_follows_a_context_is_found_as_before",
        "test_an_n_gram_that_stands_there_twice_is_found_wherever_pieces_begin",
    ),
    "test_corpus_stats.py": (
        "test_every_repeated_ngram_is_found_with_its_exact_count",
        "test_the_shifts_of_one_repeat_are_shown_once",
        "test_longest_repeats_are_those_of_all_segments",
        "test_a_position_is_no_repeat_of_itself",
    ),
    "test_leave_one_out.py": (
        "test_drafts_are_those_of_a_corpus_without_the_document",
        "test_copies_that_differ_in_length_or_in_the_last_token_do_count",
        "test_a_replay_counts_the_steps_of_greedy_decoding",
    ),
    "test_near_duplicates.py": (
        "test_of_identical_documents_the_first_is_kept_whatever_their_size",
        "test_documents_shorter_than_a_shingle_differ_by_any_token_and_by_their_length",
        "test_the_type_of_the_ids_changes_nothing",
    ),
    "test_ngram_trie.py": (
        "test_a_full_trie_forgets_what_the_twin_forgets",
        "test_other_rules_are_those_of_the_twin",
    ),
    "test_rest.py": (
        "test_one_token_alone_is_no_span",
        "test_occurrences_that_end_count_for_the_parent",
        "test_the_sample_prefers_no_continuation",
        "test_a_shallow_datastore_bounds_the_span",
        "test_budgets_bound_nodes_and_depth",
    ),
    "test_copying.py": (
        "test_a_smaller_budget_is_the_beginning_of_the_chain",
        "test_runs_wrap_to_any_length",
        "test_a_longer_match_is_trusted_more",
    ),
    "test_sam.py": (
        "test_shares_count_the_occurrences_that_end",
        "test_of_many_occurrences_a_sample_is_counted",
        "test_what_no_document_goes_on_with_gives_no_draft",
        "test_the_corpus_drafts_where_its_match_is_longer_by_more_than_the_bias",
    ),
    "test_suffix_preset.py": (
        "test_the_own_end_is_an_occurrence_and_others_have_none",
        "test_outputs_of_another_namespace_are_not_drafted",
    ),
}
"""File -> tests of it; all of a file that names none."""

TOO_LONG = ("test_growing_arenas_keep_everything", "test_memory_is_bounded_whatever_comes")


def pytest_configure(config: pytest.Config) -> None:
    # Compiled, 32-bit words wrap in silence, as they are meant to; numpy wraps alike, and says so.
    config.addinivalue_line("filterwarnings", "ignore:overflow encountered:RuntimeWarning")
    if config.args_source is not config.ArgsSource.ARGS:
        config.args[:] = [str(ROOT / name) for name in TESTS]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen, left_out = [], []
    for item in items:
        (chosen if _is_chosen(item) else left_out).append(item)
        _give_few_examples(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen


def _is_chosen(item: pytest.Item) -> bool:
    names = TESTS.get(item.path.relative_to(ROOT).as_posix(), ())
    name = item.originalname
    return name in names if names else name not in TOO_LONG


def _give_few_examples(item: pytest.Item) -> None:
    test = getattr(item, "obj", None)
    wanted = getattr(test, "_hypothesis_internal_use_settings", None)
    if wanted is not None:
        few = min(MAX_EXAMPLES, wanted.max_examples)
        test._hypothesis_internal_use_settings = hypothesis.settings(wanted, max_examples=few)
