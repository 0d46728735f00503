"""A migration that is ended at any moment: run it again, and the same schema stands with the same rows."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager
from itertools import count, cycle
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic.util import CommandError

from tests.support.alembic import started, until, waiting
from tests.support.faults import APPLICATION, faulty_engine, killer, migrate
from tests.support.fingerprint import contents, difference, fingerprint
from tests.support.profiles import NIGHTLY
from tests.support.revisions import HEAD, NAMED, SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection

    from tests.support.database import Database

    End = Callable[[str, str, int], bool]

pytestmark = pytest.mark.profiles("pg18")

# steps with more than one commit: an index build can't be part of a transaction, and the version table
# stands before the first revision
INDEXES = {NAMED["expand_indexes"], NAMED["contract_indexes"]}
MANY_COMMITS = {NAMED["expand_territories"], *INDEXES}
STRIDE = 1 if NIGHTLY else 12
STRIDE_OF_INDEXES = 1 if NIGHTLY else 3
# one step up from each revision, then one step down
STEPS = [("upgrade", "+1", script.revision) for script in SCRIPTS]
STEPS += [("downgrade", "-1", script.revision) for script in reversed(SCRIPTS)]

# whatever was committed left a row of another transaction in one of these
CATALOGS = ("class", "constraint", "namespace", "policy", "proc", "trigger", "type")
STATE = "SELECT " + ", ".join(f"(SELECT sum(xmin::text::bigint) FROM pg_{name})" for name in CATALOGS)
GONE = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s)"


@pytest.fixture(scope="module")
def walked() -> list[dict[str, str]]:
    """The schema after each step, when nothing goes wrong: walked once for both ways to end a migration."""
    return []


@pytest.fixture
def clean_states(make_database: Callable[..., Database], walked: list[dict[str, str]]) -> list[dict[str, str]]:
    """The schema after each step."""
    if not walked:
        database, states = make_database("host"), []
        for direction, target, _ in STEPS:
            {"upgrade": database.upgrade, "downgrade": database.downgrade}[direction](target)
            states.append(schema(database))
        walked.extend(states)  # a walk that ended halfway is none
    return walked


def schema(database: Database) -> dict[str, str]:
    with database.connect(autocommit=True) as conn:
        return fingerprint(conn, database.settings)


def sessions_are_gone(conn: psycopg.Connection[Any]) -> None:
    """The server notices at once that a client is gone, but not in the same instant."""
    while conn.execute(GONE, (APPLICATION,)).fetchone() != (True,):
        conn.execute("SELECT pg_sleep(0.002)")


@contextmanager
def terminator(database: Database) -> Iterator[End]:
    """A function that migrates and tells whether its session was terminated at that moment."""
    with database.connect(autocommit=True) as other:

        def terminate(conn: Connection) -> None:
            session: psycopg.Connection[Any] = conn.connection.driver_connection  # type: ignore[assignment]
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (session.info.backend_pid,))

        def end(direction: str, target: str, moment: int) -> bool:
            with faulty_engine(database.url, moment, terminate) as engine:
                try:
                    migrate(database.config(), engine, direction, target)
                except CommandError as error:
                    if not str(error).startswith("no connection to the database: "):
                        raise  # another end than the one that was asked for
                    return True
            return False

        yield end


@contextmanager
def in_turn(database: Database) -> Iterator[End]:
    """Either way, so that of the steps with one end half are ended by each: what follows there goes through."""
    with killer(database) as kill, terminator(database) as terminate:
        ways = cycle((kill, terminate, terminate, kill))

        def end(direction: str, target: str, moment: int) -> bool:
            return next(ways)(direction, target, moment)

        yield end


# to the server both are a session that is gone: by day they take turns
WAYS = {"kill-9": killer, "terminated-session": terminator} if NIGHTLY else {"in-turn": in_turn}


@pytest.mark.timeout(1200)  # a migration for each statement, twice; minutes on a busy machine
@pytest.mark.xdist_group("crash")  # which walks the steps once
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_migration_that_ends_before_or_after_any_statement_is_run_again(
    make_database: Callable[..., Database],
    clean_states: list[dict[str, str]],
    way: Callable[[Database], AbstractContextManager[End]],
) -> None:
    database = make_database("host")
    database.lead("CH")
    ends = 0
    with way(database) as end, database.connect(autocommit=True) as conn:
        for (direction, target, revision), after in zip(STEPS, clean_states, strict=True):
            ends += every_moment(database, conn, (direction, target, revision), end)
            assert difference(after, schema(database)) == {}, f"{direction} {revision}"
            if revision == NAMED["expand_activity_triggers"] and direction == "upgrade":
                database.activity(database.lead("DE"), database.user(1))
    assert STRIDE * ends > 10 * len(STEPS)
    database.upgrade()
    assert database.revision() == HEAD
    assert database.sql("SELECT count(*) FROM {schema}.user_lead_assignments") == [1]


def every_moment(database: Database, conn: psycopg.Connection[Any], step: tuple[str, str, str], end: End) -> int:
    """End a step at every moment until it finishes, or by day at each twelfth; returns how often.

    A revision in one transaction leaves nothing behind, and what it commits too early is seen at each later
    moment, too. One that commits in between may leave the host an index, or an empty version table, and the
    next attempt goes on from there: where indexes are built, by day it is ended at each third moment.
    """
    direction, target, revision = step
    state, held = conn.execute(STATE).fetchone(), contents(conn, database.settings)
    moments = count(0, STRIDE_OF_INDEXES if revision in INDEXES else STRIDE)
    for ends, moment in enumerate(moments):
        if not end(direction, target, moment):
            return ends
        sessions_are_gone(conn)
        where = f"{direction} {revision}, moment {moment}"
        if revision in MANY_COMMITS:
            assert difference(held, contents(conn, database.settings)) == {}, where
        else:
            assert conn.execute(STATE).fetchone() == state, where
    raise AssertionError(moments)


def test_kill_9_in_the_middle_of_an_index_build(host: Database) -> None:
    host.upgrade(NAMED["expand_rules"])
    with host.connect() as writer:
        host.query(writer, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE")
        with started(host, "upgrade", "head") as process:
            waiting(host)
            process.kill()
        # the server goes on with the build of the client that is gone; the next deploy waits for it
        with started(host, "-x", "lock_budget=5min", "upgrade", "head") as process:
            until(process, f"Running upgrade {NAMED['expand_rules']} -> {NAMED['expand_indexes']}")
            writer.commit()
            process.communicate()
            assert process.returncode == 0
    assert host.revision() == HEAD
