"""What can't be right is refused with one clear error, and nothing is written."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from leadprotect.backfilling import verify
from leadprotect.backfilling.run import backfill
from leadprotect.cli import main
from leadprotect.errors import (
    BackfillError,
    ConnectionUnusable,
    InvalidRequest,
    PreflightError,
    ProtectionUnavailable,
    SettingsError,
)
from leadprotect.settings import current
from tests.support.leads import old_leads
from tests.support.topology import pooler, replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database


@contextmanager
def nothing_is_written(database: Database) -> Iterator[None]:
    def written() -> list[object]:
        return database.sql(
            "SELECT (SELECT count(*) FROM {schema}.user_lead_assignments), "
            "(SELECT count(*) FROM {schema}.backfill_chunks), array_agg(j::text ORDER BY j.territory) "
            "FROM {schema}.backfill_jobs AS j"
        )

    before = written()
    yield
    assert before == written()


def test_an_unknown_territory(expanded: Database) -> None:
    old_leads(expanded, 3)
    with nothing_is_written(expanded):
        with pytest.raises(InvalidRequest, match="territory 'AT' is not in the database; known are: CH, DE"):
            backfill(expanded.url, ["DE", "AT"])
        answer = CliRunner().invoke(main, ["backfill", "DE", "AT"])
    assert (1, "Error: territory 'AT' is not in the database; known are: CH, DE\n") == (answer.exit_code, answer.stderr)


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_size": -5}, "batch_size is -5; it must be at least 1"),
        ({"batch_size": 3_000_000_000}, "batch_size is 3000000000; it must be at most 10,000,000"),
        ({"workers": 0}, "workers is 0; it must be at least 1"),
        ({"lease": 0}, "lease is 0 s"),
    ],
)
def test_a_number_that_can_t_be_right(expanded: Database, arguments: dict[str, float], message: str) -> None:
    old_leads(expanded, 3)
    with nothing_is_written(expanded), pytest.raises(InvalidRequest, match=message):
        backfill(expanded.url, "DE", **arguments)  # type: ignore[call-overload]


@pytest.mark.profiles("pg18")
def test_no_territory_at_all(expanded: Database) -> None:
    with nothing_is_written(expanded), pytest.raises(InvalidRequest, match="name at least one territory"):
        backfill(expanded.url, [])
    assert 2 == CliRunner().invoke(main, ["backfill"]).exit_code
    assert 2 == CliRunner().invoke(main, ["backfill", "DE", "--batch-size", "0"]).exit_code


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "3000000000"], "3000000000 is not in the range 1<=x<=10000000"),
        (["--report", "/nonexistent/x.csv"], "Invalid value for --report: folder /nonexistent does not exist"),
        (["--verify", "--dry-run"], "--dry-run goes without --verify"),
        (["--report", "x.csv", "--dry-run"], "--dry-run goes without --report"),
    ],
)
def test_options_that_can_t_be_right(expanded: Database, options: list[str], said: str) -> None:
    old_leads(expanded, 3)
    with nothing_is_written(expanded):
        answer = CliRunner().invoke(main, ["backfill", "DE", *options])

    assert 2 == answer.exit_code
    assert said in answer.stderr


@pytest.mark.profiles("pg18")
def test_a_report_into_a_folder_that_is_not_there(expanded: Database) -> None:
    with expanded.connect() as conn, pytest.raises(InvalidRequest, match="folder /nonexistent does not exist"):
        verify.report_ownerless(conn, ["DE"], Path("/nonexistent/x.csv"))


def test_settings_that_changed_between_two_runs(expanded: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    old_leads(expanded, 3)
    backfill(expanded.url, "DE")
    monkeypatch.setenv("LEADPROTECT_QUALIFYING_KINDS", "QUALIFIED_CALL, PHONE")
    current.cache_clear()
    with nothing_is_written(expanded):
        with pytest.raises(InvalidRequest, match=r"settings changed since the backfill was migrated.*PHONE"):
            backfill(expanded.url, "DE")
        answer = CliRunner().invoke(main, ["backfill", "DE"])
    assert 1 == answer.exit_code
    assert "alembic downgrade" in answer.stderr


def test_settings_that_changed_before_a_verification(
    expanded: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The functions hold the settings of the migration: they would answer to another question."""
    old_leads(expanded, 3)
    monkeypatch.setenv("LEADPROTECT_QUALIFYING_KINDS", "QUALIFIED_CALL, PHONE")
    current.cache_clear()
    file = tmp_path / "ownerless.csv"
    answer = CliRunner().invoke(main, ["backfill", "DE", "--verify"])
    with expanded.connect() as conn:
        for ask in (partial(verify.verify_owners, conn, ["DE"]), partial(verify.report_ownerless, conn, ["DE"], file)):
            with pytest.raises(InvalidRequest, match=r"settings changed since the backfill was migrated.*PHONE"):
                ask()

    assert (1, False) == (answer.exit_code, file.exists())
    assert "settings changed" in answer.stderr


def test_the_order_of_the_kinds_is_no_change(expanded: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = expanded.settings.qualifying_kinds
    monkeypatch.setenv("LEADPROTECT_QUALIFYING_KINDS", ", ".join(reversed(kinds)))
    current.cache_clear()
    (result,) = backfill(expanded.url, "DE")
    assert 0 == result.scanned


@pytest.mark.parametrize("login", ["seller_de", "auditor", "outsider"])
def test_a_login_without_the_operator_s_role(expanded: Database, login: str) -> None:
    role = expanded.settings.role("operator")
    with nothing_is_written(expanded), pytest.raises(BackfillError, match=f'GRANT "{role}" TO'):
        backfill(expanded.login_url(login), "DE")


def test_a_read_only_login(expanded: Database) -> None:
    login = expanded.profile.login("operator")
    expanded.sql(f'ALTER ROLE "{login}" IN DATABASE "{expanded.name}" SET default_transaction_read_only = on')
    with nothing_is_written(expanded), pytest.raises(BackfillError, match="read-only"):
        backfill(expanded.login_url("operator"), "DE")


def test_a_database_before_the_migrate_step(host: Database) -> None:
    with pytest.raises(ProtectionUnavailable, match=r"holds no backfill.*alembic upgrade head"):
        backfill(host.url, "DE")


@pytest.mark.profiles("pg18")
@pytest.mark.usefixtures("expanded")
def test_no_server_and_no_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConnectionUnusable, match="no connection to the database"):
        backfill(f"postgresql://postgres@/x?host={tmp_path}", "DE")
    with pytest.raises(SettingsError, match="its port is not a number") as refused:
        backfill("postgresql://me:secret@host:port:1/x", "DE")
    assert "secret" not in str(refused.value)
    monkeypatch.delenv("DATABASE_URL")
    current.cache_clear()
    with pytest.raises(SettingsError, match="database_url is missing"):
        backfill(None, "DE")


def test_a_database_whose_indexes_are_gone(expanded: Database) -> None:
    leads = old_leads(expanded, 8)
    expanded.sql("DROP INDEX {activities_index_path}")
    with nothing_is_written(expanded), pytest.raises(BackfillError, match=r"index .* is missing.*7 in DE"):
        backfill(expanded.url, "DE")
    assert 8 == len(leads)


def test_after_contract_there_is_nothing_left_to_do(make_database: Callable[..., Database]) -> None:
    database = make_database("head")
    (result,) = backfill(database.url, "DE")
    assert (0, 0) == (result.assigned, result.verified.missing)


@pytest.mark.profiles("pg18")
def test_a_hot_standby(expanded: Database) -> None:
    old_leads(expanded, 3)
    with replica(expanded.server) as standby, nothing_is_written(expanded):
        with pytest.raises(BackfillError, match="hot standby"):
            backfill(standby.url(expanded.name), "DE")
        (estimate,) = backfill(standby.url(expanded.name), "DE", dry_run=True)
    assert 3 == estimate.leads


@pytest.mark.profiles("pg18")
def test_a_transaction_pooler(expanded: Database) -> None:
    """Its sessions are anybody's: a lock_timeout set there would be another client's."""
    old_leads(expanded, 3)
    with (
        pooler(expanded.server, "transaction") as pooled,
        nothing_is_written(expanded),
        pytest.raises(PreflightError, match="pool"),
    ):
        backfill(pooled.url(expanded.name), "DE")
