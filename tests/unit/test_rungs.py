"""The arithmetic of `edgectl ladder`: what rankings and answers are worth, which rungs are out of order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks.retrieval import ndcg
from edged.config.tables import Rung
from edged.messages import Passage
from edged.rungs.agenda import CHUNK, agenda
from edged.rungs.figures import figures, measured
from edged.rungs.order import Point, complaints, doubts
from edged.rungs.record import Found, Place, Question, Record, Sheet, key_of
from edged.rungs.scores import agreement, found, likeness, mean, packed
from edged.rungs.standing import stale
from edged.rungs.worth import references

from .rungs_world import FINGERPRINT, answered, load, recorded

LADDER = (
    Rung(name="full"),
    Rung(name="fewer", keep=2),
    Rung(name="shorter", answer_tokens=8),
    Rung(name="lighter", variants={"generator": "lighter", "reranker": "lighter"}),
    Rung(name="bypass", bypass_rerank=True),
    Rung(name="shed", shed_batch=True),
)
MACHINE = replace(FINGERPRINT.machine, models={"m/q4": "one"}, packages={"openvino": "1"})


def passage(number: int) -> Passage:
    return Passage(id=number, text=f"text {number}", source=f"/docs/{number}.md", first_line=1, last_line=9)


# ------------------------------------------------------------------- rankings


@given(st.permutations(range(1, 15)), st.sets(st.integers(1, 20), min_size=1, max_size=12))
def test_ndcg_is_that_of_the_benchmark(order, relevant):
    """Two implementations, one formula; places by their passage."""
    places = [Place(source="", passage=number) for number in sorted(relevant)]
    ours = found([passage(number) for number in order], places)
    assert ours.ndcg == pytest.approx(ndcg([str(n) for n in order], frozenset(map(str, relevant))))
    assert ours.recall == pytest.approx(len(relevant & set(order)) / len(relevant))


def test_two_passages_at_one_place_count_once():
    one = Place(source="7.md")
    twice = [passage(7), Passage(id=8, text="", source="/docs/7.md", first_line=20, last_line=29)]
    assert found(twice, [one]) == Found(ndcg=1.0, recall=1.0)
    assert found(twice, [Place(source="7.md", first_line=25)]).ndcg == pytest.approx(1 / math.log2(3))
    assert found(twice, [Place(source="7.md", first_line=12, last_line=15)]) == Found(ndcg=0.0, recall=0.0)
    assert found(twice, [Place(source="17.md")]).recall == 0.0


# -------------------------------------------------------------------- answers


@given(st.text(), st.text())
def test_agreement_is_a_share_symmetric_and_whole_for_the_same(first, second):
    assert 0.0 <= agreement(first, second) <= 1.0
    assert agreement(first, second) == agreement(second, first)
    assert agreement(first, first) == 1.0


@given(st.lists(st.lists(st.floats(-1, 1), min_size=4, max_size=4), min_size=2, max_size=6))
def test_likeness_is_a_share_and_whole_for_the_same(vectors):
    kept = [packed(np.asarray(each) + np.asarray([2.0, 0, 0, 0])) for each in vectors]
    assert likeness(kept, kept, kept) == pytest.approx([1.0] * len(kept), abs=0.02)
    assert all(0.0 <= value <= 1.0 for value in likeness(kept, kept[::-1], kept))


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_a_mean_has_a_margin_that_shrinks_with_repetition(values):
    once, often = mean(values), mean(values * 4)
    assert often.value == pytest.approx(once.value)
    assert often.margin <= once.margin + 1e-9


# ---------------------------------------------------------------------- order

points = st.builds(
    Point,
    name=st.sampled_from("abcdefgh"),
    cost=st.floats(0, 2),
    quality=st.floats(0, 1.2),
    cost_margin=st.floats(0, 0.5),
    quality_margin=st.floats(0, 0.5),
)


@given(st.lists(points, max_size=8))
def test_any_ladder_can_be_checked_and_only_its_rungs_are_named(ladder):
    names = {repr(point.name) for point in ladder}
    for sentence in complaints(ladder):
        assert sum(name in sentence for name in names) >= 1
    assert set(doubts(ladder)) <= {point.name for point in ladder}


def convex(savings: list[float], prices: list[float]) -> list[Point]:
    """A ladder whose steps become ever dearer."""
    cost, quality, made = 1.0, 1.0, [Point(name="0", cost=1.0, quality=1.0)]
    for number, (saved, price) in enumerate(zip(savings, sorted(prices), strict=True), 1):
        cost, quality = cost - saved, quality - saved * price
        made.append(Point(name=str(number), cost=cost, quality=quality))
    return made


steps = st.lists(st.tuples(st.floats(0.06, 0.2), st.floats(0.05, 1.0)), min_size=1, max_size=5)


@given(steps)
def test_nothing_is_said_of_a_ladder_whose_steps_become_dearer(pairs):
    ladder = convex([saved for saved, _ in pairs], [price for _, price in pairs])
    assert (complaints(ladder), doubts(ladder)) == ((), ())


@given(st.floats(0.06, 0.3), st.floats(0.06, 0.3), st.floats(0.0, 0.4), st.floats(0.2, 1.0))
def test_a_dear_step_before_a_cheap_one_is_named(first, second, cheap, more):
    """And no more so when the margins are as wide as the ladder."""
    dear = cheap + more
    rungs = (
        Point(name="top", cost=1.0, quality=1.0),
        Point(name="dear", cost=1 - first, quality=1 - first * dear),
        Point(name="cheap", cost=1 - first - second, quality=1 - first * dear - second * cheap),
    )
    (sentence,) = complaints(rungs)
    assert sentence.startswith("'cheap' belongs before 'dear'")
    wide = [Point(name=r.name, cost=r.cost, quality=r.quality, cost_margin=1.0) for r in rungs]
    assert complaints(wide) == ()
    assert doubts(wide) == ("dear", "cheap")


def test_a_rung_that_saves_nothing_and_one_that_is_beaten_are_named():
    sentences = complaints(
        [
            Point(name="full", cost=1.0, quality=1.0),
            Point(name="idle", cost=1.01, quality=0.8),
            Point(name="good", cost=0.5, quality=0.9),
        ]
    )
    assert [sentence.split(":")[0] for sentence in sentences] == [
        "'idle' saves no work",
        "'idle' is never worth it",
    ]


# --------------------------------------------------------------------- agenda


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 4))
def test_the_agenda_asks_each_question_once_in_every_way_and_then_nothing(count, answers, ways):
    questions = [Question(text=str(n), relevant=(Place(source="a"),)) for n in range(count)]
    keys = [f"way {n}" for n in range(ways)]
    tasks = agenda(keys, {}, questions, answers)
    assert all(1 <= len(task.questions) <= CHUNK for task in tasks)
    sheets: dict[str, Sheet] = {}
    for key in keys:
        searched = [n for t in tasks if (t.key, t.kind) == (key, "search") for n in t.questions]
        told = [n for t in tasks if (t.key, t.kind) == (key, "answer") for n in t.questions]
        assert (searched, told) == (list(range(count)), list(range(min(count, answers))))
        sheets[key] = Sheet(
            found=dict.fromkeys(searched, Found(ndcg=1, recall=1)), answers=dict.fromkeys(told, answered("x"))
        )
    assert agenda(keys, sheets, questions, answers) == []


def test_rounds_turn_round_so_that_a_warming_box_favours_none():
    questions = [Question(text=str(n), relevant=(Place(source="a"),)) for n in range(2 * CHUNK)]
    order = [task.key for task in agenda(["a", "b"], {}, questions, 0)]
    assert order == ["a", "b", "b", "a"]


# -------------------------------------------------------------------- figures


def test_rungs_that_change_no_answer_share_their_figures():
    bypass, shed = (LADDER[n] for n in (4, 5))
    assert key_of(bypass) == key_of(Rung(name="other", bypass_rerank=True, busy_share=0.5, cost=0.3))
    assert key_of(shed) == key_of(Rung(name="full"))


def test_answers_are_compared_with_those_from_the_same_passages():
    """Shorter ones with the rung that found as much; where the reranker differs, with the rung before."""
    whole = [LADDER[0], Rung(name="b", keep=2), Rung(name="c", keep=2, answer_tokens=8)]
    lighter = Rung(name="d", keep=2, answer_tokens=8, variants={"generator": "x"})
    other = Rung(name="e", keep=2, answer_tokens=8, variants={"generator": "x", "reranker": "y"})
    assert references([*whole, lighter, other], {"generator"}) == [0, 0, 1, 1, 3]


def test_quality_is_finding_times_telling_and_nothing_is_counted_twice():
    record = recorded(
        LADDER[:3],
        [
            Sheet(found={0: Found(ndcg=1.0, recall=1)}, answers={0: answered("a b c d")}, loads=(load(2.0),)),
            Sheet(found={0: Found(ndcg=0.8, recall=1)}, answers={0: answered("e f g h")}, loads=(load(1.5),)),
            Sheet(found={0: Found(ndcg=0.8, recall=1)}, answers={0: answered("e f")}, loads=(load(1.0),)),
        ],
    )
    full, fewer, shorter = figures(LADDER[:3], record)
    assert (full.cost.value, full.quality.value) == (1.0, 1.0)
    assert (fewer.cost.value, fewer.quality.value) == (0.75, pytest.approx(0.8))
    assert fewer.agreement.value == 0.0, "shown, but its quality is what it found"
    assert shorter.cost.value == 0.5
    assert shorter.quality.value == pytest.approx(0.8 * 2 / 3), "word F1 of two of four"


def test_a_rung_without_answers_has_no_quality_yet():
    ladder, found = LADDER[:3], {0: Found(ndcg=0.8, recall=1)}
    questions = [Question(text="q", relevant=(Place(source="a"),))]
    whole = Sheet(found=found, answers={0: answered("a b")}, loads=(load(2.0),))
    record = recorded(ladder, [whole, Sheet(found=found), Sheet()], questions)
    full, fewer, shorter = figures(ladder, record)
    assert full.quality.value == 1.0
    assert (fewer.quality, fewer.ndcg.value, shorter.quality) == (None, 0.8, None)
    nothing = figures(ladder, recorded(ladder, [Sheet(), Sheet(), Sheet()], questions))
    assert {each.quality for each in nothing} == {None}


def test_expected_answers_count_where_all_are_known():
    questions = [Question(text="q", answer="80 cm")]
    sheets = [
        Sheet(answers={0: answered("It starts at 80 cm.")}, loads=(load(2.0),)),
        Sheet(answers={0: answered("80 inches, I think, or so.")}, loads=(load(1.0),)),
    ]
    ladder = (LADDER[0], Rung(name="shorter", answer_tokens=8))
    _, shorter = figures(ladder, recorded(ladder, sheets, questions))
    assert (shorter.said.value, shorter.quality.value) == (0.5, 0.5)


def test_a_rung_that_cannot_be_taken_has_no_figures_and_leaves_the_rest_as_it_is():
    ladder = (LADDER[0], Rung(name="fewer", keep=2), Rung(name="shorter", answer_tokens=8))
    sheet = Sheet(answers={0: answered("a")}, loads=(load(1.0),))
    record = Record(
        fingerprint=FINGERPRINT,
        questions=(Question(text="q"),),
        origin="words",
        by_words=1,
        seed=0,
        count=1,
        measured_at="",
        sheets={key_of(ladder[0]): sheet, key_of(Rung(name="", answer_tokens=8)): sheet},
        unavailable={"fewer": "there is no retriever"},
    )
    full, fewer, shorter = figures(ladder, record)
    assert (full.cost.value, fewer.cost, shorter.cost.value) == (1.0, None, 1.0)
    assert fewer.unavailable == "there is no retriever"
    filled = measured(ladder, [full, fewer, shorter])
    assert [rung.cost for rung in filled] == [1.0, None, 1.0]


@given(st.lists(st.floats(0.1, 5.0), min_size=1, max_size=6), st.booleans())
def test_cost_is_cpu_time_on_processors_and_time_elsewhere(spent, on_gpu):
    devices = ("cpu", "igpu") if on_gpu else ("cpu", "cpu:0-1")
    loads = tuple(load(cpu_s, duration_s=7.0) for cpu_s in spent)
    doubled = tuple(load(2 * cpu_s, duration_s=7.0) for cpu_s in spent)
    ladder = (LADDER[0], LADDER[1])
    sheets = [Sheet(answers={0: answered("a")}, loads=each, devices=devices) for each in (loads, doubled)]
    _, fewer = figures(ladder, recorded(ladder, sheets))
    assert fewer.cost.value == pytest.approx(1.0 if on_gpu else 2.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"generation": 2}, "documents: generation 1 of the library -> 2"),
        ({"plan": "abc"}, "plan: none -> abc"),
        ({"pipeline": "other"}, "pipeline: rag -> other"),
        ({"stages": {"retriever": "", "reranker": "", "generator": "otherwise"}}, "stage generator:"),
        ({"machine": replace(MACHINE, cores=4)}, "cores: 2 -> 4"),
        ({"machine": replace(MACHINE, models={"m/q4": "two"})}, "model m/q4: other weights"),
        ({"machine": replace(MACHINE, packages={"openvino": "2"})}, "package openvino:"),
    ],
)
def test_whatever_figures_depend_on_makes_them_stale(change, reason):
    then = replace(FINGERPRINT, machine=MACHINE)
    assert stale(then, then) == []
    (found,) = stale(then, replace(then, **change))
    assert found.startswith(reason)


def test_configured_figures_stand():
    ladder = (LADDER[0], Rung(name="fewer", keep=2, cost=0.7, quality=0.9))
    sheets = [Sheet(answers={0: answered("a")}, loads=(load(1.0),)) for _ in ladder]
    filled = measured(ladder, figures(ladder, recorded(ladder, sheets)))
    assert (filled[1].cost, filled[1].quality) == (0.7, 0.9)
    assert filled[0].cost == 1.0


def test_every_load_counts_by_its_round():
    """A round in which everything took twice as long changes nothing: rungs are compared within it."""
    ladder = (LADDER[0], LADDER[1])
    sheets = [
        Sheet(answers={0: answered("a")}, loads=(load(1.0), load(2.0))),
        Sheet(answers={0: answered("a")}, loads=(load(0.5), load(1.0))),
    ]
    _, fewer = figures(ladder, recorded(ladder, sheets))
    assert (fewer.cost.value, fewer.cost.margin) == (0.5, 0.0)
