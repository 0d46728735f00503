"""Instructions of a statement, which no other process and no clock changes: counted by valgrind, where that is there.

Counted in a backend of its own, without a server: the difference of many calls and few, so that its start falls out.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from leadprotect import processes
from leadprotect.errors import LeadProtectError
from leadprotect.lab import servers

if TYPE_CHECKING:
    from leadprotect.lab.servers import Server

FEW, MANY = 100, 500
_COUNTED = re.compile(r"I\s+refs:\s+([\d,]+)")


def there() -> bool:
    """Whether valgrind is installed."""
    return shutil.which("valgrind") is not None


def instructions_of(server: Server, database: str, statements: dict[str, list[str]]) -> dict[str, float]:
    """Instructions of a call of the last statement of each list, after the others; the server is stopped for good.

    Source: https://valgrind.org/docs/manual/cg-manual.html.
    """
    servers.stop_for_good(server)
    found: dict[str, float] = {}
    for name, (*before, statement) in statements.items():
        many, few = (_run(server, database, [*before, *_calls(statement, calls)]) for calls in (MANY, FEW))
        found[name] = (many - few) / (MANY - FEW)
    return found


def _calls(statement: str, calls: int) -> list[str]:
    return [f"PREPARE counted AS {statement}", *["EXECUTE counted"] * calls]


def _run(server: Server, database: str, lines: list[str]) -> int:
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    backend = [str(server.programs / "postgres"), "--single", "-D", str(server.folder / "data"), database]
    script = "".join(f"{line}\n" for line in lines)
    done = processes.run_program([*valgrind, *backend], text=script, cwd=server.folder, **servers.account(server))
    match = _COUNTED.search(done.stderr)
    if match is None:
        raise LeadProtectError(f"valgrind counted nothing: {done.stderr.strip().splitlines()[-1:]}")
    return int(match[1].replace(",", ""))
