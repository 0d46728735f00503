"""Real PostgreSQL servers for the tests, started by the same code as for demo, benchmarks and rehearsal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.lab import servers
from leadprotect.lab.servers import INSTALLED, Server, installed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["INSTALLED", "Server", "embedded", "installed", "system"]


def embedded() -> AbstractContextManager[Server]:
    return servers.embedded(servers.FAST)


def system(major: int) -> AbstractContextManager[Server]:
    return servers.system(major, servers.FAST)
