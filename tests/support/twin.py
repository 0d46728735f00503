"""Writes leadprotect/aio.py: every public function of a connection, to be awaited (`make aio`, `make lint`).

Each is called as it stands, in a greenlet that is left where it waits: there is one source for both.
"""

from __future__ import annotations

import ast
import builtins
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import leadprotect
from tests.support.database import ROOT

TWIN = ROOT / "leadprotect" / "aio.py"
ROOMS = ("access",)
"""Whose public functions of a connection have a twin."""

KINDS = {
    "AnyConnection": "AnyAsync", "Router": "Router", "AnyConnection | Router": "AnyAsync | Router",
    "psycopg.Connection[Any]": "psycopg.AsyncConnection[Any]",
}  # fmt: skip
"""What a synchronous function takes -> what its twin takes."""

GIVES = {"Engine": "AsyncEngine"}
"""What a function without a connection returns -> what its twin returns, which ``awaited_`` and its name makes."""

HEAD = '''\
"""For asynchronous services: the functions of `leadprotect`, to be awaited.

Of a psycopg.AsyncConnection, or of an AsyncSession or AsyncConnection of SQLAlchemy.

Written by `make aio` from the synchronous ones, which do the work: what is changed here is lost.
"""

from __future__ import annotations

'''


@dataclass
class Source:
    """A module with public functions of a connection."""

    name: str
    tree: ast.Module
    wanted: set[str] = field(default_factory=set)

    @property
    def imports(self) -> dict[str, str]:
        """Name -> the statement that gives it to another module."""
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name: f"import {alias.name}" for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module != "__future__":
                for alias in node.names:
                    found[alias.asname or alias.name] = f"from {node.module} import {ast.unparse(alias)}"
        own = [node for node in self.tree.body if isinstance(node, (ast.ClassDef, ast.Assign, ast.AnnAssign))]
        for node in own:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
            for target in targets:
                name = target.id if isinstance(target, ast.Name) else getattr(target, "name", "")
                found[name] = f"from {self.name} import {name}"
        return found

    def functions(self) -> list[ast.FunctionDef]:
        """The public ones of a connection, with their overloads before them."""
        return [
            node
            for node in self.tree.body
            if isinstance(node, ast.FunctionDef)
            and node.name in leadprotect.__all__
            and ((node.args.args and first(node) in KINDS) or ast.unparse(node.returns or ast.Constant(None)) in GIVES)
        ]


def first(function: ast.FunctionDef) -> str:
    """The annotation of the first argument."""
    return ast.unparse(function.args.args[0].annotation or ast.Constant(None))


def sources() -> list[Source]:
    paths = sorted(path for room in ROOMS for path in (ROOT / "leadprotect" / room).glob("*.py"))
    return [
        Source(".".join(path.relative_to(ROOT).with_suffix("").parts), ast.parse(path.read_text())) for path in paths
    ]


def twin() -> str:
    """The text of the module."""
    statements = {
        "from leadprotect.database.waiting import Held, call",
        "if TYPE_CHECKING: from leadprotect.database.waiting import AnyAsync",
        "from typing import TYPE_CHECKING",
    }
    bodies, names = [], set()
    for source in sources():
        functions = source.functions()
        if functions:
            statements.add(f"from {source.name.rpartition('.')[0]} import {source.name.rpartition('.')[2]}")
        for function in functions:
            names.add(function.name)
            statements |= needed(source, function)
            bodies.append(awaited(source, function))
    listed = f"__all__ = {sorted(names)!r}"
    text = "\n\n\n".join([HEAD + "\n".join(sorted(statements)) + "\n\n" + listed, *bodies])
    return formatted(text)


def needed(source: Source, function: ast.FunctionDef) -> set[str]:
    """The imports for the signature."""
    told = [*function.args.args, *function.args.kwonlyargs]
    parts = [part for part in (*(one.annotation for one in told), function.returns, *function.args.kw_defaults) if part]
    used = {node.id for part in parts for node in ast.walk(part) if isinstance(node, ast.Name)} - set(dir(builtins))
    used -= {"AnyConnection", "Iterator"}
    held = is_manager(function)
    if (gives := GIVES.get(ast.unparse(function.returns or ast.Constant(None)))) is not None:
        return {source.imports[gives]}
    if is_overload(function):
        used.add("overload")
    extra = {"from contextlib import AbstractAsyncContextManager"} if held else set()
    return {source.imports[name] for name in used} | extra


def is_manager(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(one) == "contextmanager" for one in function.decorator_list)


def is_overload(function: ast.FunctionDef) -> bool:
    return any(ast.unparse(one) == "overload" for one in function.decorator_list)


def awaited(source: Source, function: ast.FunctionDef) -> str:
    """The twin of one function."""
    arguments = ast.parse(ast.unparse(function.args).join(["def f(", "): pass"])).body[0].args  # type: ignore[attr-defined]
    returns = ast.unparse(function.returns or ast.Constant(None))
    described = ast.get_docstring(function, clean=False)
    doc = f'    """{described}"""\n' if described else ""
    if returns in GIVES:
        passed = ", ".join(one.arg for one in arguments.args)
        call = f"{source.name.rpartition('.')[2]}.awaited_{function.name}({passed})"
        return f"def {function.name}({ast.unparse(arguments)}) -> {GIVES[returns]}:\n{doc}    return {call}"
    arguments.args[0].annotation = ast.Name(KINDS[first(function)])
    given = [one.arg for one in arguments.args[1:]]
    given += [f"{one.arg}={one.arg}" for one in arguments.kwonlyargs]
    module = source.name.rpartition(".")[2]
    called = ", ".join(["conn", f"{module}.{function.name}", *given])
    if is_manager(function):
        gives = returns.removeprefix("Iterator[").removesuffix("]")
        head = f"def {function.name}({ast.unparse(arguments)}) -> AbstractAsyncContextManager[{gives}]:\n"
        return head + doc + f"    return Held({called})"
    head = f"async def {function.name}({ast.unparse(arguments)}) -> {returns}:"
    if is_overload(function):
        return f"@overload\n{head} ..."
    return f"{head}\n{doc}    return await call({called})"


def formatted(text: str) -> str:
    """As ruff leaves it, imports in order."""
    fix = ["check", "--fix-only", "-q", "--select"]
    for command in ([*fix, "I,TC", "--unsafe-fixes"], ["format", "-q"], [*fix, "I"], ["format", "-q"]):
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ruff"), *command, "--stdin-filename", str(TWIN), "-"],
            input=text, capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        text = done.stdout
    return text


if __name__ == "__main__":
    if "--check" not in sys.argv:
        TWIN.write_text(twin(), encoding="utf-8")
    elif twin() != TWIN.read_text(encoding="utf-8"):
        sys.exit("leadprotect/aio.py is not what its source makes: run `make aio`")
