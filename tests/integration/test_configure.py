"""Settings that are given in Python, for the process or for one of several databases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import leadprotect
from leadprotect import InvalidRequest, LeadAccessDenied, SettingsError, aio, settings
from leadprotect.access import ways
from tests.conftest import NUMBERS, janitor_of, make_template
from tests.support.database import Database
from tests.support.profiles import PROFILES
from tests.support.servers import Server

pytestmark = pytest.mark.profiles("pg18")


@pytest.fixture
def other(
    running: Callable[[int], Server], templates: dict[tuple[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    """A database on another server, in a schema of another name, with other types."""
    (profile,) = (one for one in PROFILES if one.name == "other_names")
    server = running(profile.major)
    if (profile.name, "head") not in templates:
        templates[profile.name, "head"] = make_template(server, profile, "head", monkeypatch)
    name = f"other{next(NUMBERS)}"
    janitor = janitor_of(server, name, templates[profile.name, "head"])
    janitor.init()
    settings.current.cache_clear()
    yield Database(server, profile, name)
    ways.close()
    janitor.drop()


def given(database: Database) -> dict[str, str]:
    return {"observation_window": "0", "database_url": database.url} | database.profile.settings


def asked(conn: Any, database: Database) -> list[Any]:
    """What a service asks of each of its databases: a context, checks, an edit and a denial."""
    mine, theirs = database.lead("DE", owner=database.user(1)), database.lead("DE", owner=database.user(2))
    with leadprotect.acting_as(conn, database.user(1), "DE"):
        found: list[Any] = [leadprotect.can_edit(conn=conn, lead_id=mine)]
        found += [leadprotect.explain(conn, theirs).reason, leadprotect.can_edit_many(conn, [mine, theirs])[mine]]
        found += [len(leadprotect.editable_leads(conn).leads), leadprotect.assert_edit(conn, mine).reason]
        with pytest.raises(LeadAccessDenied):
            leadprotect.assert_edit(conn, theirs)
        leadprotect.share(conn, mine, database.user(3))
    conn.commit()
    found += [leadprotect.territory(conn, "DE").currency, database.audit("outcome::text")]
    return found


EXPECTED = [True, "not_owner", True, 1, "owner", "EUR", ["ALLOW", "DENY", "ALLOW"]]


def test_two_databases_on_two_servers_are_served_by_one_process(database: Database, other: Database) -> None:
    with database.engine("seller_de") as one, other.engine("seller_de") as two:
        leadprotect.configure(two, **given(other))
        with one.connect() as first, Session(two) as second:
            assert EXPECTED == asked(first, database)
            assert EXPECTED == asked(second, other)


def test_without_what_is_bound_the_second_one_is_asked_for_the_first_one_s_objects(
    other: Database, database: Database
) -> None:
    """The control."""
    with other.connect("seller_de") as conn:
        with pytest.raises(leadprotect.ProtectionUnavailable):
            with leadprotect.acting_as(conn, other.user(1), "DE"):
                pytest.fail("the block must not run")
        conn.rollback()
        leadprotect.configure(conn, **given(other))
        assert EXPECTED == asked(conn, other)
    with database.connect("seller_de") as conn:
        assert EXPECTED == asked(conn, database)


def test_each_connection_of_a_pool_is_configured(database: Database, other: Database) -> None:
    with (
        ConnectionPool(
            other.login_url("seller_de"),
            min_size=1,
            max_size=2,
            configure=partial(leadprotect.configure, **given(other)),  # type: ignore[arg-type]
        ) as pool,
        pool.connection() as conn,
        database.connect("seller_de") as mine,
    ):
        assert EXPECTED == asked(conn, other)
        assert EXPECTED == asked(mine, database)


def test_an_engine_keeps_its_settings_through_options_and_a_new_pool(database: Database, other: Database) -> None:
    assert database.settings != other.settings
    url = other.login_url("seller_de")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    leadprotect.configure(engine, **given(other))
    leadprotect.bind(engine, lambda: (other.user(1), "DE"))
    lead = other.lead("DE", owner=other.user(1))
    for _ in range(2):
        with engine.execution_options(isolation_level="REPEATABLE READ").connect() as conn:
            assert leadprotect.can_edit(conn, lead)
            with leadprotect.acting_as(conn, other.user(2), "DE"):
                conn.commit()
                savepoint = conn.begin_nested()
                savepoint.rollback()
                assert not leadprotect.can_edit(conn, lead)
                assert 1 == conn.execute(text(other.text("SELECT count(*) FROM {leads}"))).scalar_one()
        engine.dispose()


def test_asynchronous_connections_have_settings_of_their_own_at_the_same_time(
    database: Database, other: Database
) -> None:
    async def ask(which: Database, conn: Any) -> set[bool]:
        lead = which.lead("DE", owner=which.user(1))
        found = set()
        async with aio.acting_as(conn, which.user(1), "DE"):
            for _ in range(20):
                found.add(await aio.can_edit(conn, lead))
        return found

    async def both() -> list[set[bool]]:
        url = other.login_url("seller_de")
        engine = create_async_engine(
            "postgresql+psycopg://", async_creator=lambda: psycopg.AsyncConnection.connect(url)
        )
        leadprotect.configure(engine, **given(other))
        async with await psycopg.AsyncConnection.connect(database.login_url("seller_de")) as mine:
            async with engine.connect() as theirs:
                found = [*await asyncio.gather(ask(database, mine), ask(other, theirs))]
        await engine.dispose()
        return found

    assert [{True}, {True}] == asyncio.run(both())


def test_threads_of_two_databases_are_not_mixed_up(database: Database, other: Database) -> None:
    leads = {which.name: which.lead("DE", owner=which.user(1)) for which in (database, other)}

    def work(which: Database) -> set[bool]:
        with which.connect("seller_de") as conn:
            if which is other:
                leadprotect.configure(conn, **given(other))
            with leadprotect.acting_as(conn, which.user(1), "DE"):
                return {leadprotect.can_edit(conn, leads[which.name]) for _ in range(30)}

    with ThreadPoolExecutor(4) as threads:
        assert [{True}] * 4 == list(threads.map(work, [database, other, database, other]))


def test_a_process_is_configured_without_file_and_environment(other: Database) -> None:
    leadprotect.configure(**given(other))
    assert other.settings == settings.current()
    with other.connect("seller_de") as conn:
        assert EXPECTED == asked(conn, other)


def test_what_is_given_is_checked() -> None:
    with pytest.raises(SettingsError, match="shema"):
        leadprotect.configure(shema="leads")
    with pytest.raises(SettingsError, match="lead_id_type"):
        leadprotect.configure(lead_id_type="float")
    for wrong in (None, 3, b"a secret"):
        with pytest.raises(SettingsError, match=r"^database_url: (None|int|bytes) was given; give a text") as refused:
            leadprotect.configure(database_url=wrong)  # type: ignore[arg-type]
        assert "secret" not in str(refused.value)
    with pytest.raises(InvalidRequest, match="the pool's configure"):
        leadprotect.configure(object(), schema="guard")  # type: ignore[arg-type]
