"""The manual on the machine, and what README and manual consist of: tables that render, commands that parse."""

from __future__ import annotations

import ast
import io
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from markdown_it import MarkdownIt
from rich.console import Console

from server.cli import tables
from server.cli.app import app, run
from server.cli.demo import prepare
from server.cli.manual import CHAPTERS, ENGINEER, FOLDER, read_chapter
from server.cli.manual_page import render
from server.publish.clock import STOPPED
from server.publish.first_delivery import NOTHING_DELIVERED
from server.status.alarms import STATE_ALARMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.program import Program

ROOT = Path(__file__).parent.parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(FOLDER / f"{name}.md" for name in {*CHAPTERS} - {ENGINEER}),
]
INSTALLING = FOLDER / "installing.md"
_BARS = re.compile(r"(?<!\\)\|")


def test_every_chapter_is_listed_and_has_a_heading(program: Program) -> None:
    """The list of chapters names every file, the example configuration among them, each with its heading."""
    assert {path.stem for path in FOLDER.glob("*.md")} | {ENGINEER} == set(CHAPTERS)
    done = program.run("manual")
    listed = dict(line.split("  ", 1) for line in done.stdout.splitlines())
    assert list(listed) == [*CHAPTERS, "config"]
    for name, title in listed.items():
        assert title.strip() == read_chapter(name).title
        assert name == "config" or read_chapter(name).text.startswith("# ")


def test_a_chapter_is_plain_text_in_a_pipe(program: Program) -> None:
    """As it was written: it can be searched and copied from."""
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_command_is_wrapped_on_a_narrow_terminal_and_no_letter_lost(page: Path) -> None:
    """The lines of a block stay whole, and so do the commands of a table."""
    shown, text = io.StringIO(), page.read_text("utf-8")
    render(text, Console(file=shown, width=60, color_system=None, legacy_windows=False))
    lines = [line.strip() for line in shown.getvalue().splitlines()]
    typed = [line for token in MarkdownIt().parse(text) if token.type == "fence" for line in token.content.splitlines()]
    for row in re.findall(r"(?m)^\|.*\|$", text):
        typed += re.findall(r"`(pickup-point [^`]* [^`]*)`", row.replace("\\|", "|"))
    assert [line for line in typed if line.strip() and line.strip() not in lines] == []
    assert shown.getvalue().count("…") == text.count("…")
    assert [
        code for code in re.findall(r"`(\[\w{1,8}\])`", text) if code not in shown.getvalue()
    ] == []  # rich's markup


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
    # What begins with a bar and is not a table is a broken one.
    tables = sum(len(range(*token.map)) for token in MarkdownIt("gfm-like", {"linkify": False}).parse(text)
                 if token.type == "table_open" and token.map is not None)  # fmt: skip
    assert tables == sum(1 for line in lines if line.startswith("|"))


def commands_of(page: Path) -> list[str]:
    """Return every ``pickup-point …`` that a page prints, in a block of its own or within a sentence."""
    text = page.read_text(encoding="utf-8").replace("\\|", "|")
    blocks = [token.content for token in MarkdownIt().parse(text) if token.type == "fence"]
    inline = [code for code in re.findall(r"`(pickup-point [^`]+)`", text) if "\n" not in code]
    in_blocks = re.findall(r"(?m)(?:^|[(|;&])[ ]*(pickup-point [^\n#]*)", "\n".join(blocks).replace("\\\n", " "))
    return [command for command in (*inline, *in_blocks) if not command.startswith("pickup-point COMMAND")]


def words_of(command: str) -> list[str]:
    """Return the arguments of a printed command, without what the shell does with its input and output."""
    command = re.sub(r"\$\([^)]*\)", "X", command)
    return shlex.split(re.split(r"\s(?:[<>|;]|&&)|\)", command)[0])[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_that_is_printed_parses(page: Path) -> None:
    """Command, options and number of arguments are those of today."""
    group: Any = typer.main.get_command(app)
    for words in map(words_of, commands_of(page)):
        if words[0].startswith("-"):
            continue
        sub = group.commands.get(words[0])
        assert sub is not None, words
        try:
            sub.make_context(words[0], words[1:], parent=group.context_class(group))
        except Exception as error:
            pytest.fail(f"{words}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_commands_says_who_types_it(page: Path) -> None:
    """A test, which is named after the block's ``sh``, or the reader; and no block is an indented one, unseen here."""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        assert token.type != "code_block", token.content
        if token.type == "fence" and token.info.split()[0] in ("sh", "bash", "shell", "console"):
            language, who = token.info.split()
            assert language == "sh"
            test = ROOT / who
            assert who == "yours" or (test.name.startswith("test_") and "blocks" in test.read_text(encoding="utf-8"))


def test_the_recipe_of_the_readme_is_that_of_the_manual_and_asks_nothing() -> None:
    """What a test types in a booted Debian is in both; `init` finds all its answers in the command line."""
    readme, chapter = (MarkdownIt().parse(page.read_text("utf-8")) for page in (ROOT / "README.md", INSTALLING))
    theirs = [token.content for token in readme if token.type == "fence"]
    ours = [token.content for token in chapter if token.type == "fence"]
    assert set(ours[:4]) <= set(theirs)
    (command,) = [words_of(text) for text in commands_of(INSTALLING) if text.startswith("pickup-point init")]
    asked = re.findall(r'(?m)^    _ask\(interview, "(\w+)"', (ROOT / "server" / "cli" / "setup.py").read_text("utf-8"))
    assert len(asked) == 8 and {f"--{name.replace('_', '-')}" for name in asked} | {"--password-file"} <= {*command}


ELSEWHERE = {"serve": "tests/test_service.py"}  # commands that run until they are stopped
# What a printed command may end with, beside 0, where no service runs.
OTHER_ENDS = {"doctor": 1, "check": 2}


@pytest.mark.usefixtures("forked_conversions")
def test_every_command_that_is_printed_runs(
    tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As it stands, on an installation with three published days; only days, files and values are replaced."""
    shutil.copytree(keys_dir, tmp_path / "keys")
    monkeypatch.setattr("server.cli.demo.ROWS", 1500)
    made = prepare(tmp_path, 0, datetime.now(UTC))
    config = made.config.read_text().replace('"DEMO"', '"MEGA"').replace('name = "demo"', 'name = "triton"')
    made.config.write_text(config)
    day = made.final_days[-1]
    name = f"MEGA{day:%Y%m%d}-00.tsv.gz"
    (tmp_path / f"metrics-day-{day}.json.gz").symlink_to(tmp_path / "exports" / f"metrics-day-{day}.json.gz")
    replaced = {
        "2026-11-20": str(day), "MEGA20261120-00.tsv.gz": name, "NAME": name, "CHAPTER": "glossary",
        "$export_url": "s3://any-bucket", "$first_day": str(day), "$address": "sftp.example.com:2222",
        "$publisher": "Example Media", "$contact": "Jane Doe",
    }  # fmt: skip
    (tmp_path / "elsewhere").mkdir()  # in place of every absolute path
    (tmp_path / "elsewhere" / "triton-password").write_text(made.password)
    monkeypatch.chdir(tmp_path)
    assert run(["feed"]) == 0
    written = dict.fromkeys(command for page in PAGES for command in commands_of(page))
    ran = set()
    for number, command in enumerate(written):
        words = words_of(command)
        for wanted, here in replaced.items():
            words = [word.replace(wanted, here) for word in words]
        file = f"file-{number}" if words[0] == "backup" else "password.txt"  # a backup must not exist
        words = [re.sub(r"^/.*/", "elsewhere/", word.replace("FILE", file)) for word in words]
        ran.add(words[0])
        if words[0] in ELSEWHERE:
            continue
        with (tmp_path / "password.txt").open() as typed:
            monkeypatch.setattr(sys, "stdin", typed)
            code = run(words)
        said = capfd.readouterr()
        assert code in (0, OTHER_ENDS.get(words[0], 0)), f"{command}: {said.err}"
        assert said.out and "Traceback" not in said.err, command
    assert ran | {"demo"} == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # it is a group


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Links and pictures within the tree, and the chapters that a sentence names."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for name in re.findall(r"[Cc]hapter `([\w-]+)`", text):
        assert name in CHAPTERS, name
    if page.name == "README.md":
        assert len(text.splitlines()) <= 200
        assert all(f"manual/{name}.md" in text for name in {*CHAPTERS} - {ENGINEER})


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
    source = "".join(
        (ROOT / "server" / file).read_text(encoding="utf-8") for file in ("cli/tables.py", "status/words.py")
    )
    # A label is the first of a pair: `("Last round", …`, or stands before `if not said else ""`.
    labels = set(re.findall(r'"([A-Z][a-z]+(?: [a-z]+)*)"(?:, |\.ljust| if )', source)) | {"Remarks", "Disk", "Banned"}
    assert {"Service", "Users", "Episodes", "Export source", "Server address"} <= labels
    key = {"picked up", "published", "not due", "wrong", "pruned"}
    heads = {header for header, _, _ in tables._COLUMNS}
    assert {*tables._STATE_STYLE, *heads, *labels, *key} <= explained
