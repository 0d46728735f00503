"""``leadprotect audit``: care for the audit, and questions to it."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from leadprotect.audit import anchors, export, history, partitions, proof, seals, verification
from leadprotect.cli import output
from leadprotect.cli.acting import session
from leadprotect.cli.complete import territories_like
from leadprotect.cli.terminal import echo, show_table
from leadprotect.cli.words import TIME
from leadprotect.errors import ConnectionUnusable, InvalidRequest, LeadProtectError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from leadprotect.audit.findings import Finding

EXIT_CODES = {"intact": 0, "tampered": 1, "not judged": 2}
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
FILE = click.File("r", encoding="utf-8")


class _Month(click.ParamType[date]):
    name = "month"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> date:
        try:
            return datetime.strptime(value, "%Y-%m").date()  # noqa: DTZ007 - a month, no time
        except ValueError:
            self.fail(f"{value!r} is not a month such as 2026-03", param, ctx)


MONTH = _Month()
SINCE = click.option("--since", type=TIME, help="From this time on, such as 2026-03-01T00:00Z.")
UNTIL = click.option("--until", type=TIME, help="Before this time.")
TERRITORY = click.option(
    "--territory",
    "territories",
    multiple=True,
    shell_complete=territories_like,
    help="This territory alone ('': rows without one); may be repeated.  [default: all that the login may read]",
)


@click.group("audit")
def audit_group() -> None:
    """Care for the audit (operators), and ask it (auditors)."""


@audit_group.command("partitions")
@click.option("--ahead", type=int, default=3, show_default=True, help="Months after this one.")
@click.option(
    "--max-moved",
    type=click.IntRange(min=0),
    default=partitions.MAX_MOVED,
    show_default=True,
    help="Rows that may be copied out of the default partition; nobody can record meanwhile.",
)
@JSON
def partitions_command(*, ahead: int, max_moved: int, as_json: bool) -> None:
    """Make the partitions of the coming months, and tidy the default one."""
    with session("operator") as conn:
        created = partitions.create_partitions(conn, ahead=ahead, max_moved=max_moved)
    if as_json:
        click.echo(output.as_json({"created": created}))
        return
    echo(f"{created} new partitions" if created else "every partition is there already")


@audit_group.command("seal")
@JSON
def seal_command(*, as_json: bool) -> None:
    """Seal what was recorded, and print the newest hash of each chain: keep them elsewhere, too."""
    with session("operator") as conn:
        for head in seals.seal(conn):
            if as_json:
                click.echo(output.event("sealed", head))
                continue
            echo(f"{_named(head.territory)}: {head.sealed:,} rows sealed; seal {head.number} is {head.hash}")


@audit_group.command("detach")
@click.option("--before", type=MONTH, required=True, help="The first month that stays, such as 2026-01.")
@JSON
def detach_command(*, before: date, as_json: bool) -> None:
    """Detach sealed months from the audit; no row is deleted, and the tables stay guarded."""
    with session("operator") as conn:
        found = False
        for gone in partitions.detach(conn, before):
            found = True
            if as_json:
                click.echo(output.event("detached", gone))
                continue
            echo(f"{gone.table} detached with {gone.rows:,} rows: archive it, then drop it")
    if not found and not as_json:
        echo(f"nothing to detach before {before:%Y-%m}")


@audit_group.command("anchor")
@click.option(
    "--output", "file", type=click.Path(dir_okay=False, path_type=Path), help="A file: a line is added to it."
)
@click.option("--to", "url", help="A database of another server: a row is added to public.leadprotect_anchors.")
@TERRITORY
@JSON
def anchor_command(*, file: Path | None, url: str | None, territories: tuple[str, ...], as_json: bool) -> None:
    """Write how far each chain has come, and its newest hash, to where nobody of this database can change it.

    verify --anchor compares. A password belongs into ~/.pgpass or PGPASSWORD, not into the URL.
    """
    if not (file or url):
        raise click.UsageError("name a place: --output FILE or --to URL")
    with session("auditor") as conn:
        with conn.transaction():
            made = anchors.anchor(conn, territories=territories or None)
        if file:
            anchors.append(file, made)
        if url and not anchors.send(url, made):
            echo("warning: these anchors are on the server of the audit itself: its owner can change both", err=True)
        try:
            anchors.note_made(conn)
        except ConnectionUnusable:
            echo("warning: a standby can't note that an anchor was made, so doctor goes on reminding", err=True)
    if as_json:
        click.echo(output.as_json(made))
        return
    for chain in made.chains:
        echo(f"{_named(chain.territory)}: {chain.seals:,} seals, the newest is {chain.hash or 'none'}")
    _say_left_out(made.left_out)


@audit_group.command("verify")
@click.option("--file", type=FILE, help="Check an export instead of a database; needs no database.")
@click.option("--against", type=FILE, help="An earlier export: its seals must still be there.")
@click.option("--anchor", help="A file or URL that audit anchor wrote to: each chain must go on from there.")
@click.option(
    "--log", type=click.File("r", encoding="utf-8", errors="replace"), help="The server's log: explains gaps."
)
@click.option("--since", type=MONTH, help="Rows and gaps from this month on, such as 2026-03.  [default: all]")
@click.option("--until", type=MONTH, help="Before this month.")
@TERRITORY
@JSON
def verify_command(*, file: TextIO | None, as_json: bool, **how: Any) -> None:
    """Find whatever was changed, removed or inserted since it was sealed.

    Of months before --since and from --until on, only that each seal continues the one before it is looked at.
    Exit code 0: intact, every chain was judged; 1: tampered with; 2: not judged, because this login may not
    read a chain, or there was no answer. A gap in the numbers is no tampering, it is reported beside.
    """
    if file and any(how.values()):
        raise click.UsageError("--file checks a file alone; the other options need the database")
    try:
        found = proof.verify_file(file) if file else _verified(**how)
    except LeadProtectError as error:
        echo(f"Error: nothing was judged: {error}", err=True)
        sys.exit(EXIT_CODES["not judged"])
    if as_json:
        told = {"verdict": found.verdict, "intact": found.intact, "left_out": found.left_out}
        click.echo(output.as_json(told | output.fields_of(found), indent=2))
    else:
        for line in _of_file(found) if isinstance(found, proof.Proof) else _of_database(found):
            echo(line)
    sys.exit(EXIT_CODES[found.verdict])


def _verified(
    *,
    against: TextIO | None,
    anchor: str | None,
    log: TextIO | None,
    territories: tuple[str, ...],
    **months: date | None,
) -> verification.Verification:
    exported = proof.known_seals(against) if against else None
    with session("auditor") as conn, conn.transaction():
        known = anchors.kept(conn, anchor) if anchor else set()
        for one in anchors.of_this_audit(conn, [exported], against.name) if exported and against else ():
            known |= one.seals
        return verification.verify_audit(conn, known=known, log=log or (), territories=territories or None, **months)


@audit_group.command("export")
@click.option("--sealed", is_flag=True, help="Whole seals and every link of the chains: verify --file can check it.")
@SINCE
@UNTIL
@TERRITORY
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file.  [default: stdout]")
def export_command(*, output: Path | None, territories: tuple[str, ...], **how: Any) -> None:
    """Write the rows of a period as JSON lines; says on stderr which territories it leaves out."""
    with session("auditor") as conn, conn.transaction(), _whole(output) as out:
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        written = export.export(conn, out, territories=territories or None, **how)
    echo(f"{written.rows:,} rows written", err=True)
    _say_left_out(written.left_out)


@audit_group.command("who")
@click.argument("lead")
@click.option("--at", type=TIME, required=True, help="The time, such as 2026-03-01T09:00+01:00.")
@JSON
def who_command(lead: str, *, at: datetime, as_json: bool) -> None:
    """Show who could edit LEAD at a time, and why; says on stderr which territories it leaves out."""
    with session("auditor") as conn:
        found = history.who_could_edit(conn, lead, at)
    header = ("territory", "user", "could edit", "reason", "since (UTC)", "until (UTC)", "because of")
    lines = [
        (
            r.territory,
            r.user_id or "nobody",
            "yes" if r.could_edit else "no",
            r.reason,
            _utc(r.since),
            _utc(r.until),
            r.source,
        )
        for r in found.rights
    ]
    _show(header, lines, found, as_json=as_json)


@audit_group.command("list")
@click.option("--lead", help="Attempts on this lead only.")
@click.option("--user", help="Attempts of this user only.")
@click.option("--outcome", type=click.Choice(["ALLOW", "DENY"]), help="Only allowed, or only denied ones.")
@SINCE
@UNTIL
@click.option("--limit", type=int, default=100, show_default=True, help="The newest so many.")
@TERRITORY
@JSON
def attempts_command(
    *, lead: str | None, user: str | None, territories: tuple[str, ...], as_json: bool, **filters: Any
) -> None:
    """List attempts, the newest first; says on stderr which territories it leaves out."""
    with session("auditor") as conn, conn.transaction():
        found = history.attempts(conn, lead_id=lead, user_id=user, territories=territories or None, **filters)
    header = ("number", "time (UTC)", "lead", "user", "login", "territory", "action", "outcome", "reason", "note")
    lines = [
        (a.id, _utc(a.at), a.lead_id, a.user_id, a.login, a.territory, a.action, a.outcome, a.reason, a.note)
        for a in found.attempts
    ]
    _show(header, lines, found, as_json=as_json)


@contextmanager
def _whole(path: Path | None) -> Iterator[TextIO]:
    """A file that gets its name when it is complete: half an export must not look like one."""
    if path is None:
        yield sys.stdout
        return
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as out:
            yield out
        part.replace(path)
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


def _of_file(proof: proof.Proof) -> Iterator[str]:
    for territory, (number, own) in proof.heads.items():
        yield f"{_named(territory)}: seal {number} is {own}"
    yield f"{proof.seals:,} seals linked, {proof.rows:,} rows as they were sealed"
    if proof.left_out:
        yield f"not in this file, because whoever exported it may not read it: {', '.join(proof.left_out)}"
    yield from _findings(proof.findings)


def _of_database(found: verification.Verification) -> Iterator[str]:
    for chain in found.chains:
        if chain.verdict == "not judged":
            yield f"{_named(chain.territory)}: not judged, because this login may not read it"
            continue
        state = "TAMPERED WITH" if chain.findings else "intact" if chain.seals else "not sealed yet"
        yield (
            f"{_named(chain.territory)}: {state}; {chain.seals:,} seals, {chain.rows:,} sealed rows as they were, "
            f"{chain.pending:,} to be sealed"
        )
        for month, archive in chain.retired.items():
            yield f"  {month} was detached as {archive}, which is gone: check its archive with --file"
    yield from _findings(found.findings)
    if found.since or found.until:
        span = " and ".join(
            f"{word} {month:%Y-%m}" for word, month in (("from", found.since), ("before", found.until)) if month
        )
        yield f"only rows of months {span} were looked at, and gaps between their numbers"
    if found.explained:
        yield f"{found.explained:,} numbers without a row stand in the log as denials that were raised"
    if found.gaps:
        yield (
            f"{sum(map(len, found.gaps)):,} numbers have no row: {seals.listed(found.gaps)}\n"
            "  A denial raised in plain SQL leaves its facts in the server's log (leadprotect denial N; --log FILE\n"
            "  compares), a recording that was rolled back leaves nothing, a crash of the server skips up to 32."
        )


def _findings(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        place = "" if finding.seal is None else f", seal {finding.seal}"
        yield f"TAMPERED WITH: {_named(finding.territory)}{place}: {finding.what}"


def _say_left_out(left_out: Sequence[str]) -> None:
    if left_out:
        echo(f"left out, because this login does not hold their roles: {', '.join(left_out)}", err=True)


def _named(territory: str | None) -> str:
    return territory or "rows without territory"


def _utc(time: datetime | None) -> str:
    return "" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _show(
    header: Sequence[str], lines: Sequence[Sequence[object]], found: history.Attempts | history.Rights, *, as_json: bool
) -> None:
    if as_json:
        click.echo(output.as_json(found, indent=2))
        return
    show_table(header, lines)
    _say_left_out(found.left_out)
