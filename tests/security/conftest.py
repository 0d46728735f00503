"""Hosts that somebody else made, each in a database of its own with roles of its own."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg
import pytest

from leadprotect.access import ways
from tests.conftest import janitor_of, use
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
    profile: Profile, running: Callable[[int], Server], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Host]]:
    """A function that makes a host of a shape; roles are the cluster's, so theirs and ours bear its number."""
    server = running(profile.major)
    with ExitStack() as stack:

        def make(shape: Shape, **overrides: str) -> Host:
            number = f"{next(NUMBERS)}_{os.getpid()}"
            given = settings_of(shape, f"h{number}_") | {"schema": f"lp{number}"} | overrides
            host = Host(server, profile, f"h{number}", given, shape=shape, prefix=f"h{number}_")
            stack.callback(drop_roles, server, host)
            janitor = janitor_of(server, host.name, None)
            janitor.init()
            stack.callback(janitor.drop)
            use(host, monkeypatch)
            host.create()
            return host

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


def drop_roles(server: Server, host: Host) -> None:
    """When the database is gone, nothing depends on them."""
    with psycopg.connect(server.url(), autocommit=True) as conn:
        ours = "SELECT rolname FROM pg_roles WHERE starts_with(rolname, %s) OR starts_with(rolname, %s)"
        for (role,) in conn.execute(ours, (host.prefix, host.settings.schema + "_")).fetchall():
            conn.execute(f'DROP ROLE "{role}"')
