"""${message}.

Why: ...

Locks on host tables: none beyond ROW EXCLUSIVE.

Undone by: ...
"""

from alembic import op

revision = "${up_revision}"
down_revision = ${down_revision}
branch_labels = None
depends_on = None
phase = "${phase}"
# the strongest lock beyond ROW EXCLUSIVE on each table that was there before; leadprotect validate traces it
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '100ms'")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '100ms'")
