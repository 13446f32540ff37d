"""Hints: their grammar, and every hint of the program held to it: what looks like a command can be pasted."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from server.hints import OURS, WITHOUT_CONFIG, Call, Line, Step, lines, steps, without_page

ODD = shlex.quote("it's; void: ls")
SERVER = Path(__file__).parent.parent / "server"
# What stands in a command without being quoted: numbers, days, names of log files, options that are quoted already.
SAFE = {"attempt.user", "day", "day.day", "day.logs[0].name", "file", "folder", "host", "log.name", "login", "name.day",
        "lost[0]", "name", "os.geteuid()", "part.name", "place", "port", "publication.logs[0].name", "quoted",
        "quoted[0]", "quoted[1]", "record.day", "self._config.sftp.port", "self._options", "self.bucket",
        "self.endpoint", "self.scheme", "where"}  # fmt: skip


@pytest.mark.parametrize(("hint", "expected"), [
    ("", []),
    ("ask the partner", [("ask the partner", "")]),
    ("df -h", [("", "df -h")]),
    ("df -h /a; free some space", [("", "df -h /a"), ("free some space", "")]),
    ("timedatectl; if it is right: pickup-point prune --clock-is-right",
     [("", "timedatectl"), ("if it is right", "pickup-point prune --clock-is-right")]),
    ("pickup-point init; or, to try it out: pickup-point demo",
     [("", "pickup-point init"), ("or, to try it out", "pickup-point demo")]),
    ("systemctl start pickup-point; or pickup-point serve",
     [("", "systemctl start pickup-point"), ("or", "pickup-point serve")]),
    ("journalctl -u x | grep 'a; b: ls' | tail", [("", "journalctl -u x | grep 'a; b: ls' | tail")]),
    ("Megaphone's day: it's there: ls -l 'a; b'", [("Megaphone's day: it's there", "ls -l 'a; b'")]),
    ("export.url: the place", [("export.url: the place", "")]),
    ("ulimit -u; free -m; free it", [("", "ulimit -u"), ("", "free -m"), ("free it", "")]),
    ("that it starts: /usr/bin/python -m server < /dev/null",
     [("that it starts", "/usr/bin/python -m server < /dev/null")]),
    (f"to publish it: pickup-point feed --resend {ODD}", [("to publish it", f"pickup-point feed --resend {ODD}")]),
])  # fmt: skip
def test_a_hint_is_prose_and_commands(hint: str, expected: list[tuple[str, str]]) -> None:
    """Steps between semicolons, a command after a colon or alone; what is quoted is never taken apart."""
    assert steps(hint) == [Step(*step) for step in expected]


@pytest.mark.parametrize(("command", "expected"), [
    ("pickup-point status", "/opt/it status --config '/a b.toml'"),
    ("pickup-point feed --day 2026-11-20 --resend 'a | b'",
     "/opt/it feed --day 2026-11-20 --resend 'a | b' --config '/a b.toml'"),
    ("pickup-point hash-password < a", "/opt/it hash-password < a"),
    ("pickup-point feed --help", "/opt/it feed --help"),
    ("pickup-point keygen --config c", "/opt/it keygen --config c"),
    ("pickup-point status | head", "/opt/it status --config '/a b.toml' | head"),
    ("openssl rand 9 | pickup-point hash-password", "openssl rand 9 | /opt/it hash-password"),
    ("systemctl status pickup-point", "systemctl status pickup-point"),
])  # fmt: skip
def test_a_command_reaches_the_program_and_configuration_in_use(command: str, expected: str) -> None:
    """The path as it was called and --config, where the command has one; a pipe stays a pipe."""
    assert Call("/opt/it", "/a b.toml").command(command) == expected


def test_each_command_is_printed_alone_and_what_is_lacking_is_told() -> None:
    """Prose introduces it; a program that is not installed is named; nobody is sent to the page they are reading."""
    found = steps("wait; to see whether it is up: aws s3 ls s3://b/; its last login: pickup-point status")
    assert lines(without_page(found, "status"), Call(), lambda name: name != "aws") == [
        Line("wait", is_command=False),
        Line("to see whether it is up:", is_command=False),
        Line("aws s3 ls s3://b/", is_command=True),
        Line("(aws is not installed here)", is_command=False),
    ]
    assert lines(found, Call())[-1] == Line("pickup-point status", is_command=True)


@cache
def commands() -> dict[str, Any]:
    """Our commands, by name, as the parser knows them."""
    from typer.main import get_command

    from server.cli.app import app

    return dict(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_commands_without_a_configuration_are_known() -> None:
    """Held against the parser."""
    without = {
        name
        for name, command in commands().items()
        if not any("--config" in parameter.opts for parameter in command.params)  # type: ignore[attr-defined]
    }
    assert without == WITHOUT_CONFIG


@cache
def texts() -> list[tuple[str, str, list[str]]]:
    """Every text on one line in server/ that is not a docstring: place, text, and the source of what is put into it.

    What is put in is ``⟦n⟧``.
    """
    found = []
    for path in sorted(SERVER.rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        inner = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        inner |= {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.JoinedStr):
                put: list[str] = []
                text = ""
                for part in node.values:
                    if isinstance(part, ast.FormattedValue):
                        text += f"⟦{len(put)}⟧"
                        put.append(ast.unparse(part.value))
                    else:
                        text += str(part.value) if isinstance(part, ast.Constant) else ""
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                text, put = node.value, []
            else:
                continue
            if "\n" not in text:
                found.append((f"{path.relative_to(SERVER)}:{node.lineno}", text, put))
    return found


def test_no_hint_has_prose_in_a_command_or_a_command_in_prose() -> None:
    """Wherever one of our commands is named in a text, it is a command that the parser takes as it stands."""
    named = re.compile(rf"pickup-point ({'|'.join(map(re.escape, commands()))})\b")
    seen = 0
    for place, text, _ in texts():
        if not named.search(text) or f"`{OURS} " in text:  # Markdown is for another reader
            continue
        inside = [step.command for step in steps(text)]
        assert len(named.findall(text)) == sum(len(named.findall(command)) for command in inside), f"{place}: {text}"
        for command in inside:
            for call in re.findall(r"(?:^|\| )pickup-point ([^|<]*)", command):
                name, *words = shlex.split(re.sub(r"⟦\d+⟧", "2026-11-20", call))
                if "--help" in words:
                    continue
                try:
                    commands()[name].make_context(name, words)
                except Exception as error:
                    pytest.fail(f"{place}: {text}: {error!r}")
                seen += 1
    assert seen > 20


def test_no_command_of_another_program_goes_on_as_prose() -> None:
    """A comma or a colon within a command is a sentence's, which a shell would take for an argument."""
    found = [step.command for _, text, _ in texts() for step in steps(text) if step.command]
    assert len(found) > 100
    assert [command for command in found if re.search(r"[a-z⟧][,:] ", re.sub(r"'[^']*'", "", command))] == []


def test_what_is_put_into_a_command_is_quoted() -> None:
    """A path with a blank in it stays one word."""
    bare = [
        f"{place}: {text}: {put[number]}"
        for place, text, put in texts()
        for step in steps(text)
        for number in map(int, re.findall(r"⟦(\d+)⟧", step.command))
        if put[number] not in SAFE and "quote(" not in put[number]
    ]
    assert bare == []


def test_hints_are_printed_in_one_way() -> None:
    """Whatever prints an arrow itself does not tell a command from prose."""
    printing = {
        str(path.relative_to(SERVER)) for path in SERVER.rglob("*.py") if "→" in path.read_text(encoding="utf-8")
    }
    assert printing == {"cli/options.py", "cli/tables.py"}


def test_no_command_of_ours_is_printed_but_as_a_hint() -> None:
    """A plain ``print`` would know neither the program's path nor its configuration, nor give it a line of its own."""
    named = re.compile(rf"(?<!/)\bpickup-point ({'|'.join(map(re.escape, commands()))})\b")
    plain = []
    for path in sorted((SERVER / "cli").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                plain += (
                    [f"{path.name}:{node.lineno}"] if named.search(ast.get_source_segment(source, node) or "") else []
                )
    assert plain == []
