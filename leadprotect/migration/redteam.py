"""Attacks that only read, tried on a database as whoever logs in: which show a lead of a territory not his own."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from leadprotect.database.catalog import relation
from leadprotect.database.memberships import revokes
from leadprotect.errors import PreflightError
from leadprotect.settings import Settings, current, ident, literal, render
from leadprotect.settings.codes import code_literal
from leadprotect.settings.sources import filled
from leadprotect.settings.values import of_setting

if TYPE_CHECKING:
    from collections.abc import Iterator

Verdict = Literal["held", "open", "not tried"]
_CONTRACT = "leadprotect status, and alembic upgrade head until contract is applied"
_MOST_SECONDS = 10
_SERVER_ROLES = (
    *("pg_read_server_files", "pg_write_server_files", "pg_execute_server_program"),
    *("pg_write_all_data", "pg_signal_backend"),
)


@dataclass(frozen=True)
class Tried:
    """A way and what came of it; `remedy` says what to do where it is open or was not tried."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""


def redteam(conn: psycopg.Connection[Any], *, settings: Settings | None = None) -> tuple[Tried, ...]:
    """Try every way as the login of `conn`, which is in autocommit; each in a read-only transaction of its own.

    A way is open when it shows a lead, or a row of ours, of a territory that the acting role does not hold.
    Raises `PreflightError` where the leads are not there.
    """
    s = settings or current()
    leads = relation(conn, *s.leads_table.split(".", 1))
    if leads is None:
        raise PreflightError([f"there is no table {s.leads_table} (setting leads_table); correct it"])
    team = _Team(conn, s, leads)
    if team.unbound():
        why = f"row security does not bind {team.login}: it owns the leads, is a superuser, or has BYPASSRLS"
        return (Tried("everything", "not tried", why, "name a service's login in --database-url"),)
    return tuple(team.ways())


@dataclass(frozen=True)
class _Team:
    """A login, and the table that it is after."""

    conn: psycopg.Connection[Any]
    settings: Settings
    leads: int

    @property
    def login(self) -> str:
        return str(self._catalog("SELECT session_user::text")[0])

    def ways(self) -> Iterator[Tried]:
        """In the order of their danger."""
        yield from self._by_context()
        yield from self._by_role()
        yield from self._by_view()
        yield from self._by_function()
        yield from self._by_relative()
        yield from self._by_our_tables()
        yield self._by_statistics()
        yield from self._by_activities()
        yield from self._by_server_role()

    def unbound(self, role: str = "") -> bool:
        """Whether nothing could be seen too much: row security is not asked, or the role may see everything."""
        query = """
            SELECT r.rolsuper OR r.rolbypassrls OR (pg_catalog.pg_has_role(r.oid, c.relowner, 'USAGE')
              AND NOT c.relforcerowsecurity AND c.relrowsecurity)
            FROM pg_catalog.pg_roles AS r, pg_catalog.pg_class AS c WHERE r.rolname = %s AND c.oid = %s
            """
        return bool(self._catalog(query, role or self.login, self.leads)[0])

    # --- the ways

    def _by_context(self) -> Iterator[Tried]:
        foreign = self._foreign(self.login)
        if not foreign:
            detail = f"{self.login} holds every territory, or may not read which there are"
            yield Tried("context", "not tried", detail, "name a login of one territory in --database-url")
        for territory in (*foreign, *([None] if foreign else [])):
            name = f"context: {territory or 'none'}"
            yield self._judged(name, self._others(foreign), territory=territory, remedy=_CONTRACT)
        for territory in foreign:
            told = f"{self._declaring(territory)} <> ''"
            query = f"{self._others(foreign)} AND {told}"
            yield self._judged(f"context in the query: {territory}", query, remedy=_CONTRACT)

    def _by_role(self) -> Iterator[Tried]:
        kind = "SET" if self.conn.info.server_version >= 160000 else "MEMBER"  # noqa: PLR2004 - where SET is an option
        query = """
            SELECT r.rolname::text FROM pg_catalog.pg_roles AS r
            WHERE r.rolname <> session_user AND pg_catalog.pg_has_role(session_user, r.oid, %s) ORDER BY 1
            """
        for role in self._catalog(query, kind):
            foreign = self._foreign(str(role))
            remedy = self._revokes(str(role))
            for territory in (None, *foreign):
                name = f"SET ROLE {role}, context: {territory or 'none'}"
                yield self._judged(name, self._others(foreign), role=str(role), territory=territory, remedy=remedy)

    def _by_view(self) -> Iterator[Tried]:
        query = """
            WITH RECURSIVE above AS (
              SELECT r.ev_class AS view FROM pg_catalog.pg_depend AS d
              JOIN pg_catalog.pg_rewrite AS r ON r.oid = d.objid
              WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refobjid = %s AND r.ev_class <> d.refobjid
              UNION
              SELECT r.ev_class FROM above JOIN pg_catalog.pg_depend AS d ON d.refobjid = above.view
              JOIN pg_catalog.pg_rewrite AS r ON r.oid = d.objid
              WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.ev_class <> d.refobjid)
            SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname) FROM above
            JOIN pg_catalog.pg_class AS c ON c.oid = above.view AND c.relkind IN ('v', 'm')
            JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE pg_catalog.has_any_column_privilege(c.oid, 'SELECT')
              AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') ORDER BY 1
            """
        for view in self._catalog(query, self.leads):
            remedy = f"ALTER VIEW {view} SET (security_invoker = true); or REVOKE SELECT ON {view}"
            yield self._shown(f"view {view}", f"{view} AS found", remedy)

    def _by_function(self) -> Iterator[Tried]:
        query = """
            SELECT pg_catalog.format('%%I.%%I', n.nspname, p.proname), p.pronargs - p.pronargdefaults = 0
              AND p.provolatile <> 'v' AND p.prokind = 'f' AND p.prorettype <> 'pg_catalog.trigger'::regtype
            FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
            WHERE p.prosecdef AND n.nspname <> %s AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')
              AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
              AND p.prorettype <> ALL (ARRAY['pg_catalog.trigger', 'pg_catalog.event_trigger']::regtype[])
              AND (pg_catalog.strpos(p.prosrc, %s) > 0 OR EXISTS (
                SELECT FROM pg_catalog.pg_depend AS d
                WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.refobjid = %s))
            ORDER BY 1
            """
        bare = self.settings.leads_table.split(".", 1)[1]
        with self._reading():
            found = self.conn.execute(query, (self.settings.schema, bare, self.leads)).fetchall()
        for function, callable_ in found:
            remedy = f"let {function} ask for the territory, or REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC"
            if callable_:
                yield self._shown(f"function {function}", f"{function}() AS found", remedy)
            else:
                detail = "reads leads with its owner's rights, and takes arguments or writes"
                yield Tried(f"function {function}", "not tried", detail, f"call {function} yourself; {remedy}")

    def _by_relative(self) -> Iterator[Tried]:
        query = """
            SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname) FROM pg_catalog.pg_inherits AS i
            JOIN pg_catalog.pg_class AS c ON c.oid IN (i.inhrelid, i.inhparent) AND c.oid <> %s
            JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            WHERE %s IN (i.inhrelid, i.inhparent) AND pg_catalog.has_any_column_privilege(c.oid, 'SELECT') ORDER BY 1
            """
        for table in self._catalog(query, self.leads, self.leads):
            yield self._shown(f"partition or parent {table}", f"{table} AS found", f"REVOKE SELECT ON {table}")

    def _by_our_tables(self) -> Iterator[Tried]:
        query = """
            SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname) FROM pg_catalog.pg_class AS c
            JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
            JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'territory'
            WHERE n.nspname = ANY (%s) AND c.relkind IN ('r', 'p')
              AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT') ORDER BY 1
            """
        foreign = self._foreign(self.login)
        for table in self._catalog(query, [self.settings.schema, self.settings.quarantine]):
            for territory in foreign:
                rows = f"SELECT FROM {table} AS t WHERE t.territory = ANY ({_array(foreign)})"
                remedy = f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY;"
                yield self._judged(f"{table}, context: {territory}", rows, territory=territory, remedy=remedy)

    def _by_statistics(self) -> Tried:
        schema, name = self.settings.leads_table.split(".", 1)
        of_leads = f"t.schemaname = {literal(schema)} AND t.tablename = {literal(name)}"
        shown = f"SELECT FROM pg_catalog.pg_stats AS t WHERE {of_leads}"
        return self._judged("pg_stats of the leads", shown, remedy=_CONTRACT)

    def _by_activities(self) -> Iterator[Tried]:
        """Tables beside the leads keep the access that they had."""
        rows = "{source_rows} AND {source_lead} NOT IN (SELECT l.{lead_id} FROM {leads} AS l)"
        remedy = "policies of your own: contract leaves tables beside the leads as they are"
        for source, one in zip(filled(self.settings), self.settings.activities, strict=True):
            for territory in [*self._held(self.login), None]:
                name = f"{one.table} of leads that are hidden, context: {territory or 'none'}"
                asked = render(source.fill(rows), self.settings)
                yield self._judged(name, asked, territory=territory, remedy=remedy)

    def _by_server_role(self) -> Iterator[Tried]:
        query = """
            SELECT r.rolname::text FROM pg_catalog.pg_roles AS r
            WHERE r.rolname = ANY (%s) AND pg_catalog.pg_has_role(session_user, r.oid, 'MEMBER') ORDER BY 1
            """
        for role in self._catalog(query, list(_SERVER_ROLES)):
            remedy = self._revokes(str(role))
            yield Tried(f"role {role}", "open", "it reaches past the tables", remedy)

    # --- one question

    def _shown(self, name: str, source: str, remedy: str) -> Tried:
        """Whether a relation shows a lead that its reader does not see on the table itself."""
        s, foreign = self.settings, self._foreign(self.login)
        lead = f"pg_catalog.to_jsonb(found) ->> {literal(s.lead_id_column)}"
        own = f"SELECT l.{ident(s.lead_id_column)}::text FROM {render('{leads}', s)} AS l"
        place = f"pg_catalog.to_jsonb(found) ->> {literal(s.territory_column)}"
        named = f"{place} = ANY ({_array(foreign)}) OR " if s.territory_column else ""
        rows = f"SELECT FROM {source} WHERE {named}{lead} NOT IN ({own})"
        told = self._judged(name, rows, remedy=remedy)
        for territory in foreign:
            told = told if told.verdict != "held" else self._judged(name, rows, territory=territory, remedy=remedy)
        return told

    def _judged(
        self, name: str, rows: str, *, remedy: str, role: str | None = None, territory: str | None = None
    ) -> Tried:
        """Whether the query has a row; a refusal of the server holds, too."""
        try:
            with self._reading(role, territory):
                found = self.conn.execute(f"SELECT EXISTS ({rows})").fetchone()
        except psycopg.errors.InsufficientPrivilege as refused:
            return Tried(name, "held", refused.diag.message_primary or "refused")
        except psycopg.Error as failed:
            why = f"{failed.diag.message_primary or 'no answer'} (SQLSTATE {failed.sqlstate})"
            return Tried(name, "not tried", why, "try it by hand, or when the database has less to do")
        if found == (True,):
            return Tried(name, "open", "rows of a territory that it does not hold", remedy)
        return Tried(name, "held", "no row")

    @contextmanager
    def _reading(self, role: str | None = None, territory: str | None = None) -> Iterator[None]:
        """A read-only transaction that is rolled back, as a role that declares a territory."""
        with self.conn.transaction(force_rollback=True):
            self.conn.execute("SET TRANSACTION READ ONLY")
            self.conn.execute(f"SET LOCAL statement_timeout = '{_MOST_SECONDS}s'")
            if role:
                self.conn.execute(f"SET LOCAL ROLE {ident(role)}")
            self.conn.execute(f"SELECT {self._declaring(territory or '')}")
            yield

    def _declaring(self, territory: str) -> str:
        """What anybody can do without our functions: name a territory, alone in a setting that holds JSON."""
        name, field = of_setting(self.settings.territory_guc)
        said = territory if field is None else json.dumps({field: territory})
        return f"pg_catalog.set_config({literal(name)}, {literal(said)}, true)"

    # --- what the catalog says

    def _catalog(self, query: str, *params: object) -> list[Any]:
        """The first column of an answer."""
        with self._reading():
            return [row[0] for row in self.conn.execute(query, params or None).fetchall()]

    def _revokes(self, role: str) -> str:
        with self._reading():
            return " ".join(revokes(self.conn, role, self.login))

    def _territories(self) -> list[str]:
        """Those of the database, if the login may read them; else those of the settings."""
        try:
            return self._catalog(
                render(
                    "SELECT t.code FROM pg_catalog.unnest({schema}.all_territories()) AS t (code) ORDER BY 1",
                    self.settings,
                )
            )
        except psycopg.errors.Error:
            return list(self.settings.territories)

    def _held(self, role: str) -> list[str]:
        roles = {self._role_of(code): code for code in self._territories()}
        query = """
            SELECT r.rolname::text FROM pg_catalog.pg_roles AS r
            WHERE r.rolname = ANY (%s) AND pg_catalog.pg_has_role(%s, r.oid, 'USAGE') ORDER BY 1
            """
        return [roles[held] for held in self._catalog(query, list(roles), role)]

    def _role_of(self, code: str) -> str:
        try:
            return str(self._catalog(render("SELECT {schema}.territory_role(%s)", self.settings), code)[0])
        except psycopg.errors.Error:
            return self.settings.territory_role(code)

    def _foreign(self, role: str) -> list[str]:
        held = self._held(role)
        return [code for code in self._territories() if code not in held]

    def _others(self, foreign: list[str]) -> str:
        rows = render("SELECT FROM {leads} AS l WHERE {territory_of_l}::text", self.settings)
        return f"{rows} = ANY ({_array(foreign)})"


def _array(codes: list[str]) -> str:
    return f"ARRAY[{', '.join(map(code_literal, codes))}]::text[]"
