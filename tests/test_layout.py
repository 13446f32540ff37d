"""Who may import whom: one table, held against every file of server/.

Reads the sources of server/, nothing else. To add a module, add it to `TABLE`: its layer, its group, and the outside
libraries that only it and few others may use. To allow one import across a boundary, add it to `ALLOWED` with a reason.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

SERVER = Path(__file__).parent.parent / "server"
MODULES = sorted(path.stem for path in SERVER.glob("*.py") if path.stem != "__init__")
MOST_LINES = 400

# From the bottom to the top; a layer may import itself (but for the edges) and those below it.
LAYERS = ("word", "edge", "engine", "story", "composition", "process")

# (layer, group, modules). Words do no I/O, read no clock, log nothing. A group of the edges is one outside world; one
# group does not import another, except for types. The engine is the streaming of a day through worker processes.
TABLE: tuple[tuple[str, str, str], ...] = (
    ("word", "errors", "errors"),
    ("word", "megaphone", "megaphone samples"),
    ("word", "triton", "triton columns"),
    ("word", "conversion", "address tally podcasts convert memo ordinary render arrangement job member"),
    ("word", "proof", "proof"),
    ("word", "diary", "records ledger_rows schema"),
    ("word", "judgement", "deadlines holds rounds alarms overview reconciliation"),
    ("word", "source", "refusals patience"),
    ("word", "rss", "rss_items"),
    ("word", "ssh", "algorithms packets"),
    ("edge", "disk", "disk"),
    ("edge", "config", "config config_place settings"),
    ("edge", "catalogue", "catalogue"),
    ("edge", "source", "source bucket folder spool"),
    ("edge", "pickup", "pickup staging"),
    ("edge", "ledger", "ledger rss_shelf books_shelf"),
    ("edge", "rss", "rss"),
    ("edge", "sftp", "sftp connection login session express view guard probe"),
    ("edge", "access", "access"),
    ("edge", "keys", "keys private_files"),
    ("edge", "metrics", "metrics"),
    ("edge", "alerts", "webhook"),
    ("edge", "systemd", "systemd"),
    ("edge", "threads", "threads"),
    ("edge", "log output", "log_output"),
    ("engine", "pipeline", "pipeline blocks ids crew slots worker sent"),
    ("story", "feed", "feed publishing"),
    ("story", "retention", "retention"),
    ("story", "catalogue", "refresh"),
    ("composition", "service", "assembly bookkeeper service broadcast glance pulse episodes matching"),
    ("process", "cli", "cli command cli_setup cli_episodes __main__ by_hand demo one_round progress report"),
    ("process", "setup", "doctor handover installation interview"),
)
PLACES = {module: (layer, group) for layer, group, modules in TABLE for module in modules.split()}

# The two edges that every other may use: the disk's words and locks, and work off the event loop.
SHARED = {"disk", "threads"}

# Imports across a boundary, each with its reason: (who, whom).
ALLOWED: dict[tuple[str, str], str] = {
    ("folder", "threads"): "work that blocks, off the loop, belongs to no world",
    ("spool", "threads"): "as folder",
    ("keys", "access"): "makes the users that access judges",
    ("login", "access"): "a verdict is a type",
    ("probe", "access"): "the name of the doctor's user",
    ("sftp", "access"): "hands the checks of passwords to its connections",
    ("job", "catalogue"): "a worker makes the catalogue again from the bytes of its pipe; nothing is read",
    ("settings", "convert"): "the rules are what [log] is turned into",
    ("job", "ids"): "packed ids are part of what came of a block",
    ("render", "ids"): "packs ids while it has them",
    ("sent", "blocks"): "reads published logs as blocks",
}

# Libraries, and who may import them at run time.
OUTSIDE: dict[str, str] = {
    "aiobotocore": "bucket",
    "aiohttp": "bucket rss webhook",
    "botocore": "bucket",
    "sqlite3": "ledger",
    "asyncssh": "sftp connection login session express view keys probe",
    "argon2": "access",
    "msgspec": "ordinary",
    "pydantic": "settings config",
    "typer": "cli command cli_setup cli_episodes",
    "rich": "cli progress report",
    "uvloop": "command service",
    "prometheus_client": "metrics",
    "tomllib": "config installation",
}

# What no word imports at run time: files, sockets, processes, clocks, loops, logs.
IMPURE = {
    "aiobotocore", "aiohttp", "asyncio", "asyncssh", "botocore", "concurrent", "fcntl", "glob", "http", "io", "logging",
    "mmap", "multiprocessing", "os", "pathlib", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl",
    "structlog", "subprocess", "sys", "tempfile", "threading", "time", "urllib.request",
}  # fmt: skip
IMPURE_ALLOWED: dict[tuple[str, str], str] = {
    ("memo", "socket"): "inet_pton and inet_ntop, which open no socket",
    ("render", "io"): "BytesIO, which is memory",
}

PRINTERS = {"cli", "command", "cli_setup", "cli_episodes", "__main__"}


class Imports(NamedTuple):
    """The modules that a file imports: of server/, and of elsewhere; at run time, and for types alone."""

    own: frozenset[str]
    own_types: frozenset[str]
    outside: frozenset[str]


class _Reader(ast.NodeVisitor):
    def __init__(self) -> None:
        self.own: set[str] = set()
        self.own_types: set[str] = set()
        self.outside: set[str] = set()
        self._types = False

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            self._types = True
            for statement in node.body:
                self.visit(statement)
            self._types = False
            for statement in node.orelse:
                self.visit(statement)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        if not self._types:
            self.outside.update(alias.name for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.level == 0:
            if not self._types:
                self.outside.add(str(node.module))
            return
        own = {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        (self.own_types if self._types else self.own).update(own)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((SERVER / f"{module}.py").read_text(encoding="utf-8"))


@cache
def imports_of(module: str) -> Imports:
    reader = _Reader()
    reader.visit(tree_of(module))
    return Imports(frozenset(reader.own), frozenset(reader.own_types), frozenset(reader.outside))


def may_import(module: str, other: str) -> bool:
    """Whether the table lets ``module`` import ``other`` at run time."""
    if (module, other) in ALLOWED:
        return True
    unknown = ("", "not in the table")
    (layer, group), (other_layer, other_group) = PLACES.get(module, unknown), PLACES[other]
    if not layer:
        return False
    if layer == other_layer == "edge":
        return group == other_group or other in SHARED
    return LAYERS.index(other_layer) <= LAYERS.index(layer)


def test_every_module_is_in_the_table() -> None:
    """A new file says first what it is."""
    for module in MODULES:
        assert module in PLACES, f"server/{module}.py is in no layer: add it to the table in tests/test_layout.py"


def test_the_table_names_no_module_twice() -> None:
    """One place for each."""
    named = [module for _, _, modules in TABLE for module in modules.split()]
    assert sorted(named) == sorted(set(named))
    assert {layer for layer, _, _ in TABLE} == set(LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    """Words import words; an edge no other edge; nobody what stands above."""
    for other in sorted(imports_of(module).own & set(PLACES)):
        places = " ".join(PLACES.get(module, ())), " ".join(PLACES[other])
        assert may_import(module, other), f"server/{module}.py ({places[0]}) imports {other} ({places[1]}) at run time"


@pytest.mark.parametrize("module", MODULES)
def test_imports_inside_the_package_are_relative_and_real(module: str) -> None:
    """``from .x import y``, and there is an x."""
    found = imports_of(module)
    assert not {name for name in found.outside if name.split(".")[0] == "server"}
    assert found.own | found.own_types <= {*MODULES, "__init__"}
    own = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.ImportFrom) and node.level]
    assert all(node.level == 1 for node in own)
    assert all(alias.name != "*" for node in own for alias in node.names)


@pytest.mark.parametrize("module", MODULES)
def test_a_library_is_imported_where_its_world_is(module: str) -> None:
    """Only bucket knows S3, only ledger SQLite, only the SFTP edge and keys SSH."""
    for name in imports_of(module).outside:
        library = name.split(".")[0]
        assert module in OUTSIDE.get(library, module).split(), f"server/{module}.py imports {library}"


@pytest.mark.parametrize("module", [module for module in MODULES if PLACES.get(module, ("",))[0] == "word"])
def test_a_word_touches_no_world(module: str) -> None:
    """No file, no socket, no loop, no log, and no clock but the one that it is handed."""
    for name in imports_of(module).outside:
        impure = name if name in IMPURE else name.split(".")[0]
        assert impure not in IMPURE or (module, impure) in IMPURE_ALLOWED, f"server/{module}.py imports {name}"
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called.split(".")[-1] not in {"now", "utcnow", "today"}, f"server/{module}.py asks {called}()"
            assert called not in {"open", "input", "print"}, f"server/{module}.py calls {called}()"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_prints_and_exits(module: str) -> None:
    """Everything else returns, raises, or logs."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"print", "sys.exit", "exit", "quit", "os._exit", "sys.stdout.write", "sys.stderr.write"}:
                assert module in PRINTERS, f"server/{module}.py line {node.lineno} calls {called}()"
        if isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.unparse(node.exc):
            assert module in PRINTERS, f"server/{module}.py line {node.lineno} raises SystemExit"


@pytest.mark.parametrize("module", ["__init__", *MODULES])
def test_every_file_opens_with_what_it_is_and_stays_short(module: str) -> None:
    """A docstring, and fewer than 400 lines: a longer file holds a second noun."""
    assert ast.get_docstring(tree_of(module)), f"server/{module}.py has no docstring"
    lines = len((SERVER / f"{module}.py").read_text(encoding="utf-8").splitlines())
    assert lines < MOST_LINES, f"server/{module}.py has {lines} lines: look for the second noun in it"


def as_markdown() -> str:
    """The table as it stands in the README: ``python -m tests.test_layout`` prints it."""
    lines = ["| layer | group | modules |", "|---|---|---|"]
    for layer in reversed(LAYERS):
        for found, group, modules in TABLE:
            if found == layer and (there := [f"`{module}`" for module in modules.split() if module in MODULES]):
                lines.append(f"| {layer} | {group} | {' '.join(there)} |")
    return "\n".join(lines)


def test_the_readme_holds_the_same_table() -> None:
    """Once it has one: its section on the layout is this table, module for module."""
    readme = (SERVER.parent / "README.md").read_text(encoding="utf-8")
    if "| layer | group | modules |" in readme:
        assert as_markdown() in readme, "print it with: python -m tests.test_layout"


def test_nothing_is_called_by_what_it_is_not() -> None:
    """No drawer for everything."""
    assert not {"utils", "util", "helpers", "base", "common", "misc"} & set(MODULES)


def test_every_exception_is_still_needed() -> None:
    """An allowance that nothing uses any more is taken out of the tables."""
    for module, other in ALLOWED:
        if module in MODULES:
            assert other in imports_of(module).own, f"ALLOWED ({module}, {other}) is not needed"
    for module, name in IMPURE_ALLOWED:
        if module in MODULES:
            assert name in imports_of(module).outside, f"IMPURE_ALLOWED ({module}, {name}) is not needed"


def test_a_word_can_be_imported_without_any_world() -> None:
    """The table sees what is written; this sees what is loaded with it."""
    import subprocess

    words = [module for module in MODULES if PLACES.get(module, ("",))[0] == "word"]
    code = f"import sys\nfor name in {words!r}: __import__('server.' + name)\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=SERVER.parent, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert not {"aiobotocore", "asyncssh", "sqlite3", "asyncio", "structlog", "pydantic", "typer"} & set(loaded)


if __name__ == "__main__":
    print(as_markdown())
