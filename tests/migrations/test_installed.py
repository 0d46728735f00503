"""Settings that changed after the migration: refused by their key, before anything is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from alembic.util import CommandError
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.settings import current
from tests.support.fingerprint import difference, fingerprint
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from tests.support.database import Database

CHANGED = pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "SCHEMA",
            "elsewhere",
            "schema: elsewhere does not hold the leadprotect of this database, it is in ",
        ),
        ("USER_ID_TYPE", "text", "user_id_type: the setting says text, but this database was migrated with uuid"),
        ("LEAD_ID_TYPE", "bigint", "lead_id_type: the setting says bigint, but this database was migrated with uuid"),
    ],
)
pytestmark = pytest.mark.profiles("pg18")


def state(database: Database) -> dict[str, str]:
    with database.connect(autocommit=True) as conn:
        return fingerprint(conn, database.settings)


@CHANGED
@pytest.mark.parametrize("way", ["upgrade", "downgrade"])
def test_a_migration_with_other_settings_touches_nothing(
    expanded: Database, way: str, key: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(expanded)
    monkeypatch.setenv(f"LEADPROTECT_{key}", value)
    with pytest.raises(CommandError) as caught:
        getattr(expanded, way)()
    assert str(caught.value).startswith(expected)
    assert difference(before, state(expanded)) == {}
    assert expanded.revision() == MIGRATE_HEAD


@CHANGED
def test_a_backfill_with_other_settings_writes_nothing(
    expanded: Database, key: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = expanded.lead("DE")
    expanded.activity(lead, expanded.user(1))
    expanded.sql("DELETE FROM {schema}.user_lead_assignments")
    monkeypatch.setenv(f"LEADPROTECT_{key}", value)
    current.cache_clear()
    done = CliRunner().invoke(main, ["backfill", "DE"])
    assert (done.exit_code, expected in done.output) == (1, True)
    assert expanded.owner(lead) is None


def test_tables_that_were_dropped_by_hand_are_named(expanded: Database) -> None:
    expanded.sql("DROP TABLE {schema}.user_lead_assignments, {schema}.lead_protection_rules CASCADE")
    lost = f"lacks {expanded.settings.schema}.user_lead_assignments, {expanded.settings.schema}.lead_protection_rules"
    with pytest.raises(CommandError, match=f"{lost}: restore them from a backup. Nothing was touched"):
        expanded.downgrade()
    assert expanded.revision() == MIGRATE_HEAD
    expanded.sql("DROP TABLE {schema}.territories, {schema}.territory_vat_rates CASCADE")
    with pytest.raises(CommandError, match="does not hold the leadprotect of this database, nor "):
        expanded.downgrade()
