"""The commands for setting up and for trouble: init, doctor, handover, backup.

Prints, like `app`, and keeps the same promises.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import config_of
from ..errors import ConfigError, PickupPointError, Problem
from ..hints import steps, without_page
from ..megaphone.exports import DELIVERY_V2
from ..paths import read_file, write_new
from .options import (
    ConfigOption,
    JsonOption,
    Out,
    Usage,
    VerboseOption,
    load_settings,
    load_settings_as_owner,
    port_of,
    print_hint,
    print_json,
)
from .privileges import config_path

if TYPE_CHECKING:
    from ..settings import Config
    from ..sftp.client import LoginAttempt

setup = typer.Typer()

_ETC = Path("/etc/pickup-point")


def _option(name: str, text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(name, help=text, show_default=False)
    return option


@setup.command()
def init(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The file to write.", show_default="config.toml")
    ] = None,
    export: Annotated[str, _option("--export", "Where Megaphone delivers: s3://bucket/prefix, or a folder.")] = "",
    address: Annotated[str, _option("--address", "Where the partner reaches this machine: host:port.")] = "",
    user: Annotated[str, _option("--user", "The partner's user name.")] = "",
    prefix: Annotated[str, _option("--prefix", "What the name of every log file begins with.")] = "",
    data_dir: Annotated[str, _option("--data-dir", "The folder for the service's own files.")] = "",
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="A file with the partner's password in its first line.")
    ] = None,
    authorized_keys: Annotated[
        str, _option("--authorized-keys", "A file with the partner's public keys, instead of a password.")
    ] = "",
    region: Annotated[str, _option("--region", "The bucket's region.")] = "",
    endpoint_url: Annotated[str, _option("--endpoint-url", "The URL of an S3 service other than Amazon's.")] = "",
    kind: Annotated[str, _option("--kind", 'Which exports are there: "metrics" (the default) or "delivery-v2".')] = "",
    first_day: Annotated[str, _option("--first-day", "The first day to publish, YYYY-MM-DD; by default today.")] = "",
    publisher: Annotated[str | None, _option("--publisher", "The publisher's name, for Triton.")] = None,
    contact: Annotated[
        str | None, _option("--contact", "Whom Triton can ask: a name, with a mail address or phone number.")
    ] = None,
    weak: Annotated[bool, typer.Option("--weak", help="Accept a password of fewer than 12 characters.")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a configuration. Asks nine questions, or takes the answers from options; overwrites nothing."""
    from .. import log_output
    from ..sftp.users import hash_password

    log_output.configure(verbose=verbose)
    path = (config or Path("config.toml")).absolute()
    _check_free(path)
    given = {
        "export": export, "address": address, "user": user, "prefix": prefix, "data_dir": data_dir,
        "first_day": first_day, "authorized_keys": authorized_keys, "region": region, "endpoint_url": endpoint_url,
        "kind": kind,
    }  # fmt: skip
    interview = Interview(path, {name: answer for name, answer in given.items() if answer})
    # An empty string is an answer: nobody is named.
    named = {"publisher": publisher, "contact": contact}
    interview.given |= {name: answer for name, answer in named.items() if answer is not None}
    # Before anything is asked: mistakes in options are reported first.
    if problems := interview.problems():
        raise ConfigError(str(path), problems)
    hashed = _typed_password(password_file, weak=weak)
    own_folder = "/var/lib/pickup-point" if path.parent == _ETC else "data"
    _ask(interview, "export", "Where does Megaphone deliver (s3://bucket/prefix, or a folder)?")
    _ask(interview, "address", "At which address does the partner reach this machine (host:port)?")
    _ask(interview, "user", "The partner's user name?", "triton")
    _ask(interview, "prefix", "What should the name of every log file begin with?", "MEGA")
    _ask(interview, "data_dir", "In which folder should the service keep its files?", own_folder)
    _ask(interview, "first_day", "The first day to publish (YYYY-MM-DD)?", str(datetime.now(UTC).date()))
    _ask(interview, "publisher", "The publisher's name, for Triton (empty: none)?", "")
    _ask(interview, "contact", "Whom can Triton ask, with mail or phone (empty: nobody)?", "")
    made = ""
    if not hashed and not authorized_keys:
        hashed = _ask_password(weak=weak)
        made = "" if hashed else _new_password()
    answers = replace(interview.answers, password_hash=hashed or (hash_password(made) if made else ""))
    write_config(path, answers)
    print(f"wrote {path}")
    if made:
        print(f"password: {made}\n(this is its only copy: hand it over separately)")
    print(f"{answers.first_day} is the first day: earlier days are not published, and no alarm is raised about them.")
    if kind == DELIVERY_V2.name:
        print(f"A day of these exports is final {DELIVERY_V2.hours.format(final_at=f'{DELIVERY_V2.final_at:%H:%M}')}:")
        print("some eight hours later than with metrics, so Triton should pull in the evening (UTC), or twice a day.")
        print(f"To settle with Triton: {DELIVERY_V2.question}")
    print("Triton starts to pull some days after it gets its sheet: when it does, set export.first_day to that day.")
    print_hint(f"next: pickup-point keygen --config {shlex.quote(str(path))}")


def _typed_password(path: Path | None, *, weak: bool) -> str:
    """Return the hash of the password in a file's first line; '' without a file.

    Raises:
        PickupPointError: the password cannot be used.
    """
    from ..sftp.users import check_length, hash_password

    if path is None:
        return ""
    password = first_line(path)
    hashed = hash_password(password)
    if not weak:
        check_length(password)
    return hashed


def _ask_password(*, weak: bool) -> str:
    """Ask for a password on the terminal until it can be used; return its hash, '' for none."""
    from ..sftp.users import check_length, hash_password

    while sys.stdin.isatty():
        question = "The partner's password (empty: make one)"
        password = typer.prompt(question, "", hide_input=True, show_default=False)
        if not password:
            break
        try:
            hashed = hash_password(password)
            if not weak:
                check_length(password)
        except PickupPointError as error:
            print(f"  {error}", file=sys.stderr)
            print_hint(error.hint, 4, sys.stderr)
        else:
            return hashed
    return ""


def _ask(interview: Interview, name: str, question: str, default: str | None = None) -> None:
    """Ask on the terminal for what was not given, until the answer can be used; without one, take the default.

    Raises:
        Usage: there is neither a terminal nor a default.
        ConfigError: the default cannot be used.
    """
    if name in interview.given:
        return
    while True:
        if not sys.stdin.isatty():
            if default is None:
                option = f"--{name.replace('_', '-')}"
                raise Usage(f"missing {option} (no terminal to prompt on)", hint="pickup-point init --help")
            interview.given[name] = default
        else:
            interview.given[name] = typer.prompt(question, default, show_default=bool(default))
        problems = interview.problems()
        if not problems:
            return
        if not sys.stdin.isatty():
            raise ConfigError(str(interview.path), problems)
        # The other answers stay; only this one is asked for again.
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
            print_hint(problem.cure, 4, sys.stderr)


def first_line(path: Path) -> str:
    """Return the password in a file's first line.

    Raises:
        PickupPointError: the file cannot be read, is not UTF-8, or has no password.
    """
    try:
        password = read_file(path).partition(b"\n")[0].rstrip(b"\r").decode()
    except OSError as error:
        raise PickupPointError(
            f"cannot read {path}: {error.strerror or error}", hint=f"ls -l {shlex.quote(str(path))}"
        ) from error
    except UnicodeDecodeError as error:
        sentence = f"{path} is not UTF-8: its first line has the byte 0x{error.object[error.start]:02X}"
        raise PickupPointError(sentence, hint=f"iconv -f ISO-8859-1 -t UTF-8 {shlex.quote(str(path))}") from None
    if not password:
        raise PickupPointError(
            f"{path} has no password in its first line", hint=f"openssl rand -base64 24 > {shlex.quote(str(path))}"
        )
    return password


def _new_password() -> str:
    import secrets

    return secrets.token_urlsafe(18)


@setup.command()
def doctor(
    config: ConfigOption = None,
    user: Annotated[str, _option("--user", "The configured user to log in as, if there are several.")] = "",
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="Log in with the password in this file's first line.")
    ] = None,
    identity: Annotated[
        Path | None, typer.Option("--identity", help="Log in with the private key in this file.")
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Examine the whole installation from outside. Configuration, keys, bucket, clock, disk, port and host key.

    With a password or a private key it also logs in and fetches the newest log, which never counts as a pickup.
    """
    from .doctor import examine
    from .options import run_loop

    settings = load_settings(config, verbose=verbose, quiet=True)
    attempt = _login_attempt(settings, user, password_file, identity)
    findings = run_loop(examine(settings, attempt))
    if json:
        print_json([finding.as_json() for finding in findings])
    else:
        for finding in findings:
            print(f"{finding.level.name:8}  {finding.sentence}")
            print_hint(without_page(steps(finding.cure), "doctor"), 10)
    worst = max(finding.level for finding in findings)
    if worst > 1:
        raise Out(1)


def _login_attempt(
    settings: Config, user: str, password_file: Path | None, identity: Path | None
) -> LoginAttempt | None:
    """Return whom to log in as, and with what, or None if no login is wanted.

    Raises:
        Usage: the options do not name one user and one credential.
        PickupPointError: the file cannot be used.
    """
    from ..sftp.client import LoginAttempt, read_identity

    names = [known.name for known in settings.sftp.users]
    if user and user not in names:
        raise Usage(f"{user} is not a configured user", hint=f"the users are: {', '.join(names)}")
    if password_file is None and identity is None:
        if user:
            raise Usage(
                "--user needs --password-file or --identity",
                hint="pickup-point doctor --help",
            )
        return None
    if not user and len(names) > 1:
        raise Usage(f"missing --user: one of {', '.join(names)}", hint="pickup-point doctor --help")
    name = user or names[0]
    if password_file is not None and identity is not None:
        raise Usage(
            "--password-file and --identity cannot be used together",
            hint=f"pickup-point doctor --user {name} --password-file {shlex.quote(str(password_file))}",
        )
    if password_file is not None:
        return LoginAttempt(name, password_file, password=first_line(password_file))
    assert identity is not None  # noqa: S101  # one of the two was given
    return LoginAttempt(name, identity, key=read_identity(identity))


@setup.command()
def handover(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; created if it is missing.")],
    config: ConfigOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Write what to send to Triton. The sheet in Markdown and HTML, with columns and questions; a sample log."""
    from .handover import write_handover
    from .options import run_loop

    settings = load_settings(config, verbose=verbose, quiet=not verbose)
    done = run_loop(write_handover(settings, output))
    for path in done.written:
        print(path)
    for warning in done.warnings:
        print(f"pickup-point: {warning}", file=sys.stderr)
        print_hint(warning.hint, file=sys.stderr)


@setup.command()
def backup(
    file: Annotated[str, typer.Argument(help="The file to write (it must not exist), or - for standard output.")],
    config: ConfigOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Copy the ledger to FILE, also while the service is running."""
    from ..storage.ledger import LEDGER_FILE, Ledger

    if file == "-":
        settings = load_settings_as_owner(config, verbose=verbose)
        path = settings.data_dir / LEDGER_FILE
        if sys.stdout.isatty():
            raise Usage(
                "the ledger is binary, and is not written to a terminal",
                hint="pickup-point backup ledger-backup.sqlite3",
            )
        sys.stdout.buffer.write(Ledger.copy(path))
        return
    found = config_path(config).absolute()
    target = Path(file)
    taken = f"{target} already exists, and is not overwritten"
    if os.path.lexists(target):
        raise PickupPointError(taken, hint=f"pickup-point backup {shlex.quote(f'{target}.new')}")
    # Two processes: the ledger is read as its owner, the file is written as the user who typed the command.
    reading = [sys.executable, "-P", "-m", "server", "backup", "-", "--config", str(found)]
    done = subprocess.run(reading, stdout=subprocess.PIPE, check=False)  # noqa: S603  # our own arguments
    if done.returncode:
        raise Out(done.returncode)
    try:
        if not write_new(target, done.stdout):
            raise PickupPointError(taken, hint=f"pickup-point backup {shlex.quote(f'{target}.new')}")
    except OSError as error:
        folder = shlex.quote(str(target.absolute().parent))
        hint = f"ls -ld {folder}; df -h {folder}"
        raise PickupPointError(f"cannot write {target}: {error.strerror}", hint=hint) from error
    print(f"{target}: {len(done.stdout)} bytes")


_MODE = 0o640  # the service's group reads the file again at a reload


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to `init`; ``authorized_keys``, ``region``, ``endpoint_url`` and ``kind`` come from options only.

    ``address`` is ``host`` or ``host:port``; one of ``password_hash`` and ``authorized_keys`` is not empty.
    """

    export: str
    address: str
    user: str
    prefix: str
    data_dir: str
    password_hash: str = ""
    authorized_keys: str = ""
    region: str = ""
    endpoint_url: str = ""
    first_day: str = ""
    publisher: str = ""
    contact: str = ""
    kind: str = ""


# By answer: the keys of the configuration that it decides.
_KEYS = {
    "export": {"export.url"}, "address": {"sftp.address", "sftp.port"}, "user": {"sftp.users[0].name"},
    "prefix": {"log.prefix"}, "data_dir": {"data_dir"}, "first_day": {"export.first_day"},
    "authorized_keys": {"sftp.users[0].authorized_keys"}, "region": {"export.region"},
    "endpoint_url": {"export.endpoint_url"}, "kind": {"export.kind"}, "publisher": {"publisher.name"},
    "contact": {"publisher.contacts[0]"},
}  # fmt: skip


@dataclass(slots=True)
class Interview:
    """The answers so far, by the names of `Answers`; what has not been asked yet gets a harmless one."""

    path: Path
    given: dict[str, str]

    @property
    def answers(self) -> Answers:
        """The answers as they stand."""
        harmless = {
            "export": "s3://any-bucket",
            "address": "localhost:2222",
            "user": "any",
            "prefix": "ANY",
            "data_dir": "data",
        }
        return Answers(**(harmless | self.given))

    def problems(self) -> list[Problem]:
        """Return what is wrong with the answers so far."""
        decided = {key for name in self.given for key in _KEYS[name]}
        try:
            config_of(config_text(self.answers).encode(), self.path)
        except ConfigError as error:
            return [problem for problem in error.problems if problem.key in decided]
        return []


def write_config(path: Path, answers: Answers) -> None:
    """Write the configuration, if it can be loaded.

    Raises:
        PickupPointError: the file already exists, or its folder cannot be written.
        ConfigError: an answer cannot be used; nothing is written.
    """
    _check_free(path)
    text = config_text(answers).encode()
    # First: an answer that cannot be used leaves no file behind.
    config_of(text, path)
    try:
        # In /etc/pickup-point the folder's group is one of the service's: it reads the file at a reload.
        if not write_new(path, text, _MODE):
            _check_free(path)
    except OSError as error:
        where = path.absolute().parent
        raise PickupPointError(
            f"cannot write {path}: {error.strerror}", hint=f"ls -ld {shlex.quote(str(where))}"
        ) from error


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        hint = f"give another --config, or edit {path}"
        raise PickupPointError(f"{path} already exists, and is not overwritten", hint=hint)


def config_text(answers: Answers) -> str:
    """Return the text of the configuration."""
    address = answers.address if answers.address.rpartition(":")[2].isdecimal() else f"{answers.address}:2222"
    optional = {name: getattr(answers, name) for name in ("region", "endpoint_url", "kind", "first_day")}
    user = {"password_hash": answers.password_hash, "authorized_keys": answers.authorized_keys}
    publisher = [f"name = {_quoted(answers.publisher)}"] if answers.publisher else []
    publisher += [f"contacts = [{_quoted(answers.contact)}]"] if answers.contact else []
    return "\n".join(
        [
            "# Made by `pickup-point init`. `pickup-point manual config` explains every key.",
            f"data_dir = {_quoted(answers.data_dir)}",
            'keys_dir = "keys"',
            "",
            *(["[publisher]", *publisher, ""] if publisher else []),
            "[export]",
            f"url = {_quoted(answers.export)}",
            *(f"{key} = {_quoted(value)}" for key, value in optional.items() if value),
            "",
            "[log]",
            f"prefix = {_quoted(answers.prefix)}",
            "",
            "[sftp]",
            f"port = {port_of(address)}",
            f"address = {_quoted(address)}",
            "",
            "[[sftp.users]]",
            f"name = {_quoted(answers.user)}",
            *(f"{key} = {_quoted(value)}" for key, value in user.items() if value),
            "",
        ]
    )


def _quoted(text: str) -> str:
    return json.dumps(text)  # every JSON string is a TOML string
