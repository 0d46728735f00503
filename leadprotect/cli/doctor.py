"""``leadprotect doctor``."""

from __future__ import annotations

import sys

import click

from leadprotect.cli import output
from leadprotect.cli.terminal import echo, verbatim
from leadprotect.database.connection import connect
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.doctor.examine import Diagnosis, examine
from leadprotect.errors import LeadProtectError
from leadprotect.settings import Settings, current

EXIT = {"sound": 0, "danger": 1, "not judged": 2}
_LOCK_TIMEOUT_MS = 2_000


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def doctor_command(*, as_json: bool) -> None:
    """Say whether what stands in the database is what leadprotect made, and what is in the way; reads only.

    Each finding names its check, where it is, why it matters, and what mends it. Exit code 0: nothing of
    danger; 1: a danger; 2: it could not be judged (no connection, nothing of leadprotect there, or a check
    of dangers that this login may not ask).
    """
    s = current()
    try:
        with connect(s, lock_timeout=_LOCK_TIMEOUT_MS) as conn, mapped_errors():
            found = examine(conn, settings=s)
    except LeadProtectError as error:
        if as_json:
            click.echo(output.as_json({"verdict": "not judged", "reason": str(error)}))
        else:
            echo(f"not judged: {error}")
        sys.exit(EXIT["not judged"])
    if as_json:
        click.echo(output.as_json(found, indent=2))
    else:
        _show(found, s)
    sys.exit(EXIT[found.verdict])


def _show(found: Diagnosis, s: Settings) -> None:
    echo(_headline(found, s))
    for one in found.findings:
        echo(f"\n{one.level}  {one.check}  {one.where}\n  {one.what}\n  why: {one.why}")
        if one.mends:
            echo("  mends:")
            verbatim("\n".join(f"    {line}" for line in one.mends.splitlines()))
    if found.not_judged:
        echo("\nnot judged:")
    for other in found.not_judged:
        echo(f"  {other.check}: {other.reason}")


def _headline(found: Diagnosis, s: Settings) -> str:
    """The verdict, and what it is about, in one line."""
    if found.state == "absent":
        return f"not judged: there is no leadprotect in schema {s.schema} of this database: alembic upgrade head"
    levels = [one.level for one in found.findings]
    counts = ", ".join(
        f"{levels.count(level)} of {level}" for level in ("danger", "warning", "note") if level in levels
    )
    said = {
        "quarantine": f"rolled back: its tables are in {s.quarantine}, and nothing is protected",
        "closed": f"inside of a host-change: its tables are in {s.quarantine}, and the leads are closed",
        "newer": f"revision {found.revision} is of a newer version of leadprotect, whose texts this one can't judge",
        "absent": "",
        "installed": f"revision {found.revision}",
    }[found.state]
    where = ", on a standby" if found.standby else ""
    return f"{found.verdict}: {said}{where}; {found.asked} checks asked, {counts or 'nothing found'}"
