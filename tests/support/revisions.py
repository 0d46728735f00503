"""The chain of revisions, as Alembic reads it from the folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.script import ScriptDirectory

from leadprotect.settings.files import migrations

if TYPE_CHECKING:
    from alembic.script import Script

SCRIPTS: list[Script] = list(reversed(list(ScriptDirectory(str(migrations())).walk_revisions())))
"""Every revision, the first one first."""

REVISIONS = [script.revision for script in SCRIPTS]
HEAD = REVISIONS[-1]
