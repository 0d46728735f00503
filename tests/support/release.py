"""Whether what would be published is whole, and does from a wheel what the pages say (`make release-check`).

`make release VERSION=X.Y.Z` writes what makes a checkout that version, and nothing but files.

What the files tell comes first: changelog, version, frozen revisions. Then both archives are built and compared with
the files of the checkout. Then the wheel is installed in an environment that holds nothing else but the locked
packages, and the demo and every how-to, pgTAP's too, are run from it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import click

from leadprotect.authoring.chain import read_chain
from leadprotect.authoring.rules.released import MANIFEST, read_manifest, released
from leadprotect.authoring.validate import freeze
from tests.support.database import ROOT

VERSION = re.compile(r'^version = "[^"]*"$', re.MULTILINE)
UNRELEASED = "## [Unreleased]\n"
HEADING = re.compile(r"^## \[([^\]]+)\](?: - (\d{4}-\d\d-\d\d))?$", re.MULTILINE)
MADE = {"PKG-INFO"}
"""What a build adds to the files of the checkout."""


def version(root: Path) -> str:
    told = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return str(told["project"]["version"])


def of_the_files(root: Path) -> list[str]:
    """What is wrong before anything is built."""
    return [*of_the_changelog(root), *of_the_revisions(root)]


def of_the_changelog(root: Path) -> list[str]:
    """A version has its section and its day; one under development has what is not released yet."""
    text, wanted = (root / "CHANGELOG.md").read_text(encoding="utf-8"), version(root)
    days = dict(HEADING.findall(text))
    if ".dev" in wanted:
        written = text.partition(UNRELEASED)[2].partition("\n## [")[0]
        return [] if "\n- " in written else ["CHANGELOG.md: [Unreleased] names no change: write what a user notices"]
    if wanted not in days:
        return [f"CHANGELOG.md: no section for {wanted}: write `## [{wanted}] - YYYY-MM-DD` above its changes"]
    return [] if days[wanted] else [f"CHANGELOG.md: [{wanted}] has no day: `## [{wanted}] - YYYY-MM-DD`"]


def of_the_revisions(root: Path) -> list[str]:
    """A frozen revision is as it was; and from the first release on, every one is frozen."""
    chain = read_chain(ini=root / "alembic.ini")
    found = [f"{one.file.relative_to(root)}: {one.problem}: {one.solution}" for one in released(chain)]
    loose = [one.id for one in chain.revisions if one.id not in read_manifest(chain)]
    if loose and ".dev" not in version(root):
        found.append(f"migrations/{MANIFEST}: {', '.join(loose)}: not frozen: leadprotect validate --release")
    return found


def set_version(root: Path, number: str, day: str) -> list[str]:
    """Make the checkout this version: a release takes what was not released yet, and freezes; returns the files."""
    project, changelog = root / "pyproject.toml", root / "CHANGELOG.md"
    project.write_text(
        VERSION.sub(f'version = "{number}"', project.read_text(encoding="utf-8"), count=1), encoding="utf-8"
    )
    if ".dev" in number:
        return [project.name]
    text = changelog.read_text(encoding="utf-8")
    if number not in dict(HEADING.findall(text)):
        heading = f"{UNRELEASED}\n## [{number}] - {day}\n"
        changelog.write_text(text.replace(UNRELEASED, heading, 1), encoding="utf-8")
    manifest = freeze(ini=root / "alembic.ini")
    return [project.name, changelog.name, str(manifest.relative_to(root))]


def of_the_archives(root: Path, dist: Path) -> list[str]:
    """What is missing in the sdist and the wheel, what is too much, and another version in a name."""
    (sdist,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    kept = files(root)
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in (one.name for one in archive if one.isfile())} - MADE
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {name if name.startswith("leadprotect/") else f"leadprotect/{name}" for name in kept if of_the_wheel(name)}
    found = [f"{sdist.name}: {name} is missing" for name in sorted(kept - in_sdist)]
    found += [f"{sdist.name}: {name} is no file of the project" for name in sorted(in_sdist - kept)]
    found += [f"{wheel.name}: {name} is missing" for name in sorted(wanted - in_wheel)]
    found += [f"{wheel.name}: {name} is no file of the package" for name in sorted(in_wheel - wanted)]
    found += [
        f"{one.name} is not of version {version(root)}" for one in (sdist, wheel) if version(root) not in one.name
    ]
    return found


def of_the_wheel(name: str) -> bool:
    return name.startswith(("leadprotect/", "migrations/"))


def files(root: Path) -> set[str]:
    """What Git knows; in a copy without Git, what is there."""
    if (root / ".git").exists():
        listed = subprocess.check_output(["git", "ls-files"], cwd=root, text=True).splitlines()
        return {name for name in listed if (root / name).exists()}
    return {
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }


def lying_about(root: Path) -> list[str]:
    """What stands in a checkout, and neither Git nor its list of what to ignore knows."""
    command = ["git", "ls-files", "--others", "--exclude-standard"]
    return subprocess.check_output(command, cwd=root, text=True).splitlines()


def build(root: Path, folder: Path) -> None:
    """Both archives, the wheel from the sdist; nothing is fetched."""
    command: list[str | Path] = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, root]
    subprocess.run(command, check=True, capture_output=True)


def install(wheel: Path, folder: Path) -> Path:
    """The Python of a clean environment: the locked packages of the demo, and the wheel."""
    venv.create(folder, with_pip=True)
    python = folder / "bin/python"
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    subprocess.run([*pip, "--require-hashes", "-r", ROOT / "requirements-demo.lock"], check=True)
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    return python


def of_the_installed(python: Path) -> list[str]:
    """What does not do from the wheel what the pages say."""
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DATABASE_URL")}
    life: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/e2e/test_new_user.py",
    ]
    commands: dict[str, list[str | Path]] = {
        "version": [python.with_name("leadprotect"), "--version"],
        "demo": [python.with_name("leadprotect"), "demo", "--scale", "0.02"],
        "how-tos": life,
    }
    found = []
    for name, command in commands.items():
        where = ROOT if command is life else python.parent
        done = subprocess.run(
            command,
            cwd=where,
            env=outside | {"RELEASED_PYTHON": str(python)},
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout.strip()
        if done.returncode or (name == "version" and not said.endswith(f" {version(ROOT)}")):
            found.append(f"{name}, from the installed wheel:\n{said}\n{done.stderr}")
        elif name == "demo":
            tell("demo: told to its end")
        else:
            tell(f"{name}: {said.splitlines()[-1]}")
    return found


def main(*asked: str) -> None:
    if asked:
        tell(f"wrote {', '.join(set_version(ROOT, asked[0], f'{datetime.now(UTC):%Y-%m-%d}'))}: read them, and commit")
        return
    found = of_the_files(ROOT)
    with tempfile.TemporaryDirectory(prefix="leadprotect-release-") as folder:
        dist = Path(folder, "dist")
        if not found:
            build(ROOT, dist)
            found = of_the_archives(ROOT, dist)
        if not found:
            tell("changelog, version, revisions, sdist and wheel are whole")
            found = of_the_installed(install(next(dist.glob("*.whl")), Path(folder, "clean")))
    for one in found:
        tell(one)
    if found:
        sys.exit(1)
    tell(f"{version(ROOT)} may be released")


def tell(line: str) -> None:
    click.echo(f"release-check: {line}")


if __name__ == "__main__":
    main(*sys.argv[1:])
