"""${message[:1].upper() + message[1:].rstrip(".")}.

Why: ...

Locks on host tables: none beyond ACCESS SHARE.

Undone by: ...
"""

from alembic import op

from leadprotect.settings import sql

revision = "${up_revision}"
down_revision = "${down_revision}"
branch_labels = None
depends_on = None
phase = "${up_revision.split("_")[2] if up_revision.count("_") > 2 else "expand"}"
# the strongest lock beyond ACCESS SHARE on each host table, traced by tests/migrations/test_locks.py
locks: dict[str, dict[str, str]] = {"upgrade": {}, "downgrade": {}}


def upgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute("RESET ROLE")


def downgrade() -> None:
    op.execute(sql("SET LOCAL ROLE {owner}"))
    op.execute("RESET ROLE")
