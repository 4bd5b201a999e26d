"""What is learnt about reranking: margins, what was missed, from where on it does not pay."""

from __future__ import annotations

from itertools import pairwise
from math import inf, isfinite, nan
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edged.bypass.calibration import (
    BINS,
    BUDGET_POINTS,
    LARGE,
    MOST,
    UNMEASURED,
    WORST_POINTS,
    Evidence,
    bin_of,
    curve_of,
    monotone,
    shipped,
    worth_of,
)
from edged.bypass.learner import Learner
from edged.bypass.policy import LEARNING_EVERY, SAMPLE_EVERY, choice_of, rule_of
from edged.bypass.store import Key, Learnt, load, save
from edged.cli.stage_bypass import lines
from edged.config import load as load_config
from edged.config.tables import Rung
from edged.dispatch.passing import Judged
from edged.errors import ConfigError
from edged.messages import Passage
from edged.report import BypassStatus
from edged.stages.margin import margin_of, missed

WORTH = worth_of("bge-small-en-v1.5", "ms-marco-minilm-l12-v2")
ENOUGH = round(WORTH.enough)
SHIPPED = shipped(WORTH)
SCORES = st.lists(st.tuples(st.floats(-1, 1), st.none() | st.floats(0, 40)), min_size=2, max_size=30)


def passages(scores) -> list[Passage]:
    return [
        Passage(
            id=number,
            text="",
            source="",
            scores={"dense": dense} | ({"bm25": words} if words is not None else {}),
        )
        for number, (dense, words) in enumerate(scores)
    ]


# ------------------------------------------------------------------------------ margins


@given(SCORES)
def test_a_margin_is_in_its_range(scores):
    margin = margin_of(passages(scores))
    assert margin is not None
    assert -1.0001 <= margin <= 1.0001


def test_the_only_one_that_anything_speaks_for_has_the_largest_margin():
    assert margin_of(passages([(0.9, 12.0)] + [(0.1, 1.0)] * 19)) == pytest.approx(1.0)
    assert margin_of(passages([(0.9, 12.0)] + [(0.1, None)] * 19)) == pytest.approx(0.5)
    assert margin_of(passages([(0.5, 3.0)] * 20)) == 0.0


def test_there_is_nothing_to_put_in_order_in_one_passage():
    assert (margin_of([]), margin_of(passages([(0.5, 1.0)]))) == (1.0, 1.0)


@pytest.mark.parametrize("spoilt", [nan, inf, -inf])
def test_scores_that_are_no_numbers_give_no_margin(spoilt):
    assert margin_of(passages([(0.9, 1.0), (spoilt, 1.0)])) is None


@given(SCORES, st.floats(0.1, 10), st.floats(-5, 5))
def test_the_scale_of_the_scores_does_not_matter(scores, factor, shift):
    dense = [pair[0] for pair in scores]
    words = [pair[1] or 0.0 for pair in scores]
    assume(all(len(set(column)) == 1 or max(column) - min(column) > 1e-3 for column in (dense, words)))
    before = margin_of(passages(zip(dense, words, strict=True)))
    after = margin_of(passages([(factor * d + shift, factor * w) for d, w in zip(dense, words, strict=True)]))
    assert after == pytest.approx(before, abs=1e-6)


@given(st.permutations(range(12)), st.lists(st.floats(-12, 12), min_size=12, max_size=12))
def test_the_best_order_misses_nothing_and_no_order_misses_more_than_all(order, logits):
    scores = dict(enumerate(logits))
    best = sorted(range(12), key=lambda each: -scores[each])
    lost = missed(order, best, scores)
    assert -1e-9 <= lost <= 1
    assert missed(best, best, scores) == 0.0
    assert missed(best, order, scores) == pytest.approx(-lost)


def test_passages_that_answer_weigh_more_than_others():
    logits = {0: -8.0, 1: -8.1, 2: 6.0, 3: -8.2, 4: 5.0}
    best = [2, 4, 0, 1, 3]
    assert missed([0, 1, 3, 4, 2], best, logits) > 0.5
    assert 0.1 < missed([2, 0, 1, 3, 4], best, logits) < 0.3
    assert abs(missed([2, 4, 3, 1, 0], best, logits)) < 1e-3
    assert missed([], [], {}) == 0.0


# -------------------------------------------------------------------------- calibration


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 9)), min_size=1, max_size=BINS))
def test_means_never_rise_and_keep_their_sum(bins):
    sums, counts = [total * (count > 0) for total, count in bins], [count for _, count in bins]
    means = monotone(sums, counts)
    assert all(after <= before for before, after in pairwise(means))
    if all(counts):
        fitted = sum(mean * count for mean, count in zip(means, counts, strict=True))
        assert fitted == pytest.approx(sum(sums), abs=1e-6)


def filled(per_bin: float, lost: float, first: int = 0) -> Evidence:
    """As many questions at every margin; from bin `first` on they had missed nothing."""
    evidence = Evidence()
    for number in range(BINS):
        each = lost if number < first else 0.0
        evidence.seen[number] = evidence.judged[number] = per_bin
        evidence.missed[number], evidence.squares[number] = each * per_bin, each * each * per_bin
    return evidence


def test_too_little_evidence_leaves_what_is_shipped():
    assert curve_of(Evidence(), WORTH) == SHIPPED
    assert curve_of(filled((ENOUGH - 1) / BINS, 0.0), WORTH) == SHIPPED
    assert curve_of(filled((ENOUGH + 1) / BINS, 0.0), WORTH).from_margin == 0.0


def test_small_margins_alone_are_no_evidence_about_large_ones():
    evidence = filled(20.0, 0.0)
    for number in range(bin_of(LARGE), BINS):
        evidence.judged[number] = 1.0
    assert curve_of(evidence, WORTH) == SHIPPED


@pytest.mark.parametrize("first", [4, 20, 35])
def test_it_begins_where_nothing_is_lost(first):
    found = curve_of(filled(20.0, 0.9, first), WORTH)
    assert first - 1 <= found.from_margin * BINS <= first
    assert found.points(first / BINS + 0.01) == 0.0
    assert found.points(0.0) == pytest.approx(0.9 * 33.0)


def test_where_every_margin_loses_nobody_passes():
    found = curve_of(filled(20.0, 0.5, BINS), WORTH)
    assert (found.own, found.from_margin) == (True, inf)


@given(st.lists(st.floats(0, 1), min_size=BINS, max_size=BINS), st.integers(5, 60))
def test_what_passes_keeps_the_budget_and_the_bound_of_each(losses, per_bin):
    evidence = filled(float(per_bin), 0.0)
    for number, lost in enumerate(sorted(losses, reverse=True)):
        evidence.missed[number], evidence.squares[number] = lost * per_bin, lost * lost * per_bin
    found = curve_of(evidence, WORTH)
    first = min(BINS, round(found.from_margin * BINS)) if isfinite(found.from_margin) else BINS
    points = WORTH.points * WORTH.caution
    assert points * sum(found.expected[first:]) / BINS <= BUDGET_POINTS + 1e-9
    assert all(points * each <= WORST_POINTS + 1e-9 for each in found.expected[first:])


@given(st.lists(st.tuples(st.none() | st.floats(), st.none() | st.floats()), max_size=60))
def test_hostile_figures_leave_sound_evidence(judged):
    evidence = Evidence()
    for margin, lost in judged:
        evidence.add(margin, lost)
    assert msgspec.json.decode(msgspec.json.encode(evidence), type=Evidence) == evidence
    assert isfinite(curve_of(evidence, WORTH).points(0.5))


def test_evidence_is_bounded_and_what_is_new_weighs_more():
    evidence = Evidence()
    for _ in range(3 * int(MOST)):
        evidence.add(0.9, 0.0)
    assert sum(evidence.seen) <= MOST
    for _ in range(int(MOST)):
        evidence.add(0.9, 0.5)
    assert evidence.missed[bin_of(0.9)] / evidence.judged[bin_of(0.9)] > 0.25


@pytest.mark.parametrize(
    "spoilt",
    [
        {"seen": [1.0]},
        {"seen": [-1.0] * BINS},
        {"judged": [1.0] * BINS},
        {"missed": ["x"] * BINS},
    ],
)
def test_evidence_that_nothing_could_have_left_is_refused(spoilt):
    plain = msgspec.to_builtins(Evidence()) | spoilt
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(plain, Evidence)


# ------------------------------------------------------------------------ one reranker

KEY = Key(generation=3, embedder="e/int8/d", reranker="m/int8/d")


def known() -> Learner:
    learner = Learner([Learnt(KEY, filled(20.0, 0.0))])
    learner.serve(KEY.embedder, KEY.reranker, WORTH)
    return learner


def test_what_was_stored_is_used_for_the_same_reranker_only():
    assert known().curve.own
    for embedder, reranker in ((KEY.embedder, "m/fp32/e"), ("e/fp32/f", KEY.reranker)):
        other = Learner([Learnt(KEY, filled(20.0, 0.0))])
        other.serve(embedder, reranker, WORTH)
        assert (other.curve, other.evidence) == (SHIPPED, Evidence())


def test_of_models_that_were_not_measured_nothing_passes_until_much_is_learnt():
    assert worth_of("another", "ms-marco-minilm-l12-v2") == UNMEASURED
    assert shipped(UNMEASURED).from_margin == inf
    assert not curve_of(filled((ENOUGH + 1) / BINS, 0.0), UNMEASURED).own
    assert curve_of(filled(3 * ENOUGH / BINS + 1, 0.0), UNMEASURED).from_margin == 0.0


def test_a_reranker_that_comes_back_is_known_unless_the_library_has_changed():
    learner = known()
    learner.serve(KEY.embedder, "m/light/e", WORTH)
    assert learner.take([Judged(3, 0.5, 0.1, "light")], "light")
    learner.serve(KEY.embedder, KEY.reranker, WORTH)
    assert learner.curve.own
    assert [each.key.reranker for each in learner.learnt] == ["m/int8/d", "m/light/e"]
    learner.serve(KEY.embedder, "m/light/e", WORTH)
    assert learner.evidence.observations == 1
    learner.take([Judged(4, 0.5, 0.1, "light")], "light")
    learner.serve(KEY.embedder, KEY.reranker, WORTH)
    assert not learner.curve.own


def test_another_generation_begins_anew():
    learner = known()
    assert learner.take([Judged(4, 0.5, 0.1, "int8")], "int8")
    assert (learner.curve, learner.key.generation) == (SHIPPED, 4)
    assert learner.evidence.observations == 1


def test_words_of_another_variant_do_not_count():
    learner = known()
    before = learner.evidence.observations
    assert not learner.take([Judged(3, 0.5, 0.1, "fp32"), Judged(0, 0.5, 0.1, "int8")], "int8")
    assert learner.evidence.observations == before


def test_those_who_pass_are_counted_with_what_they_are_expected_to_lose():
    learner = Learner()
    learner.serve(KEY.embedder, KEY.reranker, WORTH)
    learner.take([Judged(1, 0.05, None), Judged(1, nan, None), Judged(0, None, None)], "int8")
    assert learner.lost_points == pytest.approx(0.2 * 33.0)


def test_a_store_that_cannot_be_written_or_read_is_said_and_survived(tmp_path: Path):
    path = tmp_path / "state" / "bypass.json"
    assert load(path) == {}
    assert save({"reranker": known().learnt}, path) == ""
    assert load(path)["reranker"][0].key == KEY
    path.write_bytes(b"\xff")
    assert load(path) == {}
    assert "cannot be written" in save({}, path / "below")


# -------------------------------------------------------------------------------- modes

FULL, BENEFIT, NONE = (
    Rung(name="full"),
    Rung(name="b", bypass_benefit=True),
    Rung(name="n", bypass_rerank=True),
)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("off", ("nothing", "nothing", "nothing")),
        ("auto", ("nothing", "benefit", "everything")),
        ("benefit", ("benefit", "benefit", "everything")),
        ("always", ("everything", "everything", "everything")),
    ],
)
def test_modes_and_rungs(mode, expected):
    assert tuple(choice_of(mode, rung.name, rung).passing for rung in (FULL, BENEFIT, NONE)) == expected


def test_rules_hold_what_was_learnt_and_what_is_shipped():
    own = known().curve
    rule = rule_of("benefit", own, SHIPPED, 3, 4)
    assert rule is not None
    assert (rule.from_margin, rule.own_from_margin, rule.own_generation) == (SHIPPED.from_margin, 0.0, 3)
    assert rule.sample_every == SAMPLE_EVERY
    learning = rule_of("benefit", SHIPPED, SHIPPED, 3, 4)
    assert learning is not None
    assert (learning.own_generation, learning.sample_every) == (0, LEARNING_EVERY)
    assert rule_of("nothing", own, SHIPPED, 3, 4) is None


def test_only_a_reranker_can_be_configured_to_be_passed_by():
    assert load_config(None, {}, ["stages.reranker.bypass=benefit"]).stages["reranker"].bypass == "benefit"
    with pytest.raises(ConfigError, match=r"stages\.generator\.bypass = 'always' is for rerankers"):
        load_config(None, {}, ["stages.generator.bypass=always"])
    with pytest.raises(ConfigError, match="bypass"):
        load_config(None, {}, ["stages.reranker.bypass=on"])


def test_what_is_told_says_who_and_why_and_how_it_is_known():
    status = BypassStatus(
        mode="auto",
        configured="auto",
        passing="benefit",
        why="rung 'fewer-passages'",
        bypassed=1,
        questions=4,
        lost_points=0.125,
        from_margin=None,
        calibration="shipped",
        observations=7,
        generation=2,
    )
    assert lines("reranker", status) == [
        "reranker: questions that gain little pass it by (rung 'fewer-passages')",
        "reranker: 1 of 4 rerankings saved (25%), for an expected 0.12 points of nDCG@10",
        "reranker: by benefit nobody (as shipped; 7 questions of this library are not enough yet)",
    ]
