"""Hosts that somebody else made, each in a database of its own with roles of its own."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from leadprotect.access import ways
from tests.conftest import janitor_of, use
from tests.support import sessions
from tests.support.hosts import Host, settings_of
from tests.support.matrix import History, live

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.hosts import Shape
    from tests.support.profiles import Profile
    from tests.support.servers import Server

NUMBERS = itertools.count(1)


@pytest.fixture
def make_host(
    profile: Profile, running: Callable[[int], Server], kept: dict[Kind, Host], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Host]]:
    """A function that makes a host of a shape; roles are the cluster's, so theirs and ours bear its number.

    With a phase, "expanded" or "contracted", it is a copy of a host that went so far and was told nothing else.
    """
    server = running(profile.major)
    with ExitStack() as stack:

        def fresh(stack: ExitStack, shape: Shape, overrides: dict[str, str]) -> Host:
            number = f"{next(NUMBERS)}_{os.getpid()}"
            given, further = settings_of(shape, f"h{number}_")
            given |= {"schema": f"lp{number}"} | overrides
            host = Host(server, profile, f"h{number}", given, further, shape=shape, prefix=f"h{number}_")
            stack.callback(drop_roles, host)
            janitor = janitor_of(server, host.name, None)
            janitor.init()
            stack.callback(janitor.drop)
            use(host, monkeypatch)
            host.create()
            return host

        def copy(kind: Kind, shape: Shape, overrides: dict[str, str]) -> Host:
            if kind not in kept:
                kept[kind] = fresh(ExitStack(), shape, overrides)
                LIVED[kind.phase](kept[kind])
                ways.close()
            template = kept[kind]
            host = template.copy(f"{template.name}c{next(NUMBERS)}")
            stack.callback(restore_roles, kept, kind, roles_of(template))
            janitor = janitor_of(server, host.name, template.name)
            janitor.init()
            stack.callback(janitor.drop)
            use(host, monkeypatch)
            return host

        def make(shape: Shape, *, phase: str = "", **overrides: str) -> Host:
            if not phase:
                return fresh(stack, shape, overrides)
            return copy(Kind(profile.name, shape.name, phase, tuple(sorted(overrides.items()))), shape, overrides)

        yield make
        ways.close()  # before its database is dropped


@pytest.fixture(scope="session")
def histories() -> dict[tuple[str, str], History]:
    """Lives of hosts that were recorded so far, by profile."""
    return {}


@pytest.fixture
def history(
    shape: Shape,
    profile: Profile,
    make_host: Callable[..., Host],
    histories: dict[tuple[str, str], History],
) -> History:
    """The life of a host of the test's shape: recorded once, since every test of the matrix asks about the same one."""
    if (profile.name, shape.name) not in histories:
        histories[profile.name, shape.name] = live(make_host(shape))
    return histories[profile.name, shape.name]


class Kind(NamedTuple):
    """What a host that is copied was made of."""

    profile: str
    shape: str
    phase: str
    overrides: tuple[tuple[str, str], ...]


@pytest.fixture(scope="session")
def kept() -> dict[Kind, Host]:
    """Hosts that are copied for tests, and never changed."""
    return {}


def expand(host: Host) -> None:
    """Everything but the backfill and contract."""
    host.remedy()
    host.expand()
    host.grant()


def contract(host: Host) -> None:
    """The same at head."""
    expand(host)
    host.backfill()
    host.contract()


LIVED = {"expanded": expand, "contracted": contract}


def roles_of(host: Host) -> dict[str, Any]:
    """Its roles and ours with all their facts, and who is a member of which: copies of a host have them in common."""
    found = host.sql(
        """
        WITH ours AS (
          SELECT oid, rolname::text AS name, to_jsonb(r)::text AS facts FROM pg_roles AS r
          WHERE starts_with(rolname, %s) OR starts_with(rolname, %s))
        SELECT name, facts FROM ours
        UNION ALL
        SELECT 'members', string_agg((to_jsonb(m) - 'oid')::text, ' ' ORDER BY m.roleid, m.member, m.grantor)
        FROM pg_auth_members AS m
        WHERE m.roleid IN (SELECT oid FROM ours) OR m.member IN (SELECT oid FROM ours)
        """,
        *(host.prefix, host.settings.schema + "_"),
    )
    return dict(found)


def restore_roles(kept: dict[Kind, Host], kind: Kind, before: dict[str, Any]) -> None:
    """Drop those that a test has made; where it has changed the host's, the next test makes another host to copy."""
    template = kept[kind]
    conn = sessions.session(template.server.url())
    for role in roles_of(template).keys() - before.keys():
        conn.execute(f'DROP ROLE "{role}"')
    if roles_of(template) != before:
        del kept[kind]
        janitor_of(template.server, template.name, None).drop()
        drop_roles(template)


def drop_roles(host: Host) -> None:
    """When the database is gone, nothing depends on them."""
    conn = sessions.session(host.server.url())
    ours = "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s) OR starts_with(rolname, %s)"
    for (role,) in conn.execute(ours, (host.prefix, host.settings.schema + "_")).fetchall():
        conn.execute(f'DROP ROLE "{role}"')
