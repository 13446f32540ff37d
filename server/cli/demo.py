"""The demo: a folder with everything that a newcomer needs to see the service work.

Touches that folder only: creates sample exports, keys, a user and a configuration in it; what then runs on it is
exactly ``serve``. Promise: a later start keeps what is there and adds the missing days.
"""

from __future__ import annotations

import os
import secrets
import shlex
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

from ..config import load_config
from ..errors import PickupPointError
from ..megaphone.exports import KINDS, METRICS, FinalityRule, start_of
from ..paths import make_folder, place_of, read_file, write_file, write_new
from ..sftp.keys import make_keys
from ..sftp.users import hash_password
from ..status.days import span
from ..triton import expires
from .samples import write_day

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    from ..megaphone.exports import ExportKind
    from ..settings import Config

ROWS = 4000
PAGE_PORT = 9108
FINAL_DAYS = 3
CAUGHT_UP_DAYS = 7  # written at a later start; the alarms of days before these have ended
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
_WRITTEN_BEFORE = timedelta(minutes=80)  # Megaphone's last rewrite before a day is final: by then it has settled


@dataclass(frozen=True, slots=True)
class Demo:
    """A prepared demo folder."""

    folder: Path
    config: Path
    password: str
    final_days: tuple[date, ...]
    open_day: date
    kind: ExportKind = METRICS


def prepare(folder: Path, port: int, now: datetime, kind_name: str = "") -> Demo:
    """Create what is missing in ``folder``, with exports of this kind, or else of the kind that it has.

    Raises:
        OSError: the folder cannot be written.
        PickupPointError: the folder has exports of another kind, or there is no such kind.
    """
    if kind_name not in ("", *KINDS):
        raise PickupPointError(f"there is no kind of export {kind_name}", hint=f"the kinds are: {', '.join(KINDS)}")
    make_folder(folder)
    make_keys(folder / "keys")
    password = _password(folder / "password.txt")
    config = folder / "config.toml"
    if not os.path.lexists(config):
        # Port 0 stands for any free port, so it cannot be in an address.
        address = f'address = "127.0.0.1:{port}"\n' if port else ""
        kind = f'kind = "{kind_name}"\nagreed = true                # a real site asks Triton first\n'
        kind = kind if kind_name not in ("", METRICS.name) else ""
        page = PAGE_PORT if port else 0
        hashed = hash_password(password)
        text = _CONFIG.format(port=port, address=address, password_hash=hashed, kind=kind, page=page)
        write_new(config, text.encode())
    kind_there = load_config(config).export.export_kind
    if kind_name not in ("", kind_there.name):
        hint = f"pickup-point demo --directory {shlex.quote(f'demo-{kind_name}')} --kind {shlex.quote(kind_name)}"
        raise PickupPointError(f"the demo in {folder} has {kind_there.label}", hint=hint)
    today = now.date()
    newest = today - timedelta(days=1)
    rule = FinalityRule(kind_there.final_at)
    while now < rule.final_time(newest):
        newest -= timedelta(days=1)
    final_days = tuple(newest - timedelta(days=back) for back in range(FINAL_DAYS - 1, -1, -1))
    exports = folder / "exports"
    make_folder(exports)
    for day in _days(exports, final_days, kind_there):
        _write_final(exports, day, kind_there)
    unfinished = newest + timedelta(days=1)
    while unfinished <= today:
        _write_unfinished(exports, unfinished, now, kind_there)
        unfinished += timedelta(days=1)
    return Demo(folder, config, password, final_days, today, kind_there)


def on_port(config: Config, port: int) -> Config:
    """Return the demo's configuration with another port; 0 stands for any free one, then also for the page."""
    changed: dict[str, Any] = {"sftp": config.sftp.model_copy(update={"port": port})}
    if port == 0 and config.web is not None:
        changed["web"] = config.web.model_copy(update={"listen": "127.0.0.1:0"})
    return config.model_copy(update=changed)


def introduction(
    demo: Demo, files: Sequence[str], port: int, page: int | None, program: str, now: datetime
) -> list[str]:
    """Return the introduction for a newcomer, line by line, once ``files`` are served on ``port``.

    ``page`` is the page's port, None if an earlier demo's configuration has no page.
    """
    oldest = demo.final_days[0]
    return [
        "",
        f"The demo is in {demo.folder.absolute()}, and serves:",
        *(f"  {name}" for name in files),
        f"{demo.open_day}, today, is not served: Megaphone is still writing it.",
        f"A day is published once it is final, {demo.kind.hours.format(final_at=f'{demo.kind.final_at:%H:%M}')}.",
        "",
        "In another terminal:",
        "",
        f"sftp -P {port} demo@127.0.0.1",
        f"password: {demo.password}",
        "",
        *([f"In a browser, what became of each day: http://127.0.0.1:{page}/", ""] if page else []),
        f"There, type ls -l, then get {files[-1] if files else 'NAME'}, then bye; afterwards, here:",
        f"{program} status --config {demo.config}",
        "",
        "Nobody has to fetch these days (the demo's user has required = false), so nothing is wrong with them.",
        "If the user had to, as Triton's does within three days, status and check would now say:",
        f"CRITICAL: {oldest} is not picked up yet; its deadline was {span(now - expires(oldest))} ago",
        "",
        "Ctrl-C stops it.",
    ]


def _days(exports: Path, final_days: tuple[date, ...], kind: ExportKind) -> list[date]:
    """Return the newest final days, and those missing between an earlier start and them."""
    written = [day for path in exports.iterdir() if (day := kind.day_of(path.name)) is not None]
    first = max(min(written, default=final_days[0]), final_days[-1] - timedelta(days=CAUGHT_UP_DAYS - 1))
    first = min(first, final_days[0])
    return [first + timedelta(days=n) for n in range((final_days[-1] - first).days + 1)]


def _path(exports: Path, day: date, kind: ExportKind) -> Path:
    return exports / kind.file_name.replace("YYYY-MM-DD", str(day))


def _write_final(exports: Path, day: date, kind: ExportKind) -> None:
    """Write a final day and its marker, unless it is there: a published day must not change."""
    path = _path(exports, day, kind)
    over = start_of(day + timedelta(days=1)).timestamp()
    if path.exists() and path.stat().st_mtime >= over:
        return
    write_day(path, day, ROWS, broken=True, tokens_share=0.1, kind=kind)
    final = FinalityRule(kind.final_at).final_time(day).timestamp()
    written = final - _WRITTEN_BEFORE.total_seconds()
    _set_time(path, written)
    if kind.marker_pattern:
        marker = exports / f"{kind.begins[-1]}_{day:%Y_%m_%d}_{final:.0f}"
        write_file(marker, b"", 0o600)
        _set_time(marker, final)


def _write_unfinished(exports: Path, day: date, now: datetime, kind: ExportKind) -> None:
    """Write an unfinished day as far as it has got by now."""
    path = _path(exports, day, kind)
    write_day(path, day, ROWS, broken=True, tokens_share=0.1, until=now, kind=kind)
    _set_time(path, now.timestamp())


def _set_time(path: Path, at: float) -> None:
    with place_of(path) as (folder, name):
        os.utime(name, (at, at), dir_fd=folder, follow_symlinks=False)


def _password(path: Path) -> str:
    """Return the demo's password; make one at the first start."""
    if not os.path.lexists(path):
        word = "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(3))
        write_new(path, f"{word}\n".encode())
    return read_file(path).decode(errors="surrogateescape").strip()


_CONFIG = """\
# The demo's configuration, made by `pickup-point demo`. `pickup-point manual config` explains every key.
# It is an ordinary configuration: `pickup-point status --config THIS_FILE` and every other command work with it.

data_dir = "data"            # published files, staging, rejects, the ledger
keys_dir = "keys"            # host keys, and the secret for hashed addresses

[export]
url = "exports"              # a folder; for a real bucket: "s3://bucket"
{kind}poll_every = "10s"           # a real bucket is listed every 10 minutes
look_back_days = 8           # a later start publishes the days since the last one, at most a week of them

[log]
prefix = "DEMO"              # DEMO{{YYYYMMDD}}-00.tsv.gz
tokens = "hash"              # some addresses come as hash-like tokens; a real site agrees this with Triton

[sftp]
host = "127.0.0.1"           # the demo is not reachable from outside
port = {port}
{address}
[[sftp.users]]
name = "demo"
password_hash = "{password_hash}"   # the password is in password.txt
required = false             # nobody has to fetch these days; Triton's user has true, and what it does not fetch alarms

[web]
listen = "127.0.0.1:{page}"    # the page; beyond this machine it would need a password and TLS
"""
