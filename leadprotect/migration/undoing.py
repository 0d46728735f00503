"""The statements of the way down, before any of them is executed."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

if TYPE_CHECKING:
    from collections.abc import Iterable

    from alembic.script import Script


def script(revisions: Iterable[Script]) -> str:
    """What the downgrades of `revisions` would execute; those of a host's own in the same chain are left out.

    Inside an environment of Alembic, which knows the settings.
    """
    out = io.StringIO()
    how = {"as_sql": True, "output_buffer": out, "literal_binds": True, "dialect_opts": {"paramstyle": "named"}}
    rendering = MigrationContext.configure(
        dialect_name="postgresql", opts=how | {"transaction_per_migration": True, "leadprotect": True}
    )
    with Operations.context(rendering):
        for revision in revisions:
            if hasattr(revision.module, "phase"):
                revision.module.downgrade()
    return out.getvalue()
