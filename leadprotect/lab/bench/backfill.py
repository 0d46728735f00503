"""The backfill against one monolithic INSERT..SELECT, both under live traffic, interleaved in one run."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

import leadprotect
from leadprotect.errors import InvalidRequest
from leadprotect.lab.commands import isolated, run_alembic
from leadprotect.lab.data import ACTIVITIES_PER_LEAD, KINDS, USER_ID, generate_host
from leadprotect.lab.traffic import RATE, Application, Statements, live_traffic, quantile
from leadprotect.settings import Settings, current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadprotect.lab.servers import Server

BYTES_PER_LEAD, WAL_BYTES = 2_000, 3 * 2**30
"""Disk for a lead with its activities, indexes and the monolith's sort, and of WAL, up to what `servers` allows."""

HELD_S = 4.0
"""How long one lead is held by somebody else in each run of ours."""

LIVE_LEADS = 50_000
"""Leads that the live writes go to, from all over the table."""

LIVE = Statements(
    edit="UPDATE public.leads SET city = 'moved by ' || (random() * 200)::integer WHERE id = %s::uuid",
    act=f"INSERT INTO public.activities (lead_id, user_id, kind, created_at) "
    f"VALUES (%s::uuid, {USER_ID.format(n='(random() * 200)::integer')}, 'QUALIFIED_CALL', now())",
)
HELD_LEAD = "(SELECT id FROM public.leads WHERE territory = 'DE' ORDER BY id LIMIT 1)"
RESET = """
    TRUNCATE leadprotect.user_lead_assignments, leadprotect.user_lead_assignment_history, leadprotect.unsettled_leads;
    DELETE FROM leadprotect.backfill_deferred; DELETE FROM leadprotect.backfill_chunks;
    UPDATE leadprotect.backfill_jobs
    SET started_at = NULL, ended_at = NULL, finished_at = NULL, next_lead = NULL, exhausted = false,
        chunks = 0, retried = 0;
    """
# ON CONFLICT, because the transition trigger assigns leads meanwhile
DISTINCT_ON = f"""
    INSERT INTO leadprotect.user_lead_assignments (lead_id, territory, user_id, source, activity_at, activity_id)
    SELECT DISTINCT ON (v.lead_id) v.lead_id, l.territory, v.user_id, 'backfill', v.created_at, v.id
    FROM public.leads AS l JOIN public.activities AS v ON v.lead_id = l.id
    WHERE l.territory IN ('DE', 'CH') AND v.kind IN ({KINDS}) AND v.user_id IS NOT NULL
    ORDER BY v.lead_id, v.created_at DESC NULLS LAST, v.id DESC
    ON CONFLICT (lead_id, territory) DO NOTHING
    """
LATERAL = f"""
    INSERT INTO leadprotect.user_lead_assignments (lead_id, territory, user_id, source, activity_at, activity_id)
    SELECT l.id, l.territory, n.user_id, 'backfill', n.created_at, n.id
    FROM public.leads AS l, LATERAL (
      SELECT v.user_id, v.created_at, v.id FROM public.activities AS v
      WHERE v.lead_id = l.id AND v.kind IN ({KINDS}) AND v.user_id IS NOT NULL
      ORDER BY v.created_at DESC NULLS LAST, v.id DESC LIMIT 1) AS n
    WHERE l.territory IN ('DE', 'CH')
    ON CONFLICT (lead_id, territory) DO NOTHING
    """
_SAMPLE_S = 0.25
_QUIET_S = 10.0


@dataclass
class Measured:
    """One run: seconds, MiB of WAL, live writes with their p99 and longest (ms), and sizes over time."""

    mode: str
    seconds: float = 0.0
    wal: float = 0.0
    owners: int = 0
    writes: int = 0
    failed: int = 0
    p50: float = 0.0
    p99: float = 0.0
    longest: float = 0.0
    memory: float = 0.0
    owners_over_time: list[tuple[float, float]] = field(default_factory=list)
    writes_over_time: list[tuple[float, float]] = field(default_factory=list)

    @property
    def owners_per_second(self) -> float:
        """What two scales are compared by: the same at both is flat."""
        return self.owners / self.seconds if self.seconds else 0.0


def measure_backfill(server: Server, *, leads: int, rounds: int, say: Callable[[str], None]) -> list[Measured]:
    """Generate `leads`, and run every mode `rounds` times in turn, each under live traffic."""
    check_disk(leads)
    url = server.create_database("bench_backfill")
    say(f"generating {leads:,} leads and {leads * ACTIVITIES_PER_LEAD:,} activities")
    with isolated(server.folder, database_url=url, observation_window=0):
        return _measure_modes(_prepared(server, url, leads), current(), rounds, say)


def _measure_modes(app: Application, settings: Settings, rounds: int, say: Callable[[str], None]) -> list[Measured]:
    url = app.conninfo
    modes: dict[str, Callable[[], object]] = {
        "no backfill": lambda: time.sleep(_QUIET_S),
        "monolith, DISTINCT ON": lambda: _execute(url, DISTINCT_ON),
        "monolith, LATERAL": lambda: _execute(url, LATERAL),
        "leadprotect, 1 worker": lambda: _ours(url, settings, 1),
        "leadprotect, 2 workers": lambda: _ours(url, settings, 2),
    }
    measured = []
    for number in range(rounds):
        for mode, run in modes.items():
            found = measure_mode(app, mode, run)
            measured.append(found)
            say(
                f"round {number + 1}: {mode}: {found.seconds:.1f} s, {found.owners_per_second:,.0f} owners assigned "
                f"a second, live p99 {found.p99:.1f} ms, "
                f"{found.failed} of {found.writes:,} live writes failed"
            )
    return measured


def check_disk(leads: int) -> None:
    """Raise `InvalidRequest` before hours of work that the disk of the temporary folder can't hold."""
    folder = tempfile.gettempdir()
    needed, free = leads * BYTES_PER_LEAD + min(leads * BYTES_PER_LEAD, WAL_BYTES), shutil.disk_usage(folder).free
    if free < needed:
        raise InvalidRequest(
            f"{leads:,} leads need about {needed / 2**30:.0f} GiB in {folder}, which has {free / 2**30:.0f} GiB left: "
            "name another folder with TMPDIR, or fewer leads"
        )


def _prepared(server: Server, url: str, leads: int) -> Application:
    """A database before contract, and who writes to it."""
    with psycopg.connect(url, autocommit=True) as conn:
        generate_host(conn, leads)
        run_alembic(server.folder, "-x", "contract=hold", "upgrade", "head")
        ids = conn.execute(
            f"SELECT id::text, coalesce(territory, '') FROM public.leads WHERE id <> {HELD_LEAD} "
            f"ORDER BY random() LIMIT {LIVE_LEADS}"
        ).fetchall()
    return Application(
        "writing", url, RATE, LIVE, ids, [lead for lead, _ in ids],
        sessions=8, limits="SET lock_timeout = '250ms'", every_due=True,
    )  # fmt: skip


def measure_mode(app: Application, mode: str, run: Callable[[], object]) -> Measured:
    """One run of `run` under live traffic, from an empty table of assignments and a checkpoint."""
    measured = Measured(mode)
    with psycopg.connect(app.conninfo, autocommit=True) as conn:
        conn.execute(RESET)
        conn.execute("VACUUM (ANALYZE) public.leads")
        conn.execute("VACUUM (ANALYZE) public.activities")
        conn.execute("CHECKPOINT")
        os.sync()  # what the run before left to the disk is not felt by this one
        with live_traffic(app) as served, _sampled(app.conninfo, measured):
            time.sleep(2.0)
            written = _wal(conn)
            began, since = time.perf_counter(), time.time()
            run()
            measured.seconds, until = time.perf_counter() - began, time.time()
            measured.wal = (_wal(conn) - written) / 2**20
        (measured.owners,) = conn.execute("SELECT count(*) FROM leadprotect.user_lead_assignments").fetchone() or (0,)
    writes = [one for one in served.done if since <= one.at <= until]
    measured.writes, measured.failed = len(writes), sum(one.outcome != "ok" for one in writes)
    ordered = sorted(1000 * one.seconds for one in writes)
    measured.p50, measured.p99, measured.longest = (quantile(ordered, part) for part in (0.5, 0.99, 1.0))
    measured.writes_over_time = [(one.at - since, 1000 * one.seconds) for one in writes]
    scale = measured.owners / max((size for _, size in measured.owners_over_time), default=1)
    measured.owners_over_time = [(at - since, size * scale) for at, size in measured.owners_over_time if at <= until]
    measured.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return measured


def medians(measured: list[Measured]) -> list[dict[str, Any]]:
    """Medians of each mode over its rounds, and seconds as a ratio to the faster monolith."""
    modes = list(dict.fromkeys(found.mode for found in measured))
    of = {mode: [found for found in measured if found.mode == mode] for mode in modes}
    seconds = {mode: statistics.median(found.seconds for found in runs) for mode, runs in of.items()}
    base = min(value for mode, value in seconds.items() if mode.startswith("monolith"))
    return [
        {
            "mode": mode,
            "seconds": seconds[mode],
            "ratio": None if mode == "no backfill" else seconds[mode] / base,
            "owners": runs[-1].owners,
            "owners_per_second": statistics.median(found.owners_per_second for found in runs),
            "wal_mib": statistics.median(found.wal for found in runs),
            "live_p50_ms": statistics.median(found.p50 for found in runs),
            "live_p99_ms": statistics.median(found.p99 for found in runs),
            "live_longest_ms": max(found.longest for found in runs),
            "live_writes": sum(found.writes for found in runs),
            "live_failed": sum(found.failed for found in runs),
            "client_memory_mib": max(found.memory for found in runs),
        }
        for mode, runs in of.items()
    ]


def without_samples(measured: list[Measured]) -> list[dict[str, Any]]:
    """Every run without its samples."""
    return [
        {key: value for key, value in asdict(found).items() if not key.endswith("_over_time")} for found in measured
    ]


def _execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(statement)


def _ours(url: str, settings: Settings, workers: int) -> None:
    """As from the command line, while somebody holds the assignment of one lead for four seconds."""
    with psycopg.connect(url) as holder:
        holder.execute(
            "INSERT INTO leadprotect.user_lead_assignments (lead_id, territory, user_id, source) "
            f"SELECT id, territory, gen_random_uuid(), 'assign' FROM public.leads WHERE id = {HELD_LEAD}"
        )
        timer = threading.Timer(HELD_S, holder.rollback)
        timer.start()
        try:
            leadprotect.backfill(url, ["DE", "CH"], workers=workers, settings=settings)
        finally:
            timer.cancel()
            timer.join()


@contextmanager
def _sampled(url: str, measured: Measured) -> Iterator[None]:
    """Sample the size of the assignments, which grows before a commit shows its rows."""
    ended = threading.Event()

    def sample() -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            while not ended.wait(_SAMPLE_S):
                (size,) = conn.execute("SELECT pg_relation_size('leadprotect.user_lead_assignments')").fetchone() or (
                    0,
                )
                measured.owners_over_time.append((time.time(), size))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wal(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").fetchone()
    return int(row[0]) if row else 0
