"""The payment-risk baseline: its counts against plain definitions, its weights against the mode, risks it must find."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.arms.group import ArmGroup, ArmGroupReport
from learners.baselines.counterparty_features import BELIEF, DAY_US, KNOWN_US, SPANS_US, CounterpartyFeatures
from learners.baselines.logistic_risk import COLUMNS, ITERATIONS, KNOTS, Risk, columns
from learners.baselines.specs import RiskConfig
from learners.contract.batch import Batch, Floats
from learners.contract.made_up.payments import Paid, Till, payments
from learners.contract.made_up.streams import SECOND
from learners.registry import build, build_group
from learners.tasks.outcome_measures import area_under_roc, average_precision, log_loss

PRIOR = 0.01
HOUR_US = 3600 * SECOND


def features_of(batch: Batch) -> Floats:
    assert batch.query.subject is not None
    return batch.query.subject.features


def fading(ats: list[int], now: int, span: int) -> float:
    return sum(math.exp(-(now - at) / span) for at in ats)


def test_counts_of_parties_are_sums_over_what_was_handled_and_known_before_the_step() -> None:
    rows, till, parties = payments(1, 240, users=5, merchants=4), Till(), CounterpartyFeatures(capacity=9, prior=PRIOR)
    known: list[tuple[Paid, int]] = []
    for start in range(0, 240, 8):
        step = rows[start : start + 8]
        batch = parties.ask(till.step(step))
        for row, found in zip(step, features_of(batch), strict=True):
            paid = [one.at for one in rows[:start] if one.merchant == row.merchant]
            expected = [math.log1p(fading(paid, row.at, span)) for span in SPANS_US]
            expected.append(math.log1p((row.at - max(paid)) / HOUR_US if paid else 30 * 24))
            for same in ("merchant", "user"):
                told = [(o.y, at) for o, at in known if getattr(o, same) == getattr(row, same)]
                n, bad = (sum(w * math.exp(-(row.at - at) / KNOWN_US) for w, at in part) for part in
                          ([(1.0, at) for _, at in told], told))  # fmt: skip
                expected.append(math.log((bad + BELIEF * PRIOR) / ((n + BELIEF) * PRIOR)) if told else 0.0)
                expected.append(math.log1p(n))
            assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        parties.learn(batch)
        if start >= 40:  # outcomes come five steps late
            due = rows[start - 40 : start - 32]
            at = [step[-1].at] * 8
            parties.learn(till.outcomes(due, np.zeros((8, 8)), known_at=at))
            known += zip(due, at, strict=True)


def test_a_payment_that_comes_late_is_worth_what_is_left_of_it() -> None:
    rows, found = payments(2, 30, merchants=1), []
    for order in (range(30), [*range(15, 30), *range(15)]):
        parties, till = CounterpartyFeatures(capacity=9, prior=PRIOR), Till()
        for number in order:
            parties.learn(till.step([rows[number]]))
        last = replace_at(rows[0], rows[-1].at + DAY_US)
        found.append(features_of(parties.ask(till.step([last])))[0])
    assert found[0].tolist() == pytest.approx(found[1].tolist(), rel=1e-9)


def replace_at(row: Paid, at: int) -> Paid:
    return row._replace(at=at, key=row.key + 1)


def test_parties_used_longest_ago_are_let_go_and_erased_ones_at_once() -> None:
    rows, till, parties = payments(3, 60), Till(), CounterpartyFeatures(capacity=4, prior=PRIOR)
    for row in rows:
        parties.learn(till.step([row]))
    newest = list(dict.fromkeys(row.merchant for row in reversed(rows)))[:4]
    kept = bytes(parties.state()["parties"].tolist()).decode()
    assert all((row.merchant + '"' in kept) == (row.merchant in newest) for row in rows)
    parties.forget({newest[0]})
    assert newest[0] not in bytes(parties.state()["parties"].tolist()).decode()


def plain_columns(row: Paid, history: list[Paid]) -> list[float]:
    """The columns before the parties', one payment at a time."""
    amount, own = math.log1p(row.amount / 1e6), [math.log1p(one.amount / 1e6) for one in history]
    days = [(row.at - one.at) / DAY_US for one in history]
    mean = sum(own) / len(own) if own else 0.0
    spread = math.sqrt(sum((one - mean) ** 2 for one in own) / max(len(own), 1) + 0.05)
    far = (amount - mean) / spread
    today, week = [math.exp(-day) for day in days], [math.exp(-day / 7) for day in days]
    return [
        1.0,
        amount,
        *(max(amount - knot, 0.0) for knot in KNOTS.tolist()),
        float(bool(own)),
        *((amount - mean, far, max(far - 2.0, 0.0)) if own else (0.0, 0.0, 0.0)),
        math.log1p(sum(today)),
        math.log1p(sum(week)),
        math.log1p(sum(w * one.amount / 1e6 for w, one in zip(today, history, strict=True))),
        math.log1p(min(min(days, default=30.0), 30.0) * 24.0),
        math.log1p(sum(one.merchant == row.merchant for one in history)),
    ]


def test_columns_are_what_the_last_visible_payments_say() -> None:
    rows, till = payments(4, 200, users=3), Till()
    for start in range(0, 200, 10):
        batch = till.step(rows[start : start + 10])
        found = columns(batch.context, batch.query, last_n=6)
        assert found.shape == (10, COLUMNS)
        for n, row in enumerate(rows[start : start + 10]):
            history = [one for one in rows[: start + n] if one.user == row.user][-6:]
            assert found[n, :-8].tolist() == pytest.approx(plain_columns(row, history), rel=1e-9)


def test_a_step_moves_the_weights_to_the_mode_of_their_belief() -> None:
    rows, till, learner = payments(5, 64), Till(), Risk(RiskConfig(prior=0.1, memory=10**12))
    till.step(rows)
    batch = till.outcomes(rows, np.zeros((64, 8)), known_at=[row.at for row in rows])
    before = learner.state()["weights"]
    learner.learn(batch)
    weights = learner.state()["weights"]
    x = torch.from_numpy(columns(batch.context, batch.query, last_n=32))
    risk, y = (x @ weights).sigmoid(), torch.tensor([row.y for row in rows], dtype=torch.float64)
    slope = x.T @ (risk - y) + 10.0 * (weights - before)
    assert ITERATIONS == 4
    assert float(slope.abs().max()) < 1e-3
    curvature = 10.0 * torch.eye(COLUMNS, dtype=torch.float64) + (x.T * (risk * (1 - risk))) @ x
    torch.testing.assert_close(learner.state()["precision"], curvature, rtol=1e-6, atol=1e-6)


def lesson(arm_group: ArmGroup, rows: list[Paid], *, delay: int, size: int = 16) -> list[tuple[Floats, ArmGroupReport]]:
    """Steps of a stream whose outcomes come `delay` steps late; (risks as issued, report) of each that learnt some."""
    till, features, risks, found = Till(), dict[int, Floats](), dict[int, Floats](), []
    for start in range(0, len(rows), size):
        step = rows[start : start + size]
        report = arm_group.step(till.step(step))
        assert report.issued is not None
        for row, feature, risk in zip(step, report.issued.features, report.issued.risks, strict=True):
            features[row.key], risks[row.key] = feature, risk
        due = rows[max(start - delay * size, 0) : max(start - delay * size + size, 0)]
        if due:
            batch = till.outcomes(due, np.stack([features[row.key] for row in due]), known_at=[step[-1].at] * len(due))
            issued = np.stack([risks[row.key] for row in due])
            found.append((issued, arm_group.mature(batch, issued)))
    return found


def test_risks_of_a_known_world_are_found_and_beat_the_rate() -> None:
    rows, arm_group = payments(6, 6000, users=60), build_group("risk")
    found = lesson(arm_group, rows, delay=4)
    issued = np.concatenate([risks for risks, _ in found[200:]])
    told = rows[200 * 16 : 200 * 16 + len(issued)]
    y, truth = np.asarray([row.y for row in told]), np.asarray([row.risk for row in told])
    own, rate, best = (float(log_loss(risk, y).mean()) for risk in (issued[:, 0], issued[:, 1], truth))
    assert best < own < best + 0.05
    assert rate > own + 0.04
    assert area_under_roc(issued[:, 0], y > 0.5) > 0.8
    assert area_under_roc(issued[:, 1], y > 0.5) < 0.6


def test_the_headline_is_the_prediction_as_issued_and_what_is_known_today_stands_beside_it() -> None:
    rows, arm_group = payments(7, 400), build_group("risk")
    for step, (risks, report) in enumerate(lesson(arm_group, rows, delay=3)):
        y = np.asarray([row.y for row in rows[16 * step : 16 * step + 16]])
        for column, arm in enumerate(("learner", "reference.risk_rate")):
            assert report.losses[arm]["risk"].count == report.losses[arm]["risk_mature"].count == 16
            assert report.losses[arm]["risk"].sum == pytest.approx(float(log_loss(risks[:, column], y).sum()))
        assert report.issued is None
        if step > 5:
            assert report.losses["learner"]["risk"].sum != report.losses["learner"]["risk_mature"].sum


def test_a_cohort_goes_on_from_its_state_bit_for_bit() -> None:
    rows, arm_group, heir = payments(8, 640), build_group("risk"), build_group("risk")
    lesson(arm_group, rows[:320], delay=2)
    state = arm_group.state()
    assert {name.partition("/")[0] for name in state} == {"learner", "reference.risk_rate", "parties"}
    heir.load({name: state[name] for name in sorted(state, reverse=True)})
    for one, other in zip(lesson(arm_group, rows[320:], delay=2), lesson(heir, rows[320:], delay=2), strict=True):
        assert one[1].losses == other[1].losses
    left, right = arm_group.state(), heir.state()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_world_without_outcomes_leaves_the_prior() -> None:
    batch, learner = Till().step(payments(9, 8)), build("risk", prior=PRIOR)
    learner.learn(batch)
    risk = learner.predict(batch.context, batch.query).risk
    assert risk is not None
    assert risk.tolist() == pytest.approx([PRIOR] * 8)


def test_outcomes_however_one_sided_leave_finite_weights() -> None:
    rows, till, learner = payments(10, 640), Till(), Risk(RiskConfig(memory=10**6))
    for start in range(0, 640, 32):
        till.step(rows[start : start + 32])
        batch = till.outcomes(rows[start : start + 32], np.full((32, 8), 50.0), known_at=[0] * 32)
        learner.learn(replace(batch, target=replace(batch.target, y=np.full(32, float(start >= 320)))))
        assert all(bool(torch.isfinite(tensor).all()) for tensor in learner.state().values())


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order_and_ties_are_half() -> None:
    rng = np.random.default_rng(0)
    risk, y = rng.integers(0, 8, 60) / 8.0, rng.random(60) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in risk[y] for b in risk[~y]]
    assert area_under_roc(risk, y) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(area_under_roc(risk, np.zeros(60, np.bool_)))


def test_average_precision_is_precision_at_each_cut_weighted_by_what_it_finds() -> None:
    risk = np.asarray([0.9, 0.8, 0.8, 0.4, 0.1])
    y = np.asarray([True, False, True, False, True])
    assert average_precision(risk, y) == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    assert average_precision(np.full(10, 0.5), np.arange(10) < 3) == pytest.approx(0.3)
    assert math.isnan(average_precision(risk, np.zeros(5, np.bool_)))


def corrections(rows: list[Paid], till: Till, *, silent_at: int, known_at: int) -> Batch:
    """Labels of payments whose silence was learnt, known at `silent_at`."""
    batch = till.outcomes(rows, np.zeros((len(rows), 8)), known_at=[known_at] * len(rows))
    n = len(rows)
    target = replace(batch.target, supersedes=np.zeros(n), superseded_at=np.full(n, silent_at), y=np.ones(n))
    return replace(batch, target=target)


def as_silent(rows: list[Paid], till: Till, at: int) -> Batch:
    batch = till.outcomes(rows, np.zeros((len(rows), 8)), known_at=[at] * len(rows))
    return replace(batch, target=replace(batch.target, y=np.zeros(len(rows))))


def test_a_correction_moves_a_case_from_good_to_bad_and_adds_none() -> None:
    rows, till, rate = payments(11, 40), Till(), build("risk_rate", prior=0.1)
    till.step(rows)
    rate.learn(as_silent(rows, till, rows[-1].at))
    bad, known = rate.state()["sums"].tolist()
    rate.learn(corrections(rows[:3], till, silent_at=rows[-1].at, known_at=rows[-1].at + DAY_US))
    assert rate.state()["sums"].tolist() == pytest.approx([bad + 3, known])


def test_no_more_cases_are_bad_than_there_are_however_many_corrections_come() -> None:
    rows, till, rate = payments(12, 40), Till(), build("risk_rate", prior=0.1, memory=5)
    till.step(rows)
    for _ in range(20):
        rate.learn(as_silent(rows, till, rows[-1].at))
    for _ in range(20):
        rate.learn(corrections(rows, till, silent_at=rows[-1].at, known_at=rows[-1].at))
    bad, known = rate.state()["sums"].tolist()
    assert bad == pytest.approx(known)


def test_counts_of_parties_after_a_correction_are_those_of_the_label_known_when_the_silence_was() -> None:
    rows, till = payments(13, 60, users=5, merchants=4), Till()
    till.step(rows)
    silent_at, later = rows[-1].at, rows[-1].at + 40 * DAY_US
    told, mended = CounterpartyFeatures(capacity=9, prior=PRIOR), CounterpartyFeatures(capacity=9, prior=PRIOR)
    batch = as_silent(rows, till, silent_at)
    y = np.array([float(n < 4) for n in range(len(rows))])
    told.learn(replace(batch, target=replace(batch.target, y=y)))
    mended.learn(batch)
    others = as_silent(rows[20:30], till, later)  # what becomes known meanwhile fades what was
    told.learn(others)
    mended.learn(others)
    mended.learn(corrections(rows[:4], till, silent_at=silent_at, known_at=rows[0].at))
    question = till.step([replace_at(row, later + DAY_US) for row in rows])
    assert features_of(mended.ask(question)) == pytest.approx(features_of(told.ask(question)))


def test_losses_as_issued_of_a_corrected_silence_are_those_of_its_label_in_time() -> None:
    rows, till = payments(14, 24), Till()
    till.step(rows)
    risks = np.column_stack([np.linspace(0.01, 0.9, 24), np.full(24, 0.2)])
    late, silent = build_group("risk"), as_silent(rows, till, rows[-1].at)
    first = late.mature(silent, risks)
    mended = corrections(rows[:5], till, silent_at=rows[-1].at, known_at=rows[-1].at)
    then = late.mature(mended, risks[:5])
    y = np.array([float(n < 5) for n in range(24)])
    in_time = build_group("risk").mature(replace(silent, target=replace(silent.target, y=y)), risks)
    for arm in late.arms:
        found = [first.losses[arm], then.losses[arm]]
        total = sum(losses[name].sum for losses in found for name in ("risk", "risk_corrected") if name in losses)
        assert total == pytest.approx(in_time.losses[arm]["risk"].sum)
        assert sum(losses["risk"].count for losses in found) == in_time.losses[arm]["risk"].count == 24
        assert (then.losses[arm]["risk_corrected"].count, then.losses[arm]["risk_mature"].count) == (0, 5)


def test_what_follows_a_gradient_takes_a_correction_as_it_is() -> None:
    rows, till = payments(15, 24), Till()
    till.step(rows)
    mended = corrections(rows[:5], till, silent_at=rows[-1].at, known_at=rows[-1].at)
    plain = replace(mended, target=replace(mended.target, supersedes=None, superseded_at=None))
    left, right = Risk(), Risk()
    left.learn(mended)
    right.learn(plain)
    assert all(torch.equal(one, right.state()[name]) for name, one in left.state().items())
