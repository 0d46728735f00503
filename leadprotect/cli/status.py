"""``leadprotect status``."""

from __future__ import annotations

import click
from rich.table import Table

from leadprotect.cli import output
from leadprotect.cli.terminal import Console
from leadprotect.database.connection import connect
from leadprotect.migration.status import Status, status
from leadprotect.settings import current


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def status_command(*, as_json: bool) -> None:
    """Show revision, gate, backfill, quarantine and what is in the way; reads only."""
    with connect(current()) as conn:
        conn.execute("SET lock_timeout = '2s'")  # it is asked when something is in the way
        found = status(conn)
    if as_json:
        click.echo(output.as_json(found, indent=2))
    else:
        _show(found, Console())


def _show(found: Status, console: Console) -> None:
    """Print the tables."""
    at_head = "the head" if found.revision == found.head else f"head is {found.head}"
    if found.phase == "unknown":
        at_head = "applied by a newer version"
    console.print(f"revision  {found.revision or 'none'} ({at_head})")
    console.print(f"phase     {found.phase}")
    if found.conditions and found.contract_pending:
        gate = Table("condition", "holds", "detail", "what to run", title="Gate of contract", title_justify="left")
        for c in found.conditions:
            gate.add_row(c.name, "yes" if c.met else "no", c.detail, c.remedy or "")
        console.print(gate)
    if found.backfill:
        jobs = Table("territory", "state", "scanned", "assigned", "deferred", title="Backfill", title_justify="left")
        for job in found.backfill:
            state = job.state + (f": {job.request_reason}" if job.request_reason else "")
            jobs.add_row(job.territory, state, f"{job.scanned:,}", f"{job.assigned:,}", f"{job.deferred:,}")
        console.print(jobs)
    if found.quarantine:
        kept = ", ".join(f"{name} (about {rows:,} rows)" for name, rows in found.quarantine.items())
        console.print(f"quarantine: {kept}")
        console.print("  alembic upgrade head takes it back, leadprotect purge deletes it")
    for index in found.invalid_indexes:
        console.print(f"invalid index {index}: alembic upgrade head rebuilds ours")
    for session in found.waiting:
        by = ", ".join(map(str, session.blocked_by)) or "nobody any more"
        console.print(
            f"pid {session.pid} ({session.application}) waits {session.seconds:.1f} s for a lock, blocked by {by}"
        )
