"""Writes two scripts that run as they stand on a user's database: a load of checks, and assertions about real leads."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import all_codes, territory_role
from leadprotect.database.memberships import grants
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import row
from leadprotect.errors import InvalidRequest, LeadProtectError, ProtectionUnavailable
from leadprotect.settings import Settings, current, ident, literal, render, type_name
from leadprotect.settings.codes import code_literal

if TYPE_CHECKING:
    import psycopg

CHECK, TESTS = "lead_check.sql", "lead_protection_tests.sql"
MOST = 100
"""Leads that stand in a script: more would make its text the load."""

_SUITE = Path(__file__).parents[1] / "pgtap"
_NOBODY = {"uuid": "00000000-0000-4000-8000-00000000dead", "text": "nobody at all", "bigint": "-1", "integer": "-1"}
_OWNED = """
SELECT a.lead_id::text, a.user_id::text FROM {schema}.user_lead_assignments AS a
WHERE a.territory = %s AND a.user_id IS NOT NULL AND EXISTS (
  SELECT FROM {leads} AS l WHERE l.{lead_id} = a.lead_id AND l.{territory}::text = a.territory)
ORDER BY a.lead_id LIMIT %s
"""
_HOLDS = (
    "SELECT coalesce(pg_catalog.pg_has_role(pg_catalog.to_regrole(pg_catalog.quote_ident(%s))::oid, 'USAGE'), false)"
)

_CHECK = """\
-- A random lead of {count}, checked as its owner, in his context:
--   pgbench -n -f {file} -c 10 -j 4 -T 60 $DATABASE_URL
-- The login needs the roles {app} and {role}.
\\set n random(1, {count})
BEGIN;
SELECT {schema}.set_context(({users})[:n], {territory});
SELECT {schema}.can_edit_lead(({leads})[:n]);
END;
"""
_TESTS = """\
-- Assertions about real leads and their owners; reads only. The exit code is 3 when one fails:
--   psql -X -f {file} $DATABASE_URL
-- The login needs the roles {app} and {role}. On a copy, as a superuser and with the extension pgTAP, -v suite=on
-- runs the whole suite of leadprotect as well.
\\set ON_ERROR_STOP on
\\set QUIET on
\\pset tuples_only on
\\pset format unaligned
\\pset pager off
SELECT pg_catalog.set_config('leadprotect.failed', '0', false),
       pg_catalog.set_config('leadprotect.asked', '0', false) \\g /dev/null
CREATE FUNCTION pg_temp.holds(held boolean, what text) RETURNS text LANGUAGE plpgsql AS $holds$
DECLARE
  number integer := pg_catalog.current_setting('leadprotect.asked')::integer + 1;
BEGIN
  PERFORM pg_catalog.set_config('leadprotect.asked', number::text, false);
  IF held IS NOT TRUE THEN
    PERFORM pg_catalog.set_config(
      'leadprotect.failed', (pg_catalog.current_setting('leadprotect.failed')::integer + 1)::text, false);
  END IF;
  RETURN CASE WHEN held THEN 'ok ' ELSE 'not ok ' END || number || ' - ' || what;
END $holds$;
CREATE FUNCTION pg_temp.refused(statement text) RETURNS boolean LANGUAGE plpgsql AS $refused$
BEGIN
  EXECUTE statement;
  RETURN false;
EXCEPTION WHEN insufficient_privilege THEN
  RETURN true;
END $refused$;

BEGIN;
SELECT pg_temp.holds(pg_catalog.bool_and(NOT {schema}.can_edit_lead(lead)), 'without a context nobody may edit')
FROM unnest({leads}) AS lead;
SELECT pg_temp.holds(NOT {schema}.can_edit_lead(NULL), 'a lead that is NULL is nobody''s, and false is no NULL');
COMMIT;

CREATE FUNCTION pg_temp.asked(usr text, place text, lead {lead_type}) RETURNS text LANGUAGE plpgsql AS $asked$
BEGIN
  PERFORM {schema}.set_context(usr, place);
  RETURN {schema}.explain_edit(lead);
END $asked$;

BEGIN;
SELECT pg_temp.holds(pg_temp.asked(owner, {territory}, lead) = 'owner', 'lead ' || lead || ' is its owner''s to edit')
FROM unnest({users}, {leads}) AS owned (owner, lead);
SELECT pg_temp.holds(pg_temp.asked({nobody}, {territory}, lead) = 'not_owner', 'lead ' || lead || ' is nobody else''s')
FROM unnest({leads}) AS lead;
SELECT pg_temp.holds(pg_temp.asked(owner, 'no such territory', lead) IN ('no_context', 'not_found'),
                     'nor to its owner in a territory that there is not')
FROM unnest({users}, {leads}) AS owned (owner, lead) LIMIT 1;
COMMIT;

SELECT pg_temp.holds(coalesce(pg_catalog.current_setting({user_guc}, true), '') = '',
                     'a context ends with its transaction');
SELECT pg_temp.holds(pg_temp.refused('DELETE FROM {schema_text}.lead_access_audit WHERE false'),
                     'nobody deletes what was recorded');
SELECT pg_temp.holds(pg_temp.refused('UPDATE {schema_text}.lead_access_audit SET reason = reason WHERE false'),
                     'nor changes it');
{enforced}
DO $end$
BEGIN
  IF pg_catalog.current_setting('leadprotect.failed')::integer > 0 THEN
    RAISE EXCEPTION '% of % assertions do not hold',
      pg_catalog.current_setting('leadprotect.failed'), pg_catalog.current_setting('leadprotect.asked');
  END IF;
END $end$;
SELECT '1..' || pg_catalog.current_setting('leadprotect.asked');

\\if :{{?suite}}
{suite}
\\endif
"""
_ENFORCED = """\
SELECT pg_temp.holds(c.relrowsecurity, 'row security is on for the leads')
FROM pg_catalog.pg_class AS c WHERE c.oid = pg_catalog.to_regclass({leads_name});
"""


@dataclass(frozen=True)
class Scripts:
    """What was written, and how it is run."""

    files: tuple[Path, ...]
    territory: str
    leads: int
    commands: tuple[str, ...]


def write_scripts(
    conn: psycopg.Connection[Any], folder: Path, *, territory: str | None = None, force: bool = False
) -> Scripts:
    """Write `CHECK` and `TESTS` into `folder`, with leads and owners of `territory`, by default the one with most.

    Raises `InvalidRequest` where one of the files is there and `force` is not, or where nobody owns a lead there.
    """
    s = current()
    taken = [file for file in (folder / CHECK, folder / TESTS) if file.exists()]
    if taken and not force:
        raise InvalidRequest(f"{taken[0]} is there already: --force writes it anew")
    place, owned = _owned(conn, s, territory)
    words = _words(s, place, owned) | {"role": territory_role(conn, place)}
    enforced = conn.execute(
        "SELECT relrowsecurity FROM pg_catalog.pg_class WHERE oid = pg_catalog.to_regclass(%s)",
        (render("{leads}", s),),
    ).fetchone()
    words["enforced"] = _ENFORCED.format(**words) if enforced == (True,) and s.host_rls != "off" else ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECK).write_text(_CHECK.format(file=CHECK, **words), encoding="utf-8")
    (folder / TESTS).write_text(_TESTS.format(file=TESTS, suite=_suite(s), **words), encoding="utf-8")
    return Scripts(
        (folder / CHECK, folder / TESTS), place, len(owned),
        (
            f"pgbench -n -f {folder / CHECK} -c 10 -j 4 -T 60 $DATABASE_URL",
            f"psql -X -f {folder / TESTS} $DATABASE_URL",
        ),
    )  # fmt: skip


def _owned(conn: psycopg.Connection[Any], s: Settings, territory: str | None) -> tuple[str, list[tuple[str, str]]]:
    with mapped_errors(), conn.transaction():
        codes = all_codes(conn)
        if territory is not None and territory not in codes:
            raise InvalidRequest(f"territory: there is no {territory!r}; known are {', '.join(codes)}")
        found: dict[str, list[tuple[str, str]]] = {}
        for code in codes if territory is None else [territory]:
            conn.execute("SELECT pg_catalog.set_config(%s, %s, true)", (s.territory_guc, code))
            pairs = conn.execute(render(_OWNED, s), (code, MOST)).fetchall()
            found[code] = [pair for pair in pairs if not _is_suspended(conn, s, code, *pair)]
    best = max(found, key=lambda code: len(found[code]), default="")
    if not found.get(best):
        roles = [territory_role(conn, code) for code in found]
        if not any(row(conn, _HOLDS, (role,))[0] for role in roles):
            login = str(row(conn, "SELECT current_user")[0])
            raise ProtectionUnavailable(
                f"login {login} holds the role of no territory that was asked, so it sees no owner; a DBA can run: "
                f"{grants(conn, roles, login)}"
            )
        where = " or ".join(found) or "any territory"
        raise LeadProtectError(
            f"no lead of {where} has an owner that this login sees: "
            f"leadprotect backfill {shlex.join(found)}, then again"
        )
    return best, found[best]


def _is_suspended(conn: psycopg.Connection[Any], s: Settings, code: str, lead: str, user: str) -> bool:
    """Whether a rule keeps the owner from his lead: then it is right that he may not edit it."""
    conn.execute(render("SELECT {schema}.set_context(%s::text, %s::text)", s), (user, code))
    query = f"SELECT {ident(s.schema)}.explain_edit(%s::{type_name(s.lead_id_type)})"
    return conn.execute(query, (lead,)).fetchone() == ("suspended",)


def _words(s: Settings, place: str, owned: list[tuple[str, str]]) -> dict[str, str]:
    lead_type = type_name(s.lead_id_type)
    leads, users = (", ".join(map(literal, column)) for column in zip(*owned, strict=True))
    return {
        "app": s.role("app"),
        "count": str(len(owned)),
        "lead_type": lead_type,
        "leads": f"ARRAY[{leads}]::{lead_type}[]",
        "leads_name": literal(render("{leads}", s)),
        "nobody": literal(_NOBODY[s.user_id_type]),
        "schema": ident(s.schema),
        "schema_text": ident(s.schema).replace("'", "''"),
        "territory": code_literal(place),
        "user_guc": literal(s.user_guc),
        "users": f"ARRAY[{users}]::text[]",
    }


def _suite(s: Settings) -> str:
    """Every file of the suite in one, with the names of the settings."""
    head, *files = (_SUITE / "all.sql").read_text(encoding="utf-8").split("\\ir ")
    given = ("schema", "version_table", "leads_table", "lead_id_column", "territory_column", "lead_id_type",
             "user_id_type", "user_guc", "territory_guc", "correlation_guc")  # fmt: skip
    names = "".join(f"\\set {key} {literal(str(getattr(s, key)))}\n" for key in given)
    return names + head + "\n".join((_SUITE / file.strip()).read_text(encoding="utf-8") for file in files)
