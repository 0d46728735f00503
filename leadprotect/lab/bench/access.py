"""What an access check costs: against SELECT 1, a plain INSERT and the unprotected query, in one run."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from alembic import command
from alembic.config import Config

import leadprotect
from leadprotect.settings import current
from leadprotect.settings.files import migrations

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.lab.bench.servers import Server

SCRIPTS = Path(__file__).parent / "pgbench"
LOGIN = "bench_seller_de"
USER = "00000000-0000-4000-8000-000000000000"
"""Owner of every hundredth lead."""

# even numbers are DE, so lead n of user n modulo 100 has one territory
DATA = """
    CREATE TABLE public.leads (id uuid PRIMARY KEY, territory text, company text NOT NULL);
    CREATE TABLE public.activities (
      id bigserial PRIMARY KEY, lead_id uuid NOT NULL, user_id uuid, kind text NOT NULL, created_at timestamptz);
    INSERT INTO public.leads
    SELECT ('a0000000-0000-4000-8000-' || (100000000000 + n))::uuid,
           CASE n % 2 WHEN 0 THEN 'DE' ELSE 'CH' END, 'Muster ' || n
    FROM generate_series(0, {leads} - 1) AS n ORDER BY md5(n::text);
    """
ASSIGNMENTS = """
    INSERT INTO leadprotect.user_lead_assignments (lead_id, territory, user_id, source)
    SELECT l.id, l.territory,
           ('00000000-0000-4000-8000-' || lpad((right(l.id::text, 12)::bigint % 100)::text, 12, '0'))::uuid, 'assign'
    FROM public.leads AS l;
    """
PLAIN_LOG = """
    CREATE TABLE public.plain_log (LIKE leadprotect.lead_access_audit INCLUDING DEFAULTS);
    ALTER TABLE public.plain_log ALTER login DROP DEFAULT, ADD PRIMARY KEY (lead_id, at, id);
    ALTER TABLE public.plain_log ALTER id SET DEFAULT nextval('leadprotect.lead_access_audit_id_seq');
    """


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
        """Whether the figure is reached."""
        return self.figure is None or self.measured <= self.figure


def access(
    server: Server, *, leads: int, seconds: int, say: Callable[[str], None]
) -> tuple[list[Line], dict[str, list[float]]]:
    """Generate `leads` on `server`, measure for `seconds` per pgbench run; ratios of p95, and latencies in ms."""
    name = f"PostgreSQL {server.major}"
    url = server.url("bench_access")
    say(f"{name}: generating {leads:,} leads")
    prepare(server, url, leads)
    lines: list[Line] = []
    latencies: dict[str, list[float]] = {}
    say(f"{name}: pgbench, 10 clients")
    for script in ("select_1", "lead_read", "lead_check", "select_1", "lead_read", "lead_check"):
        latencies.setdefault(script, []).extend(pgbench(server, script, leads, seconds, clients=10))
    say(f"{name}: pgbench, 8 clients that write")
    for script in ("plain_insert", "lead_assert", "plain_insert", "lead_assert"):
        latencies.setdefault(script, []).extend(pgbench(server, script, leads, seconds, clients=8))
    lines.append(
        line(
            name, "can_edit_lead, prepared, 10 clients", "SELECT 1", latencies["lead_check"], latencies["select_1"], 1.5
        )
    )
    lines.append(
        line(name, "the same rows read by primary key", "SELECT 1", latencies["lead_read"], latencies["select_1"], None)
    )
    lines.append(
        line(
            name,
            "assert_edit_and_audit, 8 clients",
            "plain INSERT",
            latencies["lead_assert"],
            latencies["plain_insert"],
            1.3,
        )
    )
    say(f"{name}: from Python")
    with psycopg.connect(server.url("bench_access", LOGIN), autocommit=True) as conn:
        conn.execute("SELECT set_config('app.user_id', %s, false), set_config('app.territory', 'DE', false)", (USER,))
        lines += python_path(conn, name, leads)
        lines += view(conn, name, leads)
    lines.append(rls_tax(server, name))
    return lines, latencies


def prepare(server: Server, url: str, leads: int) -> None:
    """A database at head with `leads` leads, each of them owned."""
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute("DROP DATABASE IF EXISTS bench_access")
        conn.execute("CREATE DATABASE bench_access")
        if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (LOGIN,)).fetchone() is None:
            conn.execute(f"CREATE ROLE {LOGIN} LOGIN")
    os.environ["DATABASE_URL"] = url
    os.environ["LEADPROTECT_OBSERVATION_WINDOW"] = "0"
    current.cache_clear()
    config = Config()
    config.set_main_option("script_location", str(migrations()))
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(DATA.format(leads=leads))
        command.upgrade(config, "lp_0006_migrate_backfill")
        conn.execute(ASSIGNMENTS)
        conn.execute(PLAIN_LOG)
        conn.execute(f"GRANT leadprotect_app, leadprotect_de TO {LOGIN}")
        conn.execute(f"GRANT SELECT ON public.leads TO {LOGIN}; GRANT INSERT ON public.plain_log TO {LOGIN}")
        conn.execute(f"GRANT USAGE ON SCHEMA leadprotect TO {LOGIN}")
        conn.execute(f"GRANT USAGE ON SEQUENCE leadprotect.lead_access_audit_id_seq TO {LOGIN}")
        conn.execute("VACUUM (ANALYZE)")
        command.upgrade(config, "head")
        conn.execute("CHECKPOINT")


def pgbench(server: Server, script: str, leads: int, seconds: int, *, clients: int) -> list[float]:
    """Latencies in milliseconds of one run."""
    with tempfile.TemporaryDirectory() as folder:
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
    mine = [lead_id(number) for number in range(0, leads, 100)]
    some = [lead_id(number * 7919 % leads) for number in range(1000)]
    with conn.transaction(), leadprotect.acting_as(conn, USER, "DE"):
        one = measure(
            {
                "select": lambda _: conn.execute("SELECT 1").fetchone(),
                "check": lambda n: leadprotect.can_edit(conn, mine[n % len(mine)], user_id=USER, territory="DE"),
            },
            rounds=3000,
        )
        more = measure(
            {
                "check": lambda n: leadprotect.can_edit(conn, mine[n % len(mine)]),
                "many": lambda _: leadprotect.can_edit_many(conn, some),
                "list": lambda n: leadprotect.editable_leads(conn, after=mine[n % 9] if n % 2 else None, limit=50),
            },
            rounds=200,
        )
    return [
        line(name, "leadprotect.can_edit, context included", "SELECT 1 in psycopg", one["check"], one["select"], 2.0),
        line(name, "can_edit_many of 1,000 leads", "one can_edit", more["many"], more["check"], 20.0),
        line(name, "editable_leads(limit=50)", "one can_edit", more["list"], more["check"], 2.0),
    ]


def view(conn: psycopg.Connection[Any], name: str, leads: int) -> list[Line]:
    """v_lead_protection for one lead and a page against a check, and its count against the count of the leads."""
    one = "SELECT * FROM leadprotect.v_lead_protection WHERE lead = %s"
    page = (
        "SELECT * FROM leadprotect.v_lead_protection WHERE lead = ANY (ARRAY("
        "SELECT id FROM public.leads WHERE id > %s ORDER BY id LIMIT 50)) ORDER BY lead"
    )
    found = measure(
        {
            "check": lambda n: leadprotect.can_edit(conn, lead_id(n * 200)),
            "one": lambda n: conn.execute(one, (lead_id(n * 200),)).fetchall(),
            "page": lambda n: conn.execute(page, (lead_id(n * 200),)).fetchall(),
        },
        rounds=min(200, leads // 200),
    )
    counted = measure(
        {
            "view": lambda _: conn.execute("SELECT count(*) FROM leadprotect.v_lead_protection").fetchone(),
            "leads": lambda _: conn.execute("SELECT count(*) FROM public.leads").fetchone(),
        },
        rounds=20,
    )
    return [
        line(name, "v_lead_protection, one lead", "one can_edit", found["one"], found["check"], None),
        line(name, "v_lead_protection, a page of 50", "one can_edit", found["page"], found["check"], None),
        line(name, "v_lead_protection, a count", "count of leads", counted["view"], counted["leads"], None),
    ]


def rls_tax(server: Server, name: str) -> Line:
    """A count over a territory with and without row-level security: the medians of interleaved runs."""
    count = "SELECT count(*) FROM public.leads WHERE territory = 'DE'"
    with (
        psycopg.connect(server.url("bench_access", LOGIN)) as seller,
        psycopg.connect(server.url("bench_access")) as free,
    ):
        seller.execute("SELECT set_config('app.territory', 'DE', false)")
        for conn in (seller, free):
            conn.execute("SET max_parallel_workers_per_gather = 0")
        found = measure(
            {"with": lambda _: seller.execute(count).fetchone(), "without": lambda _: free.execute(count).fetchone()},
            rounds=15,
        )
    with_rls, without = (statistics.median(found[key]) for key in ("with", "without"))
    return Line(name, "count of a territory, with row-level security", "without it", with_rls / without, 1.10, with_rls)


def measure(calls: dict[str, Callable[[int], object]], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, all of them in every round; the first tenth warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call(number)
            times[name].append((time.perf_counter() - begin) * 1000)
    return {name: values[rounds // 10 :] for name, values in times.items()}


def line(server: str, what: str, base: str, times: list[float], base_times: list[float], figure: float | None) -> Line:
    """Compare two 95th percentiles."""
    p95, base_p95 = (statistics.quantiles(values, n=20)[18] for values in (times, base_times))
    return Line(server, what, base, p95 / base_p95, figure, p95)


def lead_id(number: int) -> str:
    """Id of the n-th generated lead."""
    return f"a0000000-0000-4000-8000-{100000000000 + number}"
