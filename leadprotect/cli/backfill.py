"""``leadprotect backfill``."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leadprotect.backfilling import jobs
from leadprotect.backfilling.run import BATCH_SIZE, LARGEST_BATCH, PATIENCE_S, backfill
from leadprotect.backfilling.signals import Limits
from leadprotect.backfilling.verify import folder_problem, report_ownerless, verify_owners
from leadprotect.cli.acting import session
from leadprotect.cli.complete import territories_like
from leadprotect.cli.console import Console
from leadprotect.cli.interrupts import Killed
from leadprotect.cli.output import event
from leadprotect.cli.progress import Bar, Lines
from leadprotect.cli.terminal import echo
from leadprotect.cli.words import Duration
from leadprotect.errors import BackfillIncomplete, BackfillStopped, LeadProtectError
from leadprotect.settings import current, literal, render
from leadprotect.settings.sources import owned_by_none

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadprotect.backfilled import Backfilled, Estimate, Job
    from leadprotect.backfilling.progress import Progress

INCOMPLETE, STOPPED, FAILED, INTERRUPTED = 3, 4, 5, 130
"""Exit codes; the last one by Ctrl-C."""

DEFAULTS = Limits()
TERRITORIES = click.argument(
    "territories", nargs=-1, metavar="[TERRITORY]...", shell_complete=territories_like
)  # fmt: skip
REASON = click.option("--reason", help="Shown to whoever waits.")
JSON = click.option("--json", "as_json", is_flag=True, help="JSON lines instead of text.")
ALL = click.option("--all", "everywhere", is_flag=True, help="Every territory.")


class _Run(click.Command):
    """The command without a name: its usage is the group's."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        path = ctx.parent.command_path if ctx.parent else ctx.command_path
        formatter.write_usage(path, " ".join(self.collect_usage_pieces(ctx)))
        formatter.write_usage(path, "status|pause|resume|stop [TERRITORY]...", prefix="   or: ")


class _Group(click.Group):
    """Runs a backfill unless the first argument names one of the other commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("backfill", cls=_Group)
def backfill_group() -> None:
    """Give leads their owners (also: backfill status, pause, resume, stop)."""


@backfill_group.command("run", cls=_Run, hidden=True)
@click.argument("territories", nargs=-1, metavar="TERRITORY...", shell_complete=territories_like)
@ALL
@click.option(
    "--batch-size", type=click.IntRange(1, LARGEST_BATCH), default=BATCH_SIZE, show_default=True, help="Leads a chunk."
)
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Sessions that work at once.")
@click.option("--dry-run", is_flag=True, help="Estimate from a sample; write nothing.")
@click.option("--verify", is_flag=True, help="Only derive every owner again, and compare; write nothing.")
@click.option(
    "--report", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="CSV of ownerless leads."
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines on stdout instead of text.")
@click.option("--patience", type=Duration(), default=f"{PATIENCE_S:g}s", show_default=True,
              help="How long to wait at the end for leads that somebody holds.")  # fmt: skip
@click.option("--max-replica-lag", type=Duration(least=0.1), default=f"{DEFAULTS.replica_lag:g}s", show_default=True,
              help="Hold when a replica is so far behind.")  # fmt: skip
@click.option("--max-lock-waits", type=click.IntRange(min=1), default=DEFAULTS.lock_waits, show_default=True,
              help="Hold when so many sessions wait for locks.")  # fmt: skip
@click.option("--max-wal-rate", type=click.FloatRange(min=1), default=128, show_default=True,
              help="Slow down to so many MiB of WAL a second.")  # fmt: skip
@click.option("--max-archive-queue", type=click.IntRange(min=1), default=DEFAULTS.archive_queue, show_default=True,
              help="Hold when so many WAL segments wait to be archived.")  # fmt: skip
@click.option("--hold-unless", metavar="SQL", help="A SELECT, asked every second; hold unless its first value is true.")
def run_command(
    territories: tuple[str, ...], *, everywhere: bool, as_json: bool, report: Path | None, **options: Any
) -> None:
    """Give every lead with a qualifying activity its owner, while the database is live.

    May be ended at any moment: the same command goes on where it ended. Run it on several machines
    at once, and they share the work.

    Exit codes: 0 complete; 1 refused, nothing was written; 2 wrong usage; 3 incomplete, leads are
    missing their owner; 4 stopped by `leadprotect backfill stop`; 5 failed midway, what was done
    stays; 130 ended by Ctrl-C, 143 by SIGTERM, after the current slices.
    """
    if bool(territories) == everywhere:
        raise click.UsageError("name territories, or --all: leadprotect backfill DE CH")
    _check_options(report=report, **options)
    territories = territories or _every_territory()
    if options.pop("verify"):
        _say_verified(territories, as_json=as_json, report=report)
    elif options.pop("dry_run"):
        estimates = backfill(None, territories, dry_run=True)
        for estimate in estimates:
            if as_json:
                click.echo(event("estimate", estimate))
            else:
                echo(_estimated(estimate))
    else:
        _run(territories, options, as_json=as_json, report=report)


def _every_territory() -> tuple[str, ...]:
    with session("operator") as conn:
        return tuple(job.territory for job in jobs.list_jobs(conn, ()))


def _check_options(*, report: Path | None, verify: bool, dry_run: bool, **_others: Any) -> None:
    """Refuse at once what would fail at the end, or be ignored."""
    if dry_run and (verify or report):
        message = f"--dry-run goes without {'--verify' if verify else '--report'}: it looks at a sample only"
        raise click.UsageError(message)
    if report and (problem := folder_problem(report)):
        raise click.BadParameter(problem, param_hint="--report")


@backfill_group.command("status")
@TERRITORIES
@JSON
def backfill_status_command(territories: tuple[str, ...], *, as_json: bool) -> None:
    """Show where the backfill stands."""
    with session("operator") as conn:
        _say_jobs(jobs.list_jobs(conn, territories), as_json=as_json)


@backfill_group.command("pause")
@TERRITORIES
@REASON
@JSON
def pause_command(territories: tuple[str, ...], *, reason: str | None, as_json: bool) -> None:
    """Hold it after the current slice, on every machine."""
    with session("operator") as conn:
        _say_jobs(jobs.pause(conn, territories, reason=reason), as_json=as_json)


@backfill_group.command("resume")
@TERRITORIES
@JSON
def resume_command(territories: tuple[str, ...], *, as_json: bool) -> None:
    """Take back a pause or a stop."""
    with session("operator") as conn:
        _say_jobs(jobs.resume(conn, territories), as_json=as_json)


@backfill_group.command("stop")
@TERRITORIES
@REASON
@JSON
def stop_command(territories: tuple[str, ...], *, reason: str | None, as_json: bool) -> None:
    """End it after the current slice, on every machine; the same command goes on later."""
    with session("operator") as conn:
        _say_jobs(jobs.stop(conn, territories, reason=reason), as_json=as_json)


def _run(territories: tuple[str, ...], options: dict[str, Any], *, as_json: bool, report: Path | None) -> None:
    limits = Limits(
        replica_lag=options["max_replica_lag"],
        lock_waits=options["max_lock_waits"],
        wal_rate=options["max_wal_rate"] * 2**20,
        archive_queue=options["max_archive_queue"],
        condition=options["hold_unless"],
    )
    again = f"leadprotect backfill {shlex.join(territories)}"
    console = Console(stderr=True)
    told: list[Progress] = []
    try:
        with (
            Bar(console)
            if console.is_terminal and not as_json
            else Lines(sys.stdout if as_json else sys.stderr, as_json=as_json) as watcher
        ):
            results = backfill(
                None, territories, batch_size=options["batch_size"], workers=options["workers"],
                patience=options["patience"], limits=limits, on_progress=partial(_tell, watcher, told),
            )  # fmt: skip
    except KeyboardInterrupt as ended:
        echo(f"ended after the current slice; nothing is lost, go on with: {again}", err=True)
        sys.exit(ended.code if isinstance(ended, Killed) else INTERRUPTED)
    except BackfillStopped as error:
        echo(f"Stopped: {error}: {again}", err=True)
        sys.exit(STOPPED)
    except BackfillIncomplete as error:
        _say_results(error.results, territories, as_json=as_json, report=report)
        echo(f"Incomplete: {error}: {again}", err=True)
        sys.exit(INCOMPLETE)
    except LeadProtectError as error:
        if not told:
            raise
        echo(f"Error: failed midway: {error}; what was done stays, go on with: {again}", err=True)
        sys.exit(FAILED)
    _say_results(results, territories, as_json=as_json, report=report)


def _tell(watcher: Bar | Lines, told: list[Progress], progress: Progress) -> None:
    """Whoever was told anything is past the last check that refuses."""
    told[:] = [progress]
    watcher(progress)


def _say_results(
    results: Sequence[Backfilled], territories: tuple[str, ...], *, as_json: bool, report: Path | None
) -> None:
    for result in results:
        if as_json:
            click.echo(event("result", result))
            continue
        seen = result.verified
        parts = [f"{result.scanned:,} leads scanned, {result.assigned:,} owners assigned"]
        parts.append(f"{seen.ownerless:,} leads have {owned_by_none(current())}")
        parts += [f"{seen.released:,} were released by hand"] if seen.released else []
        echo(f"{result.territory}: {', '.join(parts)}")
    if not as_json and results and results[0].without_territory:
        echo(f"{results[0].without_territory:,} leads have no territory: they are outside protection")
    if report:
        with session("operator", lock_timeout=0) as conn:
            written = report_ownerless(conn, territories, report)
        echo(f"{written:,} leads without an owner are listed in {report}", err=True)


def _say_verified(territories: tuple[str, ...], *, as_json: bool, report: Path | None) -> None:
    with session("operator", lock_timeout=0) as conn:
        found = verify_owners(conn, territories)
        if report:
            report_ownerless(conn, territories, report)
    for seen in found:
        if as_json:
            click.echo(event("verified", seen, complete=seen.complete))
            continue
        echo(
            f"{seen.territory}: {'complete' if seen.complete else 'INCOMPLETE'}, "
            f"{seen.missing:,} leads miss their owner, {seen.stale:,} have another than the newest activity names, "
            + (f"{seen.differing:,} name somebody else in {current().owner_column}, " if seen.differing else "")
            + f"{seen.ownerless:,} have {owned_by_none(current())}, {seen.released:,} were released by hand"
        )
        for label, leads in (
            ("missing", seen.missing_leads),
            ("other owner", seen.stale_leads),
            ("column", seen.differing_leads),
        ):
            for lead in leads:
                echo(f"  {label}: {lead}")
    settle = render("SELECT {schema}.settle_owner_column(", current())
    for seen in found:
        if seen.differing:
            echo(f"run {settle}{literal(seen.territory)});  -- until it answers 0", err=True)
    if any(seen.missing or seen.stale for seen in found):
        echo(f"run leadprotect backfill {shlex.join(territories)}", err=True)
    if not all(seen.complete for seen in found):
        sys.exit(INCOMPLETE)


def _say_jobs(found: Sequence[Job], *, as_json: bool = False) -> None:
    for job in found:
        if as_json:
            click.echo(event("job", job))
            continue
        why = f" ({job.request_reason})" if job.request_reason else ""
        part = "" if job.state == "done" else f" of about {max(job.total, job.scanned):,}"
        echo(
            f"{job.territory}: {job.state}{why}, {job.scanned:,}{part} leads scanned, "
            f"{job.assigned:,} owners assigned, {job.deferred:,} locked, {job.workers} workers"
        )


def _estimated(estimate: Estimate) -> str:
    return (
        f"{estimate.territory}: about {estimate.leads:,} leads, {estimate.assignable:,} would get an owner, "
        f"{estimate.ownerless:,} have {owned_by_none(current())}; about {estimate.seconds:,.0f} s with one worker, "
        f"{estimate.wal_bytes / 2**20:,.0f} MiB of WAL (from a sample of {estimate.sampled:,})"
    )
