"""Real PostgreSQL servers for the tests, started by the same code as for the benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.lab.bench import servers
from leadprotect.lab.bench.servers import INSTALLED, Server, installed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["INSTALLED", "Server", "embedded", "installed", "system"]


def embedded() -> AbstractContextManager[Server]:
    return servers.embedded(throwaway=True)


def system(major: int) -> AbstractContextManager[Server]:
    return servers.system(major, throwaway=True)
