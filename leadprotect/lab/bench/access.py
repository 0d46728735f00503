"""What an access check costs: against SELECT 1, a plain INSERT and the unprotected query, in one run."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

import leadprotect
from leadprotect import aio, phases
from leadprotect.lab.commands import isolated, run_alembic
from leadprotect.lab.data import LEAD_ID, USER_ID, generate_host, generated_lead, generated_user

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.lab.servers import Server

SCRIPTS = Path(__file__).parent / "pgbench"
LOGIN = "bench_seller_de"
USER = generated_user(0)
"""Owner of every hundredth lead."""

# here lead n belongs to user n modulo 100
ASSIGNMENTS = f"""
    INSERT INTO leadprotect.user_lead_assignments (lead_id, territory, user_id, source)
    SELECT l.id, l.territory, {USER_ID.format(n="n % 100")}, 'assign'
    FROM generate_series(0, {{leads}} - 1) AS n JOIN public.leads AS l ON l.id = {LEAD_ID.format(n="n")}
    WHERE l.territory IS NOT NULL;
    """
PLAIN_LOG = """
    CREATE TABLE public.plain_log (LIKE leadprotect.lead_access_audit INCLUDING DEFAULTS);
    ALTER TABLE public.plain_log ALTER login DROP DEFAULT, ADD PRIMARY KEY (lead_id, at, id);
    ALTER TABLE public.plain_log ALTER id SET DEFAULT nextval('leadprotect.lead_access_audit_id_seq');
    """
READS = """
    DO $do$
    DECLARE
      wanted uuid;
    BEGIN
      FOREACH wanted IN ARRAY string_to_array('{ids}', ',')::uuid[] LOOP
        PERFORM l.company FROM public.leads AS l WHERE l.id = wanted;
      END LOOP;
    END
    $do$
    """

# what is measured, by which script, against what and its script, and the figure to reach
PGBENCHED = (
    ("can_edit_lead, prepared, 10 clients", "lead_check", "SELECT 1", "select_1", 1.5),
    ("the same rows read by primary key", "lead_read", "SELECT 1", "select_1", None),
    ("assert_edit_and_audit, 8 clients", "lead_assert", "plain INSERT", "plain_insert", 1.3),
)


@dataclass(frozen=True)
class Line:
    """One comparison: `measured` times `base`; `figure` is the ratio to reach, None where none is set."""

    server: str
    what: str
    base: str
    measured: float
    figure: float | None
    milliseconds: float

    @property
    def reached(self) -> bool:
        """Whether the figure is reached, with as many digits as it is shown."""
        return self.figure is None or round(self.measured, 2) <= self.figure


def measure_access(
    server: Server, *, leads: int, seconds: int, say: Callable[[str], None]
) -> tuple[list[Line], dict[str, list[float]]]:
    """Generate `leads` on `server`, measure for `seconds` per pgbench run; ratios of p95, and latencies in ms."""
    name = f"PostgreSQL {server.major}"
    url = server.create_database("bench_access")
    with isolated(server.folder, database_url=url, observation_window=0):
        say(f"{name}: generating {leads:,} leads")
        prepare_access(server, url, leads)
        latencies: dict[str, list[float]] = {}
        say(f"{name}: pgbench, 10 clients")
        for script in ("select_1", "lead_read", "lead_check") * 2:
            latencies.setdefault(script, []).extend(pgbench(server, script, leads, seconds, clients=10))
        say(f"{name}: pgbench, 8 clients that write")
        for script in ("plain_insert", "lead_assert") * 2:
            latencies.setdefault(script, []).extend(pgbench(server, script, leads, seconds, clients=8))
        lines = [
            compare(name, what, base, latencies[script], latencies[base_script], figure)
            for what, script, base, base_script, figure in PGBENCHED
        ]
        say(f"{name}: from Python")
        with psycopg.connect(server.url("bench_access", LOGIN), autocommit=True) as conn:
            conn.execute(
                "SELECT set_config('app.user_id', %s, false), set_config('app.territory', 'DE', false)", (USER,)
            )
            lines += python_path(conn, name, leads)
            lines += compare_view(conn, name, leads)
        lines += service_path(server, name, leads)
        say(f"{name}: the border")
        lines += border(server, name, "NULL allowed", count_figure=None)
        without_null(server, url)
        lines += border(server, name, "NOT NULL", count_figure=None)
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("CREATE INDEX ON public.leads (territory)")
            conn.execute("VACUUM (ANALYZE) public.leads")
        lines += border(server, name, "NOT NULL and indexed", count_figure=1.10)
    return lines, latencies


def prepare_access(server: Server, url: str, leads: int) -> None:
    """A database at head with `leads` leads, each of those in a territory owned."""
    with psycopg.connect(url, autocommit=True) as conn:
        if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (LOGIN,)).fetchone() is None:
            conn.execute(f"CREATE ROLE {LOGIN} LOGIN")
        generate_host(conn, leads, activities=False)
        run_alembic(server.folder, "-x", "contract=hold", "upgrade", "head")
        conn.execute(ASSIGNMENTS.replace("{leads}", str(leads)))
        conn.execute(PLAIN_LOG)
        conn.execute(f"GRANT leadprotect_app, leadprotect_de TO {LOGIN}")
        conn.execute(f"GRANT SELECT ON public.leads TO {LOGIN}; GRANT INSERT ON public.plain_log TO {LOGIN}")
        conn.execute(f"GRANT USAGE ON SCHEMA leadprotect TO {LOGIN}")
        conn.execute(f"GRANT USAGE ON SEQUENCE leadprotect.lead_access_audit_id_seq TO {LOGIN}")
        conn.execute("VACUUM (ANALYZE)")
        run_alembic(server.folder, "upgrade", "head")
        conn.execute("CHECKPOINT")


def pgbench(server: Server, script: str, leads: int, seconds: int, *, clients: int) -> list[float]:
    """Latencies in milliseconds of one run."""
    with tempfile.TemporaryDirectory(dir=server.folder) as folder:
        user = "postgres" if script == "lead_read" else LOGIN
        arguments = ["-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(seconds), "-D", f"leads={leads}"]
        log = ["--log", "--log-prefix", f"{folder}/log", "--sampling-rate", "0.2"]
        subprocess.run(  # noqa: S603 - our own program, no shell
            [
                server.programs / "pgbench",
                *arguments,
                *log,
                "-f",
                SCRIPTS / f"{script}.sql",
                "-h",
                server.host,
                "-U",
                user,
                "bench_access",
            ],
            check=True,
            capture_output=True,
            env=os.environ | {"PGOPTIONS": f"-c app.user_id={USER} -c app.territory=DE"},
        )
        found = [path.read_text() for path in Path(folder).glob("log*")]
    return [int(entry.split()[2]) / 1000 for text in found for entry in text.splitlines()]


def python_path(conn: psycopg.Connection[Any], name: str, leads: int) -> list[Line]:
    """The library's calls against SELECT 1 through the same driver, interleaved."""
    mine = [generated_lead(number) for number in range(0, leads, 100)]
    some = [generated_lead(number * 7919 % leads) for number in range(1000)]
    with conn.transaction(), leadprotect.acting_as(conn, USER, "DE"):
        one = interleave(
            {
                "select": lambda _: conn.execute("SELECT 1").fetchone(),
                "check": lambda n: leadprotect.can_edit(conn, mine[n % len(mine)], user_id=USER, territory="DE"),
            },
            rounds=3000,
        )
        more = interleave(
            {
                "check": lambda n: leadprotect.can_edit(conn, mine[n % len(mine)]),
                "many": lambda _: leadprotect.can_edit_many(conn, some),
                "list": lambda n: leadprotect.editable_leads(conn, after=mine[n % 9] if n % 2 else None, limit=50),
            },
            rounds=200,
        )
    return [
        compare(
            name, "leadprotect.can_edit, context included", "SELECT 1 in psycopg", one["check"], one["select"], 2.0
        ),
        compare(name, "can_edit_many of 1,000 leads", "one can_edit", more["many"], more["check"], 20.0),
        compare(name, "editable_leads(limit=50)", "one can_edit", more["list"], more["check"], 2.0),
    ]


def service_path(server: Server, name: str, leads: int) -> list[Line]:
    """An edit in one pipeline against its UPDATE alone, and a check that is awaited against one that is not."""
    mine = [generated_lead(number) for number in range(0, leads, 100)]
    update = "UPDATE public.leads SET company = company WHERE id = %s"
    declare = "SELECT leadprotect.set_context(%s::text, 'DE'::text)"
    url = server.url("bench_access", LOGIN)
    with psycopg.connect(server.url("bench_access"), autocommit=True) as owner:
        owner.execute(f"GRANT UPDATE ON public.leads TO {LOGIN}")

    def alone(n: int) -> None:
        conn.execute(declare, (USER,))
        conn.execute(update, (mine[n % len(mine)],))
        conn.commit()

    def piped(n: int) -> None:
        with leadprotect.editing(conn, mine[n % len(mine)], USER, "DE"):
            conn.execute(update, (mine[n % len(mine)],))

    with psycopg.connect(url) as conn, asyncio.Runner() as loop:
        edits = interleave({"with": piped, "without": alone}, rounds=500)
        waiting = loop.run(psycopg.AsyncConnection.connect(url))
        given = {"user_id": USER, "territory": "DE"}
        checks = interleave(
            {
                "with": lambda n: loop.run(_each(aio.can_edit, waiting, mine[n % len(mine)], given)),
                "without": lambda n: [leadprotect.can_edit(conn, mine[n % len(mine)], **given) for _ in range(20)],
            },
            rounds=100,
        )
        loop.run(waiting.close())
    return [
        median(name, "an edit in one pipeline: context, assertion, UPDATE, commit", edits, 1.5),
        median(name, "20 aio.can_edit, against leadprotect.can_edit", checks, 1.1),
    ]


async def _each(check: Any, conn: Any, lead: object, given: dict[str, str]) -> None:
    for _ in range(20):
        await check(conn, lead, **given)


def compare_view(conn: psycopg.Connection[Any], name: str, leads: int) -> list[Line]:
    """v_lead_protection for one lead and a page against a check, and its count against the count of the leads."""
    one = "SELECT * FROM leadprotect.v_lead_protection WHERE lead = %s"
    page = (
        "SELECT * FROM leadprotect.v_lead_protection WHERE lead = ANY (ARRAY("
        "SELECT id FROM public.leads WHERE id > %s ORDER BY id LIMIT 50)) ORDER BY lead"
    )
    found = interleave(
        {
            "check": lambda n: leadprotect.can_edit(conn, generated_lead(n * 200)),
            "one": lambda n: conn.execute(one, (generated_lead(n * 200),)).fetchall(),
            "page": lambda n: conn.execute(page, (generated_lead(n * 200),)).fetchall(),
        },
        rounds=min(200, leads // 200),
    )
    counted = interleave(
        {
            "view": lambda _: conn.execute("SELECT count(*) FROM leadprotect.v_lead_protection").fetchone(),
            "leads": lambda _: conn.execute("SELECT count(*) FROM public.leads").fetchone(),
        },
        rounds=20,
    )
    return [
        compare(name, "v_lead_protection, one lead", "one can_edit", found["one"], found["check"], None),
        compare(name, "v_lead_protection, a page of 50", "one can_edit", found["page"], found["check"], None),
        compare(name, "v_lead_protection, a count", "count of leads", counted["view"], counted["leads"], None),
    ]


def border(server: Server, name: str, kind: str, *, count_figure: float | None) -> list[Line]:
    """A count of a territory and reads by primary key, against the same without row-level security.

    `kind` says what the territory of a lead may be. A read is a prepared statement of a client, and once more a
    statement in a loop of the server, where no client is measured. The floor of a count is one more comparison with
    a setting in the statement itself. Medians of interleaved runs.
    """
    with (
        psycopg.connect(server.url("bench_access", LOGIN), autocommit=True) as bound,
        psycopg.connect(server.url("bench_access"), autocommit=True) as free,
    ):
        some = free.execute("SELECT id::text FROM public.leads WHERE territory = 'DE' LIMIT 1000").fetchall()
        for conn in (bound, free):
            conn.execute("SET max_parallel_workers_per_gather = 0; SELECT set_config('app.territory', 'DE', false)")
        counting = "SELECT count(*) FROM public.leads WHERE territory = 'DE'"
        floor = counting + " AND territory = (SELECT current_setting('app.territory'))"
        loop = READS.replace("{ids}", ",".join(lead for (lead,) in some))
        one = "SELECT company FROM public.leads WHERE id = %s::uuid"

        def call(conn: psycopg.Connection[Any], statement: str) -> Callable[[int], object]:
            return lambda _: conn.execute(statement)

        def reading(conn: psycopg.Connection[Any]) -> Callable[[int], object]:
            return lambda n: conn.execute(one, some[n % len(some)], prepare=True).fetchone()

        counted = interleave(
            {"with": call(bound, counting), "without": call(free, counting), "floor": call(free, floor)}, rounds=15
        )
        read = interleave({"with": reading(bound), "without": reading(free)}, rounds=2000)
        looped = interleave({"with": call(bound, loop), "without": call(free, loop)}, rounds=40)
    lowest = {"with": counted["floor"], "without": counted["without"]}
    return [
        median(name, f"count of a territory, {kind}, with row-level security", counted, count_figure),
        median(name, f"the floor of that: one comparison more, {kind}", lowest, None),
        median(name, f"a lead read by primary key, {kind}, with row-level security", read, 1.3),
        median(name, f"1,000 such reads in a loop of the server, {kind}", looped, None),
    ]


def without_null(server: Server, url: str) -> None:
    """The same host, in which every lead has a territory: contract then makes a border that an index serves."""
    run_alembic(server.folder, "downgrade", phases.before("contract")[-1])
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("DELETE FROM public.leads WHERE territory IS NULL")
        conn.execute("ALTER TABLE public.leads ALTER territory SET NOT NULL")
        conn.execute("VACUUM (ANALYZE) public.leads")
    run_alembic(server.folder, "-x", "contract=require", "upgrade", "head")


def interleave(calls: dict[str, Callable[[int], object]], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, all of them in every round; the first tenth warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call(number)
            times[name].append((time.perf_counter() - begin) * 1000)
    return {name: values[rounds // 10 :] for name, values in times.items()}


def median(server: str, what: str, times: dict[str, list[float]], figure: float | None) -> Line:
    """Compare two medians, of what was measured with row-level security and without it."""
    bound, free = (statistics.median(times[key]) for key in ("with", "without"))
    return Line(server, what, "without it", bound / free, figure, bound)


def compare(
    server: str, what: str, base: str, times: list[float], base_times: list[float], figure: float | None
) -> Line:
    """Compare two 95th percentiles."""
    p95, base_p95 = (statistics.quantiles(values, n=20)[18] for values in (times, base_times))
    return Line(server, what, base, p95 / base_p95, figure, p95)
