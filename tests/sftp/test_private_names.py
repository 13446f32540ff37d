"""Every private name of asyncssh that we touch: a new version of it may take any of them away."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import asyncssh

SFTP = Path(__file__).parent.parent.parent / "server" / "sftp"
TOUCHED = {  # module of server/sftp: names
    "connection": {"_auth", "_auth_in_progress", "_deferred_packets", "_finish_userauth", "_kex_complete",
                   "_next_service", "_username"},
    "fast_send": {"_auth_complete", "_cipher", "_compressor", "_flush_send_buf", "_iv", "_kex_complete", "_key",
                  "_process_window_adjust", "_rekey_bytes", "_rekey_bytes_sent", "_rekey_seconds", "_rekey_time",
                  "_send", "_send_buf", "_send_chan", "_send_encryption", "_send_kexinit", "_send_pktsize", "_send_seq",
                  "_send_state", "_send_window", "_transport"},
    "password_methods": {"_ServerKbdIntAuth", "_ServerPasswordAuth", "_conn", "_packet_handlers", "_start",
                         "_username"},
}  # fmt: skip


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def names_of_ours(tree: ast.Module) -> set[str]:
    """The private names that a module gives to something: functions, and what is assigned in `__init__` or a class."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            found |= {
                it.attr for it in ast.walk(node) if isinstance(it, ast.Attribute) and isinstance(it.ctx, ast.Store)
            }
        if isinstance(node, ast.ClassDef):
            found |= {
                it.target.id for it in node.body if isinstance(it, ast.AnnAssign) and isinstance(it.target, ast.Name)
            }
    return found


def overridden(module: str) -> set[str]:
    """The private names of asyncssh's classes that a class of ours replaces."""
    classes = [it for _, it in inspect.getmembers(importlib.import_module(module), inspect.isclass)]
    return {
        name
        for ours in classes
        if ours.__module__ == module
        for name in vars(ours)
        if private(name) and any(name in vars(it) for it in ours.__mro__[1:] if it.__module__.startswith("asyncssh."))
    }


def touched(module: str) -> set[str]:
    """What a module imports, reads of other objects, reads of its own that it never defines, and replaces."""
    tree = ast.parse((SFTP / f"{module}.py").read_text(encoding="utf-8"))
    ours = names_of_ours(tree)
    found = {it.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for it in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in ours
            found |= set() if own else {node.attr}
    return {name for name in found if private(name)} | overridden(f"server.sftp.{module}")


def test_every_private_name_that_we_touch_is_known() -> None:
    """One that is not in the table is a new risk; one that is there and gone is one less."""
    found = {path.stem: touched(path.stem) for path in SFTP.glob("[!_]*.py")}
    assert {module: names for module, names in found.items() if names} == TOUCHED


def test_asyncssh_still_has_each_of_them() -> None:
    """Somewhere in its sources; what each does there is held by the tests of what we do with it."""
    folder = Path(asyncssh.__file__).parent
    words = {word for path in folder.rglob("*.py") for word in re.findall(r"\b_\w+", path.read_text(encoding="utf-8"))}
    assert set().union(*TOUCHED.values()) <= words
