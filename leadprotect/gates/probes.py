"""Asks the database itself, in one statement: what no exporter has to be there for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from leadprotect.database.opening import open_connection
from leadprotect.errors import LeadProtectError
from leadprotect.gates.verdict import Answer, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

APPLICATION = "leadprotect gate"

TIMEOUT_S = 5
"""How long the server may take to let us in, and to answer."""

# A replica that replays nothing reports no new lag, only its distance grows.
# What is ours is left out: a step of the migration that waits, or lasts, is no reason to pause it.
_OURS = "pg_catalog.starts_with(coalesce(a.application_name, ''), 'leadprotect')"
_QUESTIONS = {
    "database deadlocks": """
        SELECT d.deadlocks FROM pg_catalog.pg_stat_database AS d WHERE d.datname = pg_catalog.current_database()
        """,
    "database lock waits": f"""
        SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks AS l
        LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
        WHERE NOT l.granted AND l.locktype <> 'advisory' AND NOT {_OURS}
        """,
    "database replica lag": """
        SELECT pg_catalog.max(extract(epoch FROM r.replay_lag)) FROM pg_catalog.pg_stat_replication AS r
        WHERE r.state IS DISTINCT FROM 'backup'
        """,
    "database replica distance": """
        SELECT pg_catalog.max(CASE WHEN NOT pg_catalog.pg_is_in_recovery()
                                   THEN pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), r.replay_lsn) END)
        FROM pg_catalog.pg_stat_replication AS r WHERE r.state IS DISTINCT FROM 'backup'
        """,
    "database long transaction": f"""
        SELECT pg_catalog.max(extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start))
        FROM pg_catalog.pg_stat_activity AS a
        WHERE a.datname = pg_catalog.current_database() AND a.backend_type = 'client backend' AND NOT {_OURS}
        """,
}
_SAID = {
    "database lock waits": "{value:g} requests wait for locks",
    "database replica lag": "the slowest replica is {value:.1f} s behind",
    "database replica distance": "the slowest replica has {value:,.0f} bytes to replay",
    "database long transaction": "the oldest transaction is {value:.0f} s old",
}
_HIDDEN = ("database replica lag", "database replica distance", "database long transaction")
"""What the server shows whole only to members of pg_read_all_stats."""


def probe(
    address: str | Callable[[], str], limits: dict[str, float], *, deadlocks: int | None = None
) -> tuple[list[Answer], int | None]:
    """An answer to each question, and how many deadlocks the server has counted by now.

    `limits` by name; `deadlocks` is what it had counted at the last look: it is their increase that pauses.
    A server that can't be asked is one answer, not an error.
    """
    texts = {name: " ".join(text.split()) for name, text in _QUESTIONS.items()}
    columns = ", ".join(f"({text})::float8" for text in texts.values())
    try:
        with open_connection(address, application=APPLICATION, connect_timeout=TIMEOUT_S) as conn:
            conn.execute(f"SET statement_timeout = '{TIMEOUT_S}s'")
            found = conn.execute(f"SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'), {columns}").fetchone()
    except (psycopg.Error, LeadProtectError) as error:  # libpq names host, port and user, never the password
        why = f"the database can't be asked: {' '.join(str(error).split())}"
        return [Answer("database", "SELECT", None, None, Verdict.UNKNOWN, why)], None
    may_look, *values = found or (False, *(None for _ in texts))
    told = dict(zip(texts, values, strict=True))
    counted = None if told["database deadlocks"] is None else int(told["database deadlocks"])
    answers = [_increase(texts["database deadlocks"], counted, deadlocks)]
    for name, value in told.items():
        if name in _HIDDEN and not may_look:
            why = "this login sees its own sessions only; a DBA can run: GRANT pg_read_all_stats TO <login>;"
            answers.append(Answer(name, texts[name], None, limits[name], Verdict.UNKNOWN, why))
        elif name in _SAID:
            answers.append(_compared(name, texts[name], value or 0.0, limits[name]))
    return answers, counted


def _increase(query: str, counted: int | None, before: int | None) -> Answer:
    name = "database deadlocks"
    if counted is None:
        return Answer(name, query, None, 0.0, Verdict.UNKNOWN, "the server counts none for this database")
    if before is None:
        return Answer(name, query, None, 0.0, Verdict.PROCEED, f"{counted} so far; an increase shows at the next look")
    # after a reset of the statistics, or a crash, the server counts from 0
    more = counted - before if counted >= before else counted
    verdict = Verdict.PAUSE if more else Verdict.PROCEED
    return Answer(name, query, float(more), 0.0, verdict, f"{more} since the last look")


def _compared(name: str, query: str, value: float, limit: float) -> Answer:
    verdict = Verdict.PAUSE if value > limit else Verdict.PROCEED
    return Answer(name, query, value, limit, verdict, _SAID[name].format(value=value))
