"""What a test needs and a Debian package brings."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def lacking(name: str, package: str) -> NoReturn:
    """Skip the test and say what to install; fail it where CI=true."""
    reason = f"{name} is missing: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """The path of a program."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if path is None:
        lacking(name, package)
    return path
