"""What leadprotect ships: the text of its revisions, and how a server shows what they make.

`shipped.json` is written by ``make shipped`` from real databases with the default settings, in the form of
`likeness.neutral`. What PL/pgSQL keeps as it was written is compared with the revisions themselves.
"""

from __future__ import annotations

import ast
import json
import re
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from leadprotect import phases
from leadprotect.doctor import present
from leadprotect.doctor.likeness import neutral
from leadprotect.settings import Settings, ident, render
from leadprotect.settings.names import trigger_names
from leadprotect.settings.sources import filled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import CodeType

    import psycopg

    from leadprotect.settings import LeadTable

FILE = Path(__file__).with_name("shipped.json")
_BODY = r"\$body\$.*?\$body\$|\n(?P<indent> *)BEGIN ATOMIC\n.*?\n(?P=indent)END|\n *RETURN\s(?:'(?:[^']|'')*'|[^;'])*"
_STRINGS = r"(?:'(?:[^']|'')*'|[^;'])*"


@dataclass(frozen=True)
class Shipped:
    """What stands in our schema at the head, by name, as `present` reads it."""

    functions: dict[str, list[dict[str, Any]]]
    tables: dict[str, dict[str, Any]]
    host_policies: dict[str, list[dict[str, Any]]]
    host_triggers: dict[str, dict[str, Any]]
    child_policies: dict[str, dict[str, Any]]
    child_triggers: dict[str, dict[str, Any]]


@lru_cache(maxsize=16)
def shipped(s: Settings, child: LeadTable | None = None) -> Shipped:
    """What `FILE` holds, with names of the settings that mean two things made one, as in what is compared."""
    return Shipped(**_again(json.loads(FILE.read_text(encoding="utf-8")), s, child))


def _again(value: Any, s: Settings, child: LeadTable | None) -> Any:
    """The shipped text once more in neutral form: these settings may give two names of it to one thing."""
    if isinstance(value, dict):
        return {key: one if key in _AS_IS else _again(one, s, child) for key, one in value.items()}
    if isinstance(value, list):
        return [_again(one, s, child) for one in value]
    return neutral(value, s, child) if isinstance(value, str) else value


_AS_IS = ("kind", "options", "config", "volatile", "language", "command", "enabled")


def taken(conn: psycopg.Connection[Any], s: Settings) -> dict[str, Any]:
    """What stands in a database at head, in the form of `FILE`: for ``make shipped`` alone."""
    functions: dict[str, list[dict[str, Any]]] = {}
    for one in present.functions(conn, s):
        if one.key not in present.MADE_ANEW:
            functions.setdefault(one.key, []).append(_function(one))
    tables = {
        one.name: {
            "kind": one.kind,
            "options": list(one.options),
            "definition": one.definition,
            "grants": sorted(one.grants),
            "constraints": list(one.constraints),
            "columns": {name: list(column) for name, column in one.columns.items()},
            "policies": {policy.name: _plain(policy) for policy in present.policies(conn, s, one.oid)},
            "triggers": {trigger.name: _plain(trigger) for trigger in present.triggers(conn, s, one.oid)},
        }
        for one in present.tables(conn, s)
        if one.name == one.shipped_as
    }
    found = present.host_policies(conn, s)
    return {
        "functions": functions,
        "tables": tables,
        "host_policies": {name: [_plain(policy)] for name, policy in found.items()},
        "host_triggers": {
            trigger_names(s)[name]: _plain(trigger)
            for oid in present.host_tables(conn, s).values()
            for name, trigger in present.host_triggers(conn, s, oid).items()
        },
        "child_policies": {
            name: _plain(policy)
            for child, oid in present.children(conn, s)
            for name, policy in present.child_policies(conn, s, child, oid).items()
        },
        "child_triggers": {
            name: _plain(trigger)
            for child, oid in present.children(conn, s)
            for name, trigger in present.child_triggers(conn, s, child, oid).items()
        },
    }


def _function(one: present.Function) -> dict[str, Any]:
    kept = ("owner", "definer", "config", "volatile", "strict", "leakproof", "language", "body", "grants")
    found = {name: value for name, value in asdict(one).items() if name in kept}
    return found | {"config": list(one.config), "grants": sorted(one.grants)}


def _plain(one: present.Policy | present.Trigger) -> dict[str, Any]:
    """Without its name: on the host it bears our schema's."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(one).items()} | {
        "name": ""
    }


# --- the revisions


class _Recording:
    """Stands for Alembic while a revision tells its SQL: to load that takes longer than to ask every check."""

    as_sql = True
    opts: ClassVar = {"transaction_per_migration": True, "leadprotect": True}
    config = None

    def __init__(self, s: Settings, said: list[str] | None = None) -> None:
        self.version_table_schema, self.version_table = s.version_table_schema, s.version_table
        self.said = [] if said is None else said

    @contextmanager
    def autocommit_block(self) -> Iterator[None]:
        self.said.append("COMMIT")
        yield
        self.said.append("BEGIN")

    def get_revision_argument(self) -> str:
        return "head"

    def get_context(self) -> _Recording:
        return self

    def is_offline_mode(self) -> bool:
        return True

    def execute(self, said: str) -> None:
        self.said.append(said.strip())


@lru_cache(maxsize=4)
def shipped_script(s: Settings, revisions: tuple[str, ...]) -> str:
    """What the upgrades of `revisions` execute with the settings `s`, as one script."""
    said: list[str] = []

    def sql(statement: str, child: LeadTable | None = None) -> str:
        said.append(render(statement, s, child))
        return said[-1]

    for revision in revisions:
        module = _loaded(phases.file(revision), _Recording(s))
        # loaded for this call alone: the settings are those given, not the process's
        known = {"activity_sources": lambda: filled(s), "lead_tables": lambda: s.lead_tables}
        module |= {"sql": sql, "load": lambda _config: s, **known}
        module["upgrade"]()
    return ";\n".join(said) + ";\n"


def shipped_undo(s: Settings, revision: str) -> tuple[tuple[str, ...], dict[str, str]]:
    """What the downgrade of `revision` executes with the settings `s`, one by one, and its locks on the host."""
    said: list[str] = []
    module = _loaded(phases.file(revision), _Recording(s, said))
    module |= {"sql": lambda statement: render(statement, s), "load": lambda _config: s}
    module |= {"activity_sources": lambda: filled(s)}
    module["downgrade"]()
    # a host's own revision, beside ours in one release, may declare none
    return tuple(said), module.get("locks", {}).get("downgrade", {})


def _loaded(file: Path, recording: _Recording) -> dict[str, Any]:
    """The names of a revision, with a recording one for whatever it has of Alembic and SQLAlchemy."""
    code, names = _compiled(file.read_bytes(), file)
    module: dict[str, Any] = {"__name__": file.stem} | dict.fromkeys(names, recording)
    exec(code, module)  # noqa: S102 - a file of the package, as Alembic runs it
    return module


@lru_cache(maxsize=64)
def _compiled(source: bytes, file: Path) -> tuple[CodeType, tuple[str, ...]]:
    """A revision without the imports of Alembic and SQLAlchemy, and the names that they gave it.

    An examination loads each twice: for what it executes, and for its way down.
    """
    tree = ast.parse(source, file)
    names: list[str] = []
    for line in [*tree.body]:
        if isinstance(line, ast.ImportFrom) and (line.module or "").split(".")[0] in ("alembic", "sqlalchemy"):
            tree.body.remove(line)
            names += [each.asname or each.name for each in line.names]
    return compile(tree, file, "exec"), tuple(names)


@lru_cache(maxsize=4)
def sources(text: str, s: Settings) -> Mapping[str, list[str]]:
    """Name of a function -> the statements of a script that make it, each complete and ready to be run again."""
    pattern = rf"CREATE (?:OR REPLACE )?(FUNCTION {re.escape(ident(s.schema))}\.(\w+)\(.*?\bLANGUAGE\b.*?(?:{_BODY}))"
    found: dict[str, list[str]] = {}
    for match in re.finditer(pattern, text, re.DOTALL):
        found.setdefault(match[2], []).append(f"CREATE OR REPLACE {match[1]};")
    return found


def following(text: str, s: Settings, name: str) -> list[str]:
    """The statements of a script that grant a function, or take it from somebody, in their order."""
    pattern = rf"(?:REVOKE|GRANT) [^;]*?\bON FUNCTION [^;]*?{re.escape(ident(s.schema))}\.{name}\([^;]*;?"
    return [match[0].rstrip("; \n") + ";" for match in re.finditer(pattern, text)]


def policy_statement(text: str, policy: str, table: str, *, first: bool = False) -> str | None:
    """The statement of a script that makes a policy; of two for different hosts the last, or the `first`."""
    found = re.findall(rf"CREATE POLICY {re.escape(policy)} ON {re.escape(table)}\s{_STRINGS}", text)
    return found[0 if first else -1].rstrip() + ";" if found else None


def trigger_statement(text: str, trigger: str, table: str) -> str | None:
    """The statement of a script that makes a trigger."""
    found = re.findall(rf"CREATE TRIGGER {re.escape(trigger)} {_STRINGS}", text)
    found = [one for one in found if f" ON {table}" in one]
    return found[-1].rstrip() + ";" if found else None


def body_of(statement: str) -> str | None:
    """The text between the quotes of a PL/pgSQL function's body."""
    found = re.search(r"\$body\$(.*?)\$body\$", statement, re.DOTALL)
    return found[1] if found else None


def known(revision: str | None) -> tuple[str, ...]:
    """The revisions up to `revision`; empty at the base, and at one of a newer version."""
    chain = phases.chain()
    return chain[: chain.index(revision) + 1] if revision in chain else ()
