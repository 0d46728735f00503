"""Leads that move to the database of another territory: whole, once, and whatever ends the move on its way."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from leadprotect.errors import InvalidRequest, LeadProtectError, LockUnavailable
from leadprotect.fleet import handover
from leadprotect.fleet.exchange import COMMIT, exchange
from leadprotect.fleet.move import _require_home, cancel_moves, move, resume_moves
from leadprotect.migration.territories import add_territory
from leadprotect.settings import ident, parse
from leadprotect.settings.files import write_ini
from tests.conftest import is_ours, janitor_of, use
from tests.support import moving
from tests.support.children import CONTACTS, NOTES, note
from tests.support.moving import EVERYTHING, MANAGER, Killed, Killer, Pair
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from leadprotect.fleet.exchange import Sent
    from tests.support.database import Database
    from tests.support.profiles import Profile

CLAIM = "SELECT {schema}.claim_lead(%s)"


@pytest.fixture
def pair(
    make_database: Callable[..., Database], templates: dict[tuple[str, str], str], profile: Profile,
    monkeypatch: pytest.MonkeyPatch,
) -> Pair:  # fmt: skip
    return moving.pair(make_database, templates, profile, janitor_of, lambda one: use(one, monkeypatch))


def test_a_lead_arrives_whole_and_nobodys(pair: Pair) -> None:
    lead, stays = pair.furnished(), pair.furnished()
    before = pair.de.sql(EVERYTHING, lead)
    moved = pair.move(lead, correlation_id="case 7")
    assert (1, (), "case 7") == (moved.moved, moved.refused, moved.correlation_id)
    before[0][0][pair.de.settings.territory_column] = "CH"
    assert before == pair.ch.sql(EVERYTHING, lead)
    assert (["CH"], ["DE"]) == (pair.homes(lead), pair.homes(stays))
    assert [["gone"], ["arrived"]] == pair.states(lead)
    assert [None] == pair.ch.sql("SELECT user_id FROM {schema}.user_lead_assignments WHERE lead_id = %s", lead)
    with pair.ch.acting("seller_ch", 5, "CH") as conn:
        pair.ch.query(conn, CLAIM, lead)
    assert pair.ch.user(5) == pair.ch.owner(lead, "CH")


def test_both_audits_tell_of_it_under_one_correlation_id(pair: Pair) -> None:
    lead = pair.furnished()
    pair.move(lead, correlation_id="case 7")
    left, came = pair.audits(lead)
    assert [
        ("UNASSIGN", "ALLOW", "manager", "case 7"),
        ("EDIT", "ALLOW", "manager", "case 7"),
        ("EDIT", "ALLOW", "owner", "case 7"),
    ] == left
    assert [("EDIT", "ALLOW", "manager", "case 7"), ("UNASSIGN", "ALLOW", "manager", "case 7")] == came


# --- killed on its way


def ended(pair: Pair, monkeypatch: pytest.MonkeyPatch, lead: Any, at: int, *, after: bool) -> bool:
    """Move the lead, ended at one exchange; whether there was such an exchange."""
    with Killer(pair, monkeypatch, at, after) as killer, suppress(LeadProtectError, Killed):
        pair.move(lead, correlation_id=f"case {at}")
    return killer.seen >= at


def whole(pair: Pair, lead: Any) -> None:
    """The lead is there and nowhere else, whole, nobody's, and both audits tell of it."""
    assert ["CH"] == pair.homes(lead)
    assert [["gone"], ["arrived"]] == pair.states(lead)
    assert [None, None] == [pair.de.owner(lead), pair.ch.owner(lead, "CH")]
    (row,) = pair.ch.sql(EVERYTHING, lead)
    assert [2, 1, 1] == [len(part) for part in row[1:]]
    left, came = pair.audits(lead)
    assert {"UNASSIGN", "EDIT"} == {action for action, *_ in left} == {action for action, *_ in came}
    assert 1 == len({correlation for *_, correlation in (*left, *came)})


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.nightly_elsewhere("by day moves of each kind are made there, and one is taken up")
def test_a_move_that_is_ended_anywhere_loses_and_doubles_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    at, step = (1, 1) if NIGHTLY else (1 + 4 * after, 8)
    while True:
        lead = pair.furnished()
        struck = ended(pair, monkeypatch, lead, at, after=after)
        homes = pair.homes(lead)
        assert homes in (["DE"], ["CH"], ["DE", "CH"])
        editable = pair.editable(lead)
        assert len(editable) <= 1
        assert homes != ["DE", "CH"] or editable == []
        pair.move(lead, correlation_id=f"case {at} again")
        if not struck:
            break
        whole(pair, lead)
        at += step
    assert at > 20


def test_what_stands_still_is_taken_up_and_frozen_until_then(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    lead, stays = pair.furnished(), pair.furnished()
    pair.de.rule(pair.de.user(2), "COLLABORATOR")
    stopped(pair, monkeypatch, lead, copied=True)
    assert ["DE", "CH"] == pair.homes(lead)
    assert [["frozen"], ["arriving"]] == pair.states(lead)
    assert [] == pair.editable(lead)
    assert ["DE"] == pair.editable(stays)
    for code, one, login in (("DE", pair.de, "seller_de"), ("CH", pair.ch, "seller_ch")):
        with pytest.raises(psycopg.Error) as claimed, one.acting(login, 2, code) as conn:
            one.query(conn, CLAIM, lead)
        assert "LP403" == claimed.value.sqlstate
        with pytest.raises(psycopg.Error) as deleted:
            one.sql("DELETE FROM {leads} WHERE {lead_id} = %s", lead)
        assert "LP422" == deleted.value.sqlstate
    with pair.de.acting("manager_de", MANAGER) as conn, pytest.raises(psycopg.Error, match="on its way") as assigned:
        pair.de.query(conn, "SELECT {schema}.assign_lead(%s, %s)", lead, pair.de.user(3))
    assert "LP422" == assigned.value.sqlstate
    # who only sees it may append a note still, and that travels, too
    note(pair.de, lead, "late")
    (done,) = resume_moves(pair.settings, actor=pair.de.user(MANAGER))
    assert (1, (), "standing") == (done.moved, done.refused, done.correlation_id), done
    assert ["a \\ note's\n100 %", "late"] == pair.ch.sql(f"SELECT body FROM {NOTES} ORDER BY id")
    assert [["gone"], ["arrived"]] == pair.states(lead)
    assert () == resume_moves(pair.settings, actor=pair.de.user(MANAGER))


def stopped(pair: Pair, monkeypatch: pytest.MonkeyPatch, lead: Any, *, copied: bool) -> None:
    """Begin a move that ends when the lead is frozen, with its copy on the other side or before that is committed."""
    real = handover.arrive

    def arrive(route: handover.Route, *given: Any, **more: Any) -> None:
        real(route, *given, **more)
        if not copied:
            pair.ch.sql("SELECT pg_terminate_backend(%s, 5000)", route.there.conn.info.backend_pid)

    def leave(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, suppress(LeadProtectError, Killed):
        patch.setattr(handover, "arrive", arrive)
        patch.setattr(handover, "leave", leave)
        pair.move(lead, correlation_id="standing")


@pytest.mark.parametrize("copied", [False, True], ids=["frozen", "copied"])
def test_a_hand_over_is_cancelled_and_the_lead_is_its_owners_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, *, copied: bool
) -> None:
    lead = pair.furnished()
    before = pair.de.sql(EVERYTHING, lead)
    stopped(pair, monkeypatch, lead, copied=copied)
    assert [["frozen"], ["arriving"] if copied else []] == pair.states(lead)
    assert [] == pair.editable(lead)
    assert 1 == cancel_moves(pair.settings, [lead], actor=pair.de.user(MANAGER))
    assert [["cancelled"], ["cancelled"]] == pair.states(lead)
    assert ["DE"] == pair.homes(lead) == pair.editable(lead)
    assert pair.de.user(1) == pair.de.owner(lead)
    assert before == pair.de.sql(EVERYTHING, lead)
    with pytest.raises(LeadProtectError, match="is not on its way"):
        cancel_moves(pair.settings, [lead], actor=pair.de.user(MANAGER))
    pair.move(lead)
    assert ["CH"] == pair.homes(lead)


def ended_after(monkeypatch: pytest.MonkeyPatch, what: Callable[[list[Sent]], bool], then: Callable[[], None]) -> None:
    """Let something happen when the first exchange of a kind was answered."""
    left = [then]

    def answered(conn: Any, asked: Any) -> Any:
        found = exchange(conn, asked)
        if left and what([*asked]):
            left.pop()()
        return found

    monkeypatch.setattr(handover, "exchange", answered)


def test_a_cancel_that_was_killed_half_way_keeps_the_copy_from_coming(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = pair.furnished()
    stopped(pair, monkeypatch, lead, copied=True)

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as patch:
        ended_after(patch, lambda asked: any(one.params[:1] == ("cancel",) for one in asked), kill)
        with pytest.raises(Killed):
            cancel_moves(pair.settings, [lead], actor=pair.de.user(MANAGER))
    assert [["frozen"], ["cancelled"]] == pair.states(lead)
    assert [] == pair.editable(lead)
    (done,) = resume_moves(pair.settings, actor=pair.de.user(MANAGER))
    assert ["the other side has cancelled the hand-over"] == [one.why for one in done.refused]
    assert [["cancelled"], ["cancelled"]] == pair.states(lead)
    assert ["DE"] == pair.homes(lead) == pair.editable(lead)


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("ends", ["move", "resume", "cancel"])
def test_what_a_crash_made_one_side_forget_is_ended_by_any_of_them(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """The first commit is not waited for on disk: a server that crashes then has the lead as it was, and it goes on."""
    lead = pair.furnished()
    stopped(pair, monkeypatch, lead, copied=True)
    with pair.de.connect(autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        pair.de.query(conn, "DELETE FROM {schema}.lead_handovers WHERE lead_id = %s", lead)
        owns = "UPDATE {schema}.user_lead_assignments SET user_id = %s, source = 'assign' WHERE lead_id = %s"
        pair.de.query(conn, owns, pair.de.user(1), lead)
    assert [[], ["arriving"]] == pair.states(lead)
    assert ["DE"] == pair.editable(lead)
    note(pair.de, lead, "late")
    if ends == "cancel":
        assert 1 == cancel_moves(pair.settings, [lead], actor=pair.de.user(MANAGER))
        assert [["cancelled"], ["cancelled"]] == pair.states(lead)
        assert (["DE"], pair.de.user(1)) == (pair.homes(lead), pair.de.owner(lead))
        return
    pair.move(lead) if ends == "move" else resume_moves(pair.settings, actor=pair.de.user(MANAGER))
    assert [["gone"], ["arrived"]] == pair.states(lead)
    assert (["CH"], []) == (pair.homes(lead), pair.de.sql("SELECT 1 FROM {leads} WHERE {lead_id} = %s", lead))
    assert ["a \\ note's\n100 %", "late"] == pair.ch.sql(f"SELECT body FROM {NOTES} ORDER BY id")


@pytest.mark.profiles("pg18")
def test_the_copy_of_a_lead_that_went_elsewhere_when_its_move_was_forgotten_is_cancelled_unless_it_is_the_last(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = pair.furnished()
    stopped(pair, monkeypatch, lead, copied=True)
    urls = {"DE": pair.de.url, "AT": pair.de.url, "CH": pair.ch.url}
    given = {"observation_window": "0"} | pair.de.profile.settings | pair.de.overrides
    three = parse(given | {"territories": ", ".join(urls)}, {}, urls)
    with pair.de.connect(autocommit=True) as conn:
        add_territory(conn, "AT")
        conn.execute("SET session_replication_role = replica")
        pair.de.query(conn, "DELETE FROM {schema}.lead_handovers WHERE lead_id = %s", lead)
        pair.de.query(conn, "DELETE FROM {schema}.user_lead_assignments WHERE lead_id = %s", lead)
        pair.de.query(conn, "UPDATE {leads} SET {territory} = 'AT' WHERE {lead_id} = %s", lead)
        # control: as far as this login sees, the lead is nowhere else
        with pytest.raises(LeadProtectError, match="the copy in CH may be all that is left of it; restore DE"):
            cancel_moves(pair.settings, [lead], actor=pair.de.user(MANAGER))
        # nor is a lead at home in AT that only waits there
        pair.de.query(
            conn, "INSERT INTO {schema}.user_lead_assignments (lead_id, territory, source) VALUES (%s, 'AT', 'moving')",
            lead,
        )  # fmt: skip
        pair.de.query(
            conn, "INSERT INTO {schema}.lead_handovers (lead_id, id, territory, elsewhere, direction, state, digest) "
            "VALUES (%s, gen_random_uuid(), 'AT', 'DE', 'in', 'arriving', 'x')", lead,
        )  # fmt: skip
        ends = SimpleNamespace(here=SimpleNamespace(territory="DE"), there=SimpleNamespace(territory="CH"))
        with pytest.raises(LeadProtectError, match="all that is left of it"):
            _require_home(three, pair.de.user(MANAGER), ends, [lead])  # type: ignore[arg-type]
        pair.de.query(conn, "DELETE FROM {schema}.lead_handovers WHERE lead_id = %s", lead)
        pair.de.query(conn, "DELETE FROM {schema}.user_lead_assignments WHERE lead_id = %s", lead)
    assert ([[], ["arriving"]], ["DE", "CH"]) == (pair.states(lead), pair.homes(lead))
    (told,) = resume_moves(three, actor=pair.de.user(MANAGER))
    assert [f"it is not in DE any more: leadprotect move {lead} --cancel deletes the copy that waits in CH"] == [
        one.why for one in told.refused
    ]
    before = pair.de.sql(EVERYTHING, lead)
    assert 1 == cancel_moves(three, [lead], actor=pair.de.user(MANAGER))
    assert ([[], ["cancelled"]], ["DE"]) == (pair.states(lead), pair.homes(lead))
    assert before == pair.de.sql(EVERYTHING, lead)
    assert [] == pair.ch.sql(f"SELECT 1 FROM {NOTES}")
    assert ("UNASSIGN", "ALLOW", "manager") in [row[:3] for row in pair.audits(lead)[1]]


@pytest.mark.profiles("pg18")
def test_a_lead_that_the_other_side_has_forgotten_is_named_and_not_called_moved(pair: Pair) -> None:
    """A standby took over there that had not come so far, or a backup was restored: it is on neither side."""
    lead, there = pair.furnished(), pair.furnished()
    assert 2 == pair.move(lead, there).moved
    with pair.ch.connect(autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        for table in (CONTACTS, NOTES, "{activities}", "{schema}.lead_handovers"):
            column = {CONTACTS: '"of lead"', "{activities}": "{activity_lead_id}"}.get(table, "lead_id")
            pair.ch.query(conn, f"DELETE FROM {table} WHERE {column} = %s", lead)
        pair.ch.query(conn, "DELETE FROM {leads} WHERE {lead_id} = %s", lead)
    done = pair.move(lead, there)  # the other one is the control
    assert (1, [str(lead)]) == (done.moved, [one.lead_id for one in done.refused])
    assert "it left DE, and CH knows nothing of it: that database is older" in done.refused[0].why


WAITS_FOR_DISK = """
    CREATE TABLE public.waits (state text, waits text);
    GRANT INSERT ON public.waits TO PUBLIC;
    CREATE FUNCTION public.waits() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO public.waits VALUES (NEW.state, current_setting(''synchronous_commit'')); RETURN NULL; END';
    CREATE CONSTRAINT TRIGGER waits AFTER INSERT OR UPDATE OF state ON {schema}.lead_handovers
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.waits();
    DO $do$ BEGIN
      EXECUTE format('ALTER ROLE {manager} IN DATABASE %I SET synchronous_commit = off', current_database());
    END $do$
    """


def test_what_must_not_be_forgotten_is_on_disk_even_if_the_login_waits_for_nothing(pair: Pair) -> None:
    """A row goes here because its copy there lasts; a crash there that forgot the copy would lose the lead."""
    leads = [pair.furnished() for _ in range(2)]
    for one, login in ((pair.de, "manager_de"), (pair.ch, "manager_ch")):
        one.sql_script(WAITS_FOR_DISK.replace("{manager}", ident(one.profile.login(login))))
        with one.connect(login) as conn:  # the control: what he does otherwise is forgotten
            assert ("off",) == conn.execute("SELECT current_setting('synchronous_commit')").fetchone()
    pair.move(*leads, at_once=1)
    query = "SELECT state, waits FROM public.waits"
    assert [("frozen", "off"), ("gone", "on")] * 2 == pair.de.sql(query)
    assert [("arriving", "on"), ("arrived", "off"), ("arriving", "on"), ("arrived", "on")] == pair.ch.sql(query)


def test_a_cancel_does_not_come_between_the_commits_of_a_move(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    lead = pair.furnished()
    said: list[str] = []

    def cancel() -> None:
        with pytest.raises(LockUnavailable) as refused:
            cancel_moves(pair.settings, [lead], actor=pair.de.user(MANAGER))
        said.append(str(refused.value))

    ended_after(monkeypatch, lambda asked: COMMIT in asked[:2], cancel)
    assert 1 == pair.move(lead).moved
    assert 1 == len(said)
    assert ["CH"] == pair.homes(lead)


# --- many


def test_of_many_those_that_can_t_travel_are_named_and_the_others_go(pair: Pair) -> None:
    leads = [pair.furnished() for _ in range(7)]
    taken, nobody = leads[3], pair.de.new_id()
    pair.ch.sql("INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, 'CH')", taken)
    done = pair.move(*leads, nobody, at_once=3)
    assert 6 == done.moved
    assert {str(taken), str(nobody)} == {one.lead_id for one in done.refused}
    (why,) = [one.why for one in done.refused if one.lead_id == str(taken)]
    assert f"lead {taken} is in territory CH already, and does not arrive" in why
    assert pair.de.user(1) == pair.de.owner(taken)
    assert [[], []] == pair.states(taken)
    assert 6 == pair.move(*[lead for lead in leads if lead != taken]).moved


def test_a_territory_s_worth_goes_in_slices_and_a_dry_run_moves_none(pair: Pair) -> None:
    leads = [pair.furnished() for _ in range(5)]
    other = pair.de.lead(None)
    told: list[tuple[int, int | None]] = []
    how: dict[str, Any] = {"to": "CH", "origin": "DE", "actor": pair.de.user(MANAGER), "at_once": 2}
    tried = move(pair.settings, None, dry_run=True, **how)
    assert (5, True) == (tried.moved, tried.dry_run)
    assert [[], []] == pair.states(leads[0])
    assert 5 == move(pair.settings, None, tell=lambda *said: told.append(said), **how).moved
    assert [(2, None), (4, None), (5, None)] == told
    assert [["CH"]] * 5 == [pair.homes(lead) for lead in leads]
    assert ["DE"] == pair.homes(other)


def test_a_lead_that_somebody_edits_is_not_waited_for_long(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    lead, free = pair.furnished(), pair.furnished()
    monkeypatch.setattr("leadprotect.fleet.move._TRIES", 2)
    with pair.de.acting("seller_de", 1) as conn:
        pair.de.query(conn, "UPDATE {leads} SET city = 'edited' WHERE {lead_id} = %s", lead)
        done = pair.move(lead, free)
        assert (1, [str(lead)]) == (done.moved, [one.lead_id for one in done.refused])
        assert "lock" in done.refused[0].why
    assert 1 == pair.move(lead).moved
    assert ["edited"] == pair.ch.sql("SELECT city FROM {leads} WHERE {lead_id} = %s", lead)


def test_rows_get_new_numbers_where_that_is_asked(pair: Pair) -> None:
    lead = pair.furnished()
    pair.ch.sql(f"SELECT setval(pg_get_serial_sequence('{NOTES}', 'id'), 1)")
    pair.ch.sql(
        f"INSERT INTO {NOTES} (id, body) OVERRIDING SYSTEM VALUE "
        "SELECT n.id, 'theirs' FROM generate_series(1, 50) AS n (id)"
    )
    pair.ch.sql(f"SELECT setval(pg_get_serial_sequence('{NOTES}', 'id'), 50)")
    (why,) = [one.why for one in pair.move(lead).refused]
    assert why.startswith("CH does not take it: duplicate key value violates unique constraint")
    assert "notes_pkey" in why
    assert 1 == pair.move(lead, renumber=[NOTES]).moved
    assert [51] == pair.ch.sql(f"SELECT id FROM {NOTES} WHERE lead_id = %s", lead)


# --- what can't travel


REFUSALS = {
    "a column is missing": ("CH", "ALTER TABLE {leads} DROP company", r"\.company is missing in the database of CH"),
    "a column is of another type": (
        "CH",
        "ALTER TABLE {leads} ALTER city TYPE varchar(9)",
        r"city is text here, and character varying\(9\)",
    ),
    "a column is needed": (
        "CH",
        "ALTER TABLE {leads} ADD tax text NOT NULL",
        r"\.tax of the database of CH is NOT NULL without a default",
    ),
    "a large object": (
        "DE",
        "ALTER TABLE {leads} ADD scan oid",
        r"\.scan is of type oid, which names something of this database",
    ),
    "another table refers to it": (
        "DE",
        "CREATE TABLE public.deals (lead {lead_id_type} REFERENCES {leads})",
        "public.deals of DE refers to .* and is not one of lead_tables",
    ),
    "a table refers to its rows": (
        "DE",
        f"CREATE TABLE public.mails (contact bigint REFERENCES {CONTACTS} ON DELETE CASCADE)",
        "public.mails of DE refers to .* and is not one of lead_tables: .* give it a column with the id of",
    ),
    "the login may not write there": ("CH", "REVOKE INSERT ON {leads} FROM {manager_ch}", "GRANT INSERT ON .* TO "),
    "rows may be hidden": (
        "DE",
        f"CREATE POLICY mine ON {CONTACTS} AS RESTRICTIVE USING (email <> '')",
        "row security of the host on crm.lead contacts of DE may hide rows .* show him every row: mine",
    ),
    "another table refers to it by two columns, and at the end": (
        "DE",
        """
        CREATE UNIQUE INDEX whole ON {leads} ({lead_id}, {territory});
        CREATE TABLE public.deals (lead {lead_id_type}, code text, FOREIGN KEY (lead, code)
          REFERENCES {leads} ({lead_id}, {territory}) DEFERRABLE INITIALLY DEFERRED)
        """,
        "public.deals of DE refers to .* and is not one of lead_tables",
    ),
    "another table would lose its lead": (
        "DE",
        "CREATE TABLE public.deals (lead {lead_id_type} REFERENCES {leads} ON DELETE SET NULL)",
        "public.deals of DE refers to .* ON DELETE SET NULL, and is not one of lead_tables: .*; name it there, and run",
    ),
    "large objects": (
        "DE",
        "CREATE DOMAIN public.scans AS oid[]; ALTER TABLE {leads} ADD scans public.scans",
        r"\.scans is of type \S*scans, with oid in it, which names something of this database",
    ),
    "a number that can't be judged": (
        "CH",
        f"REVOKE ALL ON SEQUENCE {NOTES}_id_seq FROM {{manager_ch}}",
        r"GRANT SELECT ON SEQUENCE crm\.notes_id_seq TO ",
    ),
    "nothing is enforced there": ("CH", "ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY", "contract comes first"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_can_t_travel_is_refused_before_anything_is_touched(pair: Pair, case: str) -> None:
    code, statement, says = REFUSALS[case]
    database = {"DE": pair.de, "CH": pair.ch}[code]
    lead = pair.furnished()
    database.sql_script(statement.replace("{manager_ch}", f'"{pair.ch.profile.login("manager_ch")}"'))
    with pytest.raises(InvalidRequest, match=says):
        pair.move(lead)
    assert [[], []] == pair.states(lead)
    assert ["DE"] == pair.homes(lead)
    assert pair.de.user(1) == pair.de.owner(lead)


KEEP = "CREATE FUNCTION public.keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {}; END';"
EACH = "FOR EACH ROW EXECUTE FUNCTION public.keep()"
SAME_COLUMNS = {
    "a label": (
        "CREATE TYPE public.stage AS ENUM ('NEW', 'WON'); ALTER TABLE {leads} ADD stages public.stage[]",
        "CREATE TYPE public.stage AS ENUM ('NEW'); ALTER TABLE {leads} ADD stages public.stage[]",
        r"stage has no 'WON' in the database of CH: ALTER TYPE \S*stage ADD VALUE 'WON';",
    ),
    "a column that is made there": (
        "ALTER TABLE {leads} ADD label text DEFAULT 'mine'",
        "ALTER TABLE {leads} ADD label text GENERATED ALWAYS AS ('theirs'::text) STORED",
        r"\.label would be changed, by code of that database",
    ),
    "a narrower domain": (
        "CREATE DOMAIN public.grade AS int; ALTER TABLE {leads} ADD grade public.grade DEFAULT 9",
        "CREATE DOMAIN public.grade AS int CHECK (VALUE < 5); ALTER TABLE {leads} ADD grade public.grade",
        "value for domain .*grade violates check constraint",
    ),
    "NULL": (
        "ALTER TABLE {leads} ADD vat text",
        "ALTER TABLE {leads} ADD vat text NOT NULL DEFAULT ''",
        'null value in column "vat" .* violates not-null constraint',
    ),
    "an array that begins elsewhere": (
        "ALTER TABLE {leads} ADD marks int[] DEFAULT '[0:1]={1,2}'",
        "ALTER TABLE {leads} ADD marks int[]",
        r"an array in \S*\.marks does not begin at 1",
    ),
    "a row that the host keeps": (
        f"{KEEP.format('RETURN NULL')} CREATE TRIGGER keep BEFORE DELETE ON {{leads}} {EACH}",
        "",
        "1 leads could not be deleted, since code of the host keeps them",
    ),
    "a row that the host does not let go": (
        f"{KEEP.format('ASSERT false')} CREATE TRIGGER keep AFTER DELETE ON {NOTES} {EACH}",
        "",
        "the host's keys, triggers or rules keep it here",
    ),
}


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("case", SAME_COLUMNS)
def test_what_only_seems_the_same_is_refused_before_anything_is_frozen(pair: Pair, case: str) -> None:
    here, there, says = SAME_COLUMNS[case]
    pair.de.sql_script(here)
    if there:
        pair.ch.sql_script(there)
    lead = pair.furnished()
    try:
        said = " ".join(one.why for one in pair.move(lead).refused)
    except InvalidRequest as error:
        said = str(error)
    assert re.search(says, said), said
    assert [[], []] == pair.states(lead)
    assert ["DE"] == pair.homes(lead) == pair.editable(lead)


KEYS = ["", "ON DELETE SET NULL", "ON DELETE CASCADE", "DEFERRABLE INITIALLY DEFERRED"]


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("key", KEYS)
def test_a_lead_that_names_another_goes_with_it_or_not_at_all(pair: Pair, key: str) -> None:
    for one in (pair.de, pair.ch):
        one.sql_script(f"ALTER TABLE {{leads}} ADD parent {{lead_id_type}} REFERENCES {{leads}} {key}")
    parent, alone = pair.furnished(), pair.furnished()
    child = pair.furnished()
    pair.de.sql("UPDATE {leads} SET parent = %s WHERE {lead_id} = %s", parent, child)
    for lead, other, says in ((parent, child, "which stays, names it by"), (child, parent, "it names lead")):
        done = pair.move(lead, alone, at_once=2)
        (refused,) = done.refused
        assert (str(lead), False) == (refused.lead_id, refused.standing)
        assert says in refused.why
        assert str(other) in refused.why
        remedy = refused.why.partition("let go of it: ")[2]
        assert [[], []] == pair.states(lead)
    assert ["CH"] == pair.homes(alone)
    assert f"SET \"parent\" = NULL WHERE {ident(pair.de.settings.lead_id_column)} = '{child}';" in remedy
    assert 2 == pair.move(parent, child).moved
    assert [parent] == pair.ch.sql("SELECT parent FROM {leads} WHERE {lead_id} = %s", child)


@pytest.mark.profiles("pg18")
def test_a_lead_of_another_territory_that_names_it_keeps_it_here(pair: Pair) -> None:
    """The manager does not see that one; what would become of it is tried before anything is frozen."""
    for one in (pair.de, pair.ch):
        one.sql_script("ALTER TABLE {leads} ADD parent {lead_id_type} REFERENCES {leads} ON DELETE SET NULL")
    lead, unseen = pair.furnished(), pair.de.lead("CH", owner=pair.de.user(3))
    pair.de.sql("UPDATE {leads} SET parent = %s WHERE {lead_id} = %s", lead, unseen)
    (refused,) = pair.move(lead).refused
    assert "the host's keys, triggers or rules keep it here" in refused.why
    assert [[], []] == pair.states(lead)
    assert [lead] == pair.de.sql("SELECT parent FROM {leads} WHERE {lead_id} = %s", unseen)


@pytest.mark.profiles("pg18")
def test_a_number_that_the_other_server_would_give_again_does_not_come(pair: Pair) -> None:
    sequence = f"pg_get_serial_sequence('{NOTES}', 'id')"
    pair.de.sql(f"SELECT setval({sequence}, 500)")
    pair.ch.sql(f"SELECT setval({sequence}, 10)")
    lead = pair.furnished()
    (refused,) = pair.move(lead).refused
    assert "the sequence crm.notes_id_seq there would give crm.notes.id 501 once more" in refused.why
    remedy = refused.why.rpartition(": ")[2]
    assert "ALTER SEQUENCE crm.notes_id_seq MAXVALUE 500;" == remedy
    assert [[], []] == pair.states(lead)
    pair.ch.sql_script(remedy)
    assert 1 == pair.move(lead).moved


def test_code_of_the_host_that_changes_what_arrives_keeps_it_where_it_is(pair: Pair) -> None:
    lead = pair.furnished()
    pair.ch.sql_script(
        "CREATE FUNCTION public.shout() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.company := upper(NEW.company); RETURN NEW; END'; "
        "CREATE TRIGGER shout BEFORE INSERT ON {leads} FOR EACH ROW EXECUTE FUNCTION public.shout()"
    )
    (refused,) = pair.move(lead).refused
    assert "company would be changed, by code of that database (triggers shout)" in refused.why
    assert not refused.standing
    assert [[], []] == pair.states(lead)


def test_what_decides_whose_it_is_there_is_not_set_by_hand(pair: Pair) -> None:
    lead, s = pair.furnished(), pair.de.settings
    values = {s.lead_id_column: str(pair.de.new_id()), s.territory_column: "DE"}
    with pytest.raises(InvalidRequest) as refused:
        pair.move(lead, values=values)
    for column, why in ((s.lead_id_column, "a lead keeps its id"), (s.territory_column, "it becomes CH, as --to says")):
        assert f"--set {column}: {why}" in str(refused.value)
    assert [[], []] == pair.states(lead)


@pytest.mark.profiles("pg18")
def test_row_security_of_the_host_that_shows_him_everything_keeps_no_lead(pair: Pair) -> None:
    """Where the host had its own, no policy of ours shows rows; and one of theirs that shows some is not enough."""
    lead = pair.furnished()
    manager = ident(pair.de.profile.login("manager_de"))
    ours = ident(pair.de.settings.role("child_rows"))
    pair.de.sql_script(f"DROP POLICY {ours} ON {CONTACTS}; CREATE POLICY part ON {CONTACTS} USING (email <> '')")
    with pytest.raises(InvalidRequest, match="lets him SELECT, UPDATE, DELETE some only") as refused:
        pair.move(lead)
    (remedy,) = re.findall("A DBA can run: (CREATE POLICY .*;)", str(refused.value))
    assert f"TO {manager} USING (true)" in remedy
    pair.de.sql_script(remedy)
    assert 1 == pair.move(lead).moved
    assert ["CH"] == pair.homes(lead)


def test_within_one_database_an_update_moves_a_lead(pair: Pair) -> None:
    lead = pair.furnished()
    url = pair.de.login_url("manager_de")
    given = {"lead_tables": moving.tables(pair.de.profile)} | pair.de.profile.settings
    for there in (url, pair.de.url):  # under one name, and under another
        s = parse(given, {}, {"DE": url, "CH": there})
        with pytest.raises(
            InvalidRequest, match="in one database: there a plain UPDATE by maintenance moves a lead: UPDATE"
        ):
            move(s, [lead], to="CH", origin="DE", actor=pair.de.user(MANAGER))


# --- the command


def command(pair: Pair, folder: Path, *words: str) -> dict[str, Any]:
    file = write_ini(folder, **{"territories": "DE, CH"} | pair.de.profile.settings | pair.de.overrides)
    urls = {"DE": pair.de.login_url("manager_de"), "CH": pair.ch.login_url("manager_ch")}
    section = "\n".join(f"{code} = {url.replace('%', '%%')}" for code, url in urls.items())
    file.write_text(f"{file.read_text(encoding='utf-8')}\n[leadprotect.databases]\n{section}\n", encoding="utf-8")
    clean = {name: value for name, value in os.environ.items() if not is_ours(name)}
    words = ("-c", str(file), "move", *words, "--as", pair.de.user(MANAGER))
    return {"args": [sys.executable, "-m", "leadprotect", *words], "env": clean, "text": True}


def test_the_command_moves_and_tells(pair: Pair, tmp_path: Path) -> None:
    lead, other = pair.furnished(), pair.furnished()
    pair.ch.sql("INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, 'CH')", other)
    (tmp_path / "leads.txt").write_text(f"# to Bern\n{lead}\n{other}\n", encoding="utf-8")
    words = ("--to", "CH", "--from-file", str(tmp_path / "leads.txt"), "--correlation", "case 7", "--json")
    done = subprocess.run(**command(pair, tmp_path, *words), capture_output=True, check=False)
    assert 1 == done.returncode, done.stderr
    (told,) = json.loads(done.stdout)["moved"]
    refused = told.pop("refused")
    assert {"origin": "DE", "to": "CH", "correlation_id": "case 7", "moved": 1, "dry_run": False} == told
    assert [(str(other), False)] == [(one["lead_id"], one["standing"]) for one in refused]
    again = subprocess.run(**command(pair, tmp_path, "--resume"), capture_output=True, check=False)
    assert (0, "nothing stands between the databases\n") == (again.returncode, again.stdout)


@pytest.mark.profiles("pg18")
def test_the_command_takes_its_origin_from_on_and_names_what_is_wrong(pair: Pair, tmp_path: Path) -> None:
    lead = pair.furnished()
    started = command(pair, tmp_path, str(lead), "--to", "CH", "--dry-run")
    at = started["args"].index("move")
    done = subprocess.run(
        **started | {"args": [*started["args"][:at], "--on", "DE", *started["args"][at:]]},
        capture_output=True,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    assert "1 lead would move from DE to CH" in done.stdout
    for words, said in (
        ((str(lead), "--to", "FR"), "--to: 'FR' is in no database of [leadprotect.databases]: DE, CH"),
        (("--to", "CH"), "name a lead, or a file of them with --from-file"),
        (("--to", "CH", "abc"), "lead_id: 'abc' is not of type uuid, which the setting lead_id_type names"),
        (("--to", "CH", "--from-file", "/nowhere"), "--from-file: /nowhere can't be read"),
    ):
        done = subprocess.run(**command(pair, tmp_path, *words), capture_output=True, check=False)
        assert (1 if "abc" in words else 2) == done.returncode
        assert said in done.stderr


@pytest.mark.parametrize("side", ["DE", "CH"])
@pytest.mark.nightly_elsewhere("by day moves of each kind are made there, and one is taken up")
def test_a_command_that_is_killed_leaves_what_resume_ends(pair: Pair, tmp_path: Path, side: str) -> None:
    """A lock of the host's holds it: in the middle of the copy, or when it deletes here what is frozen."""
    lead = pair.furnished()
    # not where deleting is tried before anything is frozen
    slow = (
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS "
        "'BEGIN PERFORM pg_advisory_xact_lock(7) WHERE TG_OP = ''INSERT'' "
        "OR EXISTS (SELECT FROM {schema}.lead_handovers WHERE state = ''gone''); RETURN coalesce(NEW, OLD); END'; "
        f"CREATE TRIGGER slow BEFORE {{verb}} ON {CONTACTS} FOR EACH ROW EXECUTE FUNCTION public.slow()"
    )
    database, verb = {"DE": (pair.de, "DELETE"), "CH": (pair.ch, "INSERT")}[side]
    database.sql_script(slow.replace("{verb}", verb))
    with database.connect() as holder:
        holder.execute("SELECT pg_advisory_xact_lock(7)")
        with subprocess.Popen(**command(pair, tmp_path, str(lead), "--to", "CH"), stderr=subprocess.DEVNULL) as process:
            waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted AND database = %s"
            oid = database.sql("SELECT oid::int8 FROM pg_database WHERE datname = current_database()")[0]
            while not database.sql(waits, oid):
                assert process.poll() is None
                time.sleep(0.001)  # its lock_timeout is 50 ms, and then it comes again
            process.kill()
    ours = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'leadprotect' AND datname = ANY (%s)"
    while pair.de.sql(ours, [pair.de.name, pair.ch.name]):
        time.sleep(0.02)
    assert ["DE"] == pair.homes(lead)
    assert [["frozen"] if side == "DE" else [], []] == pair.states(lead)
    assert len(pair.editable(lead)) == (0 if side == "DE" else 1)
    words = ("--resume",) if side == "DE" else (str(lead), "--to", "CH")
    done = subprocess.run(**command(pair, tmp_path, *words), capture_output=True, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr
    whole(pair, lead)
