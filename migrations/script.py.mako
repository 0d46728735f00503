"""${message}.

Why:

Locks on host tables:

Undone by:
"""

from alembic import op

from leadprotect.settings import sql
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}
phase = "expand"
# the strongest lock beyond ACCESS SHARE on each host table, traced by tests/migrations/test_locks.py
locks = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
