"""``leadprotect status``."""

from __future__ import annotations

import sys
import time
from datetime import UTC

import click
from rich.table import Table

from leadprotect.cli import output
from leadprotect.cli.console import Console
from leadprotect.cli.terminal import echo
from leadprotect.database.connection import connect
from leadprotect.doctor.status import Status, status
from leadprotect.settings import current

WATCH_EVERY_S = 2.0


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
@click.option("--ready", is_flag=True, help="Only whether this version works with the database: for a deployment.")
@click.option("--watch", is_flag=True, help="Again every two seconds, until Ctrl-C.")
def status_command(*, as_json: bool, ready: bool, watch: bool) -> None:
    """Show verdict, revision, gate, backfill, quarantine and what is in the way; reads only.

    Exit codes: 0 what the phase promises is there (with --ready: this version works with the database), 1 it is not.
    """
    if watch and (as_json or ready):
        raise click.UsageError("--watch shows tables: leave out --json and --ready")
    console = Console()
    with connect(current()) as conn:
        conn.execute("SET lock_timeout = '2s'")  # it is asked when something is in the way
        found = status(conn)
        while watch:
            console.clear()
            _show(found, console)
            time.sleep(WATCH_EVERY_S)
            found = status(conn)
    if ready:
        echo("ready" if found.ready else f"not ready: {found.verdict}")
    elif as_json:
        more = {"verdict": found.verdict, "sound": found.sound, "ready": found.ready}
        click.echo(output.as_json(more | output.fields_of(found), indent=2))
    else:
        _show(found, console)
    sys.exit(0 if (found.ready if ready else found.sound) else 1)


def _show(found: Status, console: Console) -> None:
    """Print the tables, under the verdict."""
    console.print(found.verdict, soft_wrap=True)
    at_head = "the head" if found.revision == found.head else f"head is {found.head}"
    if found.phase == "unknown":
        at_head = "applied by a newer version"
    console.print(f"revision  {found.revision or 'none'} ({at_head})")
    console.print(f"phase     {found.phase}")
    for server in (found.standby, *found.replicas):
        if server:
            console.print(f"server    {server}", soft_wrap=True)
    if found.conditions and found.contract_pending:
        console.print(_gate(found))
    else:
        for c in (*found.open_ways, *found.to_look_at):
            console.print(f"{c.name}: {c.detail}; {c.remedy}", soft_wrap=True)
    _dangers(found, console)
    _shadow(found, console)
    if found.backfill:
        console.print(_jobs(found))
    if found.quarantine:
        kept = ", ".join(f"{name} ({_rows(rows)})" for name, rows in found.quarantine.items())
        console.print(f"quarantine: {kept}")
        console.print("  alembic upgrade head takes it back, leadprotect purge deletes it")
    for index in found.invalid_indexes:
        console.print(f"invalid index {index}: alembic upgrade head rebuilds ours")
    for session in found.waiting:
        by = ", ".join(map(str, session.blocked_by)) or "nobody any more"
        console.print(
            f"pid {session.pid} ({session.application}) waits {session.seconds:.1f} s for a lock, blocked by {by}"
        )


def _shadow(found: Status, console: Console) -> None:
    if found.shadow:
        since = f"{found.shadow.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        console.print(f"shadow    runs since {since}: leadprotect shadow report", soft_wrap=True)


def _dangers(found: Status, console: Console) -> None:
    for one in found.dangers:
        console.print(f"danger  {one.check}  {one.where}: {one.what}", soft_wrap=True)
    if found.dangers:
        console.print("  leadprotect doctor says why each matters, and what mends it")
    if found.not_judged:
        unseen = ", ".join(found.not_judged)
        console.print(f"not judged, because this login may not read what they ask: {unseen}", soft_wrap=True)


def _gate(found: Status) -> Table:
    table = Table("condition", "holds", "detail", "what to run", title="Gate of contract", title_justify="left")
    for c in found.conditions:
        table.add_row(c.name, "yes" if c.met else "no", c.detail, c.remedy or "")
    return table


def _jobs(found: Status) -> Table:
    table = Table("territory", "state", "scanned", "assigned", "deferred", title="Backfill", title_justify="left")
    for job in found.backfill:
        state = job.state + (f": {job.request_reason}" if job.request_reason else "")
        table.add_row(job.territory, state, f"{job.scanned:,}", f"{job.assigned:,}", f"{job.deferred:,}")
    return table


def _rows(estimate: int | None) -> str:
    return "not counted yet" if estimate is None else f"about {estimate:,} rows" if estimate else "empty"
