"""The demo: a PostgreSQL of its own, a sales organisation's leads in it, and the real migration."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.lab.commands import foreign_settings, isolated
from leadprotect.lab.data import add_host_keys, create_host_tables
from leadprotect.lab.demo import story
from leadprotect.lab.demo.server import Demo
from leadprotect.lab.servers import embedded

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg
    from rich.console import Console

    from leadprotect.lab.sheet import Sheet

SELLERS = """
CREATE TABLE public.users (id uuid PRIMARY KEY, name text NOT NULL);
CREATE ROLE seller_de LOGIN;
CREATE ROLE seller_ch LOGIN;
CREATE ROLE auditor LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.leads, public.activities TO seller_de, seller_ch;
GRANT SELECT ON public.users TO seller_de, seller_ch
"""


@dataclass(frozen=True)
class Shown:
    """What a demo came to: rows, seconds, and the URL of the server where it goes on."""

    leads: int
    activities: int
    owners: int
    attempts: int
    seconds: float
    database_url: str | None


def run_demo(
    console: Console,
    fill: Callable[[psycopg.Connection[Any]], None],
    show: Callable[[Sheet], None],
    *,
    keep: bool = False,
) -> Shown:
    """Start a server, have `fill` load its tables, migrate, backfill, tell the story, and end the server again.

    The story goes to `console`, its tables to `show`.
    With `keep` the server stays after a story that went well. Raises `LeadProtectError`.
    """
    began = time.perf_counter()
    hidden = tuple(name for name in foreign_settings() if name != "DATABASE_URL")
    with embedded(keep=keep) as server:
        demo = Demo(server, console, show, hidden)
        server.create_database("demo")
        # a demo can't wait; a production database keeps the default of 7 days
        with isolated(server.folder, database_url=demo.url(), observation_window=0):
            story.introduce(demo, time.perf_counter() - began, _load(demo, fill))
            story.tell(demo)
            story.say_what_next(demo, time.perf_counter() - began, keep=keep)
            return _shown(demo, time.perf_counter() - began, keep=keep)


def _shown(demo: Demo, seconds: float, *, keep: bool) -> Shown:
    leads, activities = demo.sql("SELECT (SELECT count(*) FROM leads), (SELECT count(*) FROM activities)")[0]
    owners, attempts = story.rows_kept(demo, "leadprotect").values()
    return Shown(leads, activities, owners, attempts, seconds, demo.url() if keep else None)


def _load(demo: Demo, fill: Callable[[psycopg.Connection[Any]], None]) -> float:
    """Create the host's tables and fill them in one transaction; returns the seconds."""
    began = time.perf_counter()
    with demo.connect() as conn:
        create_host_tables(conn, id_type="uuid")
        conn.execute(SELLERS)
        fill(conn)
        add_host_keys(conn)
    return time.perf_counter() - began
