"""The chain of revisions, as Alembic reads it from the folder."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from alembic.script import ScriptDirectory

from leadprotect.settings.files import migrations
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    from alembic.script import Script

SCRIPTS: list[Script] = list(reversed(list(ScriptDirectory(str(migrations())).walk_revisions())))
"""Every revision, the first one first."""

REVISIONS = [script.revision for script in SCRIPTS]
HEAD = REVISIONS[-1]
NAMED = {revision[8:]: revision for revision in REVISIONS}
"""Phase and name of a revision -> its id: ``NAMED["expand_indexes"]``, whatever its number."""


def before(phase: str) -> list[str]:
    """The revisions before the first one of a phase."""
    return [script.revision for script in takewhile(lambda script: script.module.phase != phase, SCRIPTS)]


MIGRATE_HEAD = before("contract")[-1]
"""The last revision that enforces nothing."""

CONTRACT = REVISIONS[len(before("contract"))]
"""The first revision that the gate holds."""

STOPS = [
    revision
    for place, revision in enumerate(reversed(REVISIONS))
    if NIGHTLY or place % 3 == 0 or revision in {MIGRATE_HEAD, NAMED["contract_enforce"]}
][::-1]
"""Where a walk through the chain looks round: by day at each third revision, and on both sides of what is enforced."""
