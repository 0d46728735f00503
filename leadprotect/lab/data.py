"""The host's database, generated: leads and their activities as a sales organisation has them, of any number."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any
from uuid import UUID

from leadprotect.settings import Settings, literal

if TYPE_CHECKING:
    import psycopg

ACTIVITIES_PER_LEAD = 5
USERS = 200

LEAD_ID = "md5('lead ' || {n})::uuid"
USER_ID = "('00000000-0000-4000-8000-' || lpad(mod({n}, " + str(USERS) + ")::text, 12, '0'))::uuid"

KINDS = ", ".join(map(literal, Settings().qualifying_kinds))
"""Kinds that make an owner, as a list in SQL."""

_TABLES = """
CREATE TABLE public.leads (id uuid PRIMARY KEY, territory text, company text, city text);
CREATE TABLE public.activities (
  id {id_type} PRIMARY KEY, lead_id uuid NOT NULL, user_id uuid, kind text NOT NULL, created_at timestamptz
);
"""
_KEYS = """
CREATE INDEX ON public.activities (lead_id);
ALTER TABLE public.activities ADD FOREIGN KEY (lead_id) REFERENCES public.leads ON DELETE CASCADE;
"""
# every 200th lead has no territory; ids lie in no order, as in a table that grew over years
_LEADS = f"""
INSERT INTO public.leads (id, territory, company, city)
SELECT {LEAD_ID.format(n="n")},
       CASE WHEN n % 200 = 199 THEN NULL WHEN n % 10 < 7 THEN 'DE' ELSE 'CH' END,
       'Muster ' || n || ' GmbH', 'Ort ' || n % 5000
FROM generate_series(0, {{leads}} - 1) AS n;
"""
# every 8th lead never had a qualifying activity, about every 50th activity has no user;
# the multiplier is a prime, so the activities of all leads are mixed, and none has more than another
_ACTIVITIES = f"""
INSERT INTO public.activities (lead_id, user_id, kind, created_at)
SELECT {LEAD_ID.format(n="lead")},
       CASE WHEN random() > 0.02 THEN {USER_ID.format(n="lead + n % 3")} END,
       CASE WHEN lead % 8 = 7 THEN 'NOTE'
            ELSE (ARRAY[{KINDS}, 'NOTE', 'EMAIL_SENT'])[1 + (random() * 6)::integer] END,
       now() - random() * interval '540 days'
FROM (
  SELECT n, n * 2654435761 % {{leads}} AS lead
  FROM generate_series(1, {{leads}}::bigint * {ACTIVITIES_PER_LEAD}) AS n) AS drawn;
"""


def create_host_tables(conn: psycopg.Connection[Any], *, id_type: str = "bigserial") -> None:
    """Leads and activities without a row; `id_type` is that of an activity's id."""
    conn.execute(_TABLES.replace("{id_type}", id_type))


def add_host_keys(conn: psycopg.Connection[Any]) -> None:
    """What is faster to make when the rows are there, and its statistics."""
    conn.execute(_KEYS)
    conn.execute("ANALYZE public.leads, public.activities")


def generate_host(conn: psycopg.Connection[Any], leads: int, *, activities: bool = True) -> None:
    """Tables with `leads` leads, and five times as many activities; `conn` is in autocommit."""
    create_host_tables(conn)
    for statement in (_LEADS, *([_ACTIVITIES] if activities else [])):
        conn.execute(statement.replace("{leads}", str(leads)))
    add_host_keys(conn)
    conn.execute("VACUUM (ANALYZE) public.leads, public.activities")
    conn.execute("CHECKPOINT")


def generated_lead(number: int) -> str:
    """The id of the lead with a number, from 0."""
    return str(UUID(hashlib.md5(f"lead {number}".encode(), usedforsecurity=False).hexdigest()))


def generated_user(number: int) -> str:
    """The id of a user, from 0 to 199."""
    return f"00000000-0000-4000-8000-{number:012}"
