"""The manual on the machine, and what README and manual consist of: tables that render, commands that parse."""

from __future__ import annotations

import ast
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from markdown_it import MarkdownIt

from server.cli import tables
from server.cli.app import app
from server.cli.manual import CHAPTERS, FOLDER, read_chapter
from server.publish.clock import STOPPED
from server.publish.first_delivery import NOTHING_DELIVERED
from server.status.alarms import STATE_ALARMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.program import Program

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(FOLDER.glob("*.md"))]
_BARS = re.compile(r"(?<!\\)\|")


def test_every_chapter_is_listed_and_has_a_heading(program: Program) -> None:
    """The list of chapters names every file, the example configuration among them, each with its heading."""
    assert {path.stem for path in FOLDER.glob("*.md")} == set(CHAPTERS)
    done = program.run("manual")
    listed = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert list(listed) == [*CHAPTERS, "config"]
    for name, title in listed.items():
        assert title.strip() == read_chapter(name).title
        assert name == "config" or read_chapter(name).text.startswith("# ")


def test_a_chapter_is_plain_text_in_a_pipe(program: Program) -> None:
    """As it is written: it can be searched, and pasted from."""
    assert program.run("manual", "glossary").stdout == (FOLDER / "glossary.md").read_text()
    assert program.run("manual", "config").stdout == (ROOT / "config.example.toml").read_text()


def test_a_chapter_is_rendered_on_a_terminal() -> None:
    """Through the pager, with headings and tables instead of Markdown's signs."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PAGER": "cat", "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-P", "-m", "server", "manual", "glossary"]
    with subprocess.Popen(command, stdout=theirs, stdin=theirs, cwd=ROOT, env=environment) as process:
        os.close(theirs)
        shown = b"".join(_read_all(ours))
        os.close(ours)
    assert process.returncode == 0
    assert b"Glossary" in shown and b"\x1b[" in shown
    assert b"# Glossary" not in shown and b"|---" not in shown


def _read_all(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(descriptor, 1 << 16)
        except OSError:  # Linux says EIO when the other end of a terminal is closed
            return
        if not piece:
            return
        yield piece


def test_a_chapter_that_does_not_exist_is_answered_with_the_nearest(program: Program) -> None:
    """Exit 2, and the name that was probably meant."""
    done = program.run("manual", "glosary")
    assert done.returncode == 2
    assert "did you mean glossary?" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_row_of_a_table_has_the_columns_of_its_head(page: Path) -> None:
    """A further cell would disappear when the page is rendered; a bar within code must be written as \\|."""
    text = page.read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text):
        if token.type == "table_open" and token.map is not None:
            rows = lines[token.map[0] : token.map[1]]
            columns = {len(_BARS.findall(row)) for row in rows}
            assert len(columns) == 1, "\n".join(row for row in rows if len(_BARS.findall(row)) != max(columns))
    # What begins with a bar and is no table is a broken one.
    tables = sum(len(range(*token.map)) for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text)
                 if token.type == "table_open" and token.map is not None)  # fmt: skip
    assert tables == sum(1 for line in lines if line.startswith("|"))


def commands_of(page: Path) -> list[str]:
    """Return every ``pickup-point …`` that a page prints, in a block of its own or within a sentence."""
    text = page.read_text(encoding="utf-8").replace("\\|", "|")
    blocks = [token.content for token in MarkdownIt().parse(text) if token.type in ("fence", "code_block")]
    inline = [code for code in re.findall(r"`(pickup-point [^`]+)`", text) if "\n" not in code]
    in_blocks = re.findall(r"(?m)(?:^|[(|;&])[ ]*(pickup-point [^\n#]*)", "\n".join(blocks).replace("\\\n", " "))
    return [command for command in (*inline, *in_blocks) if command != "pickup-point COMMAND"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_that_is_printed_parses(page: Path) -> None:
    """Command, options and number of arguments are those of today."""
    group: Any = typer.main.get_command(app)
    for command in commands_of(page):
        command = re.sub(r"\$\([^)]*\)", "X", command)
        words = shlex.split(re.split(r"\s(?:[<>|;]|&&)|\)", command)[0])[1:]
        if words[0].startswith("-"):
            continue
        sub = group.commands.get(words[0])
        assert sub is not None, command
        try:
            sub.make_context(words[0], words[1:], parent=group.context_class(group))
        except Exception as error:
            pytest.fail(f"{command}: {error}")


def test_every_alarm_is_in_the_manual() -> None:
    """What it means and what to do, under the name that `check`, metrics and the webhook use."""
    tree = ast.parse((ROOT / "server" / "status" / "alarms.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Alarm"]
    names = {call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)}
    names |= {*STATE_ALARMS, "day_not_published", "day_not_picked_up", "day_shrunk", NOTHING_DELIVERED, STOPPED}
    assert len(names) > 20
    section = (FOLDER / "operating.md").read_text(encoding="utf-8").split("\n## Alarms\n")[1].split("\n## ")[0]
    assert names == {name for row in re.findall(r"(?m)^\| (`.*?) \|", section) for name in re.findall(r"`(\w+)`", row)}


def test_every_word_of_the_status_page_is_in_the_glossary() -> None:
    """The states, the heads of the table, the labels, and the key of the strip."""
    glossary = (FOLDER / "glossary.md").read_text(encoding="utf-8")
    explained = {word for row in re.findall(r"(?m)^\| (.*?) \|", glossary) for word in row.replace("`", "").split(", ")}
    source = (ROOT / "server" / "cli" / "tables.py").read_text(encoding="utf-8")
    # A label is the first of a pair: `("Last round", …`, or stands before `if not said else ""`.
    labels = set(re.findall(r'"([A-Z][a-z]+(?: [a-z]+)*)"(?:, |\.ljust| if )', source)) | {"Remarks", "Disk", "Banned"}
    assert {"Service", "Users", "Episodes", "Export source", "Server address"} <= labels
    key = {"picked up", "published", "not due", "wrong", "pruned"}
    heads = {header for header, _, _ in tables._COLUMNS}
    assert {*tables._STATE_STYLE, *heads, *labels, *key} <= explained
