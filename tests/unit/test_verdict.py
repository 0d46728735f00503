"""The verdict over a rollout, as a table: what was answered, and what follows."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from leadprotect.gates.verdict import EXIT, Answer, Evaluation, Verdict, finite

PROCEED, PAUSE, ROLLBACK, UNKNOWN = Verdict
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


def evaluation(*verdicts: Verdict) -> Evaluation:
    answers = [Answer(f"a{n}", "q", 1.0, 2.0, verdict, f"why {n}") for n, verdict in enumerate(verdicts)]
    return Evaluation(NOON, tuple(answers))


@pytest.mark.parametrize(
    ("expected", "answered"),
    [
        (UNKNOWN, []),
        (PROCEED, [PROCEED]),
        (PROCEED, [PROCEED, PROCEED]),
        (PAUSE, [PROCEED, PAUSE, PROCEED]),
        (UNKNOWN, [PROCEED, UNKNOWN]),
        (UNKNOWN, [PAUSE, UNKNOWN]),
        (ROLLBACK, [PROCEED, ROLLBACK]),
        (ROLLBACK, [PAUSE, ROLLBACK]),
        (ROLLBACK, [UNKNOWN, ROLLBACK, UNKNOWN]),
    ],
    ids=lambda value: str(value) if isinstance(value, Verdict) else "+".join(value) or "nothing",
)
def test_a_firing_rollback_wins_over_missing_data_and_else_the_worst_counts(
    expected: Verdict, answered: list[Verdict]
) -> None:
    assert expected == evaluation(*answered).verdict
    assert expected == evaluation(*reversed(answered)).verdict


def test_the_reasons_are_those_of_the_verdict_first() -> None:
    assert ("a3: why 3", "a1: why 1", "a2: why 2") == evaluation(PROCEED, UNKNOWN, PAUSE, ROLLBACK).reasons
    assert () == evaluation(PROCEED, PROCEED).reasons


def test_each_verdict_has_an_exit_code_of_its_own() -> None:
    assert {PROCEED: 0, PAUSE: 10, ROLLBACK: 20, UNKNOWN: 30} == EXIT


@pytest.mark.parametrize(
    ("value", "expected"), [(None, False), (math.nan, False), (math.inf, False), (-math.inf, False), (0.0, True)]
)
def test_what_can_t_be_compared_is_no_value(value: float | None, *, expected: bool) -> None:
    assert expected is finite(value)
