"""What a publication does to the index is a pure decision; so is which words of a query are looked up."""

from hypothesis import given
from hypothesis import strategies as st

from edged.documents import kinds
from edged.documents.kinds import Base, cells, choose_kind, choose_work, delta_limit, subspaces
from edged.documents.words import affordable, tokens

SIZES = st.integers(0, 5_000_000)
KINDS = st.sampled_from(["flat", "hnsw", "ivfpq"])
ORDER = ["flat", "hnsw", "ivfpq"]


@st.composite
def bases(draw) -> Base:
    rows = draw(st.integers(1, 3_000_000))
    return Base(kind=draw(KINDS), generation=1, rows=rows, trained_rows=draw(st.integers(1, rows)))


@given(SIZES, SIZES, st.none() | KINDS)
def test_a_larger_library_never_gets_a_simpler_kind(one, other, former):
    small, large = sorted((one, other))
    first, second = choose_kind(small, "auto", former), choose_kind(large, "auto", former)
    assert ORDER.index(first) <= ORDER.index(second)


@given(SIZES, KINDS, st.none() | KINDS)
def test_a_named_kind_is_that_kind_and_a_chosen_one_stays(passages, wanted, former):
    assert choose_kind(passages, wanted, former) == wanted
    chosen = choose_kind(passages, "auto", former)
    assert choose_kind(passages, "auto", chosen) == chosen


@given(bases(), SIZES, SIZES, st.data())
def test_what_is_left_beside_and_in_a_base_is_bounded(base, delta, removed, data):
    removed = min(removed, base.rows)
    passages = base.rows - removed + delta
    kind = data.draw(KINDS)
    work = choose_work(base, kind, passages=passages, delta=delta, removed=removed)
    if work == "none":
        assert passages <= kinds.DELTA_LEAST
    if work in {"keep", "append"}:
        assert kind == base.kind
        assert removed <= kinds.REMOVED_SHARE * base.rows
    if work == "keep":
        assert delta <= delta_limit(base.rows) <= kinds.DELTA_MOST
    if work == "append" and kind == "ivfpq":
        assert base.rows + delta <= kinds.TRAINED_GROWTH * base.trained_rows


@given(KINDS, st.integers(kinds.DELTA_LEAST + 1, 5_000_000))
def test_without_a_base_one_is_built(kind, passages):
    assert choose_work(None, kind, passages=passages, delta=passages, removed=0) == "build"


@given(st.none() | bases(), KINDS, SIZES, SIZES)
def test_nothing_is_trained_on_fewer_vectors_than_a_code_book_has_entries(base, kind, passages, delta):
    if choose_work(base, kind, passages=passages, delta=min(delta, passages), removed=0) == "build":
        assert passages >= kinds.TRAINING_LEAST


@given(st.integers(1, 10_000_000))
def test_cells_are_a_power_of_two_with_rows_enough(rows):
    count = cells(rows)
    assert count & (count - 1) == 0
    assert count == 1 or rows / count >= 39


@given(st.integers(1, 4096))
def test_subspaces_divide_the_dimension(dimension):
    assert dimension % subspaces(dimension) == 0


WORDS = st.dictionaries(st.text("abcdef", min_size=1, max_size=4), st.integers(0, 100), max_size=10)


@given(WORDS, st.integers(0, 200))
def test_words_are_looked_up_up_to_the_limit_the_rarest_first(common, limit):
    kept = affordable(list(common), common, limit)
    assert sum(common[word] for word in kept) <= limit
    left = sorted(common[word] for word in common if word not in kept)
    assert all(common[word] <= left[0] for word in kept if left)
    assert not left or sum(common[word] for word in kept) + left[0] > limit


@given(st.text(max_size=100))
def test_tokens_are_lower_case_and_stay_as_they_are_when_split_again(text):
    assert all(tokens(token) == [token] or not token.isascii() for token in tokens(text))
