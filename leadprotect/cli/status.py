"""``leadprotect status``."""

from __future__ import annotations

import sys
import time
from datetime import UTC

import click

from leadprotect.cli import output
from leadprotect.cli.terminal import echo, remedy, show_table, told
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
    with connect(current()) as conn:
        conn.execute("SET lock_timeout = '2s'")  # it is asked when something is in the way
        found = status(conn)
        while watch:
            click.clear()
            _show(found)
            time.sleep(WATCH_EVERY_S)
            found = status(conn)
    if ready:
        echo("ready" if found.ready else f"not ready: {found.verdict}")
    elif as_json:
        more = {"verdict": found.verdict, "sound": found.sound, "ready": found.ready}
        click.echo(output.as_json(more | output.fields_of(found), indent=2))
    else:
        _show(found)
    sys.exit(0 if (found.ready if ready else found.sound) else 1)


def _show(found: Status) -> None:
    """Print what there is, under the verdict."""
    echo(found.verdict)
    at_head = "the head" if found.revision == found.head else f"head is {found.head}"
    if found.phase == "unknown":
        at_head = "applied by a newer version"
    echo(f"revision  {found.revision or 'none'} ({at_head})")
    echo(f"phase     {found.phase}")
    for server in (found.standby, *found.replicas):
        if server:
            echo(f"server    {server}")
    if found.conditions and found.contract_pending:
        _gate(found)
    else:
        for one in (*found.open_ways, *found.to_look_at):
            echo(f"{one.name}: {one.detail}")
            remedy(one.remedy)
    _dangers(found)
    _under_way(found)
    if found.backfill:
        _jobs(found)
    if found.quarantine:
        back = "alembic upgrade head takes it back, leadprotect purge deletes it"
        echo(f"\nquarantine: {'leadprotect host-change --resume takes it back' if found.taken_away else back}")
        show_table(("table", "rows"), [(name, _rows(rows)) for name, rows in found.quarantine.items()])
    for index in found.invalid_indexes:
        echo(f"invalid index {index}: rebuilt, where it is ours, by alembic upgrade head")
    for session in found.waiting:
        by = ", ".join(map(str, session.blocked_by)) or "nobody any more"
        echo(f"pid {session.pid} ({session.application}) waits {session.seconds:.1f} s for a lock, blocked by {by}")


def _under_way(found: Status) -> None:
    for one in found.handovers:
        echo(f"hand-over {one}, since {one.since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC: leadprotect move --resume")
    if found.shadow:
        since = f"{found.shadow.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        echo(f"shadow    runs since {since}: leadprotect shadow report")


def _dangers(found: Status) -> None:
    for one in found.dangers:
        echo(f"danger  {one.check}  {one.where}: {one.what}")
    if found.dangers:
        echo("  why each matters, and what mends it, says: leadprotect doctor")
    if found.not_judged:
        echo(f"not judged, because this login may not read what they ask: {', '.join(found.not_judged)}")


def _gate(found: Status) -> None:
    """What does not hold first, each with what to run; below it what holds."""
    echo("\nGate of contract")
    for one in found.conditions:
        if not one.met:
            told(one.name, one.detail, one.remedy)
    show_table(
        ("holds", "condition", "detail"),
        [("yes", one.name, one.detail) for one in found.conditions if one.met],
        folds=["detail"],
    )


def _jobs(found: Status) -> None:
    echo("\nBackfill")
    show_table(
        ("territory", "state", "scanned", "assigned", "deferred"),
        [
            (
                job.territory,
                job.state + (f": {job.request_reason}" if job.request_reason else ""),
                f"{job.scanned:,}",
                f"{job.assigned:,}",
                f"{job.deferred:,}",
            )
            for job in found.backfill
        ],
        numbers=("scanned", "assigned", "deferred"),
        folds=["state"],
    )


def _rows(estimate: int | None) -> str:
    return "not counted yet" if estimate is None else f"about {estimate:,} rows" if estimate else "empty"
