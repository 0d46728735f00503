"""What access checks cost the server: against the same rows read plainly, a protection by hand, and SELECT 1.

The border of row security, and what a service sees, are measured in modules of their own.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg

from leadprotect import phases, processes
from leadprotect.errors import LeadProtectError
from leadprotect.lab.bench.border import border, rows_of_leads, shadowed, without_null
from leadprotect.lab.bench.clock import Case
from leadprotect.lab.bench.comparison import DATABASE, LOGIN, SHARING, USER, Bench, Line, asking, asking_to, undone
from leadprotect.lab.bench.instructions import instructions_of
from leadprotect.lab.bench.service import services
from leadprotect.lab.commands import isolated, run_alembic
from leadprotect.lab.data import LEAD_ID, USER_ID, generate_host, generated_lead

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.lab.servers import Server

SCRIPTS = Path(__file__).parent / "pgbench"
ORIGINAL = Path(__file__).parent / "original.sql"

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
DECIDED = "SELECT original.decide_owner(%s::uuid)"
ORIGINAL_CHECK = "SELECT original.can_edit_lead(%s::uuid)"


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
    url = server.create_database(DATABASE)
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
            "edits of what is shared": shared_edits,
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
        "the least that decides about an owner": [*bound, DECIDED.replace("%s", lead)],
        "protection by hand": [*bound, ORIGINAL_CHECK.replace("%s", lead)],
        "can_edit_lead, own lead": [*bound, CHECK.replace("%s", lead)],
    }
    found = instructions_of(bench.server, DATABASE, asked)
    return [Count(bench.name, what, number, number / found["SELECT 1"]) for what, number in found.items()]


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
        psycopg.connect(bench.server.url(DATABASE), autocommit=True) as owner,
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
                "least": (bound(), DECIDED, bench.own),
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
    select, join, floor, original, least = (cost[name] for name in ("select", "join", "floor", "original", "least"))
    joined, read, decided = (
        "two rows joined",
        "the two rows read by a function",
        "the least that decides about an owner",
    )
    own, by_hand = f"can_edit_lead, own lead{when}", "protection by hand"
    sharing = f"can_edit_lead, own lead of who shares{when}"
    lines = [
        bench.line(own, joined, cost["own"], join, 1.65),
        bench.line(own, read, cost["own"], floor, None),
        bench.line(own, decided, cost["own"], least, None),
        bench.line(own, by_hand, cost["own"], original, bench.figure(1.2, 0.4)),
        bench.line(own, "SELECT 1", cost["own"], select, None),
        bench.line(sharing, joined, cost["sharing"], join, 1.65),
        bench.line(sharing, decided, cost["sharing"], least, None),
        bench.line(f"can_edit_lead, lead of a colleague{when}", joined, cost["foreign"], join, None),
        bench.line(f"{decided}{when}", joined, least, join, None),
        bench.line(f"{decided}{when}", by_hand, least, original, None),
    ]
    if not when:
        lines += [
            bench.line("one row by key", "SELECT 1", cost["row"], select, None),
            bench.line("two rows by key, joined", "SELECT 1", join, select, None),
            bench.line(read, joined, floor, join, None),
            bench.line(by_hand, "SELECT 1", original, select, None),
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
        bench.line("can_edit_many of 1,000 leads", "the same read by key", cost["many"], cost["floor"], None),
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
    """An assertion with its record against an INSERT, and the one by hand; commits wait for no disk.

    One floor decides nothing, the other about owners alone.
    """
    asked = {
        "insert": INSERT,
        "floor": "SELECT original.lock_and_insert(%s::uuid)",
        "least": "SELECT original.decide_and_insert(%s::uuid)",
        "original": "SELECT original.assert_edit(%s::uuid)",
        "ours": "SELECT leadprotect.assert_edit_and_audit(%s::uuid)",
    }
    with bench.connections() as bound:
        cost = bench.cost(
            {name: Case(conn := bound(), asking_to(conn, statement, bench.own)) for name, statement in asked.items()}
        )
    ours, plain, floor, least, by_hand = (
        "assert_edit_and_audit", "plain INSERT", "lock and INSERT by a function",
        "the least that decides, locks and INSERTs", "assertion by hand",
    )  # fmt: skip
    return [
        bench.line(ours, plain, cost["ours"], cost["insert"], 4.0),
        bench.line(ours, floor, cost["ours"], cost["floor"], None),
        bench.line(ours, least, cost["ours"], cost["least"], None),
        bench.line(ours, by_hand, cost["ours"], cost["original"], bench.figure(0.8, 0.4)),
        bench.line(floor, plain, cost["floor"], cost["insert"], None),
        bench.line(floor, by_hand, cost["floor"], cost["original"], None),
        bench.line(least, plain, cost["least"], cost["insert"], None),
        bench.line(least, by_hand, cost["least"], cost["original"], None),
    ]


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


def shared_edits(bench: Bench) -> list[Line]:
    """UPDATE of 1,000 leads of somebody else that are shared one by one, against the same that nothing protects."""
    ids = [[UUID(lead) for lead in bench.own[:1000]]]
    by_ids = "UPDATE public.{} SET company = company WHERE id = ANY (%b::uuid[])"
    with bench.connections(SHARING) as bound, psycopg.connect(bench.server.url(DATABASE), autocommit=True) as owner:
        owner.execute(
            "INSERT INTO leadprotect.lead_protection_rules (user_id, territory, protection, lead_id) "
            "SELECT %s, 'DE', 'COLLABORATOR', shared FROM unnest(%s::uuid[]) AS shared",
            (SHARING, ids[0]),
        )
        owner.execute("VACUUM ANALYZE leadprotect.lead_protection_rules")
        cost = bench.cost(
            {
                table: Case(conn := bound(), undone(conn, by_ids.format(table), ids), 1)
                for table in ("plain_leads", "leads")
            },
            blocks=min(bench.blocks, 6),
        )
        for statement in ("TRUNCATE", "VACUUM ANALYZE"):
            owner.execute(f"{statement} leadprotect.lead_protection_rules")
    what = f"UPDATE of {len(ids[0]):,} shared leads by ids"
    return [bench.line(what, "unprotected", cost["leads"], cost["plain_leads"], None)]


def committed(bench: Bench, seconds: int) -> list[Line]:
    """Assertions of 8 clients that commit, by their 95th percentiles: here the disk counts, too.

    Both floors lock and write the same rows; one decides nothing, the other about owners alone.
    """
    insert, floor, least, ours = "plain_insert", "lead_floor", "lead_decided", "lead_assert"
    rounds = [{script: _p95(bench, script, seconds) for script in (insert, floor, least, ours)} for _ in range(3)]
    when = "committed by 8 clients, p95"
    return [
        Line(bench.name, what, base, middle, figure, statistics.median(p95[script] for p95 in rounds), low, high)
        for what, script, base, than, figure in (
            (f"the same {when}", ours, "plain INSERT", insert, 1.9),
            (f"the same {when}", ours, "lock and INSERT by a function", floor, None),
            (f"the same {when}", ours, "the least that decides, locks and INSERTs", least, None),
            (f"lock and INSERT by a function, {when}", floor, "plain INSERT", insert, None),
            (f"the least that decides, locks and INSERTs, {when}", least, "plain INSERT", insert, None),
        )
        for low, middle, high in [
            statistics.quantiles([p95[script] / p95[than] for p95 in rounds], n=4, method="inclusive")
        ]
    ]


def _p95(bench: Bench, script: str, seconds: int) -> float:
    """Microseconds."""
    return statistics.quantiles(pgbench(bench, script, seconds, clients=8), n=20)[18] * 1000


def pgbench(bench: Bench, script: str, seconds: int, *, clients: int) -> list[float]:
    """Latencies in milliseconds of one run."""
    server = bench.server
    with tempfile.TemporaryDirectory(dir=server.folder) as folder:
        arguments = ["-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-T", str(seconds)]
        arguments += ["-D", f"leads={bench.leads}", "--log", "--log-prefix", f"{folder}/log", "--sampling-rate", "0.2"]
        arguments += ["-f", str(SCRIPTS / f"{script}.sql"), "-h", server.host, "-U", LOGIN, DATABASE]
        own = os.environ | {"PGOPTIONS": f"-c app.user_id={USER} -c app.territory=DE"}
        done = processes.run_program([server.programs / "pgbench", *arguments], env=own)
        if done.returncode:
            raise LeadProtectError(f"pgbench ended with exit code {done.returncode}: {done.stderr}")
        found = [path.read_text() for path in Path(folder).glob("log*")]
    return [int(entry.split()[2]) / 1000 for text in found for entry in text.splitlines()]
