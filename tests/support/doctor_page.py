"""Writes docs/reference/doctor.md: every check of `leadprotect doctor` (`make doctor`)."""

from __future__ import annotations

from leadprotect.doctor.examine import CHECKS
from tests.support.database import ROOT

PAGE = ROOT / "docs" / "reference" / "doctor.md"

INTRODUCTION = """\
# What doctor finds

`leadprotect doctor` asks the catalog whether what stands in a database is what leadprotect made, and what else is in
the way. It reads only, in one transaction that can't write, waits 2 s at most for a lock, and needs no role: as a
superuser or with the role of an operator every check is asked, and another login is told which checks it may not ask.
Each finding names its check, where it is, why it matters, and what mends it: SQL for a DBA, a command, or after `#`
what only a person can do.

| exit code | first word | meaning |
|---|---|---|
| 0 | `sound` | no danger; warnings and notes may be listed |
| 1 | `danger` | at least one finding of danger |
| 2 | `not judged` | no connection, no leadprotect there, or a check of dangers that this login may not ask |

`--json` prints one object: `verdict`, `state`, `revision`, `standby`, `asked`, `findings` (`check`, `level`, `where`,
`what`, `why`, `mends`) and `not_judged` (`check`, `level`, `reason`). Without an answer of the database it holds
`verdict` and `reason`.

| where it is asked | answer |
|---|---|
| a database without leadprotect | not judged, exit code 2 |
| an upgrade that stopped half-way | what stands is judged, and `upgrade-pending` says what is left |
| after a downgrade | the quarantine is judged; nothing is protected |
| a newer release | what needs that release's texts is not judged, everything else is |
| a standby | the same as the primary, and the first line says so |
| behind a pooler of transactions | not judged without a session of its own: set `DATABASE_URL` to the server |

## How it compares

The text of a PL/pgSQL function is compared character by character with what the revisions write with the settings of
today; only the length of the observation window may differ. The text of an SQL function, policies, triggers, views,
keys and grants are compared with what a server shows of a database at head (`leadprotect/doctor/shipped.json`), in a
form that is the same on PostgreSQL 15 to 18: names of the settings become the default ones, casts go. So it cannot
see there: another cast, one column of the host in place of another that bears the name of a default one, or one
qualifying kind in place of another. Nor does it see what no catalog shows: a changed server, extension or library.

## Checks

In the order in which they are asked. The level is the usual one; a finding says its own.
"""


def page() -> str:
    """The page, from the checks themselves."""
    lines = [INTRODUCTION, "| check | level | finds | why it matters |", "|---|---|---|---|"]
    lines += [f"| `{one.name}` | {one.level} | {one.finds} | {one.why} |" for one in CHECKS]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
