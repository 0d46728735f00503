"""A hub: the audit and the owners of every database in one, read by an auditor with logins of his own on each server.

Foreign tables of postgres_fdw, one for each territory, are the partitions of one table. The server of a territory is
asked in that territory's context, so the border there decides by the login that the auditor's user mapping names.
https://www.postgresql.org/docs/current/postgres-fdw.html
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from leadprotect.database.opening import open_connection
from leadprotect.errors import ConnectionUnusable, InvalidRequest, PreflightError, SettingsError
from leadprotect.settings import ident, literal, url
from leadprotect.settings.databases import SECTION
from leadprotect.settings.values import libpq_url, of_setting

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from leadprotect.settings import Settings
    from leadprotect.settings.databases import TerritoryDatabase

Connection = psycopg.Connection[Any]

MARK = "leadprotect hub"
"""How the comment begins that tells what we made from what somebody else did."""

_NAME_BYTES = 63
_SCRAM_PASSTHROUGH = 180000  # the first server whose mappings can do without a password

PARENTS = {
    "lead_access_audit": (
        "lead_id {lead_id_type}, at timestamptz, id bigint, user_id {user_id_type}, login name, role name, "
        "territory text, action {hub}.lead_action, outcome {hub}.lead_access_outcome, reason text, note text, "
        "correlation_id text, transaction_id xid8, basis text"
    ),
    "lead_access_audit_seals": (
        "territory text, number bigint, hash bytea, previous bytea, run bigint, month date, row_count bigint, "
        "ids int8multirange, first_at timestamptz, last_at timestamptz, sealed_at timestamptz, sealed_by name"
    ),
    "user_lead_assignments": (
        "lead_id {lead_id_type}, territory text, user_id {user_id_type}, assigned_at timestamptz, "
        "assigned_by {user_id_type}, source text"
    ),
}
"""Table of ours, and partitioned table of the hub -> its columns there."""

WITHOUT_TERRITORY = "lead_access_audit_without_territory"
"""The view of what was attempted without a territory: a server shows it to auditors in whatever context they ask."""

_SHOWN_IN_EVERY_CONTEXT = ("lead_access_audit", "lead_access_audit_seals")

# enum comparison is done here, and the texts are the same there
_TYPES = """
CREATE TYPE {hub}.lead_action AS ENUM ('VIEW', 'EDIT', 'ASSIGN', 'UNASSIGN');
CREATE TYPE {hub}.lead_access_outcome AS ENUM ('ALLOW', 'DENY')
"""
# what a server shows in every context would come once for each territory of it
_ONCE = """
ALTER TABLE {parent} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {parent} FORCE ROW LEVEL SECURITY;
CREATE POLICY in_its_territory ON {parent} FOR SELECT USING (territory IS NOT NULL)
"""
_OPTIONS_OF_LIBPQ = (
    "host", "hostaddr", "port", "dbname", "sslmode", "sslrootcert", "sslcrl", "channel_binding", "connect_timeout",
    "target_session_attrs", "gssencmode", "krbsrvname", "keepalives", "keepalives_idle", "tcp_user_timeout",
)  # fmt: skip
"""What of a URL says where the server is; who connects is the auditor's business, and no password is taken over."""


@dataclass(frozen=True)
class Spoke:
    """A territory as the hub reaches it; `options` are those of its foreign server, without user and password."""

    territory: str
    suffix: str
    database: str
    server: str
    options: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Hub:
    """What was made: `statements` did it, `mappings` each auditor runs himself; `changed` is whether there were any."""

    schema: str
    servers: tuple[str, ...]
    auditors: tuple[str, ...]
    changed: bool
    statements: tuple[str, ...]
    mappings: tuple[str, ...]


@dataclass(frozen=True)
class HubGone:
    """What `drop_hub` took away; `kept` says what of ours somebody else uses now."""

    schema: str
    statements: tuple[str, ...]
    kept: tuple[str, ...]


def hub_schema(s: Settings) -> str:
    """The schema of the hub, unquoted."""
    return f"{s.schema}_hub"


def open_hub(address: str) -> Connection:
    """A connection to the hub's database; raises `SettingsError` for no URL, `ConnectionUnusable` without answer."""
    try:
        return open_connection(libpq_url("--in", address), application="leadprotect")
    except psycopg.OperationalError as error:  # names host, port and user, never the password
        why = " ".join(str(error).split())
        raise ConnectionUnusable(f"no connection to the hub: {why}; correct --in, or start that server") from None


def spokes(s: Settings) -> tuple[Spoke, ...]:
    """How each territory of the settings is reached; raises `SettingsError` without section of databases."""
    if not s.databases:
        raise SettingsError(f"hub: there is no section [{SECTION}]; write into it: DE = postgresql://...")
    found = tuple(_spoke(s, one, code) for one in s.databases for code in one.territories)
    if len(_made(found)) < 1 + len(PARENTS) * (1 + len(found)):
        raise SettingsError("territories: two suffixes give one name to two tables of the hub (de and seals_de)")
    return found


def create_hub(
    conn: Connection, s: Settings, *, auditors: Mapping[str, Collection[str]] | None = None, dry_run: bool = False
) -> Hub:
    """Make the hub, or bring it up to the settings, in one transaction; again, nothing is to do.

    `auditors`: logins of this server -> the territories that they may ask, none for all of them. Who was given some
    before keeps them, and user mappings stay. No other server is asked. With `dry_run` it is rolled back. Raises
    `PreflightError` where postgres_fdw is missing, a stranger's object has a name that is needed, or a user mapping
    opens a server to more than its auditor; `InvalidRequest` for an unknown login or territory.
    """
    there = spokes(s)
    names = tuple(one.server for one in there)
    given = _auditors(conn, there, auditors or {})
    with conn.transaction(force_rollback=dry_run):
        _alone(conn)
        _refuse_strangers(conn, s, there)
        _refuse_open_mappings(conn, s)
        standing = _standing_grants(conn, s)
        done: list[str] = []
        mark = f"{MARK} {_digest(s, there)}"
        if hub_mark(conn, s) != mark or hub_faults(conn, s, there):
            done += [*_ground(conn, s), *_cleared(conn, s)]
            done += [f"DROP SERVER {ident(name)} CASCADE" for name in _our_servers(conn, s) if name not in names]
            done += [*_servers(conn, s, there), *_tables(s, there)]
            done.append(f"COMMENT ON SCHEMA {ident(hub_schema(s))} IS {literal(mark)}")
            wanted = given | {(login, suffix) for login, suffix in standing if suffix in {one.suffix for one in there}}
        else:
            wanted = given - standing
        done += _grants(s, there, wanted)
        for statement in done:
            _run(conn, statement)
        logins = tuple(sorted({login for login, _ in given | standing}))
        mappings = tuple(_mappings(conn, there, given | standing))
    return Hub(hub_schema(s), names, logins, bool(done), tuple(done), mappings)


def drop_hub(conn: Connection, s: Settings, *, dry_run: bool = False) -> HubGone:
    """Take everything away that `create_hub` made, user mappings included; nothing to do where there is none.

    Raises `PreflightError` where a stranger's object stands under our name, or somebody built on ours.
    """
    with conn.transaction(force_rollback=dry_run):
        _alone(conn)
        mark = hub_mark(conn, s)
        if mark is None:
            return HubGone(hub_schema(s), (), ())
        if not mark.startswith(MARK):
            raise PreflightError([_taken(f"the schema {hub_schema(s)}")])
        kept = []
        done = [*_cleared(conn, s)]
        done += [f"DROP SERVER {ident(name)} CASCADE" for name in _our_servers(conn, s)]
        for statement in done:
            _run(conn, statement)
        if _extension_schema(conn) == hub_schema(s):
            servers = "SELECT f.srvname::text FROM pg_catalog.pg_foreign_server AS f"
            away = "DROP EXTENSION postgres_fdw"
            if others := [name for (name,) in conn.execute(servers).fetchall()]:
                away = "ALTER EXTENSION postgres_fdw SET SCHEMA public"
                kept.append(f"the extension postgres_fdw, in schema public now: {', '.join(others)} uses it")
            done.append(away)
            _run(conn, away)
        done.append(f"DROP SCHEMA {ident(hub_schema(s))}")
        _run(conn, done[-1])
    return HubGone(hub_schema(s), tuple(done), tuple(kept))


def open_mappings(conn: Connection, s: Settings) -> list[str]:
    """User mappings FOR PUBLIC of the hub's servers, each as a sentence with its remedy: they are everybody's way."""
    query = """
        SELECT m.srvname::text FROM pg_catalog.pg_user_mappings AS m
        WHERE m.srvname = ANY (%s) AND m.umuser = 0 ORDER BY 1
        """
    return [
        f"every login here reaches {server} by the user mapping FOR PUBLIC: "
        f"DROP USER MAPPING FOR PUBLIC SERVER {ident(server)};"
        for (server,) in conn.execute(query, (_our_servers(conn, s),)).fetchall()
    ]


# --- what is there


def _spoke(s: Settings, one: TerritoryDatabase, code: str) -> Spoke:
    parts = conninfo_to_dict(libpq_url(f"[{SECTION}] {code}", url(replace(s, database_url=one.url, databases=()))))
    suffix = dict(s.territory_suffixes).get(code, code).lower()
    server = f"{hub_schema(s)}_{suffix}"
    if len(max(f"{WITHOUT_TERRITORY}_{suffix}", server, key=len).encode()) > _NAME_BYTES:
        raise SettingsError(f"schema: {server} is too long for a server's name; a shorter schema or suffix helps")
    said = {name: str(parts[name]) for name in _OPTIONS_OF_LIBPQ if parts.get(name)}
    said["options"] = " ".join(
        f"-c {name}={_escaped(value)}"
        for name, value in (_declared(s, code), ("default_transaction_read_only", "on"), ("row_security", "on"))
    )
    more = {"updatable": "false", "truncatable": "false", "async_capable": "true", "fetch_size": "10000"}
    return Spoke(code, suffix, one.name, server, tuple((said | more).items()))


def _declared(s: Settings, code: str) -> tuple[str, str]:
    """The setting in which the far side reads the territory, and its value."""
    name, field = of_setting(s.territory_guc)
    return name, json.dumps({field: code}, ensure_ascii=False) if field else code


def _escaped(value: str) -> str:
    r"""A value inside ``options``, where a space ends it and a backslash escapes."""
    return "".join(f"\\{letter}" if letter.isspace() or letter == "\\" else letter for letter in value)


def _auditors(conn: Connection, there: tuple[Spoke, ...], asked: Mapping[str, Collection[str]]) -> set[tuple[str, str]]:
    """Login and suffix of a territory, for each that was asked for."""
    suffixes = {one.territory: one.suffix for one in there}
    for login, codes in asked.items():
        if conn.execute("SELECT FROM pg_catalog.pg_roles WHERE rolname = %s", (login,)).fetchone() is None:
            raise InvalidRequest(f"--auditor: there is no login {login!r} here: CREATE ROLE {ident(login)} LOGIN;")
        if unknown := [code for code in codes if code not in suffixes]:
            raise InvalidRequest(f"--auditor: {unknown[0]!r} is none of the territories: {', '.join(suffixes)}")
    return {(login, suffixes[code]) for login, codes in asked.items() for code in codes or suffixes}


def _alone(conn: Connection) -> None:
    """Two at once would both find nothing there."""
    conn.execute("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext(%s))", (MARK,))


def hub_mark(conn: Connection, s: Settings) -> str | None:
    """The comment of the hub's schema, '' for one that has none, None where there is no schema."""
    query = """
        SELECT coalesce(pg_catalog.obj_description(n.oid, 'pg_namespace'), '')
        FROM pg_catalog.pg_namespace AS n WHERE n.nspname = %s
        """
    found = conn.execute(query, (hub_schema(s),)).fetchone()
    return found[0] if found else None


def _our_servers(conn: Connection, s: Settings) -> list[str]:
    query = """
        SELECT f.srvname::text FROM pg_catalog.pg_foreign_server AS f
        WHERE starts_with(f.srvname::text, %s) AND pg_catalog.obj_description(f.oid, 'pg_foreign_server') = %s
        ORDER BY 1
        """
    return [name for (name,) in conn.execute(query, (f"{hub_schema(s)}_", MARK)).fetchall()]


def _taken(what: str) -> str:
    return f"{what} is not of this hub: rename it, or use another database"


def _refuse_strangers(conn: Connection, s: Settings, there: tuple[Spoke, ...]) -> None:
    mark = hub_mark(conn, s)
    problems = [] if mark is None or mark.startswith(MARK) else [_taken(f"the schema {hub_schema(s)}")]
    query = "SELECT f.srvname::text FROM pg_catalog.pg_foreign_server AS f WHERE f.srvname = ANY (%s) ORDER BY 1"
    ours = _our_servers(conn, s)
    found = conn.execute(query, ([one.server for one in there],)).fetchall()
    problems += [_taken(f"the foreign server {name}") for (name,) in found if name not in ours]
    if mark is not None and not problems:
        made = _made(there) | _former(conn, s)
        problems += [_taken(f"{hub_schema(s)}.{name}") for name in _relations(conn, s) if name not in made]
    if problems:
        raise PreflightError(problems)


def _made(there: tuple[Spoke, ...]) -> set[str]:
    return {WITHOUT_TERRITORY, *PARENTS, *(f"{parent}_{one.suffix}" for parent in PARENTS for one in there)}


def _former(conn: Connection, s: Settings) -> set[str]:
    """Partitions of territories that the settings no longer name."""
    query = """
        SELECT c.relname::text FROM pg_catalog.pg_inherits AS i JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
        JOIN pg_catalog.pg_class AS p ON p.oid = i.inhparent
        WHERE p.relnamespace = pg_catalog.to_regnamespace(%s) AND p.relname = ANY (%s)
        """
    return {name for (name,) in conn.execute(query, (ident(hub_schema(s)), [*PARENTS])).fetchall()}


def _relations(conn: Connection, s: Settings) -> list[str]:
    query = """
        SELECT c.relname::text FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = pg_catalog.to_regnamespace(%s) AND c.relkind <> 'c'
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e') ORDER BY 1
        """
    return [name for (name,) in conn.execute(query, (ident(hub_schema(s)),)).fetchall()]


def _refuse_open_mappings(conn: Connection, s: Settings) -> None:
    if problems := open_mappings(conn, s):
        raise PreflightError(problems)


def _standing_grants(conn: Connection, s: Settings) -> set[tuple[str, str]]:
    """Login and suffix, of whoever was given the foreign server of a territory."""
    query = """
        SELECT r.rolname::text, f.srvname::text
        FROM pg_catalog.pg_foreign_server AS f, pg_catalog.aclexplode(f.srvacl) AS a
        JOIN pg_catalog.pg_roles AS r ON r.oid = a.grantee
        WHERE f.srvname = ANY (%s) AND a.grantee <> f.srvowner
        """
    prefix = f"{hub_schema(s)}_"
    return {
        (login, name.removeprefix(prefix)) for login, name in conn.execute(query, (_our_servers(conn, s),)).fetchall()
    }


def hub_faults(conn: Connection, s: Settings, there: tuple[Spoke, ...]) -> list[str]:
    """What of the hub is missing, or asks elsewhere than it was made to; any login may ask."""
    servers = "SELECT f.srvname::text, f.srvoptions FROM pg_catalog.pg_foreign_server AS f WHERE f.srvname = ANY (%s)"
    found = {name: {*(given or ())} for name, given in conn.execute(servers, (_our_servers(conn, s),)).fetchall()}
    wanted = {one.server: {f"{name}={value}" for name, value in one.options} for one in there}
    faults = [f"the foreign server {name}" for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]
    tables = """
        SELECT c.relname::text, p.relname::text, f.srvname::text, t.ftoptions
        FROM pg_catalog.pg_foreign_table AS t JOIN pg_catalog.pg_class AS c ON c.oid = t.ftrelid
        JOIN pg_catalog.pg_foreign_server AS f ON f.oid = t.ftserver
        LEFT JOIN pg_catalog.pg_inherits AS i ON i.inhrelid = c.oid
        LEFT JOIN pg_catalog.pg_class AS p ON p.oid = i.inhparent
        WHERE c.relnamespace = pg_catalog.to_regnamespace(%s)
        """
    rows = conn.execute(tables, (ident(hub_schema(s)),)).fetchall()
    stand = {name: (parent, server, frozenset(given or ())) for name, parent, server, given in rows}
    meant = {
        f"{parent}_{one.suffix}": (parent, one.server, frozenset({f"schema_name={s.schema}", f"table_name={parent}"}))
        for parent in PARENTS
        for one in there
    }
    faults += [name for name in sorted({*stand, *meant}) if stand.get(name) != meant.get(name)]
    return faults + sorted(_made(there) - meant.keys() - {*_relations(conn, s)})


def _extension_schema(conn: Connection) -> str | None:
    query = """
        SELECT n.nspname::text FROM pg_catalog.pg_extension AS e
        JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
        WHERE e.extname = 'postgres_fdw'
        """
    found = conn.execute(query).fetchone()
    return found[0] if found else None


# --- the SQL


def _digest(s: Settings, there: tuple[Spoke, ...]) -> str:
    return sha256("\n".join(_tables(s, there)).encode()).hexdigest()


def _ground(conn: Connection, s: Settings) -> Iterator[str]:
    """Schema and extension; the extension in that schema, so that it goes with the hub."""
    if hub_mark(conn, s) is None:
        yield f"CREATE SCHEMA {ident(hub_schema(s))}"
    if _extension_schema(conn) is None:
        files = "SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'postgres_fdw'"
        if conn.execute(files).fetchone() is None:
            raise PreflightError(
                [
                    (
                        "the server of the hub has no postgres_fdw: install its package of contributed extensions "
                        "(postgresql-contrib), or use a database of a server that has it"
                    )
                ]
            )
        yield f"CREATE EXTENSION postgres_fdw SCHEMA {ident(hub_schema(s))}"


def _servers(conn: Connection, s: Settings, there: tuple[Spoke, ...]) -> Iterator[str]:
    """Made, or set right where they stand, because user mappings hang on them."""
    standing = _our_servers(conn, s)
    for one in there:
        given = dict(one.options)
        if one.server not in standing:
            options = ", ".join(f"{name} {literal(value)}" for name, value in given.items())
            yield f"CREATE SERVER {ident(one.server)} FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({options})"
            yield f"COMMENT ON SERVER {ident(one.server)} IS {literal(MARK)}"
            continue
        query = (
            "SELECT o.option_name::text FROM pg_catalog.pg_foreign_server AS f, "
            "pg_catalog.pg_options_to_table(f.srvoptions) AS o WHERE f.srvname = %s"
        )
        there_now = {name for (name,) in conn.execute(query, (one.server,)).fetchall()}
        changes = [f"DROP {name}" for name in sorted(there_now - given.keys())]
        changes += [f"{'SET' if name in there_now else 'ADD'} {name} {literal(v)}" for name, v in given.items()]
        yield f"ALTER SERVER {ident(one.server)} OPTIONS ({', '.join(changes)})"


def _cleared(conn: Connection, s: Settings) -> Iterator[str]:
    """Take away our tables, the view and the types, but never with what somebody built on them."""
    hub, there = hub_schema(s), _relations(conn, s)
    yield from (f"DROP VIEW {ident(hub, name)}" for name in there if name == WITHOUT_TERRITORY)
    yield from (f"DROP TABLE {ident(hub, name)}" for name in there if name in PARENTS)  # its partitions go with it
    query = """
        SELECT t.typname::text FROM pg_catalog.pg_type AS t
        WHERE t.typnamespace = pg_catalog.to_regnamespace(%s) AND t.typtype = 'e' ORDER BY 1
        """
    ours = [name for (name,) in conn.execute(query, (ident(hub),)).fetchall()]
    yield from (f"DROP TYPE {ident(hub, name)}" for name in ours)


def _tables(s: Settings, there: tuple[Spoke, ...]) -> Iterator[str]:
    hub = ident(hub_schema(s))
    yield from (line.strip() for line in _TYPES.format(hub=hub).split(";"))
    for parent, columns in PARENTS.items():
        name = ident(hub_schema(s), parent)
        shown = columns.format(hub=hub, lead_id_type=s.lead_id_type, user_id_type=s.user_id_type)
        yield f"CREATE TABLE {name} ({shown}) PARTITION BY LIST (territory)"
        if parent in _SHOWN_IN_EVERY_CONTEXT:
            yield from (line.strip() for line in _ONCE.format(parent=name).split(";"))
        for one in there:
            yield (
                f"CREATE FOREIGN TABLE {ident(hub_schema(s), f'{parent}_{one.suffix}')} PARTITION OF {name} "
                f"FOR VALUES IN ({literal(one.territory)}) SERVER {ident(one.server)} "
                f"OPTIONS (schema_name {literal(s.schema)}, table_name {literal(parent)})"
            )
    firsts = {one.database: one for one in reversed(there)}
    parts = (
        f"SELECT {literal(one.database)}::text AS database, a.* "
        f"FROM {ident(hub_schema(s), f'lead_access_audit_{one.suffix}')} AS a WHERE a.territory IS NULL"
        for one in reversed(firsts.values())
    )
    view = ident(hub_schema(s), WITHOUT_TERRITORY)
    # with its owner's rights it would be a way to every server on which he has a user mapping
    yield f"CREATE VIEW {view} WITH (security_invoker = true) AS {' UNION ALL '.join(parts)}"


def _grants(s: Settings, there: tuple[Spoke, ...], wanted: Collection[tuple[str, str]]) -> list[str]:
    hub = hub_schema(s)
    shared = ", ".join(ident(hub, name) for name in (*PARENTS, WITHOUT_TERRITORY))
    found = []
    for login in sorted({login for login, _ in wanted}):
        mine = [one for one in there if (login, one.suffix) in wanted]
        own = ", ".join(ident(hub, f"{parent}_{one.suffix}") for one in mine for parent in PARENTS)
        if mine:
            found.append(f"GRANT USAGE ON SCHEMA {ident(hub)} TO {ident(login)}")
            found.append(f"GRANT SELECT ON {shared}, {own} TO {ident(login)}")
            servers = ", ".join(ident(one.server) for one in mine)
            found.append(f"GRANT USAGE ON FOREIGN SERVER {servers} TO {ident(login)}")
    return found


def _mappings(conn: Connection, there: tuple[Spoke, ...], wanted: Collection[tuple[str, str]]) -> Iterator[str]:
    """What an auditor runs himself, for each server on which he has no mapping yet."""
    query = "SELECT m.srvname::text, m.usename::text FROM pg_catalog.pg_user_mappings AS m"
    standing = set(conn.execute(query).fetchall())
    way = "use_scram_passthrough 'true'" if conn.info.server_version >= _SCRAM_PASSTHROUGH else "password :'password'"
    for login in sorted({login for login, _ in wanted}):
        for one in there:
            if (login, one.suffix) in wanted and (one.server, login) not in standing:
                of = f"FOR {ident(login)} SERVER {ident(one.server)}"
                yield f"CREATE USER MAPPING {of} OPTIONS (user {literal(login)}, {way});"


def _run(conn: Connection, statement: str) -> None:
    try:
        conn.execute(statement.encode())
    except psycopg.errors.InsufficientPrivilege as error:
        me = ident(conn.info.user)
        raise PreflightError(
            [f"the login may not do this here: {statement.partition(' OPTIONS')[0]} ({error.diag.message_primary})"],
            [
                "CREATE EXTENSION IF NOT EXISTS postgres_fdw;",
                f"GRANT USAGE ON FOREIGN DATA WRAPPER postgres_fdw TO {me};",
                f"GRANT CREATE ON DATABASE {ident(conn.info.dbname)} TO {me};",
            ],
        ) from None
    except psycopg.errors.DependentObjectsStillExist as error:
        on = " ".join((error.diag.message_detail or "").split())
        problem = f"something of yours is built on the hub ({on}): drop that first, and make it again after"
        raise PreflightError([problem]) from None
