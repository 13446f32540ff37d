"""Every name of asyncssh that its documentation does not promise, and that we rely on all the same.

Finds them in the sources of server/sftp, compares them with the list below, and looks for each in the asyncssh that is
installed: whoever raises its upper bound sees here what to look at first.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from functools import cache
from pathlib import Path

import pytest

SFTP = Path(__file__).parent.parent.parent / "server" / "sftp"
TREES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SFTP.glob("*.py"))}

# What is imported from asyncssh's modules, instead of from asyncssh itself.
IMPORTED = {
    "asyncssh.auth.MSG_USERAUTH_INFO_RESPONSE",
    "asyncssh.auth.ServerAuth",
    "asyncssh.auth._ServerKbdIntAuth",
    "asyncssh.auth._ServerPasswordAuth",
    "asyncssh.channel.SSHChannel",
    "asyncssh.connection.SSHConnection",
    "asyncssh.crypto.cipher.BasicCipher",
    "asyncssh.crypto.cipher.GCMCipher",
    "asyncssh.encryption.BasicEncryption",
    "asyncssh.encryption.ETMEncryption",
    "asyncssh.encryption.GCMEncryption",
    "asyncssh.mac.MAC",
    "asyncssh.mac._HMAC",
    "asyncssh.packet.SSHPacket",
}
CONNECTION, CHANNEL = "connection.SSHServerConnection", "channel.SSHServerChannel"
# Private attributes, by the class that has them.
TOUCHED: dict[str, set[str]] = {
    CONNECTION: {
        "_auth",
        "_auth_complete",
        "_auth_in_progress",
        "_can_recv_ext_info",
        "_compressor",
        "_deferred_packets",
        "_enc_algs",
        "_finish_userauth",
        "_global_request_waiters",
        "_keepalive_count",
        "_keepalive_timer_callback",
        "_kex_complete",
        "_make_global_request",
        "_next_service",
        "_recv_encryption",
        "_rekey_bytes",
        "_rekey_bytes_sent",
        "_rekey_seconds",
        "_rekey_time",
        "_send",
        "_send_encryption",
        "_send_global_request",
        "_send_kexinit",
        "_send_seq",
        "_set_keepalive_timer",
        "_transport",
        "_username",
    },
    CHANNEL: {
        "_flush_send_buf",
        "_process_window_adjust",
        "_send_buf",
        "_send_chan",
        "_send_pktsize",
        "_send_state",
        "_send_window",
    },
    "auth._ServerPasswordAuth": {"_conn", "_start", "_username"},
    "auth._ServerKbdIntAuth": {"_conn", "_packet_handlers", "_username"},
    "encryption.GCMEncryption": {"_cipher"},
    "encryption.BasicEncryption": {"_cipher", "_mac"},
    "crypto.cipher.GCMCipher": {"_iv", "_key"},
    "crypto.cipher.BasicCipher": {"_cipher", "_encryptor"},
    "mac._HMAC": {"_hash_alg", "_hash_size", "_key"},
}
# Names without an underscore that are overridden or replaced, and are called by asyncssh's own code.
REPLACED: dict[str, set[str]] = {
    CONNECTION: {
        "connection_lost",
        "connection_made",
        "data_received",
        "log_received_packet",
        "log_sent_packet",
        "pause_writing",
        "reload_config",
        "resume_writing",
        "send_newkeys",
        "validate_public_key",
    },
    CHANNEL: {"log_received_packet", "log_sent_packet", "process_open"},
}
# The same, called from here; no source says that these are not for everybody.
CALLED = {CONNECTION: {"get_hash_prefix"}, "packet.SSHPacket": {"get_full_payload"}}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def of_asyncssh(tree: ast.Module) -> set[str]:
    """The names in a module that come from asyncssh or one of its modules."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "asyncssh" and not node.level
        for alias in node.names
    }


def names_of(node: ast.AST) -> set[str]:
    """What a class, or a module's classes, define and set on themselves."""
    names = set()
    for child in ast.walk(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(child.name)
        elif isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store) and is_self(child.value):
            names.add(child.attr)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            names.add(child.id)
    return names


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def derives_from_asyncssh(cls: ast.ClassDef, imported: set[str]) -> bool:
    bases = [base.value if isinstance(base, ast.Subscript) else base for base in cls.bases]
    return any(
        (isinstance(base, ast.Name) and base.id in imported)
        or (isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id == "asyncssh")
        for base in bases
    )


@cache
def _tree_of(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(sys.modules[module]))


@cache
def theirs(owner: str) -> frozenset[str]:
    """What a class of asyncssh ("module.Class") and those that it derives from define and set on themselves."""
    module, _, name = owner.rpartition(".")
    cls = getattr(importlib.import_module(f"asyncssh.{module}"), name)
    found: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.startswith("asyncssh"):
            found |= set().union(
                *(
                    names_of(node)
                    for node in _tree_of(base.__module__).body
                    if isinstance(node, ast.ClassDef) and node.name == base.__name__
                )
            )
    return frozenset(found)


def inherited(module: str, cls: ast.ClassDef) -> frozenset[str]:
    """What a class of ours has from those of asyncssh that it derives from."""
    mro = getattr(importlib.import_module(f"server.sftp.{module}"), cls.name).__mro__
    owners = [f"{it.__module__}.{it.__name__}".removeprefix("asyncssh.") for it in mro if "asyncssh." in it.__module__]
    return theirs(owners[0])


def touched() -> set[str]:
    """The private names that server/sftp reads, writes or overrides, and that are asyncssh's or nobody's."""
    ours = set().union(*(names_of(tree) for tree in TREES.values()))
    known = frozenset().union(*(theirs(owner) for owner in TOUCHED))
    found = set()
    for module, tree in TREES.items():
        imported = of_asyncssh(tree)
        derived = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and derives_from_asyncssh(n, imported)]
        inside = {id(node): inherited(module, cls) for cls in derived for node in ast.walk(cls)}
        for cls in derived:
            found |= names_of(cls) & inherited(module, cls)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (id(node) in inside or not is_self(node.value)):
                of_theirs = inside[id(node)] if is_self(node.value) else known
                found |= {node.attr} & of_theirs or {node.attr} - ours
    return {name for name in found if is_private(name)}


def test_every_private_name_is_listed() -> None:
    """Also those that one of our classes overrides or hides without knowing."""
    assert touched() == set().union(*TOUCHED.values())


def test_every_import_from_an_inner_module_is_listed() -> None:
    """Where a class or function lives inside asyncssh is its own affair."""
    found = {
        f"{node.module}.{alias.name}"
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asyncssh.")
        for alias in node.names
    }
    assert found == IMPORTED


def test_every_replaced_method_is_listed() -> None:
    """Those that our connection overrides, and those that are set on a channel."""
    (ours,) = [n for n in ast.walk(TREES["connection"]) if isinstance(n, ast.ClassDef) and n.name == "SshConnection"]
    overridden = {node.name for node in ours.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {name for name in overridden & theirs(CONNECTION) if not name.startswith("_")} == REPLACED[CONNECTION]
    stored = {
        node.attr
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and not is_self(node.value)
    }
    assert {name for name in stored & theirs(CHANNEL) if not name.startswith("_")} == REPLACED[CHANNEL]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (owner, name)
        for names in (TOUCHED, REPLACED, CALLED)
        for owner, listed in names.items()
        for name in sorted(listed)
    ],
)
def test_the_installed_asyncssh_has_it(owner: str, name: str) -> None:
    """In this class, or in one that it derives from."""
    assert name in theirs(owner)
