"""Which locks a migration takes on the host's tables, as another session sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command

from leadprotect.authoring.locktrace import trace_locks
from leadprotect.database.modes import MODES

if TYPE_CHECKING:
    from alembic.script import Script
    from sqlalchemy import Engine

    from tests.support.database import Database

__all__ = ["MODES", "trace"]


def trace(database: Database, direction: str, script: Script) -> dict[str, str]:
    """Apply or undo one revision, and return the strongest lock on leads and on activities that was seen."""
    target = script.revision if direction == "upgrade" else str(script.down_revision or "base")

    def migrate(engine: Engine) -> None:
        config = database.config()
        config.attributes["connection"] = engine
        getattr(command, direction)(config, target)

    tables = {"leads": database.text("{leads}"), "activities": database.text("{activities}")}
    concurrently = "autocommit_block" in Path(script.path).read_text(encoding="utf-8")
    return trace_locks(database.url, tables, migrate, concurrently=concurrently)
