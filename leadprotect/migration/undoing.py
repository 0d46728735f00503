"""The statements of a revision, as its functions would execute them, before any of them is executed."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alembic import op
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from leadprotect.settings.names import KEPT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from alembic.config import Config
    from alembic.script import Script

    from leadprotect.settings import Settings


class _Written(list[str]):
    """What Alembic writes into a script, one operation at a time."""

    def write(self, text: str) -> None:
        self.append(text.strip().removesuffix(";"))

    def flush(self) -> None:
        """A list keeps what it has."""


def written(
    revisions: Iterable[Script], function: str = "downgrade", *, versions: tuple[str | None, str] | None = None
) -> list[str]:
    """What `function` of each revision would execute; a host's own in the same chain, and those without, are left out.

    Inside an environment of Alembic, which knows the settings; `versions` are schema and name of the version
    table. COMMIT and BEGIN stand around what runs outside of a transaction.
    """
    out = _Written()
    how: dict[str, Any] = {"as_sql": True, "output_buffer": out, "literal_binds": True}
    if versions:
        how |= {"version_table_schema": versions[0], "version_table": versions[1]}
    with quiet():
        rendering = MigrationContext.configure(
            dialect_name="postgresql",
            dialect_opts={"paramstyle": "named"},  # the driver's own would double every percent sign
            opts=how | {"transaction_per_migration": True, "leadprotect": True},
        )
    running: Any = vars(op).get("_proxy")  # of the migration that asks: there is one at a time
    with Operations.context(rendering):
        for revision in revisions:
            if hasattr(revision.module, "phase") and hasattr(revision.module, function):
                getattr(revision.module, function)()
    if running is not None:
        running._install_proxy()  # noqa: SLF001 - Alembic removes whatever stood there
    return out


@contextmanager
def quiet(name: str = "alembic.runtime.migration", least: int = logging.WARNING) -> Iterator[None]:
    """Alembic tells of every context that is made, also of one that migrates nothing."""
    chatty = logging.getLogger(name)
    level = chatty.level
    chatty.setLevel(least)
    try:
        yield
    finally:
        chatty.setLevel(level)


def script(revisions: Iterable[Script]) -> str:
    """What the downgrades of `revisions` would execute, as one text."""
    return ";\n\n".join(written(revisions))


def of(config: Config, s: Settings, names: Sequence[str], function: str = "downgrade", **how: Any) -> list[str]:
    """The same outside of an environment, with the settings `s`; `how` as `EnvironmentContext` takes it."""
    scripts = ScriptDirectory.from_config(config)
    before = config.attributes.get(KEPT)
    config.attributes[KEPT] = s
    try:
        with EnvironmentContext(config, scripts, **how):
            versions = (s.version_table_schema, s.version_table)
            return written([scripts.get_revision(name) for name in names], function, versions=versions)
    finally:
        config.attributes[KEPT] = before


def script_of(config: Config, name: str) -> Any:
    """One revision, as Alembic loads it."""
    return ScriptDirectory.from_config(config).get_revision(name)
