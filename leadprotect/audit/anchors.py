"""Anchors: how far each chain of seals had come, and its newest hash, kept where nobody of this database can reach it.

An anchor is one line of JSON, in a file or in a table of another server, and only ever added to what is there.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from leadprotect.access.context import declaring
from leadprotect.audit.findings import KeptSeal
from leadprotect.audit.proof import Known
from leadprotect.audit.reach import listing_reach
from leadprotect.database.opening import open_connection
from leadprotect.database.statements import own_names, row, rows
from leadprotect.errors import ConnectionUnusable, InvalidRequest, PreflightError
from leadprotect.settings import current, ident, render
from leadprotect.settings.values import libpq_url

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from leadprotect.database.drivers import AnyConnection

FORMAT = "leadprotect-anchor-1"
TABLE = "public.leadprotect_anchors"
CREATE = """
CREATE TABLE public.leadprotect_anchors (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  made_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  login name NOT NULL DEFAULT session_user,
  anchor text NOT NULL
);
COMMENT ON TABLE public.leadprotect_anchors IS
'How far the audit of another server was sealed, and its newest hashes; leadprotect audit verify --anchor compares';
REVOKE ALL ON public.leadprotect_anchors FROM PUBLIC;
CREATE FUNCTION public.leadprotect_anchors_append_only()
RETURNS trigger
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
  RAISE EXCEPTION 'leadprotect_anchors only grows' USING ERRCODE = 'insufficient_privilege';
END
$body$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON public.leadprotect_anchors
FOR EACH STATEMENT EXECUTE FUNCTION public.leadprotect_anchors_append_only();
ALTER TABLE public.leadprotect_anchors ENABLE ALWAYS TRIGGER append_only
"""
"""What `send` runs where the table is missing, and what a DBA runs where its login may not."""

_URL = ("postgresql://", "postgres://", "postgresql+")
_AGAIN = "take another copy of it; leadprotect audit anchor makes a new one, which proves nothing of the time before it"


@dataclass(frozen=True)
class Anchored:
    """A chain: `seals` is the place of its newest seal, `hash` that seal's; 0 and None before the first one."""

    territory: str | None
    seals: int
    hash: str | None


@dataclass(frozen=True)
class Anchor:
    """How far every chain that the login may read had come; `left_out` names the territories of the others.

    `first` is the hash of the first seal of the rows without territory: it tells one audit from another.
    """

    database: str
    origin: str
    made_at: str
    made_by: str
    first: str | None
    chains: tuple[Anchored, ...]
    left_out: tuple[str, ...]

    def line(self) -> str:
        """The anchor as it is kept, with a digest that shows damage."""
        fields = {"format": FORMAT, **asdict(self)}
        return json.dumps({**fields, "digest": _digest(fields)}, ensure_ascii=False)


Source = TypeVar("Source", Anchor, Known)


def anchor(conn: AnyConnection, *, territories: Collection[str] | None = None) -> Anchor:
    """How far each chain has come that the login may read, or those of `territories` alone ('': of none).

    For auditors, in a transaction. Raises `InvalidRequest` where nothing is sealed, and for an unknown territory,
    `ProtectionUnavailable` for other logins and those of no territory, `ContextMissing` in autocommit.
    """
    with own_names(conn):
        reach = listing_reach(conn, territories)
        chains = []
        for code in reach.inside:
            with declaring(conn, "", code or ""):
                chains.append(_newest(conn, code))
        if not any(chain.seals for chain in chains):
            raise InvalidRequest("nothing is sealed yet, so there is nothing to keep: run leadprotect audit seal first")
        database, origin, first, login, now = _identity(conn)
        return Anchor(database, origin, now, login, first, tuple(chains), reach.left_out)


def append(path: Path, anchor: Anchor) -> None:
    """Add the anchor to a file, which is made when it is missing; it is on the disk when this returns.

    Raises `InvalidRequest` for a file that holds something else, or can't be written.
    """
    try:
        if path.exists():
            list(_read(path.read_text(encoding="utf-8").splitlines(), str(path)))
        with path.open("a", encoding="utf-8") as file:
            file.write(anchor.line() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path}: {getattr(error, 'strerror', None) or 'it is no text in UTF-8'}") from None


def send(url: str, anchor: Anchor) -> bool:
    """Add the anchor to `TABLE` in the database at `url`, and make that first; returns whether it is another server.

    Raises `SettingsError` for a URL that can't be read, `ConnectionUnusable` where nothing answers,
    `PreflightError` where the login may not write there.
    """
    with _connected(url) as conn:
        if not _there(conn):
            _run(conn, CREATE, f"the login may not make {TABLE} there")
        statement = "INSERT INTO public.leadprotect_anchors (anchor) VALUES (%s)"
        _run(conn, statement, f"the login may not add to {TABLE} there", (anchor.line(),))
        return _server(conn) != anchor.origin.split("/", maxsplit=1)[0]


def note_made(conn: AnyConnection) -> None:
    """Note in the database that an anchor was made, so that doctor need not remind; the caller commits.

    For auditors. Raises `ConnectionUnusable` on a standby, which can't note anything, `ProtectionUnavailable` for other
    logins.
    """
    row(conn, render("SELECT {schema}.note_anchor()", current()))


def kept(conn: AnyConnection, source: str) -> set[KeptSeal]:
    """The seals that anchors of this audit name: `source` is a file or a URL that begins with postgresql://.

    For auditors. Raises `InvalidRequest` for what is damaged, and where every anchor is of another database,
    and what `send` raises.
    """
    found = _anchors(source)
    place = _shown(source)
    if not found:
        raise InvalidRequest(f"{place} holds no anchor: leadprotect audit anchor writes one")
    ours = of_this_audit(conn, found, place)
    return {
        KeptSeal(chain.territory, chain.seals, chain.hash)
        for one in ours
        for chain in one.chains
        if chain.hash is not None
    }


def of_this_audit(conn: AnyConnection, found: Sequence[Source], place: str) -> list[Source]:
    """Those of `found`, which `place` holds, that were made of this audit, or of the one that it was restored from.

    Its first seal tells, and if that was made anew, its server and table. Raises `InvalidRequest` where there is none.
    """
    with own_names(conn):
        database, origin, first, *_ = _identity(conn)
    here = (database, origin)
    ours = [one for one in found if (one.database, one.origin) == here or (first is not None and one.first == first)]
    if not ours:
        others = ", ".join(sorted({one.database for one in found}))
        raise InvalidRequest(
            f"{place} was made of another database ({others}), not of this one ({database}): name that database in "
            "DATABASE_URL, or a file that was made of this one"
        )
    return ours


def _newest(conn: AnyConnection, territory: str | None) -> Anchored:
    query = """
        SELECT s.number, encode(s.hash, 'hex') FROM {schema}.lead_access_audit_seals AS s
        WHERE s.territory IS NOT DISTINCT FROM %s::text ORDER BY s.number DESC LIMIT 1
        """
    ((number, own),) = rows(conn, render(query, current()), (territory,)) or [(0, None)]
    return Anchored(territory, number, own)


def _identity(conn: AnyConnection) -> tuple[str, str, str | None, str, str]:
    """Database, server and table of the audit, hash of its first seal, who asks, and when."""
    query = """
        SELECT current_database()::text, {schema}.audit_origin(),
               (SELECT encode(s.hash, 'hex') FROM {schema}.lead_access_audit_seals AS s
                WHERE s.territory IS NULL AND s.number = 1),
               session_user::text, to_char(now() AT TIME ZONE 'Etc/UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
        """
    database, origin, first, login, now = row(conn, render(query, current()))
    return database, origin, first, login, now


def _anchors(source: str) -> list[Anchor]:
    if not source.startswith(_URL):
        try:
            return [*_read(Path(source).read_text(encoding="utf-8").splitlines(), source)]
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{source}: {getattr(error, 'strerror', None) or _AGAIN}") from None
    with _connected(source) as conn:
        if not _there(conn):
            raise InvalidRequest(f"{_shown(source)} holds no anchor: leadprotect audit anchor --to URL writes one")
        statement = "SELECT a.anchor FROM public.leadprotect_anchors AS a ORDER BY a.id"
        return [*_read((line for (line,) in _run(conn, statement, f"the login may not read {TABLE}")), _shown(source))]


def _read(lines: Iterable[str], place: str) -> Iterator[Anchor]:
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            whole = fields.pop("digest") == _digest(fields) and fields.pop("format") == FORMAT
            chains = tuple(Anchored(**chain) for chain in fields.pop("chains"))
            found = Anchor(chains=chains, left_out=tuple(fields.pop("left_out")), **fields)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole = False
        if not whole:
            raise InvalidRequest(f"{place}, line {number}: this is no anchor, or it was damaged: {_AGAIN}")
        yield found


def _digest(fields: dict[str, Any]) -> str:
    return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _connected(url: str) -> psycopg.Connection[Any]:
    try:
        return open_connection(libpq_url("the URL of the anchors", url), application="leadprotect")
    except psycopg.OperationalError as error:  # names host, port and user, never the password
        why = " ".join(str(error).split())
        raise ConnectionUnusable(
            f"no connection to the anchors: {why}. Nothing was compared or written: try again when it answers, "
            "or use a file"
        ) from None


def _shown(source: str) -> str:
    """Where anchors are, without a password."""
    if not source.startswith(_URL):
        return source
    parts = psycopg.conninfo.conninfo_to_dict(libpq_url("the URL of the anchors", source))
    return f"{TABLE} in {parts.get('dbname') or 'the database'} on {parts.get('host') or 'this machine'}"


def _there(conn: psycopg.Connection[Any]) -> bool:
    return conn.execute("SELECT pg_catalog.to_regclass('public.leadprotect_anchors')").fetchone() != (None,)


def _run(conn: psycopg.Connection[Any], statement: str, problem: str, params: tuple[str, ...] = ()) -> list[Any]:
    try:
        with conn.transaction():
            done = conn.execute(statement, params or None)
            return done.fetchall() if done.description else []
    except psycopg.errors.InsufficientPrivilege:
        grant = f"GRANT INSERT, SELECT ON {TABLE} TO {ident(conn.info.user)};"
        create = [] if _there(conn) else [*f"{CREATE.strip()};".splitlines()]
        raise PreflightError([problem], [*create, grant]) from None
    except psycopg.Error as error:
        raise InvalidRequest(
            f"{TABLE} there can't be used ({error.diag.message_primary}): rename it, and leadprotect makes its own"
        ) from None


def _server(conn: psycopg.Connection[Any]) -> str | None:
    try:
        found = conn.execute("SELECT system_identifier::text FROM pg_catalog.pg_control_system()").fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return None
    return found[0] if found else None
