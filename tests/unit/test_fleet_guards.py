"""Who begins when, and what one database means for the others: decided without a clock, a process or a database."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest

from leadprotect.fleet.guards import (
    FleetGuard,
    GuardedDatabase,
    had_it_before,
    heard_from_others,
    may_begin,
    to_go_back,
)
from leadprotect.fleet.run import worst
from leadprotect.gates.heeding import GATE, GONE, Others
from leadprotect.gates.record import Record
from leadprotect.gates.verdict import Answer, Evaluation, Verdict
from leadprotect.settings import parse
from tests.support.scripted import evaluation

if TYPE_CHECKING:
    from collections.abc import Mapping

CODES = ("DE", "CH", "AT", "FR")
RUNS = GuardedDatabase((), began_at_all=True, state="running", verdict="PROCEED", began="r1", revision="r2")


def fleet(**stands: GuardedDatabase) -> Mapping[str, GuardedDatabase]:
    """Those that are named, and the others not begun."""
    return {code: replace(stands.get(code, GuardedDatabase(())), territories=(code,)) for code in CODES}


def ended(code: int) -> GuardedDatabase:
    return replace(RUNS, exit_code=code, why=f"ended {code}")


# --- who begins


def begins(
    canary: str | None = None, workers: int = 8, *, together: bool = False, **stands: GuardedDatabase
) -> list[str]:
    return may_begin(fleet(**stands), canary, workers=workers, together=together)


def test_the_canary_begins_alone_and_the_others_when_it_is_done() -> None:
    assert ["CH"] == begins("CH")
    assert [] == begins("CH", CH=RUNS)
    assert ["DE", "AT", "FR"] == begins("CH", CH=ended(0))


@pytest.mark.parametrize("code", [1, 10, 11, 20, 21, 30, 143])
def test_nobody_follows_a_canary_that_did_not_end_well(code: int) -> None:
    assert [] == begins("CH", CH=ended(code))


def test_without_a_canary_as_many_begin_as_there_are_workers() -> None:
    assert [*CODES] == begins()
    assert ["DE", "CH"] == begins(workers=2)
    assert ["CH"] == begins(workers=2, AT=RUNS, DE=ended(0), FR=ended(1))
    assert [] == begins(workers=1, AT=RUNS)


def test_one_in_trouble_holds_up_the_next_only_where_all_go_together() -> None:
    assert ["CH", "FR"] == begins(DE=ended(20), AT=ended(0))
    assert [] == begins(together=True, DE=ended(20), AT=ended(0))
    assert ["CH", "FR"] == begins(together=True, DE=ended(0), AT=ended(0))


# --- what is heard


def test_one_that_goes_back_takes_the_others_along() -> None:
    for back in (replace(RUNS, verdict="ROLLBACK"), replace(RUNS, state="rolling_back"), ended(20), ended(21)):
        assert (
            Verdict.ROLLBACK == heard_from_others(fleet(DE=back, CH=RUNS, AT=replace(RUNS, verdict="PAUSE")), "CH")[0]
        )


def test_one_that_waits_holds_the_others_until_its_own_gates_are_good() -> None:
    for verdict in ("PAUSE", "UNKNOWN"):
        waiting = fleet(DE=replace(RUNS, verdict=verdict, why="deadlocks"), CH=RUNS)
        assert (Verdict.PAUSE, f"DE says {verdict}: deadlocks") == heard_from_others(waiting, "CH")
        assert (Verdict.PROCEED, "") == heard_from_others(waiting, "DE")
    held = replace(RUNS, state="held", verdict="PROCEED")  # by the others, or until it was good for a while
    assert (Verdict.PROCEED, "") == heard_from_others(fleet(DE=held, CH=held), "CH")


def test_nobody_waits_for_one_that_is_not_coming_back() -> None:
    for code in (1, 10, 11, 30, 143):
        assert "LEAVE" == heard_from_others(fleet(DE=ended(code), CH=RUNS), "CH")[0]
    assert (Verdict.PROCEED, "") == heard_from_others(fleet(DE=ended(0), CH=RUNS), "CH")


def test_no_two_hold_each_other_for_ever() -> None:
    """Once every own verdict is good, everybody hears that it is, whatever each of them does."""
    states = ("preflight", "running", "held", "baking")
    for mine, other in product(states, states):
        stands = fleet(DE=replace(RUNS, state=mine), CH=replace(RUNS, state=other))
        assert {(Verdict.PROCEED, "")} == {heard_from_others(stands, name) for name in ("DE", "CH")}


def test_who_had_ended_well_and_changed_something_goes_back_with_the_others() -> None:
    unchanged = replace(ended(0), revision="r1")
    assert ["DE"] == [one.name for one in to_go_back(fleet(DE=ended(0), CH=ended(20), AT=unchanged, FR=ended(10)))]
    assert [] == to_go_back(fleet(DE=ended(0), CH=ended(10)))


def test_who_had_everything_before_is_named_with_where_the_others_went() -> None:
    before = replace(ended(0), began="r2")
    stands = fleet(DE=before, CH=ended(20), AT=ended(0))
    assert [("DE", "r1")] == [(one.name, revision) for one, revision in had_it_before(stands)]
    assert [] == had_it_before(fleet(DE=before, CH=ended(10)))
    assert [] == had_it_before(fleet(DE=replace(before, began="r1", revision="r1"), CH=ended(20)))


def test_the_worst_exit_code_of_guards_is_that_a_human_is_needed() -> None:
    assert [10, 11, 30, 1, 20, 21, 143] == [worst("guard", [0, code]) for code in (10, 11, 30, 1, 20, 21, 143)]
    assert [21, 20, 1, 30] == [worst("guard", pair) for pair in ([20, 21], [20, 1], [1, 30], [10, 30])]


def test_a_backfill_is_sent_to_those_that_hold_what_it_names() -> None:
    urls = {"DE": "postgresql://a/x", "CH": "postgresql://b/x", "AT": "postgresql://a/x"}
    settings = parse({"territories": "DE, CH, AT"}, {}, urls)

    def commands(*words: str) -> dict[str, tuple[str, ...]]:
        fill = ("--bake", "1s", "--", "leadprotect", "backfill", *words)
        found = FleetGuard(settings, fill, canary=None, tell=lambda _: None)._commands  # noqa: SLF001 - what is run
        return {name: given[5:] for name, given in found.items()}

    assert {"DE+AT": ("DE",), "CH": ("CH",)} == commands("DE", "CH")
    assert {"DE+AT": ("AT",)} == commands("AT")
    assert {"DE+AT": ("--all",), "CH": ("--all",)} == commands("--all")


# --- the guard of one of them


def heard(*lines: bytes) -> tuple[Evaluation, list[str]]:
    """What its gates come to after these lines, and why it was told to leave."""
    others, reasons, seen = Others(), list[str](), list[Evaluation | None]()

    def ask(before: Evaluation | None) -> Evaluation:
        seen.append(before)
        return evaluation("PROCEED")

    hearing = others.listen(reasons.append, lines)
    hearing.join(60)
    asked = others.asked_too(ask)
    found = asked(asked(None))
    assert [["scripted"]] == [[answer.name for answer in before.answers] for before in seen if before]
    return found, reasons


@pytest.mark.parametrize("verdict", ["PAUSE", "ROLLBACK", "PROCEED"])
def test_what_the_others_mean_is_the_answer_of_one_more_gate(verdict: str) -> None:
    found, _ = heard(b"PROCEED \n", f"{verdict} CH says so\n".encode())
    assert verdict == found.verdict
    assert (GATE, "CH says so") == (found.answers[-1].name, found.answers[-1].why)


def test_before_anything_is_heard_its_own_gates_decide() -> None:
    assert Verdict.PROCEED == heard()[0].verdict


def test_it_leaves_when_it_is_told_to_and_when_nobody_leads_any_more() -> None:
    assert ["CH failed", GONE] == heard(b"LEAVE CH failed\n")[1]


def test_it_says_what_its_own_gates_say_and_only_what_is_new() -> None:
    others, record = Others(), Record("alembic upgrade head", "", 1.0)
    record.to, record.revision = "r1", "r2"
    first = others.changed(record)
    assert first is not None
    assert ("preflight", "", "r1", "r2") == (first.state, first.verdict, first.began, first.revision)
    assert others.changed(record) is None
    mine = evaluation("PROCEED")
    held = Answer(GATE, "", None, None, Verdict.PAUSE, "another one")
    record.evaluated(1.0, replace(mine, answers=(*mine.answers, held)))
    second = others.changed(record)
    assert second is not None
    assert "PROCEED" == second.verdict
