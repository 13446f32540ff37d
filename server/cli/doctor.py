"""The doctor: every part of an installation looked at from outside, each finding with its cure.

Touches what it looks at: the keys, the place of the exports (read), the data folder (one small file, removed again) and
the service's public address. Promise: it changes nothing, and goes on after whatever it finds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..convert.apart import kernel_lack
from ..errors import ConfigError, ExportChanged, SourceError
from ..megaphone.source import open_source
from ..private_files import load_ip_hash_key
from ..sftp.keys import load_credentials
from ..sftp.probe import ProbeKey, visit
from ..status.alarms import Level
from ..status.snapshot import Glance
from ..storage.ledger import Ledger
from .interview import port_of
from .privileges import become_owner
from .tables import check_line, size_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import BinaryIO

    import asyncssh

    from ..megaphone.exports import DayExport, Listing
    from ..megaphone.source import ExportSource
    from ..settings import Config

CLOCK_TOLERANCE = 60.0  # seconds
ENOUGH = 1 << 16  # bytes of an export: that it can be read is all that is asked


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: how it is, and what to type where it is not well."""

    level: Level
    sentence: str
    cure: str = ""

    def as_json(self) -> dict[str, str]:
        """As ``doctor --json`` prints it."""
        return {"level": self.level.name, "finding": self.sentence, "cure": self.cure}


async def examine(config: Config) -> list[Finding]:
    """Look at everything. As root, the keys and the bucket are looked at as root, the rest as the folder's owner."""
    findings = [Finding(Level.OK, f"configuration: {config.path} can be used")]
    host_keys, found = _keys(config)
    findings += found
    findings += [finding async for finding in _exports(config)]
    become_owner(config)
    findings += _data_folder(config)
    findings.append(_kernel())
    glance = Glance.take(config, datetime.now(UTC))
    findings += _service(glance)
    if glance.running:
        findings += [finding async for finding in _port(config, host_keys)]
    return findings


def _keys(config: Config) -> tuple[set[bytes], list[Finding]]:
    """The host keys in SSH wire form, and what is wrong with a key."""
    host_keys: set[bytes] = set()
    findings = []
    try:
        host_keys = {pair.public_data for pair in load_credentials(config.sftp, config.keys_dir).host_keys}
    except ConfigError as error:
        findings += [Finding(Level.CRITICAL, f"keys: {problem}", problem.cure) for problem in error.problems]
    try:
        load_ip_hash_key(config.keys_dir)
    except ConfigError as error:
        findings += [Finding(Level.CRITICAL, f"keys: {problem}", problem.cure) for problem in error.problems]
    if not findings:
        findings.append(Finding(Level.OK, f"keys: all there in {config.keys_dir}, and private"))
    return host_keys, findings


# The exports


class _Enough(OSError):
    """The disk of one who wants no more: ends a read that has shown what it had to."""


class _Taster:
    """A file that takes the first bytes and then no more."""

    def __init__(self) -> None:
        self.size = 0

    def fileno(self) -> int:
        raise OSError(errno.ENOTSUP, "no file")

    def tell(self) -> int:
        return 0

    def seek(self, position: int) -> int:
        return position

    def truncate(self) -> int:
        return 0

    def flush(self) -> None:
        """Nothing is kept."""

    def write(self, data: bytes) -> int:
        self.size += len(data)
        if self.size >= ENOUGH:
            raise _Enough(errno.ECANCELED, "enough")
        return len(data)


async def _exports(config: Config) -> AsyncIterator[Finding]:
    """List, read, and whether If-Match is heeded."""
    source = await open_source(config.export)
    try:
        began = datetime.now(UTC)
        listing = await source.day_exports()
        yield Finding(Level.OK, f"exports: {source.name} can be listed, {len(listing.exports)} days are there")
        yield _clock(listing, began)
        if not listing.exports:
            cure = f"is it the right place? {_look(config)}"
            yield Finding(Level.WARNING, f"exports: there is no metrics-day-*.json.gz in {source.name}", cure)
            return
        newest = listing.exports[max(listing.exports)]
        await _read(source, newest)
        yield Finding(Level.OK, f"exports: {newest.key} can be read")
        yield await _if_match(source, newest)
    except SourceError as error:
        yield Finding(Level.CRITICAL, f"exports: {error}", error.hint)
    finally:
        await source.close()


async def _read(source: ExportSource, export: DayExport) -> None:
    taster: BinaryIO = _Taster()  # type: ignore[assignment]  # as much of a file as a reader needs
    with contextlib.suppress(_Enough, ExportChanged):  # rewritten since: Megaphone is at work, it can be read
        await source.fetch(export, taster)


async def _if_match(source: ExportSource, export: DayExport) -> Finding:
    """Ask for a version that never was: whoever sends it all the same could send half of two versions."""
    taster: BinaryIO = _Taster()  # type: ignore[assignment]  # as above
    try:
        await source.fetch(replace(export, etag="0" * 32), taster)
    except ExportChanged:
        return Finding(Level.OK, "exports: a version that is not there is refused (If-Match)")
    except _Enough:
        pass
    cure = "ask whoever runs the store to heed If-Match; until then only the size tells a rewrite in mid-read"
    return Finding(Level.WARNING, "exports: the store heeds no If-Match", cure)


def _clock(listing: Listing, began: datetime) -> Finding:
    skew = (began - listing.now).total_seconds()
    if abs(skew) > CLOCK_TOLERANCE:
        sentence = f"clock: this machine's is {skew:+.0f} s off that of the exports"
        return Finding(Level.CRITICAL, sentence, "timedatectl set-ntp true")
    return Finding(Level.OK, "clock: agrees with that of the exports")


def _look(config: Config) -> str:
    return f"aws s3 ls {config.export.url}/" if config.export.bucket else f"ls -l {config.export.folder}"


# The data folder and the service


def _data_folder(config: Config) -> Iterator[Finding]:
    """Whether the owner can write it, and link in it."""
    folder = config.data_dir
    if not folder.exists():
        cure = "systemctl start pickup-point; or pickup-point serve"
        yield Finding(Level.WARNING, f"data folder: {folder} is not there yet, the first start makes it", cure)
        return
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as trial:
            descriptor, path = tempfile.mkstemp(dir=trial)
            os.write(descriptor, b"doctor\n")
            os.fsync(descriptor)
            os.close(descriptor)
            os.link(path, f"{path}.link")
    except OSError as error:
        cure = f"ls -ld {folder}; df -h {folder}; the file system must know hard links"
        yield Finding(Level.CRITICAL, f"data folder: {folder} cannot be written: {error.strerror}", cure)
    else:
        yield Finding(Level.OK, f"data folder: {folder} can be written")


def _kernel() -> Finding:
    """Whether rows are converted by the kernel."""
    lack = kernel_lack()
    if lack is None:
        return Finding(Level.OK, "conversion: the kernel is in use")
    sentence, cure = lack
    return Finding(Level.WARNING, f"conversion: {sentence}, so a day takes about twenty times as long", cure)


def _service(glance: Glance) -> Iterator[Finding]:
    """Disk, service, and what `check` says."""
    disk = glance.measured
    if not any(alarm.name == "disk" for alarm in glance.alarms):
        yield Finding(Level.OK, f"disk: {size_text(disk.disk_free_bytes)} are free ({disk.disk_free:.0%})")
    if glance.running:
        yield Finding(Level.OK, "service: it runs")
    else:
        yield Finding(Level.CRITICAL, "service: it does not run", "systemctl start pickup-point; or pickup-point serve")
    for alarm in glance.alarms:
        if alarm.name == "feed_not_running" and glance.running and "last_round" not in glance.facts:
            yield Finding(Level.WARNING, "feed: the first round has not ended yet", "pickup-point status, in a while")
        elif alarm.name not in ("source", "key_readable"):  # looked at above, just now
            # What is wrong with a day is no fault of the installation.
            level = min(alarm.level, Level.WARNING) if alarm.subject else alarm.level
            yield Finding(level, f"{alarm.name.replace('_', ' ')}: {alarm.sentence}", alarm.hint)
    if not glance.alarms:
        yield Finding(Level.OK, f"check: {check_line(glance.alarms, glance.days)[1]}".split(" | ")[0])


# The port


async def _port(config: Config, host_keys: set[bytes]) -> AsyncIterator[Finding]:
    """Log in as a partner would, under the address that the partner is told; where that fails, under our own."""
    probe = ProbeKey(config.data_dir)
    wanted = _published(config)
    address = config.sftp.address
    try:
        with probe.placed() as key:
            if address is None:
                yield Finding(Level.WARNING, "port: sftp.address is not set, so nobody knows what to tell the partner",
                              'set sftp.address = "host:port"')  # fmt: skip
                findings = [await _visit(_own(config), key, host_keys, wanted)]
            else:
                findings = [await _visit(_split(address), key, host_keys, wanted)]
                if findings[0].level is not Level.OK:
                    own = await _visit(_own(config), key, host_keys, wanted)
                    if own.level is Level.OK:
                        away = "so it is the way there: DNS, firewall, port forwarding, or a network that does not "
                        away += "lead its own public address back inside (then try from elsewhere)"
                        own = replace(own, sentence=f"{own.sentence}; {away}")
                    findings.append(own)
            for finding in findings:
                yield finding
    except OSError as error:
        cure = f"ls -ld {config.data_dir}"
        yield Finding(Level.CRITICAL, f"port: the probe key cannot be placed: {error.strerror}", cure)


async def _visit(
    where: tuple[str, int], key: asyncssh.SSHKey, host_keys: set[bytes], wanted: dict[str, str]
) -> Finding:
    host, port = where
    shown = f"{host}:{port}"
    found = await visit(host, port, key, list(wanted))
    if found.trouble:
        cure = f"ssh-keyscan -p {port} {host}; journalctl -u pickup-point | grep refused"
        return Finding(Level.CRITICAL, f"port: no login at {shown}: {found.trouble}", cure)
    if host_keys and found.host_key not in host_keys:
        cure = f"ssh-keyscan -p {port} {host}; pickup-point keygen shows the fingerprints that belong here"
        return Finding(Level.CRITICAL, f"port: {shown} shows a host key that is not one of ours", cure)
    if found.fetched is None:
        return Finding(Level.OK, f"port: {shown} lets a client in; there is no file to fetch yet")
    name, digest = found.fetched
    if digest != wanted[name]:
        sentence = f"port: {name} fetched from {shown} is not the file that was published (SHA-256 {digest})"
        return Finding(Level.CRITICAL, sentence, f"pickup-point trace {name}")
    return Finding(Level.OK, f"port: {shown} lets a client in, and {name} comes whole (SHA-256 as published)")


def _published(config: Config) -> dict[str, str]:
    """SHA-256 by name, the smallest file first."""
    path = config.data_dir / "ledger.sqlite3"
    if not path.exists():
        return {}
    with contextlib.closing(Ledger.read(path)) as ledger:
        logs = [entry for entry in ledger.logs() if entry.state == "published"]
    return {str(entry.name): entry.sha256 for entry in sorted(logs, key=lambda entry: entry.size)}


def _split(address: str) -> tuple[str, int]:
    host, separator, _ = address.rpartition(":")
    return (host if separator else address).strip("[]"), port_of(address) if separator else 22


def _own(config: Config) -> tuple[str, int]:
    host = config.sftp.host
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), _listening(config)  # noqa: S104  # not bound here


def _listening(config: Config) -> int:
    """The port that the running service listens on: another than the configuration's where systemd listens."""
    with contextlib.closing(Ledger.read(config.data_dir / "ledger.sqlite3")) as ledger:
        return int(ledger.facts().get("service_port", config.sftp.port))
