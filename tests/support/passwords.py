"""Logins that must give a password: everybody else is trusted on the servers of the tests."""

from __future__ import annotations

import itertools
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from leadprotect.settings import literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.database import Database


class Login:
    """A login that has the roles of a seller of DE, and a password that changes."""

    def __init__(self, database: Database, name: str) -> None:
        self.database, self.name = database, name
        self.numbers = itertools.count(1)
        self.password = ""

    def change(self) -> str:
        """Give it another password; connections that stand go on."""
        self.password = f"secret-{next(self.numbers)}"
        self.database.sql(f'ALTER ROLE "{self.name}" PASSWORD {literal(self.password)}')
        return self.password

    def connect(self, **more: object) -> psycopg.Connection:
        """Connect with the present password, to its own database or another one."""
        given = {"host": self.database.server.host, "user": self.name, "dbname": self.database.name}
        return psycopg.connect(**(given | {"password": self.password} | more))  # type: ignore[arg-type]

    def url(self) -> str:
        """What a host's function would answer now."""
        s = self.database
        return f"postgresql://{self.name}:{self.password}@/{s.name}?host={s.server.host}"


@contextmanager
def login(database: Database, *, name: str = "rotating", like: str = "seller_de") -> Iterator[Login]:
    """A login whose password is asked for by scram, with the roles of another one."""
    made = Login(database, f"{database.profile.name}_{name}")
    file = Path(database.sql("SHOW hba_file")[0])
    before = file.read_text(encoding="utf-8")
    database.sql(f'CREATE ROLE "{made.name}" LOGIN IN ROLE "{database.profile.login(like)}"')
    made.change()
    try:
        file.write_text(f'local all "{made.name}" scram-sha-256\n{before}', encoding="utf-8")
        database.sql("SELECT pg_reload_conf()")
        _asked(made)
        yield made
    finally:
        file.write_text(before, encoding="utf-8")
        database.sql("SELECT pg_reload_conf()")
        database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", made.name)
        database.sql(f'DROP ROLE "{made.name}"')


def _asked(made: Login) -> None:
    for _ in range(200):
        try:
            made.connect(password="wrong").close()  # noqa: S106 - it must be refused
        except psycopg.OperationalError:
            return
        time.sleep(0.05)
    raise TimeoutError(made.name)
