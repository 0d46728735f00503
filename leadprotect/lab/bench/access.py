"""What access checks cost the server: against the same rows read plainly, a protection by hand, and SELECT 1.

Every ratio is one of CPU time of the backend within one run; see `clock`. What a service sees is measured apart.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from sqlalchemy import create_engine, pool

import leadprotect
from leadprotect import phases
from leadprotect.lab.bench.clock import Case, measured, ratio
from leadprotect.lab.bench.instructions import instructions_of
from leadprotect.lab.bench.service import THREADS, measure_service
from leadprotect.lab.commands import isolated, run_alembic
from leadprotect.lab.data import LEAD_ID, USER_ID, generate_host, generated_lead, generated_user
from leadprotect.migration.shadowing import start_shadow, stop_shadow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadprotect.lab.bench.clock import Cost
    from leadprotect.lab.servers import Server

SCRIPTS = Path(__file__).parent / "pgbench"
ORIGINAL = Path(__file__).parent / "original.sql"
LOGIN = "bench_seller_de"
USER, SHARING = generated_user(0), generated_user(1)
"""Owners of every hundredth lead; the second one shares a lead of somebody else."""

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
# analysed and never vacuumed, of few users: by the statistics, the first row is near
HOSTILE = f"""
    ALTER TABLE leadprotect.lead_protection_rules SET (autovacuum_enabled = off);
    INSERT INTO leadprotect.lead_protection_rules (user_id, territory, protection, lead_id)
    SELECT {USER_ID.format(n="100 + n % 97")}, 'DE', 'COLLABORATOR', {LEAD_ID.format(n="'rule ' || n")}
    FROM generate_series(1, 50000) AS n;
    ANALYZE leadprotect.lead_protection_rules;
    """
NOTES = f"""
    CREATE TABLE public.bench_notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, lead_id uuid, said text);
    CREATE INDEX ON public.bench_notes (lead_id);
    GRANT SELECT, UPDATE ON public.bench_notes TO {LOGIN};
    """
# the same protection as policies by hand: whose role acts, and nothing else that this package asks
BY_HAND = f"""
    CREATE TABLE public.hand_leads (LIKE public.leads INCLUDING ALL);
    INSERT INTO public.hand_leads SELECT * FROM public.leads;
    CREATE TABLE public.hand_notes (LIKE public.bench_notes INCLUDING ALL);
    INSERT INTO public.hand_notes OVERRIDING SYSTEM VALUE SELECT * FROM public.bench_notes;
    CREATE POLICY border ON public.hand_leads USING (territory IS NULL OR territory = (
      SELECT CASE WHEN pg_has_role(
               session_user, 'leadprotect_' || lower(current_setting('app.territory', true)), 'USAGE')
             THEN current_setting('app.territory', true) END));
    CREATE POLICY border ON public.hand_notes
    USING (EXISTS (SELECT FROM public.hand_leads AS l WHERE l.id = hand_notes.lead_id));
    ALTER TABLE public.hand_leads ENABLE ROW LEVEL SECURITY;
    ALTER TABLE public.hand_notes ENABLE ROW LEVEL SECURITY;
    GRANT SELECT ON public.hand_leads, public.hand_notes TO {LOGIN};
    """
INSERT = """
    INSERT INTO public.plain_log (lead_id, user_id, login, role, territory, action, outcome, reason, transaction_id)
    VALUES (%s::uuid, '00000000-0000-4000-8000-000000000000', session_user, current_user,
            'DE', 'EDIT', 'ALLOW', 'owner', pg_current_xact_id())
    """
JOIN = """
    SELECT a.user_id FROM public.leads AS l
    LEFT JOIN leadprotect.user_lead_assignments AS a ON a.lead_id = l.id AND a.territory = l.territory
    WHERE l.id = %s::uuid
    """
ROW = "SELECT l.territory FROM public.leads AS l WHERE l.id = %s::uuid"
CHECK = "SELECT leadprotect.can_edit_lead(%s::uuid)"
FLOOR = "SELECT original.read_both(%s::uuid)"
ORIGINAL_CHECK = "SELECT original.can_edit_lead(%s::uuid)"
FLAT = "SELECT count(*) FROM public.leads WHERE territory = 'DE'"


@dataclass(frozen=True)
class Line:
    """One comparison: `measured` times `base`, between its quartiles `low` and `high`.

    `figure` is the ratio to reach, None where none is set; `microseconds` of CPU, or those of the p95 of pgbench;
    `p50` is what a client waits for, in microseconds, where that was measured.
    """

    server: str
    what: str
    base: str
    measured: float
    figure: float | None
    microseconds: float
    low: float = 0.0
    high: float = 0.0
    p50: float = 0.0

    @property
    def reached(self) -> bool:
        """Whether the figure is reached, with as many digits as it is shown."""
        return self.figure is None or round(self.measured, 2) <= self.figure


@dataclass(frozen=True)
class Count:
    """Instructions of one call, times those of `SELECT 1`."""

    server: str
    what: str
    instructions: float
    times: float


@dataclass(frozen=True)
class Access:
    """What the server spends, what a service sees of it, and instructions where they were counted."""

    lines: list[Line]
    clients: list[Line]
    counts: list[Count]


def measure_access(
    server: Server, *, leads: int, seconds: int, blocks: int, count: bool, say: Callable[[str], None]
) -> Access:
    """Generate `leads` on `server`, and measure each statement in `blocks` blocks, pgbench for `seconds` a run.

    With `count` the instructions, too, by valgrind; the server is stopped for that.
    """
    name = f"PostgreSQL {server.major}"
    url = server.create_database("bench_access")
    bench = Bench(server, name, leads, blocks)
    with isolated(server.folder, database_url=url, observation_window=0):
        say(f"{name}: generating {leads:,} leads")
        prepare_access(server, url, leads)
        say(f"{name}: pgbench, 8 clients that commit")
        lines = committed(bench, seconds)
        for said, part in {
            "checks": checks,
            "lists": lists,
            "the view": view,
            "assertions": assertions,
            "edits": edits,
        }.items():
            say(f"{name}: {said}")
            lines += part(bench)
        say(f"{name}: from Python")
        clients = services(bench)
        say(f"{name}: the border")
        lines += border(bench, "NULL allowed", count_figure=None)
        run_alembic(server.folder, "downgrade", phases.before("contract")[-1])
        say(f"{name}: the shadow")
        lines += shadowed(bench)
        say(f"{name}: rows of leads in a table of their own")
        lines += rows_of_leads(bench)
        without_null(server, url)
        lines += border(bench, "NOT NULL", count_figure=1.10)
        if count:
            say(f"{name}: instructions")
    return Access(lines, clients, instruction_counts(bench) if count else [])


def instruction_counts(bench: Bench) -> list[Count]:
    """Instructions of a check and of what it is compared with."""
    lead = f"'{bench.own[0]}'"
    bound = [
        f"SELECT set_config('app.user_id', '{USER}', false), set_config('app.territory', 'DE', false)",
        f"SET ROLE {LOGIN}",
    ]
    asked = {
        "SELECT 1": ["SELECT 1"],
        "one row by key": [ROW.replace("%s", lead)],
        "two rows by key, joined": [" ".join(JOIN.replace("%s", lead).split())],
        "the two rows read by a function": [*bound, FLOOR.replace("%s", lead)],
        "protection by hand": [*bound, ORIGINAL_CHECK.replace("%s", lead)],
        "can_edit_lead, own lead": [*bound, CHECK.replace("%s", lead)],
    }
    found = instructions_of(bench.server, "bench_access", asked)
    return [Count(bench.name, what, number, number / found["SELECT 1"]) for what, number in found.items()]


@dataclass(frozen=True)
class Bench:
    """Where it is measured, how many leads there are, and how many blocks each statement has."""

    server: Server
    name: str
    leads: int
    blocks: int

    @contextmanager
    def connections(self, user: str = USER, login: str = LOGIN) -> Iterator[Callable[[], psycopg.Connection[Any]]]:
        """Makes connections that prepare every statement, with `user` in context; each is one backend's whole life."""
        with ExitStack() as stack:

            def connect() -> psycopg.Connection[Any]:
                conn = psycopg.connect(self.server.url("bench_access", login), autocommit=True, prepare_threshold=0)
                stack.enter_context(conn)
                for setting in ("max_parallel_workers_per_gather = 0", "synchronous_commit = off", "jit = off"):
                    conn.execute(f"SET {setting}")
                conn.execute(
                    "SELECT set_config('app.user_id', %s, false), set_config('app.territory', 'DE', false)", (user,)
                )
                return conn

            yield connect

    def cost(self, cases: dict[str, Case], *, blocks: int = 0) -> dict[str, list[float]]:
        """Microseconds of the backend a call, for each round."""
        found = measured(cases, rounds=blocks or self.blocks)
        return {name: [cost.backend for cost in costs] for name, costs in found.items()}

    def line(self, what: str, base: str, of: list[float], than: list[float], figure: float | None) -> Line:
        """A comparison of two."""
        found = ratio(of, than)
        return Line(self.name, what, base, found.median, figure, statistics.median(of), found.low, found.high)

    @property
    def own(self) -> list[str]:
        """Leads of `USER` in DE."""
        return [generated_lead(n) for n in range(0, self.leads, 100)]

    def figure(self, newer: float, older: float) -> float:
        """Of PostgreSQL 18, and of those that plan a function in SQL for each call."""
        return newer if self.server.major >= 18 else older  # noqa: PLR2004


def asking(conn: psycopg.Connection[Any], statement: str, values: list[Any] | None = None) -> Callable[[int], object]:
    """A call that asks about another one of `values` each time."""
    if values is None:
        return lambda _: conn.execute(statement).fetchall()
    # next to each other in a list would be next to each other in the table
    return lambda n: conn.execute(statement, (values[n * 7919 % len(values)],)).fetchall()


def prepare_access(server: Server, url: str, leads: int) -> None:
    """A database at head with `leads` leads, each of those in a territory owned."""
    with psycopg.connect(url, autocommit=True) as conn:
        if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (LOGIN,)).fetchone() is None:
            conn.execute(f"CREATE ROLE {LOGIN} LOGIN")
        generate_host(conn, leads, activities=False)
        run_alembic(server.folder, "-x", "contract=hold", "upgrade", "head")
        conn.execute(ASSIGNMENTS.replace("{leads}", str(leads)))
        conn.execute(PLAIN_LOG)
        conn.execute(ORIGINAL.read_text(encoding="utf-8"))
        conn.execute(f"GRANT leadprotect_app, leadprotect_de TO {LOGIN}")
        conn.execute(f"GRANT SELECT, UPDATE ON public.leads, public.plain_leads TO {LOGIN}")
        conn.execute(f"GRANT INSERT ON public.plain_log TO {LOGIN}; GRANT USAGE ON SCHEMA leadprotect TO {LOGIN}")
        conn.execute(f"GRANT USAGE ON SEQUENCE leadprotect.lead_access_audit_id_seq TO {LOGIN}")
        conn.execute("VACUUM (ANALYZE)")
        run_alembic(server.folder, "upgrade", "head")
        conn.execute("CHECKPOINT")


def checks(bench: Bench) -> list[Line]:
    """One lead: plain reads, the protection by hand, ours; of an owner who shares, and with many rules of few."""
    share = generated_lead(2)
    with (
        bench.connections(login="postgres") as free,
        bench.connections() as bound,
        bench.connections(SHARING) as sharing,
        psycopg.connect(bench.server.url("bench_access"), autocommit=True) as owner,
    ):
        owner.execute(
            "INSERT INTO leadprotect.lead_protection_rules (user_id, territory, protection, lead_id) "
            "VALUES (%s, 'DE', 'COLLABORATOR', %s)",
            (SHARING, share),
        )
        foreign = [generated_lead(n) for n in range(3, bench.leads, 100)]
        shared = [generated_lead(n) for n in range(1, bench.leads, 100)]

        def cases() -> dict[str, Case]:
            asked = {
                "select": (bound(), "SELECT 1", None),
                "row": (free(), ROW, bench.own),
                "join": (free(), JOIN, bench.own),
                "floor": (bound(), FLOOR, bench.own),
                "original": (bound(), ORIGINAL_CHECK, bench.own),
                "own": (bound(), CHECK, bench.own),
                "foreign": (bound(), CHECK, foreign),
                "sharing": (sharing(), CHECK, shared),
            }
            return {name: Case(given[0], asking(*given)) for name, given in asked.items()}

        lines = _checked(bench, bench.cost(cases()), "")
        owner.execute(HOSTILE)
        lines += _checked(bench, bench.cost(cases()), ", 50,000 rules never vacuumed")
        for statement in ("TRUNCATE", "VACUUM ANALYZE"):
            owner.execute(f"{statement} leadprotect.lead_protection_rules")
    return lines


def _checked(bench: Bench, cost: dict[str, list[float]], when: str) -> list[Line]:
    select, join, floor, original = cost["select"], cost["join"], cost["floor"], cost["original"]
    own = f"can_edit_lead, own lead{when}"
    lines = [
        bench.line(own, "two rows joined", cost["own"], join, 1.65),
        bench.line(own, "the two rows read by a function", cost["own"], floor, None),
        bench.line(own, "protection by hand", cost["own"], original, bench.figure(1.2, 0.4)),
        bench.line(own, "SELECT 1", cost["own"], select, None),
        bench.line(f"can_edit_lead, own lead of who shares{when}", "two rows joined", cost["sharing"], join, 1.65),
        bench.line(f"can_edit_lead, lead of a colleague{when}", "two rows joined", cost["foreign"], join, None),
    ]
    if not when:
        lines += [
            bench.line("one row by key", "SELECT 1", cost["row"], select, None),
            bench.line("two rows by key, joined", "SELECT 1", join, select, None),
            bench.line("the two rows read by a function", "two rows joined", floor, join, None),
            bench.line("protection by hand", "SELECT 1", original, select, None),
        ]
    return lines


def lists(bench: Bench) -> list[Line]:
    """1,000 leads at once and a page of the own ones against one check; the floor is the same 1,000 read by key."""
    thousands = [
        [UUID(generated_lead((n * 7919 + step * 13) % bench.leads)) for n in range(1000)] for step in range(10)
    ]
    with bench.connections() as bound, bench.connections(login="postgres") as free:
        cost = bench.cost(
            {
                "check": Case(one := bound(), asking(one, CHECK, bench.own)),
                "page": Case(
                    two := bound(), asking(two, "SELECT * FROM leadprotect.editable_leads(%s::uuid, 50)", bench.own)
                ),
                "many": Case(
                    three := bound(),
                    asking(
                        three,
                        # as the library asks
                        "SELECT encode(array_send(array_agg(lead)), 'hex') FROM leadprotect.editable_among(%b::uuid[])",
                        thousands,
                    ),
                    10,
                ),
                "floor": Case(
                    four := free(),
                    asking(four, "SELECT count(territory) FROM public.leads WHERE id = ANY (%b::uuid[])", thousands),
                    10,
                ),
            }
        )
    return [
        bench.line("editable_leads, a page of 50", "one check", cost["page"], cost["check"], 4.5),
        bench.line("can_edit_many of 1,000 leads", "one check", cost["many"], cost["check"], 10.0),
        bench.line("the same 1,000 leads read by key", "one check", cost["floor"], cost["check"], None),
    ]


def view(bench: Bench) -> list[Line]:
    """One lead and a page of v_lead_protection against one check, and its count against the count of the leads."""
    some = bench.own
    asked = {
        "check": CHECK,
        "one": "SELECT * FROM leadprotect.v_lead_protection WHERE lead = %s::uuid",
        "page": "SELECT * FROM leadprotect.protection_page(%s::uuid, 50)",
        "sorted": "SELECT * FROM leadprotect.v_lead_protection WHERE lead > %s::uuid ORDER BY lead LIMIT 50",
    }
    with bench.connections() as bound:
        few = {"sorted": 1}
        cost = bench.cost(
            {
                name: Case(conn := bound(), asking(conn, statement, some), few.get(name, 20))
                for name, statement in asked.items()
            }
        )
        counted = bench.cost(
            {
                "view": Case(conn := bound(), asking(conn, "SELECT count(*) FROM leadprotect.v_lead_protection"), 1),
                "leads": Case(conn := bound(), asking(conn, "SELECT count(*) FROM public.leads"), 1),
            },
            blocks=10,
        )
    return [
        bench.line("v_lead_protection, one lead", "one check", cost["one"], cost["check"], 2.0),
        bench.line("v_lead_protection, protection_page of 50", "one check", cost["page"], cost["check"], 10.0),
        bench.line("v_lead_protection, ORDER BY lead LIMIT 50", "one check", cost["sorted"], cost["check"], None),
        bench.line("v_lead_protection, a count", "count of leads", counted["view"], counted["leads"], None),
    ]


def assertions(bench: Bench) -> list[Line]:
    """An assertion with its record against an INSERT, and the one by hand; commits wait for no disk."""
    asked = {
        "insert": INSERT,
        "floor": "SELECT original.lock_and_insert(%s::uuid)",
        "original": "SELECT original.assert_edit(%s::uuid)",
        "ours": "SELECT leadprotect.assert_edit_and_audit(%s::uuid)",
    }
    with bench.connections() as bound:
        cost = bench.cost(
            {name: Case(conn := bound(), asking_to(conn, statement, bench.own)) for name, statement in asked.items()}
        )
    return [
        bench.line("assert_edit_and_audit", "plain INSERT", cost["ours"], cost["insert"], 4.0),
        bench.line("assert_edit_and_audit", "lock and INSERT by a function", cost["ours"], cost["floor"], None),
        bench.line("lock and INSERT by a function", "plain INSERT", cost["floor"], cost["insert"], None),
        bench.line(
            "assert_edit_and_audit", "assertion by hand", cost["ours"], cost["original"], bench.figure(0.8, 0.4)
        ),
    ]


def asking_to(conn: psycopg.Connection[Any], statement: str, values: list[Any]) -> Callable[[int], object]:
    """A call that does something about another one of `values` each time, whatever it answers."""
    return lambda n: conn.execute(statement, (values[n * 7919 % len(values)],))


def edits(bench: Bench) -> list[Line]:
    """UPDATE of own leads against the same UPDATE of a table that nothing protects; each is rolled back."""
    ids = [[UUID(lead) for lead in bench.own[:10_000]]]
    by_key = "UPDATE public.{} SET company = company WHERE id = %s::uuid"
    by_ids = "UPDATE public.{} SET company = company WHERE id = ANY (%b::uuid[])"
    by_like = "UPDATE public.{} SET company = company WHERE company LIKE %s::text"
    lines: list[Line] = []
    for what, statement, values, figure, calls in (
        ("UPDATE of one own lead by key", by_key, bench.own, 5.5, 20),
        (f"UPDATE of {len(ids[0]):,} own leads by ids", by_ids, ids, 2.5, 1),
        ("UPDATE with LIKE, which finds none", by_like, ["nobody%"], 25.0, 1),
    ):
        with bench.connections() as bound:
            cost = bench.cost(
                {
                    table: Case(conn := bound(), undone(conn, statement.format(table), values), calls)
                    for table in ("plain_leads", "leads")
                },
                blocks=bench.blocks if calls > 1 else min(bench.blocks, 6),
            )
        lines.append(bench.line(what, "unprotected", cost["leads"], cost["plain_leads"], figure))
    return lines


def undone(conn: psycopg.Connection[Any], statement: str, values: list[Any]) -> Callable[[int], object]:
    """`asking_to` in a transaction that is rolled back."""

    def call(number: int) -> None:
        conn.execute("BEGIN")
        conn.execute(statement, (values[number * 7919 % len(values)],))
        conn.execute("ROLLBACK")

    return call


def committed(bench: Bench, seconds: int) -> list[Line]:
    """Assertions of 8 clients that commit, by their 95th percentiles: here the disk counts, too."""
    latencies: dict[str, list[float]] = {}
    ratios: list[float] = []
    for _ in range(3):
        found = {script: pgbench(bench, script, seconds, clients=8) for script in ("plain_insert", "lead_assert")}
        p95 = {script: statistics.quantiles(times, n=20)[18] for script, times in found.items()}
        ratios.append(p95["lead_assert"] / p95["plain_insert"])
        for script, times in found.items():
            latencies.setdefault(script, []).extend(times)
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    p95_us = statistics.quantiles(latencies["lead_assert"], n=20)[18] * 1000
    return [Line(bench.name, "the same committed by 8 clients, p95", "plain INSERT", middle, 1.9, p95_us, low, high)]


def pgbench(bench: Bench, script: str, seconds: int, *, clients: int) -> list[float]:
    """Latencies in milliseconds of one run."""
    server = bench.server
    with tempfile.TemporaryDirectory(dir=server.folder) as folder:
        arguments = ["-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(seconds)]
        arguments += ["-D", f"leads={bench.leads}", "--log", "--log-prefix", f"{folder}/log", "--sampling-rate", "0.2"]
        arguments += ["-f", str(SCRIPTS / f"{script}.sql"), "-h", server.host, "-U", LOGIN, "bench_access"]
        subprocess.run(  # noqa: S603 - our own program, no shell
            [server.programs / "pgbench", *arguments],
            check=True,
            capture_output=True,
            env=os.environ | {"PGOPTIONS": f"-c app.user_id={USER} -c app.territory=DE"},
        )
        found = [path.read_text() for path in Path(folder).glob("log*")]
    return [int(entry.split()[2]) / 1000 for text in found for entry in text.splitlines()]


def services(bench: Bench) -> list[Line]:
    """What a service sees, with the context as it declares it: CPU of client and backend, beside `SELECT 1` there."""
    with bench.connections() as bound:
        conn = bound()
        found = _services(bench, "psycopg", conn, conn, conn.execute, {"prepare": True})
        engine = create_engine("postgresql+psycopg://", creator=bound, poolclass=pool.StaticPool)
        with engine.connect() as core:
            driver: Any = core.connection.driver_connection
            driver.autocommit = False
            found += _services(bench, "SQLAlchemy", core, driver, core.exec_driver_sql, {})
    return found + in_one_trip(bench) + served(bench)


def in_one_trip(bench: Bench) -> list[Line]:
    """An edit with its context and assertion, in one round trip and in five, against its UPDATE alone; committed."""
    own, update = bench.own, "UPDATE public.leads SET company = company WHERE id = %s::uuid"

    def alone(conn: psycopg.Connection[Any], lead: str) -> None:
        with conn.pipeline(), conn.transaction():
            conn.execute("SELECT set_config('app.user_id', %s, true), set_config('app.territory', 'DE', true)", (USER,))
            conn.execute(update, (lead,))

    def editing(conn: psycopg.Connection[Any], lead: str) -> None:
        with leadprotect.editing(conn, lead, USER, "DE"):
            conn.execute(update, (lead,))

    def step_by_step(conn: psycopg.Connection[Any], lead: str) -> None:
        with conn.transaction(), leadprotect.acting_as(conn, USER, "DE"):
            leadprotect.assert_edit(conn, lead)
            conn.execute(update, (lead,))

    def case(edit: Callable[[psycopg.Connection[Any], str], None]) -> Case:
        conn = bound()
        return Case(conn, lambda n: edit(conn, own[n * 7919 % len(own)]), 20)

    with bench.connections() as bound:
        found = measured({one.__name__: case(one) for one in (alone, editing, step_by_step)}, rounds=bench.blocks)
    base = "its UPDATE with a context, pipelined"
    return [
        _client_line(bench, "editing: context, assert, UPDATE, commit", base, found["editing"], found["alone"], 1.5),
        _client_line(
            bench, "the same with acting_as and assert_edit", base, found["step_by_step"], found["alone"], None
        ),
    ]


def served(bench: Bench) -> list[Line]:
    """CPU of a service's process a request, awaited on a loop, against as many threads; `SELECT 1` is the floor."""
    cost = measure_service(bench.server.url("bench_access", LOGIN), bench.own, USER, blocks=bench.blocks)
    return [
        bench.line(
            f"{what} awaited on {how}, {at_once} at once", f"{what} in as many threads",
            cost[what, how, at_once], cost[what, THREADS, at_once], 1.1 if what == "can_edit" else None,
        )
        for what, how, at_once in sorted(cost)
        if how != THREADS
    ]  # fmt: skip


def _services(
    bench: Bench, through: str, conn: Any, driver: psycopg.Connection[Any], execute: Any, how: dict[str, Any]
) -> list[Line]:
    own = bench.own

    def acting(number: int) -> None:
        with leadprotect.acting_as(conn, USER, "DE"):
            leadprotect.can_edit(conn, own[number * 7919 % len(own)])

    calls: dict[str, Callable[[int], object]] = {
        "select": lambda _: execute("SELECT 1", **how).fetchall(),
        "can_edit": lambda n: leadprotect.can_edit(conn, own[n * 7919 % len(own)], user_id=USER, territory="DE"),
        "acting": acting,
        "many": lambda n: leadprotect.can_edit_many(conn, own[n % 7 : n % 7 + 1000]),
        "list": lambda n: leadprotect.editable_leads(conn, after=own[n % len(own)], limit=50),
    }
    few = {"many": 5, "list": 20}
    cases = {name: Case(driver, call, few.get(name, 50)) for name, call in calls.items()}
    listing = {name: cases.pop(name) for name in few}
    with _transaction(conn):
        found = measured(cases, rounds=bench.blocks)
        with leadprotect.acting_as(conn, USER, "DE"):
            found_inside = measured(listing | {"select": cases["select"]}, rounds=bench.blocks)
    selects = {name: (found_inside if name in few else found)["select"] for name in calls}
    found |= {name: found_inside[name] for name in few}
    return [
        _client_line(bench, what, f"SELECT 1, {through}", found[name], selects[name], figure)
        for name, what, figure in (
            ("select", "SELECT 1", None),
            ("can_edit", "can_edit, user and territory named", None),
            ("acting", "acting_as and can_edit", 8.0 if through == "psycopg" else None),
            ("many", "can_edit_many of 1,000 own leads", None),
            ("list", "editable_leads(limit=50)", None),
        )
    ]


@contextmanager
def _transaction(conn: Any) -> Iterator[None]:
    with conn.transaction() if isinstance(conn, psycopg.Connection) else conn.begin():
        yield


def _client_line(
    bench: Bench, what: str, base: str, costs: list[Cost], select: list[Cost], figure: float | None
) -> Line:
    both = [cost.both for cost in costs]
    found, used = ratio(both, [cost.both for cost in select]), statistics.median(both)
    p50 = statistics.median(cost.wall for cost in costs)
    return Line(bench.name, what, base, found.median, figure, used, found.low, found.high, p50)


def border(bench: Bench, kind: str, *, count_figure: float | None) -> list[Line]:
    """A count of a territory and reads by primary key, against the same without row-level security.

    `kind` says what the territory of a lead may be. The floor of a count is one more comparison with a setting in
    the statement itself.
    """
    floor = f"{FLAT} AND territory = (SELECT current_setting('app.territory'))"
    one = "SELECT company FROM public.leads WHERE id = %s::uuid"
    with bench.connections() as bound, bench.connections(login="postgres") as free:
        counted = bench.cost(
            {
                "with": Case(conn := bound(), asking(conn, FLAT), 1),
                "without": Case(conn := free(), asking(conn, FLAT), 1),
                "floor": Case(conn := free(), asking(conn, floor), 1),
            },
            blocks=max(bench.blocks, 10),
        )
        read = bench.cost(
            {
                "with": Case(conn := bound(), asking(conn, one, bench.own)),
                "without": Case(conn := free(), asking(conn, one, bench.own)),
            }
        )
    return [
        bench.line(f"count of a territory, {kind}", "without RLS", counted["with"], counted["without"], count_figure),
        bench.line(f"the same with one comparison, {kind}", "without it", counted["floor"], counted["without"], None),
        bench.line(f"a lead read by key, {kind}", "without RLS", read["with"], read["without"], None),
    ]


def shadowed(bench: Bench) -> list[Line]:
    """Statements before contract while a shadow runs, against the same without one: allowed, and noted as denied."""
    some = [UUID(lead) for lead in bench.own[:2000]]
    statements: dict[str, tuple[str, list[Any], int]] = {
        "UPDATE of a lead by key": ("UPDATE public.leads SET company = company WHERE id = %s::uuid", bench.own, 50),
        f"UPDATE of {len(some):,} own leads": (
            "UPDATE public.leads SET company = company WHERE id = ANY (%b::uuid[])", [some], 1,
        ),
        "UPDATE of a row of lead_tables": (
            "UPDATE public.bench_notes SET said = said WHERE lead_id = %s::uuid", some, 50,
        ),
    }  # fmt: skip
    found: dict[str, dict[bool, list[float]]] = {}
    url = bench.server.url("bench_access")
    with (
        tempfile.TemporaryDirectory(dir=bench.server.folder) as folder,
        isolated(Path(folder), database_url=url, lead_tables="public.bench_notes (lead_id)"),
        bench.connections() as bound,
        psycopg.connect(url, autocommit=True) as owner,
    ):
        owner.execute(NOTES)
        owner.execute("INSERT INTO public.bench_notes (lead_id) SELECT unnest(%s::uuid[])", (some,))
        cases = {}
        for what, (statement, values, calls) in statements.items():
            for user, when in ((USER, "allowed"), ("", "noted")):
                conn = bound()
                conn.execute("SELECT set_config('app.user_id', %s, false)", (user,))
                cases[f"{what}, {when}"] = Case(conn, undone(conn, statement, values), calls)
        for _ in range(max(bench.blocks // 4, 2)):
            for on in (False, True):
                (start_shadow if on else stop_shadow)()
                for what, cost in bench.cost(cases, blocks=1).items():
                    found.setdefault(what, {}).setdefault(on, []).extend(cost)
        stop_shadow()
        owner.execute("DROP TABLE public.bench_notes")
    return [bench.line(what, "without a shadow", cost[True], cost[False], None) for what, cost in found.items()]


def rows_of_leads(bench: Bench) -> list[Line]:
    """Reads of a table of lead_tables, against the same without row-level security.

    One floor is a query of its own: the same rows where their lead is there, looked up by its key, and no policy
    anywhere. The other are policies by hand on copies of both tables, that ask the lead and whose role acts.
    """
    hundred = [[UUID(generated_lead((n * 7919 + step) % bench.leads)) for n in range(100)] for step in range(20)]
    by_key = "SELECT n.* FROM public.bench_notes AS n WHERE n.lead_id = %s::uuid"
    joined = "SELECT n.* FROM public.leads AS l JOIN public.bench_notes AS n ON n.lead_id = l.id WHERE l.id = %s::uuid"
    of_many = "SELECT n.* FROM public.bench_notes AS n WHERE n.lead_id = ANY (%b::uuid[])"
    there = " AND EXISTS (SELECT FROM public.leads AS l WHERE l.id = n.lead_id)"
    asked: dict[str, tuple[str, list[Any], int]] = {
        "notes of a lead by key": (by_key, bench.own, 50),
        "notes of a lead, joined with it": (joined, bench.own, 50),
        "notes of 100 leads": (of_many, hundred, 5),
    }
    url = bench.server.url("bench_access")
    with (
        tempfile.TemporaryDirectory(dir=bench.server.folder) as name,
        isolated(
            folder := Path(name), database_url=url, observation_window=0, lead_tables="public.bench_notes (lead_id)"
        ),
    ):
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(NOTES)
            owner.execute("INSERT INTO public.bench_notes (lead_id) SELECT id FROM public.leads, generate_series(1, 3)")
            owner.execute(BY_HAND)
            owner.execute("VACUUM (ANALYZE) public.bench_notes, public.hand_notes, public.hand_leads")
        run_alembic(folder, "-x", "contract=require", "upgrade", "head")
        lines: list[Line] = []
        for what, (statement, values, calls) in asked.items():
            copied = statement.replace("public.leads", "public.hand_leads").replace("bench_notes", "hand_notes")
            with bench.connections() as bound, bench.connections(login="postgres") as free:
                cost = bench.cost(
                    {
                        "with": Case(conn := bound(), asking(conn, statement, values), calls),
                        "without": Case(conn := free(), asking(conn, statement, values), calls),
                        "floor": Case(conn := free(), asking(conn, statement + there, values), calls),
                        "hand": Case(conn := bound(), asking(conn, copied, values), calls),
                    }
                )
            lines += [
                bench.line(what, "without RLS", cost["with"], cost["without"], 1.3),
                bench.line(f"{what}, where it is there", "without that", cost["floor"], cost["without"], None),
                bench.line(f"{what}, by policies by hand", "without RLS", cost["hand"], cost["without"], None),
                bench.line(what, "policies by hand", cost["with"], cost["hand"], None),
            ]
        run_alembic(folder, "downgrade", phases.before("contract")[-1])
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("DROP TABLE public.bench_notes, public.hand_notes, public.hand_leads")
    return lines


def without_null(server: Server, url: str) -> None:
    """The same host, in which every lead has a territory, through contract: its border is one that an index serves."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("DELETE FROM public.leads WHERE territory IS NULL")
        conn.execute("ALTER TABLE public.leads ALTER territory SET NOT NULL")
        conn.execute("VACUUM (ANALYZE) public.leads")
    run_alembic(server.folder, "-x", "contract=require", "upgrade", "head")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE INDEX ON public.leads (territory)")
        conn.execute("VACUUM (ANALYZE) public.leads")
