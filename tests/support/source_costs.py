"""What a backfill costs with each source of owners, against one INSERT of the same owners by hand, in either form.

Run in a checkout: ``.venv/bin/python -m tests.support.source_costs 18`` (or another installed major version). A line
has the CPU time of all processes of the server: both forms by hand, ours with its own verification, that verification
alone; and ours times either form. Medians of the rounds.
"""

from __future__ import annotations

import os
import sys
from operator import truediv
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from leadprotect import backfill
from leadprotect.backfilling.verify import verify_owners
from leadprotect.lab import servers
from leadprotect.settings import current
from tests.support.database import Database
from tests.support.profiles import Profile
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from leadprotect.lab.servers import Server

LEADS = 200_000
ROUNDS = 5
FILL = f"""
    ALTER TABLE public.leads ADD seller uuid;
    INSERT INTO public.leads (id, territory, seller)
    SELECT md5(n::text)::uuid, 'DE', CASE WHEN n % 8 > 0 THEN md5('u' || n % 97)::uuid END
    FROM generate_series(1, {LEADS}) AS n;
    INSERT INTO public.activities (lead_id, user_id, kind, created_at)
    SELECT md5((1 + n % {LEADS})::text)::uuid, md5('u' || n % 97)::uuid,
           CASE WHEN n % 3 = 0 THEN 'NOTE' ELSE 'QUALIFIED_CALL' END, timestamptz '2026-01-01' - n * interval '1 min'
    FROM generate_series(1, {LEADS} * 5) AS n
    """
NEWEST = """
    SELECT v.user_id, v.created_at, v.id FROM public.activities AS v
    WHERE v.lead_id = l.id AND v.kind IN ({kinds}) AND v.user_id IS NOT NULL
    ORDER BY v.created_at DESC NULLS LAST, v.id DESC LIMIT 1
    """
INSERT = """
    INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id, source, activity_at, activity_id)
    SELECT l.id, l.territory, OWNER, 'backfill', n.created_at, n.id
    FROM public.leads AS l LEFT JOIN JOINED
    WHERE l.territory = 'DE' AND OWNER IS NOT NULL
    """
# for each lead, or all activities in the order of their leads at once
BY_HAND = {
    "LATERAL": f"LATERAL ({NEWEST}) AS n ON ASKED",
    "DISTINCT ON": """
    (SELECT DISTINCT ON (v.lead_id) v.lead_id, v.user_id, v.created_at, v.id FROM public.activities AS v
     WHERE v.kind IN ({kinds}) AND v.user_id IS NOT NULL
     ORDER BY v.lead_id, v.created_at DESC NULLS LAST, v.id DESC) AS n ON n.lead_id = l.id AND ASKED
    """,
}
SOURCES = {
    "activities": ("n.user_id", "true"),
    "column": ("l.seller", "false"),
    "column, activities": ("coalesce(l.seller, n.user_id)", "l.seller IS NULL"),
    "activities, column": ("coalesce(n.user_id, l.seller)", "true"),
}
FORGET = """
    TRUNCATE {schema}.user_lead_assignments, {schema}.user_lead_assignment_history, {schema}.unsettled_leads;
    DELETE FROM {schema}.backfill_deferred;
    DELETE FROM {schema}.backfill_chunks;
    UPDATE {schema}.backfill_jobs
    SET started_at = NULL, ended_at = NULL, finished_at = NULL, next_lead = NULL, exhausted = false, chunks = 0,
        retried = 0
    """


def main(major: int) -> None:
    settings = servers.FAST | {"autovacuum": "off"}  # its time is the server's, too
    start = servers.embedded(settings) if major not in servers.installed() else servers.system(major, settings)
    with start as server:
        for number, (source, (owner, asked)) in enumerate(SOURCES.items()):
            name = f"sources_{number}"
            server.create_database(name)
            column = {"owner_column": "seller"} if "column" in source else {}
            database = Database(server, Profile(f"pg{major}", major), name, {"owners_from": source} | column)
            prepare(database)
            by_hand = {
                form: INSERT.replace("JOINED", joined).replace("OWNER", owner).replace("ASKED", asked)
                for form, joined in BY_HAND.items()
            }
            measure(database, major, source, by_hand)


def prepare(database: Database) -> None:
    for setting in [setting for setting in os.environ if setting.startswith("LEADPROTECT_")]:
        del os.environ[setting]
    os.environ.update(database.environment)
    current.cache_clear()
    database.create_host_tables()
    database.sql_script(FILL)
    database.upgrade(MIGRATE_HEAD)
    with database.connect(autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE")


def measure(database: Database, major: int, source: str, by_hand: dict[str, str]) -> None:
    costs: dict[str, list[float]] = {form: [] for form in (*by_hand, "ours", "verified")}
    for _ in range(ROUNDS):
        for form, spent in costs.items():
            if form != "verified":
                database.sql_script(FORGET)
            before = cpu(database.server)
            if form in by_hand:
                database.sql(by_hand[form])
            elif form == "ours":
                backfill(database.url, "DE", workers=1, settings=database.settings)
            else:
                with database.connect() as conn:
                    verify_owners(conn, ["DE"], settings=database.settings)
            spent.append(cpu(database.server) - before)
    times = (median(map(truediv, costs["ours"], costs[form])) for form in by_hand)
    seconds = " | ".join(f"{median(spent):.2f} s" for spent in costs.values())
    sys.stdout.write(f"| {major} | {source} | {seconds} | {' | '.join(f'{one:.2f}' for one in times)} |\n")
    sys.stdout.flush()


def cpu(server: Server) -> float:
    """CPU seconds of the server's processes, of those that ended, too."""
    ticks = os.sysconf("SC_CLK_TCK")
    found = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        own, ended = fields[11:13], fields[13:15]
        if path.parent.name == str(server.pid):
            found += sum(map(int, own + ended))
        elif fields[1] == str(server.pid):
            found += sum(map(int, own))
    return found / ticks


if __name__ == "__main__":
    main(int(sys.argv[1]))
