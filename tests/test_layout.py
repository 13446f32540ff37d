"""Who may import whom: one line a room, held against every file of server/; imports for types count.

Reads the sources of server/, nothing else. A room may import the rooms of the floors below its own.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.megaphone.bucket import Bucket
from server.s3.errors import BucketPlace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SERVER = Path(__file__).parent.parent / "server"
FILES = {".".join(path.relative_to(SERVER).with_suffix("").parts): path for path in sorted(SERVER.rglob("*.py"))}
MODULES = [module for module in FILES if module.rpartition(".")[2] != "__init__"]
MOST_LINES = 600

# From the bottom to the top, a floor a line; each room is a folder of server/, or the files named after it.
FLOORS: tuple[dict[str, str], ...] = (
    {"errors": "errors hints"},
    {"threads": "threads", "log_output": "log_output", "systemd": "systemd"},
    {"disk": "disk paths rights", "s3": ""},
    {"megaphone": ""},
    {"triton": "triton"},
    {"pickups": "pickups"},
    {"settings": "settings"},
    {"config": "config", "episodes": ""},
    {"convert": "", "sftp": ""},
    {"storage": ""},
    {"publish": ""},
    {"status": ""},
    {"web": ""},
    {"service": "service"},
    {"cli": "__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ROOM_OF_FILE = {file: room for rooms in FLOORS for room, files in rooms.items() for file in files.split()}

# Libraries, and the only modules that may import them at run time.
OWNERS: dict[str, str] = {
    "aiobotocore": "s3.client",
    "aiohttp": "s3.client episodes.fetch status.webhook web.listener",
    "argon2": "sftp.users",
    "asyncssh": "sftp.server sftp.connection sftp.login sftp.password_methods sftp.endings sftp.session sftp.fast_send "
    "sftp.keys sftp.client",
    "botocore": "s3.client",
    "jinja2": "web.site",
    "markdown_it": "cli.handover",
    "prometheus_client": "status.metrics",
    "pydantic": "settings config",
    "rich": "cli.app cli.manual_page cli.progress cli.tables",
    "sqlite3": "storage.ledger",
    "tomllib": "config cli.privileges",
    "typer": "cli.app cli.options cli.setup cli.episodes",
    "uvloop": "cli.options",
}

PRINTERS = {
    "__main__", "cli.app", "cli.convert", "cli.episodes", "cli.options", "cli.setup", "cli.start", "convert.__main__",
}  # fmt: skip

# No I/O, no clock, no loop, no log.
PURE = [
    "errors",
    "hints",
    "triton",
    "pickups",
    "megaphone.exports",
    "s3.errors",
    "s3.retry",
    "episodes.rss",
    "convert.conversion",
    "convert.export_row",
    "convert.large_row",
    "convert.tally",
    "convert.row",
    "convert.job",
    "convert.messages",
    "convert.log_writer",
    "storage.records",
    "storage.tables",
    "status.deadlines",
    "publish.holds",
    "publish.decisions",
    "publish.window",
    "status.alarms",
    "status.days",
    "status.reconcile",
    "status.summary",
    "status.words",
    "web.answer",
    "web.glossary",
    "web.plots",
    "web.views",
    "sftp.algorithms",
    "sftp.protocol",
    "sftp.proxy_protocol",
    "cli.handover_document",
    "cli.samples",
]
IMPURE = {
    "aiobotocore", "aiohttp", "asyncio", "asyncssh", "botocore", "concurrent", "fcntl", "glob", "http", "io", "logging",
    "mmap", "multiprocessing", "os", "pathlib", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl",
    "structlog", "subprocess", "sys", "tempfile", "threading", "time", "urllib.request",
}  # fmt: skip
IMPURE_ALLOWED: dict[tuple[str, str], str] = {
    ("status.words", "io"): "csv writes into a StringIO",
}


def room_of(module: str) -> str:
    """The room that a module (dotted, below server) lies in; empty for a file that no floor names."""
    return module.partition(".")[0] if "." in module else ROOM_OF_FILE.get(module, "")


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


@cache
def nodes_of(module: str) -> tuple[ast.AST, ...]:
    """Every node of a module's tree: several tests go over all of them."""
    return tuple(ast.walk(tree_of(module)))


def every_node(modules: Iterable[str]) -> Iterator[tuple[str, ast.AST]]:
    """The nodes of these modules, each with its module."""
    return ((module, node) for module in modules for node in nodes_of(module))


def written(called: ast.expr) -> str:
    """The source of what is called; a plain name, as most are, needs no unparsing."""
    return called.id if isinstance(called, ast.Name) else ast.unparse(called)


@cache
def own_imports(module: str) -> frozenset[str]:
    """The modules of server/ that a module imports, for types or at run time, anywhere in it."""
    found, package = set(), module.split(".")[:-1]
    for node in nodes_of(module):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                below = f"{target}.{alias.name}" if target else alias.name
                found.add(below if below in FILES else target)
    return frozenset(found - {module, ""})


def arrows() -> set[tuple[str, str]]:
    """(module, room) for every import that leaves its room and does not go to a floor below."""
    return {
        (module, room)
        for module in MODULES
        for room in map(room_of, own_imports(module))
        if room != room_of(module) and FLOOR_OF.get(room, 99) >= FLOOR_OF.get(room_of(module), -1)
    }


def test_every_module_lies_in_a_room() -> None:
    """A new file says first where it belongs."""
    assert [module for module in MODULES if room_of(module) not in FLOOR_OF] == []


def test_no_arrow_goes_against_the_order() -> None:
    """Neither up, nor to another room of the same floor."""
    assert arrows() == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not even for types, and not inside a room: whoever reads a module can read what it stands on first."""
    graph = {module: own_imports(module) & set(MODULES) for module in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_imports_inside_the_package_are_relative_and_real() -> None:
    """``from ..room.x import y``, and there is an x."""
    assert {(module, name) for module in MODULES for name in own_imports(module) - set(MODULES)} == set()
    wrong = []
    for module, node in every_node(MODULES):
        if isinstance(node, ast.ImportFrom):
            absolute = not node.level and str(node.module).split(".")[0] == "server"
            if absolute or any(alias.name == "*" for alias in node.names):
                wrong.append(f"{module}: {ast.unparse(node)}")
        if isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "server" for alias in node.names):
            wrong.append(f"{module}: {ast.unparse(node)}")
    assert wrong == []


def test_a_room_opens_with_one_sentence_and_no_import() -> None:
    """An import there would load the whole room into every worker."""
    openings = {room: tree_of(f"{room}.__init__") for room in FLOOR_OF if (SERVER / room).is_dir()}
    assert [room for room, tree in openings.items() if not ast.get_docstring(tree) or len(tree.body) != 1] == []


@cache
def outside_imports(module: str) -> frozenset[str]:
    """What a module imports at run time from outside server/, anywhere in it."""
    names: set[str] = set()
    waiting: list[ast.AST] = [tree_of(module)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module))
        waiting += ast.iter_child_nodes(node)
    return frozenset(names)


def test_a_library_has_an_owner() -> None:
    """Only sftp knows SSH, only the ledger SQLite, only the bucket S3."""
    imported = {(module, name.split(".")[0]) for module in MODULES for name in outside_imports(module)}
    owned = {(module, library) for library, owners in OWNERS.items() for module in owners.split()}
    assert {(module, library) for module, library in imported if library in OWNERS} == owned


def test_every_library_that_is_imported_is_declared() -> None:
    """What came only because something else needs it would go with that."""
    wanted = tomllib.loads((SERVER.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    declared = {_one_spelling(re.split(r"[^\w.-]", line)[0]) for line in wanted}
    imported = {name.split(".")[0] for module in MODULES for name in outside_imports(module)} - sys.stdlib_module_names
    brought_by = metadata.packages_distributions()
    assert [name for name in sorted(imported) if not declared & set(map(_one_spelling, brought_by.get(name, ())))] == []


def _one_spelling(name: str) -> str:
    """A distribution's name as all indexes know it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_pure_module_touches_no_world() -> None:
    """No file, no socket, no loop, no log, and no clock but the one that it is handed."""
    imported = {
        (module, name if name in IMPURE else name.split(".")[0]) for module in PURE for name in outside_imports(module)
    }
    assert {(module, name) for module, name in imported if name in IMPURE} == set(IMPURE_ALLOWED)
    asked = {(module, written(node.func)) for module, node in every_node(PURE) if isinstance(node, ast.Call)}
    clocks, world = {"now", "utcnow", "today"}, {"open", "input", "print"}
    assert {it for it in asked if it[1].split(".")[-1] in clocks or it[1] in world} == set()


def test_a_pure_module_can_be_imported_without_any_world() -> None:
    """The table sees what is written; this sees what is loaded with it."""
    code = f"import sys\nfor name in {PURE!r}: __import__('server.' + name)\nprint(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=SERVER.parent, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert not {"aiobotocore", "asyncssh", "sqlite3", "asyncio", "structlog", "pydantic", "typer"} & set(loaded)


def test_only_the_command_line_prints_and_exits() -> None:
    """Everything else returns, raises, or logs."""
    forbidden = {"print", "sys.exit", "exit", "quit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    wrong = []
    for module, node in every_node(module for module in MODULES if module not in PRINTERS):
        if isinstance(node, ast.Call) and written(node.func) in forbidden:
            wrong.append(f"{module} line {node.lineno} calls {written(node.func)}()")
        if isinstance(node, ast.Raise) and node.exc is not None and "SystemExit" in ast.unparse(node.exc):
            wrong.append(f"{module} line {node.lineno} raises SystemExit")
    assert wrong == []


def test_every_file_opens_with_what_it_is_and_stays_short() -> None:
    """A docstring, and at most 600 lines: a longer file holds a second noun."""
    assert [module for module in FILES if not ast.get_docstring(tree_of(module))] == []
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in FILES.items()}
    assert {module: count for module, count in lines.items() if count > MOST_LINES} == {}


def test_nothing_is_called_by_what_it_is_not() -> None:
    """No drawer for everything."""
    assert not {"utils", "util", "helpers", "base", "common", "misc"} & {m.rpartition(".")[2] for m in MODULES}


ROOT = SERVER.parent
AROUND = {
    path.relative_to(ROOT): path for top in ("tests", "benchmarks") for path in sorted((ROOT / top).rglob("*.py"))
}


def project_imports(path: Path, text: str) -> set[str]:
    """The modules of this project (dotted, from the top) that a file imports, relative or not, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(path.parent.parts)[: len(path.parent.parts) + 1 - node.level] if node.level else []
            target = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{target}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in {"server", "tests", "benchmarks"}}


def may_import(path: Path, name: str) -> bool:
    """Whether a file of tests/ or benchmarks/ may import what is so called."""
    top, _, below = name.partition(".")
    if top == "server":
        return True
    if top == "tests":
        return below.split(".")[0] == "support"
    return path.parts[0] == "benchmarks"


def test_tests_and_benchmarks_share_what_is_in_support_and_nothing_else() -> None:
    """No test is imported by anybody; benchmarks import `server` and `tests.support`, tests nothing of benchmarks."""
    found = {(str(path), name) for path, it in AROUND.items() for name in project_imports(path, it.read_text())}
    assert {(path, name) for path, name in found if not may_import(Path(path), name)} == set()


@pytest.mark.parametrize(
    ("path", "line", "allowed"),
    [
        ("tests/sftp/test_a.py", "from ..support.sftp import NAME", True),
        ("tests/sftp/test_a.py", "from ..support import container", True),
        ("tests/sftp/test_a.py", "from .test_handler import REFUSED", False),
        ("tests/sftp/test_a.py", "from . import test_handler", False),
        ("tests/sftp/test_a.py", "import tests.storage.test_ledger", False),
        ("tests/support/site.py", "from .rows import row", True),
        ("tests/support/site.py", "from ..test_config import parse", False),
        ("tests/test_a.py", "from benchmarks.measuring import measure", False),
        ("tests/test_a.py", "from server.triton import Layout", True),
        ("benchmarks/faults/disk.py", "from tests.support.program import Program", True),
        ("benchmarks/faults/disk.py", "from .result import Fault", True),
        ("benchmarks/faults/disk.py", "from tests.sftp.test_fuzz import random_request", False),
        ("benchmarks/faults/disk.py", "from tests import conftest", False),
    ],
)
def test_an_import_across_is_seen(path: str, line: str, allowed: bool) -> None:
    """However it is written."""
    (name,) = project_imports(Path(path), line)
    assert may_import(Path(path), name) is allowed


def test_a_benchmark_runs_as_a_process(tmp_path: Path) -> None:
    """They are programs: `python -m` and one line for each thing measured."""
    command = [sys.executable, "-m", "benchmarks.late", "--rows", "5000", "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [
        "5,000 rows, first version",
        "5,000 rows, late rows",
    ]


def test_every_benchmark_still_finds_what_it_imports() -> None:
    """A name that was moved or renamed in server/ or tests/support is noticed here, not in the campaign."""
    names = [".".join(path.with_suffix("").parts) for path in AROUND if path.parts[0] == "benchmarks"]
    for name in names:
        if name.rpartition(".")[2] not in {"__main__", "peers", "fuzz_process"}:
            import_module(name)  # in this process: most of what they import is here already


def test_the_campaigns_haste_reaches_the_program() -> None:
    """A name of the program that was renamed would leave it as patient as ever, and nobody would see it."""
    hasty = import_module("benchmarks.faults.bucket_hasty")
    with hasty.hastened():
        bucket = Bucket(BucketPlace("a-bucket", "", None, None))
    assert vars(bucket)["_retry"] is hasty.HASTE
