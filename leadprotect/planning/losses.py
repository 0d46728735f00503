"""Who would lose what at contract, login by login, with what helps; asked of the catalog, from whatever phase.

The conditions of the gate ask the same once the migrate step is there, in the database itself and for all logins
together: of logins, of views and of the host's code by the very text that is asked here.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.database.blockers import redact
from leadprotect.database.catalog import one, relation
from leadprotect.database.memberships import grants
from leadprotect.database.statements import as_role
from leadprotect.doctor.ways import foreign_key_action, host_before_trigger
from leadprotect.migration.shadow import shadow_report
from leadprotect.planning.questions import ask_as_gate
from leadprotect.settings import Settings, ident, render, table
from leadprotect.settings.names import territory_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERYBODY = "whom row security binds"


@dataclass(frozen=True)
class Loss:
    """What `login` can't do any more after contract, or does otherwise.

    `kind`: reads, edits, copy, views, queues, jobs, isolation, host code, indexes or keys; `login` is None where it
    concerns everybody whom row security binds; `condition` names the condition of the gate that it keeps closed, None
    where contract goes on without a word.
    """

    kind: str
    login: str | None
    what: str
    remedy: str | None
    condition: str | None = None


@dataclass(frozen=True)
class _Actor:
    """A login that can do something with a table, and the role by which it does: itself, or one that it sets.

    `owns` is of the leads, `owns_it` of the table that was asked about.
    """

    login: str
    role: str
    reads: bool
    edits: bool
    inserts: bool
    owns_it: bool
    owns: bool
    bypasses: bool
    exempt: bool
    member: bool
    serves: bool
    codes: list[str]
    narrow: bool

    @property
    def ready(self) -> bool:
        return self.serves and bool(self.codes)

    @property
    def named(self) -> str:
        return f"as {self.role}, which it sets: " if self.role != self.login else ""


_WRITERS = """
    SELECT l.rolname::text FROM pg_roles AS l
    WHERE l.rolcanlogin AND NOT l.rolsuper AND has_database_privilege(l.oid, current_database(), 'CONNECT')
      AND has_table_privilege(l.oid, %s::regclass, 'INSERT, UPDATE, DELETE') ORDER BY 1 LIMIT 20
    """
# What COPY gives a row: no generated column, and an identity even where it is ALWAYS, which INSERT has to be told.
_GIVEN = """
    SELECT coalesce(string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum), ''),
           coalesce(bool_or(a.attidentity = 'a'), false)
    FROM pg_attribute AS a
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
    """
# The catalog shows a queue in the text of a function alone; what clients send, in the extension that counts it.
_QUEUES = """
    SELECT p.oid::regprocedure::text, p.prosrc FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    JOIN pg_roles AS o ON o.oid = p.proowner JOIN pg_class AS l ON l.oid = %(leads)s
    CROSS JOIN LATERAL (SELECT coalesce(pg_get_function_sqlbody(p.oid), p.prosrc) AS text) AS body
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', %(schema)s) AND body.text ~* 'skip\\s+locked'
      AND body.text ~* ('(?<!\\w)' || %(name)s || '(?!\\w)')
      AND NOT (p.prosecdef AND (o.rolsuper OR o.rolbypassrls
        OR NOT %(forced)s AND NOT l.relforcerowsecurity AND pg_has_role(o.oid, l.relowner, 'USAGE')))
    ORDER BY 1 LIMIT 20
    """
# By default only what a server, a database or a login sets is known: a client may choose with each transaction.
_ISOLATION = """
    SELECT DISTINCT ON (r.oid) r.rolname::text, split_part(one.setting, '=', 2)
    FROM pg_roles AS r JOIN pg_db_role_setting AS s ON s.setrole IN (0, r.oid)
      AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    CROSS JOIN LATERAL unnest(s.setconfig) AS one (setting)
    WHERE r.rolname = ANY (%(bound)s) AND one.setting LIKE 'default_transaction_isolation=%%'
    ORDER BY r.oid, s.setrole = 0, s.setdatabase = 0
    """
_STATEMENTS = """
    SELECT r.rolname::text, s.query, s.calls
    FROM {extension}.pg_stat_statements AS s JOIN pg_roles AS r ON r.oid = s.userid
    WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND NOT r.rolsuper AND NOT r.rolbypassrls AND r.rolname <> ALL (%(exempt)s)
      AND s.query ~* ('\\m' || %(name)s || '\\M') AND s.query ~* %(pattern)s
    ORDER BY s.calls DESC LIMIT 20
    """
_HIDDEN_TEXT = "SELECT count(*) FROM {extension}.pg_stat_statements WHERE query = '<insufficient privilege>'"
_JOBS = """
    SELECT j.jobid, j.username::text, j.command FROM cron.job AS j
    WHERE j.active AND j.database = current_database() AND j.command ~* ('\\m' || %(name)s || '\\M')
      AND j.username::text <> ALL (%(exempt)s) ORDER BY 1 LIMIT 20
    """


def noted(conn: psycopg.Connection[Any], s: Settings) -> list[Loss]:
    """What a shadow saw logins do that contract will deny; nothing where none was started."""
    found = shadow_report(conn, settings=s)
    return [
        Loss(
            "edits",
            one.login,
            f"a shadow saw {one.kind} of {one.host_table} as {one.role}, {one.times:,} times or more: {one.reason}",
            one.remedy,
            "shadow" if one.locks_out else None,
        )
        for one in (found.denied if found else ())
    ]


def losses(conn: psycopg.Connection[Any], s: Settings, unseen: list[str]) -> list[Loss]:
    """What contract would take from whom; what this login can't see is added to `unseen`, a sentence each."""
    if s.host_rls == "off" or relation(conn, *s.leads_table.split(".", 1)) is None:
        return []
    asked = _asked(conn, s)
    actors = _actors(conn, s, s.leads_table, asked)
    actors = [actor for actor in actors if not actor.exempt]
    found = [loss for actor in actors for loss in (_of_unbound if actor.bypasses else _of_actor)(conn, s, actor, asked)]
    for child in s.lead_tables:
        found += [
            loss
            for actor in _actors(conn, s, child.table, asked)
            for loss in _of_child(conn, s, child.table, actor, asked)
        ]
    found += _views(conn, s)
    bound = {actor.login for actor in actors if not actor.bypasses and (asked["forced"] or not actor.owns)}
    found += _queues(conn, s, asked, bound, unseen)
    found += _jobs(conn, s, asked, bound, unseen)
    found += _isolation(conn, bound)
    found += _host_code(conn, s)
    return found + list(_for_everybody(conn, s))


def _asked(conn: psycopg.Connection[Any], s: Settings) -> dict[str, Any]:
    leads = relation(conn, *s.leads_table.split(".", 1))
    name = s.leads_table.split(".", 1)[1]
    forced = s.host_rls == "force" or one(conn, "SELECT relforcerowsecurity FROM pg_class WHERE oid = %s", leads)
    given, always = conn.execute(_GIVEN, (leads,)).fetchall()[0]
    return {
        "leads": leads,
        "given": given,
        "overriding": " OVERRIDING SYSTEM VALUE" if always else "",
        "schema": s.schema,
        "name": "".join(f"[{letter}]" if letter not in r"\^]" else f"\\{letter}" for letter in name),
        "forced": bool(forced),
        "owner": one(conn, "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = %s", leads),
        "exempt": list(s.exempt_roles),
        "codes": [*(borders := _borders(conn, s))],
        "borders": [*borders.values()],
        "columns": [s.lead_id_column, *territory_columns(s)],
    }


def _borders(conn: psycopg.Connection[Any], s: Settings) -> dict[str, str]:
    """The territories of the database, each with its role, as this login or our owner sees them; else the settings'."""
    said = {code: s.territory_role(code) for code in s.territories}
    if not relation(conn, s.schema, "territories"):
        return said
    role_of = "{role_prefix} || coalesce(suffix, lower(code))"
    query = render(f"SELECT code, {role_of} FROM {{schema}}.territories ORDER BY 1", s).encode()
    for role in ("none", s.role("owner")):
        # a login without any of them sees no row of this table, and no error either
        with suppress(psycopg.errors.InsufficientPrivilege), as_role(conn, role):
            if found := dict(conn.execute(query).fetchall()):
                return found
    return said


def _actors(conn: psycopg.Connection[Any], s: Settings, name: str, asked: dict[str, Any]) -> list[_Actor]:
    oid = relation(conn, *name.split(".", 1))
    if oid is None:
        return []
    borders = dict(zip(asked["codes"], asked["borders"], strict=True))
    return [_Actor(*row) for row in ask_as_gate(conn, s, "acting_logins", target=oid, label=name, borders=borders)]


def _of_actor(conn: psycopg.Connection[Any], s: Settings, actor: _Actor, asked: dict[str, Any]) -> Iterator[Loss]:
    leads = s.leads_table
    if actor.owns and not asked["forced"]:
        return  # row security does not bind who owns the table
    if actor.owns:
        stays = f"{leads} is forced, so its owner is bound like anybody else"
        yield Loss(
            "reads", actor.login, f"{stays}: maintenance and backups by this login see 0 rows of a territory", None
        )
        yield Loss("edits", actor.login, f"{stays}: an UPDATE without a context changes 0 rows of a territory", None)
    elif actor.ready:
        codes = ", ".join(actor.codes)
        if actor.reads:
            yield Loss(
                "reads",
                actor.login,
                f"{actor.named}sees leads of {codes} and those without a territory, no others",
                None,
            )
        if actor.edits:
            does = "raises LP403" if s.denied_edit == "raise" else "changes 0 rows"
            yield Loss(
                "edits",
                actor.login,
                f"{actor.named}an UPDATE or DELETE of a lead that its user may not edit {does}",
                None,
            )
    else:
        lacks = f"is no member of {s.role('app')} and a territory"
        meets = {"reads": "sees no lead of a territory", "edits": "adds and changes no lead of a territory"}
        for kind, what in meets.items():
            if actor.reads if kind == "reads" else actor.edits or actor.inserts:
                yield Loss(
                    kind,
                    actor.login,
                    f"{actor.named}{lacks}, so it {what}",
                    _membership(conn, s, actor, asked),
                    "logins",
                )
    if actor.inserts:
        given = asked["given"]
        yield Loss(
            "copy",
            actor.login,
            f"COPY {leads} FROM is refused to it (0A000)",
            f"CREATE TEMP TABLE leads_in (LIKE {table(leads)} INCLUDING DEFAULTS INCLUDING GENERATED); "
            "COPY leads_in FROM STDIN; "
            f"INSERT INTO {table(leads)} ({given}){asked['overriding']} SELECT {given} FROM leads_in;",
        )


def _of_unbound(conn: psycopg.Connection[Any], s: Settings, actor: _Actor, asked: dict[str, Any]) -> Iterator[Loss]:
    """What BYPASSRLS may do stays, and whether that is meant is what the gate asks."""
    if not actor.ready and not actor.owns:
        meant = "where that is meant, name it in exempt_roles"
        what = f"{actor.named}keeps the leads of every territory, because it has BYPASSRLS; {meant}"
        remedy = f"ALTER ROLE {ident(actor.login)} NOBYPASSRLS; {_membership(conn, s, actor, asked)}"
        yield Loss("reads" if actor.reads else "edits", actor.login, what, remedy, "logins")


def _of_child(
    conn: psycopg.Connection[Any], s: Settings, name: str, actor: _Actor, asked: dict[str, Any]
) -> Iterator[Loss]:
    if actor.bypasses:
        return
    if actor.owns_it and s.host_rls != "force":
        if actor.member and not actor.owns and not actor.exempt:
            what = f"owns {name} and not {s.leads_table}, so the row security of the one does not bind it"
            remedy = f"ALTER TABLE {table(name)} OWNER TO {ident(asked['owner'])};"
            yield Loss("reads", actor.login, what, remedy, "lead_tables")
        return
    if actor.owns or (actor.exempt and actor.narrow):
        return
    if not actor.ready and not actor.exempt:
        lacks = f"{actor.named}is no member of {s.role('app')} and a territory"
        what = f"{lacks}, so it sees no row of {name} that belongs to a lead"
        yield Loss("reads", actor.login, what, _membership(conn, s, actor, asked), "lead_tables")
    elif not actor.narrow:
        columns = ", ".join(map(ident, asked["columns"]))
        what = f"{actor.named}may not read id and territory of {s.leads_table}, by which rows of {name} are seen"
        yield Loss(
            "reads",
            actor.login,
            what,
            f"GRANT SELECT ({columns}) ON {table(s.leads_table)} TO {ident(actor.role)};",
            "lead_tables",
        )
    else:
        yield Loss(
            "edits", actor.login, f"{actor.named}changes rows of {name} only where its user may edit the lead", None
        )


def _membership(conn: psycopg.Connection[Any], s: Settings, actor: _Actor, asked: dict[str, Any]) -> str:
    """Which territory a login serves, only its owner knows: the others are named beside the first."""
    first, *others = asked["borders"] or ["..."]
    return grants(conn, [s.role("app"), first], actor.role, or_rather=others)


def _views(conn: psycopg.Connection[Any], s: Settings) -> list[Loss]:
    found = []
    for name, oid, condition in _tables(conn, s, "views", "lead_tables_ways"):
        label = "leads" if name == s.leads_table else name
        for login, detail, remedy in ask_as_gate(conn, s, "leaking_views", target=oid, label=label):
            found.append(Loss("views", login, detail, remedy, condition))
    return found


def _tables(
    conn: psycopg.Connection[Any], s: Settings, of_leads: str, of_lead_tables: str
) -> Iterator[tuple[str, int, str]]:
    """The tables that contract protects and that are there, each with the condition of the gate about it."""
    known = [(s.leads_table, of_leads), *((child.table, of_lead_tables) for child in s.lead_tables)]
    for name, condition in known:
        if oid := relation(conn, *name.split(".", 1)):
            yield name, oid, condition


def _queues(
    conn: psycopg.Connection[Any], s: Settings, asked: dict[str, Any], bound: set[str], unseen: list[str]
) -> list[Loss]:
    what = "locks only leads that its user may edit, and leaves the others out without a word"
    claimed = "SELECT l.{lead_id} FROM {leads} AS l WHERE {schema}.can_edit_lead(l.{lead_id})"
    claims = render(claimed + " LIMIT 1 FOR UPDATE SKIP LOCKED;", s)
    found = [
        Loss("queues", None, f"function {function} takes leads with SKIP LOCKED: it {what}", claims)
        for function, _ in conn.execute(_QUEUES, asked).fetchall()
    ]
    for login, query, calls in _sent(conn, asked, "skip\\s+locked", unseen):
        if login in bound:
            found.append(Loss("queues", login, f"{redact(query)} (sent {calls:,} times): it {what}", claims))
    for login, query, calls in _sent(conn, asked, "^\\s*copy\\M.*\\mfrom\\M", []):
        if login in bound:
            found.append(Loss("copy", login, f"{redact(query)} (sent {calls:,} times): refused (0A000)", None))
    return found


def _sent(
    conn: psycopg.Connection[Any], asked: dict[str, Any], pattern: str, unseen: list[str]
) -> list[tuple[str, str, int]]:
    """What clients have sent, as pg_stat_statements has it."""
    query = "SELECT n.nspname::text FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace"
    where = one(conn, f"{query} WHERE e.extname = %s", "pg_stat_statements")
    if where is None:
        sends = "queues with SKIP LOCKED that clients send: there is no pg_stat_statements here"
        unseen.append(f"{sends}, so look for SKIP LOCKED in your code")
        return []
    try:
        with conn.transaction():
            hidden = one(conn, _HIDDEN_TEXT.replace("{extension}", ident(where)))
            found = conn.execute(
                _STATEMENTS.replace("{extension}", ident(where)).encode(), asked | {"pattern": pattern}
            ).fetchall()
    except psycopg.Error as error:
        unseen.append(f"statements of clients in pg_stat_statements: {error.diag.message_primary}")
        return []
    if hidden:
        unseen.append(f"{hidden} statements of others in pg_stat_statements: {_grant(conn, 'pg_read_all_stats')}")
    return found


def _jobs(
    conn: psycopg.Connection[Any], s: Settings, asked: dict[str, Any], bound: set[str], unseen: list[str]
) -> list[Loss]:
    if relation(conn, "cron", "job") is None:
        return []
    try:
        with conn.transaction():
            found = conn.execute(_JOBS, asked).fetchall()
    except psycopg.errors.InsufficientPrivilege:
        unseen.append(
            f"jobs of pg_cron: GRANT USAGE ON SCHEMA cron TO {_me(conn)}; GRANT SELECT ON cron.job TO {_me(conn)};"
        )
        return []
    return [
        Loss(
            "jobs",
            login,
            f"job {number} of pg_cron ({redact(command)}) sets no context, so it finds no lead of a territory",
            f"exempt_roles = {', '.join([*s.exempt_roles, login])}",
        )
        for number, login, command in found
        if login in bound and s.user_guc.split(" ")[0] not in command and "set_context" not in command
    ]


def _isolation(conn: psycopg.Connection[Any], bound: set[str]) -> list[Loss]:
    found = conn.execute(_ISOLATION, {"bound": sorted(bound)}).fetchall()
    where = f"IN DATABASE {ident(str(one(conn, 'SELECT current_database()')))}"
    return [
        Loss(
            "isolation",
            login,
            "its transactions are SERIALIZABLE, and triggers decide and record what they edit: more of those that edit "
            "at once fail (40001), and are to be tried again",
            f"ALTER ROLE {ident(login)} {where} SET default_transaction_isolation = 'read committed';",
        )
        for login, level in found
        if level.strip("'\"").lower() == "serializable"
    ]


def _host_code(conn: psycopg.Connection[Any], s: Settings) -> list[Loss]:
    found = []
    for table_name, oid, condition in _tables(conn, s, "host_code", "lead_tables_code"):
        query = "SELECT pg_get_userbyid(relowner)::text, relforcerowsecurity FROM pg_class WHERE oid = %s"
        owner, forced = conn.execute(query, (oid,)).fetchall()[0]
        path = f"pg_catalog, {ident(table_name.split('.', 1)[0])}, pg_temp"
        rows_of = "leads" if table_name == s.leads_table else f"rows of {table_name}"
        for name, function, runs in ask_as_gate(conn, s, "host_code", target=oid, label=table_name):
            mends = (
                f"ALTER FUNCTION {function} OWNER TO {ident(owner)}; "
                f"ALTER FUNCTION {function} SECURITY DEFINER SET search_path = {path};"
            )
            if forced or s.host_rls == "force" or function is None:
                mends = f"alembic -x accept={condition}:1 upgrade head"
            what = f"{name} changes {rows_of}: of those that whoever runs it may not edit, silently none"
            logins: list[str | None] = [login for (login,) in conn.execute(_WRITERS, (runs,)).fetchall()]
            found += [Loss("host code", login, what, mends, condition) for login in logins or [None]]
    return found


def _for_everybody(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Loss]:
    target = relation(conn, *s.leads_table.split(".", 1))
    lost = ask_as_gate(conn, s, "lost_searches", target=target, label=s.leads_table) if target else []
    for name, remedy in lost:
        what = f"index {name} serves no search any more: what it compares may tell of rows that are hidden"
        yield Loss("indexes", None, what, remedy)
    for fault in foreign_key_action.ask(conn, s):
        yield Loss("keys", None, f"{fault.where}: {fault.what}, decided like an edit of each lead", None)
    for fault in host_before_trigger.ask(conn, s):
        yield Loss(
            "host code",
            None,
            f"{fault.where} may change the lead besides the statement: id and territory are compared after it",
            None,
        )


def _grant(conn: psycopg.Connection[Any], role: str) -> str:
    return f"GRANT {role} TO {_me(conn)};"


def _me(conn: psycopg.Connection[Any]) -> str:
    return ident(str(one(conn, "SELECT current_user")))
