"""Every revision declares its locks on the host's tables: pg_locks is read while it runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from leadprotect.database.blockers import Blocker, redact
from tests.support.locktrace import MODES, trace
from tests.support.revisions import NAMED, SCRIPTS

if TYPE_CHECKING:
    from alembic.script import Script

    from tests.support.database import Database

WORDS = {mode: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", mode.removesuffix("Lock")).upper() for mode in MODES}


@pytest.mark.nightly_elsewhere("a statement takes the same lock on each version that is supported")
def test_each_revision_takes_exactly_the_locks_that_it_declares(host: Database) -> None:
    host.lead("DE")
    declared = [(way, script.revision, script.module.locks[way]) for way, script in every_step()]
    real = [(way, script.revision, beyond_reading(trace(host, way, script))) for way, script in every_step()]
    assert real == declared


def every_step() -> list[tuple[str, Script]]:
    return [("upgrade", script) for script in SCRIPTS] + [("downgrade", script) for script in reversed(SCRIPTS)]


def beyond_reading(seen: dict[str, str]) -> dict[str, str]:
    """Without ACCESS SHARE: every SELECT takes it, and it is in nobody's way but that of ACCESS EXCLUSIVE."""
    return {table: mode for table, mode in seen.items() if mode != "AccessShareLock"}


@pytest.mark.profiles("pg18")
def test_a_lock_that_is_not_declared_would_be_seen(host: Database) -> None:
    host.upgrade(NAMED["expand_indexes"])
    # a host's own event trigger makes the step read more than it declares
    host.sql_script(
        "CREATE FUNCTION public.lock_it() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN LOCK TABLE {activities} IN SHARE MODE; END $$;"
        "CREATE EVENT TRIGGER lock_it ON ddl_command_end WHEN TAG IN ('CREATE TRIGGER') "
        "EXECUTE FUNCTION public.lock_it()"
    )
    step = next(script for script in SCRIPTS if script.revision == NAMED["expand_lead_triggers"])
    assert trace(host, "upgrade", step) == {"leads": "ShareRowExclusiveLock", "activities": "ShareLock"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.revision)
def test_the_docstring_names_the_declared_locks(script: Script) -> None:
    told = " ".join(str(script.module.__doc__).partition("Locks on host tables:")[2].partition("Undone by:")[0].split())
    for locks in script.module.locks.values():
        for table, mode in locks.items():
            assert WORDS[mode] in told
            assert table in told
    if not any(script.module.locks.values()):
        assert told.startswith("none beyond ACCESS SHARE")


# --- what is told about a session in the way


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("UPDATE leads SET city = 'Zürich' WHERE id = 12", "UPDATE leads SET city = ? WHERE id = ?"),
        ("SELECT 'it''s', E'it\\'s', $$ a 'b' $$, $x$ $$ $x$ FROM t", "SELECT ?, ?, ?, ? FROM t"),
        ('SELECT "o\'Brien".x1 FROM lp_0001', 'SELECT "o\'Brien".x1 FROM lp_0001'),
        ("SELECT 1 -- called by Anna Muster\n, 2", "SELECT ? ? , ?"),
        ("/* Anna's request */ SELECT 1.5, .5, 0x1F, 1e5, 1_000", "? SELECT ?, ?, ?, ?, ?"),
        ("INSERT INTO t VALUES ($1, $2)", "INSERT INTO t VALUES ($1, $2)"),
        # cut off by track_activity_query_size in the middle of a value
        ("SELECT 'Anna Mus", "SELECT ?"),
        ("SELECT $$Anna Mus", "SELECT ?"),
        ("SELECT /* Anna Mus", "SELECT ?"),
        ("SELECT" + " x," * 100, ("SELECT" + " x," * 100)[:120]),
    ],
)
def test_a_query_is_shown_without_its_values(query: str, expected: str) -> None:
    assert redact(query) == expected


def test_a_blocker_is_one_readable_line() -> None:
    blocker = Blocker(12, 3.4, "", "idle in transaction", "SELECT ?")
    assert str(blocker) == "pid 12 (without application_name, idle in transaction, transaction 3 s old): SELECT ?"
