"""acting_as: whom a decision is about, for how long, and on which kinds of connection."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest
from sqlalchemy import BigInteger, exc, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import leadprotect
from leadprotect.access.context import declared
from leadprotect.database.statements import owed
from tests.support.database import Database


class Base(DeclarativeBase):
    """What the service's own classes are mapped with."""


class Broken(Base):
    """Whose insert fails."""

    __tablename__ = "broken"
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)


def test_a_context_ends_with_its_block(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            assert leadprotect.can_edit(conn, lead) is True
        with pytest.raises(leadprotect.ContextMissing, match="no user and territory in context"):
            leadprotect.can_edit(conn, lead)


def test_a_nested_context_leaves_the_outer_one_as_it_was(database: Database) -> None:
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE", "request 7"):
        with leadprotect.acting_as(conn, database.user(2), "CH"):
            assert declared(conn)[:2] == (database.user(2), "CH")
        assert declared(conn) == (database.user(1), "DE", "request 7")


def test_an_exception_in_a_nested_context_leaves_the_outer_one_as_it_was(database: Database) -> None:
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        with pytest.raises(ZeroDivisionError), leadprotect.acting_as(conn, database.user(2), "CH"):
            raise ZeroDivisionError
        assert declared(conn)[:2] == (database.user(1), "DE")


def test_a_failed_statement_in_a_nested_context_leaves_the_outer_one_after_its_savepoint(database: Database) -> None:
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        with pytest.raises(psycopg.errors.DivisionByZero), conn.transaction():
            with leadprotect.acting_as(conn, database.user(2), "CH"):
                conn.execute("SELECT 1/0")
        assert declared(conn)[:2] == (database.user(1), "DE")


def test_a_savepoint_that_ends_after_its_block_brings_no_inner_context_back(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE", "request 7"):
        with (
            pytest.raises(psycopg.errors.DivisionByZero),
            leadprotect.acting_as(conn, database.user(2), "DE"),
            leadprotect.acting_as(conn, database.user(3), "DE"),
        ):
            conn.execute("SAVEPOINT inside; SELECT 1/0")
        with pytest.raises(leadprotect.ProtectionUnavailable):
            leadprotect.can_edit(conn, lead)
        conn.execute("ROLLBACK TO SAVEPOINT inside")
        assert leadprotect.can_edit(conn, lead) is True
        assert declared(conn) == (database.user(1), "DE", "request 7")


def test_a_savepoint_of_sqlalchemy_that_ends_after_its_block_brings_none_back(database: Database) -> None:
    with database.engine("seller_de") as engine:
        with engine.connect() as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
            with suppress(exc.DataError), leadprotect.acting_as(conn, database.user(2), "DE"):
                savepoint = conn.begin_nested()
                conn.execute(text("SELECT 1/0"))
            savepoint.rollback()
            with leadprotect.acting_as(conn, database.user(3), "DE"):
                pass
            assert declared(conn)[0] == database.user(1)
        # a session rolls the savepoint back when a flush fails, but takes no statement before it is told
        with Session(engine) as session, leadprotect.acting_as(session, database.user(1), "DE"):
            with suppress(exc.ProgrammingError), leadprotect.acting_as(session, database.user(2), "DE"):
                nested = session.begin_nested()
                session.add(Broken(number=1))
                session.flush()
            nested.rollback()
            assert declared(session)[0] == database.user(1)


def test_a_transaction_that_ends_after_a_failed_block_owes_nothing_to_the_next(database: Database) -> None:
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        for _ in range(2):
            with pytest.raises(psycopg.errors.DivisionByZero), leadprotect.acting_as(conn, database.user(2), "DE"):
                conn.execute("SELECT 1/0")
            conn.rollback()
            database.context(conn, database.user(2), "DE")
            assert declared(conn)[0] == database.user(2)
        assert conn not in owed


def test_a_commit_inside_the_block_ends_the_context(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        conn.commit()
        with pytest.raises(leadprotect.ContextMissing):
            leadprotect.can_edit(conn, lead)


def test_nothing_is_left_for_the_next_user_of_a_pooled_connection(database: Database) -> None:
    with database.connect("seller_de") as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            conn.commit()
        conn.commit()
        assert [value or None for value in declared(conn)] == [None, None, None]


def test_a_connection_in_autocommit_is_refused(database: Database) -> None:
    with database.connect("seller_de", autocommit=True) as conn:
        with pytest.raises(leadprotect.ContextMissing, match="autocommit"):
            with leadprotect.acting_as(conn, database.user(1), "DE"):
                pytest.fail("the block must not run")
        with conn.transaction(), leadprotect.acting_as(conn, database.user(1), "DE"):
            assert declared(conn)[:2] == (database.user(1), "DE")


def test_explicit_user_and_territory_leave_the_context_as_it_was(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(2), "DE"):
        assert leadprotect.can_edit(conn, lead, user_id=database.user(1)) is True
        assert leadprotect.can_edit(conn, lead) is False
        with pytest.raises(leadprotect.InvalidRequest):
            leadprotect.can_edit(conn, object(), user_id=database.user(1))
        assert declared(conn)[:2] == (database.user(2), "DE")


def test_a_connection_and_a_session_of_sqlalchemy_work_as_well(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.engine("seller_de") as engine:
        with engine.connect() as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
            assert leadprotect.can_edit(conn, lead) is True
        with Session(engine) as session, leadprotect.acting_as(session, database.user(1), "DE"):
            assert leadprotect.can_edit_many(session, [lead]) == {lead: True}


def test_the_caller_s_transaction_is_neither_committed_nor_rolled_back(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            database.query(conn, "UPDATE {leads} SET city = 'Köln' WHERE {lead_id} = %s", lead)
            leadprotect.assert_edit(conn, lead)
        conn.rollback()
    assert database.sql("SELECT city FROM {leads}") == [None]


@pytest.mark.parametrize(
    ("user", "territory", "named"),
    [(None, "DE", "user"), ("", "DE", "user"), (1, None, "territory"), (1, "", "territory"), (None, None, "user and")],
)
def test_a_missing_user_or_territory_is_no_context(
    database: Database, user: int | str | None, territory: str | None, named: str
) -> None:
    """None, put into a text, would be the user "None": recorded for ever as one who exists."""
    somebody = database.user(user) if isinstance(user, int) else user
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(2), "DE"):
        with pytest.raises(leadprotect.ContextMissing, match=f"no {named}"):
            with leadprotect.acting_as(conn, somebody, territory):  # type: ignore[arg-type]
                pytest.fail("the block must not run")
        assert declared(conn)[:2] == (database.user(2), "DE")


@pytest.mark.parametrize(("user", "territory"), [(7, "DE"), (b"seller 1", "DE"), ("a\0b", "DE"), ("seller 1", 7)])
def test_who_acts_is_named_by_a_text_or_a_uuid(database: Database, user: object, territory: object) -> None:
    with database.connect("seller_de") as conn:
        with pytest.raises(leadprotect.InvalidRequest, match=r"user_id|territory"):
            with leadprotect.acting_as(conn, user, territory):  # type: ignore[arg-type]
                pytest.fail("the block must not run")
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_an_explicit_nobody_is_not_the_user_in_context(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        with pytest.raises(leadprotect.ContextMissing, match="no user"):
            leadprotect.can_edit(conn, lead, user_id="")
        with pytest.raises(leadprotect.ContextMissing, match="no territory"):
            leadprotect.can_edit(conn, lead, territory="")
        assert leadprotect.can_edit(conn, lead, user_id=None, territory=None) is True
