"""What the border of row security costs: counts and reads of leads, a shadow of it, rows of lead_tables."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from leadprotect import phases
from leadprotect.lab.bench.clock import Case
from leadprotect.lab.bench.comparison import DATABASE, LOGIN, USER, asking, undone
from leadprotect.lab.commands import isolated, run_alembic
from leadprotect.lab.data import generated_lead
from leadprotect.migration.shadowing import start_shadow, stop_shadow

if TYPE_CHECKING:
    from leadprotect.lab.bench.comparison import Bench, Line
    from leadprotect.lab.servers import Server

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
FLAT = "SELECT count(*) FROM public.leads WHERE territory = 'DE'"


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
    url = bench.server.url(DATABASE)
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
    url = bench.server.url(DATABASE)
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
