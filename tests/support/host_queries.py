"""What protection costs the host's own statements: bulk updates of leads, reads of a table with data of leads.

Run in a checkout: ``.venv/bin/python -m tests.support.host_queries 18`` (or another installed major version). Each
figure is the CPU time of the server's process for a statement, beside the same statement on an unprotected copy in
the same run: medians of the rounds.
"""

from __future__ import annotations

import os
import sys
from operator import truediv
from pathlib import Path
from statistics import median

import psycopg

from leadprotect.lab import servers
from tests.support.database import Database
from tests.support.profiles import Profile
from tests.support.revisions import MIGRATE_HEAD

LEADS = 100_000
ROUNDS = 5
BULK = (1_000, 4_000, 16_000, 100_000)
IN_STEP = {"owners_from": "column", "owner_column": "seller"}
FILL = f"""
    ALTER TABLE public.leads DISABLE TRIGGER USER;
    INSERT INTO public.leads (id, territory, seller)
    SELECT md5(n::text)::uuid, CASE WHEN n <= {LEADS} THEN 'DE' ELSE 'CH' END, '%s'
    FROM generate_series(1, {2 * LEADS}) AS n;
    INSERT INTO {{schema}}.user_lead_assignments (lead_id, territory, user_id, source)
    SELECT id, territory, seller, 'assign' FROM public.leads;
    CREATE TABLE public.contacts (id bigserial PRIMARY KEY, lead_id uuid, email text);
    INSERT INTO public.contacts (lead_id, email)
    SELECT md5(n::text)::uuid, n || '@example.com' FROM generate_series(1, {2 * LEADS}) AS n, generate_series(1, 3);
    CREATE INDEX ON public.contacts (lead_id);
    CREATE TABLE public.leads_before (LIKE public.leads INCLUDING ALL);
    INSERT INTO public.leads_before SELECT * FROM public.leads;
    CREATE TABLE public.contacts_before (LIKE public.contacts INCLUDING ALL);
    INSERT INTO public.contacts_before SELECT * FROM public.contacts;
    GRANT SELECT, UPDATE ON public.contacts, public.leads_before, public.contacts_before TO "%s"
    """
JOINED = "SELECT c.* FROM {leads} AS l JOIN {contacts} AS c ON c.lead_id = l.id WHERE l.id "
HUNDRED = "= ANY (ARRAY(SELECT md5(n::text)::uuid FROM generate_series(1, 100) AS n)) OR l.id = %s"
READS = {
    "the contacts of one lead": ("SELECT * FROM {contacts} WHERE lead_id = %s", 1000),
    "the same, joined with the lead": (JOINED + "= %s", 1000),
    "the contacts of 100 leads": (JOINED + HUNDRED, 50),
    "count all contacts": ("SELECT count(*) FROM {contacts} WHERE id::text <> %s::text", 5),
}


def main(major: int) -> None:
    start = servers.embedded(servers.FAST) if major not in servers.installed() else servers.system(major, servers.FAST)
    with start as server:
        profile = Profile(f"pg{major}", major)
        for kept, settings in {"": {}, ", a column in step": IN_STEP}.items():
            name = f"host_queries_{len(settings)}"
            server.create_database(name)
            database = Database(server, profile, name, {"lead_tables": "public.contacts (lead_id)"} | settings)
            prepare(database, profile.login("seller_de"))
            for who, login in (("own", "seller_de"), ("maintained", None)):
                for count in BULK:
                    bulk(database, major, f"{count:,} {who} leads{kept}", login, count)
            for what, (query, times) in READS.items() if not kept else ():
                read(database, major, what, query, times)


def prepare(database: Database, login: str) -> None:
    database.create_host_tables()
    database.sql("ALTER TABLE public.leads ADD seller uuid")
    for setting in [setting for setting in os.environ if setting.startswith("LEADPROTECT_")]:
        del os.environ[setting]
    os.environ.update(database.environment | {"LEADPROTECT_LEAD_TABLES": ""})
    database.upgrade(MIGRATE_HEAD)
    os.environ.update(database.environment)
    database.create_logins()
    database.sql_script(FILL % (database.user(1), login))
    triggers = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'public.leads'::regclass AND NOT tgisinternal"
    for name in database.sql(triggers):
        database.sql(f'ALTER TABLE public.leads ENABLE ALWAYS TRIGGER "{name}"')
    database.upgrade("head", contract="require")
    with database.connect(autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE")


def bulk(database: Database, major: int, what: str, login: str | None, count: int) -> None:
    took: dict[str, list[float]] = {"leads_before": [], "leads": []}
    ids = [f"{lead}" for lead in database.sql(f"SELECT id FROM public.leads WHERE territory = 'DE' LIMIT {count}")]
    for _ in range(ROUNDS):
        for table, times in took.items():
            with database.connect(login) as conn:
                if login:
                    database.context(conn, database.user(1), "DE")
                before = spent(conn)
                conn.execute(f"UPDATE public.{table} SET city = city WHERE id = ANY (%s::uuid[])", (ids,))
                times.append(spent(conn) - before)
                conn.rollback()
    report(major, f"UPDATE of {what}", *took.values(), per=count)


def read(database: Database, major: int, what: str, query: str, times: int) -> None:
    took: dict[str, list[float]] = {"_before": [], "": []}
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        conn.prepare_threshold = 0
        ids = [f"{lead}" for lead in database.sql(f"SELECT id FROM public.leads WHERE territory = 'DE' LIMIT {times}")]
        for _ in range(ROUNDS):
            for suffix, found in took.items():
                text = query.format(leads=f"public.leads{suffix}", contacts=f"public.contacts{suffix}")
                for lead in ids[:6]:
                    conn.execute(text, (lead,))
                before = spent(conn)
                for lead in ids:
                    conn.execute(text, (lead,))
                found.append((spent(conn) - before) / len(ids))
    report(major, what, *took.values(), per=1)


def spent(conn: psycopg.Connection) -> float:
    """Microseconds of CPU that the server's process has had."""
    return int(Path(f"/proc/{conn.info.backend_pid}/schedstat").read_text().split()[0]) / 1000


def report(major: int, what: str, before: list[float], ours: list[float], *, per: int) -> None:
    was, now, times = median(before), median(ours), median(map(truediv, ours, before))
    sys.stdout.write(f"| {major} | {what} | {was / per:,.1f} | {now / per:,.1f} | {times:.2f} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 18)
