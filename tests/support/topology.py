"""What may stand between a migration and the primary: a read replica, a pooler."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from leadprotect.lab import servers
from tests.support.programs import program
from tests.support.servers import Server

if TYPE_CHECKING:
    from collections.abc import Iterator


def account(server: Server) -> int | None:
    """Who runs the server: PostgreSQL and PgBouncer refuse to run as root, and need its folder."""
    return Path(server.host).stat().st_uid if os.geteuid() == 0 else None


@contextmanager
def folder(prefix: str, owner: int | None) -> Iterator[Path]:
    """A folder that this account may write to."""
    made = Path(tempfile.mkdtemp(prefix=prefix))
    if owner is not None:
        shutil.chown(made, owner)
    try:
        yield made
    finally:
        shutil.rmtree(made)


@contextmanager
def replica(primary: Server) -> Iterator[Server]:
    """A hot standby of a server, as it is now."""
    owner = account(primary)
    with folder("lp-replica-", owner) as home:
        data = home / "data"

        def run(name: str, *arguments: str) -> None:
            subprocess.run(
                [primary.programs / name, *arguments], check=True, user=owner, cwd=home, stdout=subprocess.DEVNULL
            )

        run("pg_basebackup", "-D", str(data), "-R", "-X", "stream", "-c", "fast", "-d", primary.url())
        sockets = f"-c listen_addresses='' -c unix_socket_directories='{home}'"
        run("pg_ctl", "-D", str(data), "-w", "-l", str(home / "log"), "-o", sockets, "start")
        try:
            yield Server(str(home), primary.programs, primary.major, home)
        finally:
            if (data / "postmaster.pid").exists():  # a test may have stopped it
                run("pg_ctl", "-D", str(data), "-m", "immediate", "stop")


def come_back(server: Server) -> None:
    """Start a server of its own again, after a crash."""
    data = server.folder / "data"
    subprocess.run(
        [server.programs / "pg_ctl", "-D", data, "-w", "-l", server.folder / "log", "start"],
        check=True, cwd=server.folder, stdout=subprocess.DEVNULL, start_new_session=True, **servers.account(server),
    )  # fmt: skip


def crash(server: Server) -> None:
    """End a server as a power cut would."""
    os.kill(server.pid, signal.SIGQUIT)
    while (server.folder / "data/postmaster.pid").exists():
        time.sleep(0.01)


@contextmanager
def pooler(
    server: Server, mode: str, *, logins: tuple[str, ...] = (), size: int = 10, ignored: str = ""
) -> Iterator[Server]:
    """PgBouncer in front of a server; `mode` is session, transaction or statement, `ignored` what it drops of a client.

    Everybody is the superuser behind it, or with `logins` who he says he is. It opens `size`
    connections to the server for each login and database.
    """
    path = program("pgbouncer", "pgbouncer")
    owner = account(server)
    with folder("lp-pooler-", owner) as home:
        settings = {
            "listen_port": "6432",
            "unix_socket_dir": str(home),
            "auth_type": "trust" if logins else "any",
            "auth_file": str(home / "logins"),
            "pool_mode": mode,
            "default_pool_size": str(size),
            "client_login_timeout": "5",
            "ignore_startup_parameters": ignored,
        }
        lines = [f"{key} = {value}" for key, value in settings.items()]
        target = f"* = host={server.host}" + ("" if logins else " user=postgres")
        (home / "ini").write_text("\n".join(["[databases]", target, "[pgbouncer]", *lines, ""]), encoding="utf-8")
        (home / "logins").write_text("".join(f'"{login}" ""\n' for login in logins), encoding="utf-8")
        process = subprocess.Popen([path, "-q", str(home / "ini")], user=owner, cwd=home, stderr=subprocess.DEVNULL)
        try:
            _wait(home / ".s.PGSQL.6432")
            yield Server(f"{home}&port=6432", server.programs, server.major)
        finally:
            process.terminate()
            process.wait()


def _wait(socket: Path) -> None:
    for _ in range(200):
        if socket.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(socket)
