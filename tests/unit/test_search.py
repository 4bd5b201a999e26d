"""Fusion is a pure function of ranks; a query is only ever words."""

import sqlite3

from hypothesis import given
from hypothesis import strategies as st

from edged.documents.search import RANK_CONSTANT, fuse
from edged.documents.words import match_expression, query_words

RANKINGS = st.lists(st.lists(st.integers(0, 50), unique=True, max_size=20), min_size=1, max_size=4)


@given(RANKINGS)
def test_fusion_keeps_every_item_once_best_first(rankings):
    fused = fuse(rankings, [1.0] * len(rankings))
    assert set(fused) == {item for ranking in rankings for item in ranking}
    assert list(fused.values()) == sorted(fused.values(), reverse=True)


@given(st.lists(st.integers(), unique=True, max_size=30), st.floats(0.1, 10))
def test_fusion_of_one_ranking_is_that_ranking(ranking, weight):
    assert list(fuse([ranking], [weight])) == ranking


@given(RANKINGS, st.randoms())
def test_scores_do_not_depend_on_the_order_of_equal_rankings(rankings, random):
    shuffled = list(rankings)
    random.shuffle(shuffled)
    first, second = fuse(rankings, [1.0] * len(rankings)), fuse(shuffled, [1.0] * len(rankings))
    assert {item: round(score, 12) for item, score in first.items()} == {
        item: round(score, 12) for item, score in second.items()
    }


@given(RANKINGS, st.integers(100, 200))
def test_an_item_that_all_rank_first_is_first(rankings, item):
    fused = fuse([[item, *ranking] for ranking in rankings], [1.0] * len(rankings))
    assert next(iter(fused)) == item
    assert abs(fused[item] - len(rankings) / (RANK_CONSTANT + 1)) < 1e-12


@given(RANKINGS)
def test_a_ranking_of_weight_zero_does_not_reorder(rankings):
    first = list(dict.fromkeys(rankings[0]))
    fused = fuse([first, list(range(60))], [1.0, 0.0])
    assert [item for item in fused if item in first] == first


@given(st.text(max_size=200))
def test_any_text_is_a_query_that_fts_accepts(text):
    expression = match_expression(query_words(text))
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize='unicode61 remove_diacritics 2')")
    if expression:
        connection.execute("SELECT * FROM t WHERE t MATCH ?", (expression,)).fetchall()
    connection.close()


def test_stop_words_are_left_out_unless_there_is_nothing_else():
    assert query_words("What is the Reset-Button?") == ["reset", "button"]
    assert query_words("to be or not") == ["not"]
    assert query_words("what is it") == ["what", "is", "it"]
