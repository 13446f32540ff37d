"""The doctor: examines every part of an installation from outside; each finding has its cure.

Touches what it examines: the keys, the exports (read), the data folder and the store (one small file each, removed
again), and the port and the public address of the service. Promise: it changes nothing, and carries on whatever it
finds; it sends a password only to a server with our host key, and a file that it fetches does not count as a pickup.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ..config import load_ip_hash_key
from ..convert.apart import kernel_lack
from ..disk import list_command
from ..errors import ConfigError, DataFolderError, ExportChanged, SourceError, StoreError
from ..hints import Call, written
from ..megaphone.source import open_source
from ..publish.decisions import CLOCK_TOLERANCE
from ..publish.first_delivery import NOTHING_DELIVERED
from ..s3.errors import BucketPlace
from ..sftp.client import HungUp, LoginRefused, NoAnswer, fetch_sha256, host_key
from ..sftp.keys import load_credentials
from ..sftp.limits import parse_address
from ..sftp.users import password_matches
from ..status.alarms import START_HINT, STARTED, Level
from ..status.causes import causes
from ..status.snapshot import AWS_KEY, Snapshot, is_readable_key
from ..status.words import size_text
from ..storage.ledger import LEDGER_FILE, Ledger
from ..threads import in_thread
from .options import port_of
from .privileges import become_owner
from .tables import check_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import BinaryIO

    from ..megaphone.exports import DayExport, Listing
    from ..megaphone.source import ExportSource
    from ..settings import Config, UserSettings
    from ..sftp.client import LoginAttempt
    from ..storage.records import LedgerLog

ENOUGH = 1 << 16  # bytes of an export that prove it can be read


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about one thing, and what to do if something is wrong, as a hint."""

    level: Level
    sentence: str
    cure: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the finding as ``doctor --json`` prints it."""
        return {"level": self.level.name, "finding": self.sentence, "cure": self.cure}


async def examine(config: Config, attempt: LoginAttempt | None = None) -> list[Finding]:
    """Examine everything; with an ``attempt``, also log in and fetch a file.

    Root examines the keys as root, the rest as the owner of the data folder.
    """
    findings = [Finding(Level.OK, f"configuration: {config.path} is valid")]
    host_keys, found = _keys(config)
    findings += found
    # No way back from here: what needs root comes first. What must not leave root's files behind comes after, and so do
    # the exports, since what matters is whether the service can read them.
    become_owner(config)
    findings += [finding async for finding in _exports(config)]
    store = [finding async for finding in _store(config)]
    findings += store
    findings += _data_folder(config)
    findings.append(_kernel())
    try:
        snapshot = Snapshot.take(config, datetime.now(UTC))
    except DataFolderError as error:
        return [*findings, Finding(Level.CRITICAL, f"data folder: {error}", error.hint)]
    findings += _service(snapshot, store_is_well=all(finding.level is Level.OK for finding in store))
    port = [finding async for finding in _port(config, host_keys)] if snapshot.running else []
    findings += port
    if attempt is not None:
        # Do not send a password to a server that is not known to be ours.
        ours = bool(port) and port[0].level is Level.OK
        findings.append(await _login(config, host_keys, attempt) if ours else _not_tried(attempt))
    return findings


def _keys(config: Config) -> tuple[set[bytes], list[Finding]]:
    """Return the host keys in SSH wire form, and the findings about every key."""
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
    if is_readable_key(aws := config.keys_dir / AWS_KEY):
        sentence = f"keys: {aws} is readable by others"
        findings.append(Finding(Level.CRITICAL, sentence, f"chmod 600 {shlex.quote(str(aws))}"))
    if not findings:
        findings.append(Finding(Level.OK, f"keys: all present in {config.keys_dir}, and private"))
    return host_keys, findings


# The exports


class _Enough(OSError):
    """Ends a read that has shown enough; an OSError, as a full disk raises."""


class _Sampler:
    """A file that accepts the first bytes and then raises `_Enough`."""

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
    """List the exports, read one, and check whether If-Match is honoured."""
    source = await open_source(config.export.place, config.export.export_kind)
    try:
        began = datetime.now(UTC)
        listing = await source.day_exports()
        yield Finding(Level.OK, f"exports: {source.name} can be listed, {len(listing.exports)} days found")
        yield _clock(listing, began)
        if not listing.exports:
            others = listing.others
            cure = others.cure or f"is export.url right? what is there: {_listing_command(config)}"
            yield Finding(Level.WARNING, f"exports: {others.sentence(source.name)}", cure)
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
    """Read the first bytes of an export.

    Raises:
        SourceError: it cannot be read.
    """
    sampler: BinaryIO = _Sampler()  # type: ignore[assignment]  # as much of a file as a reader needs
    with contextlib.suppress(_Enough, ExportChanged):  # rewritten since it was listed, so it can be read
        await source.fetch(export, sampler)


async def _if_match(source: ExportSource, export: DayExport) -> Finding:
    """Ask for a version that never existed: a store that answers could send parts of two versions."""
    sampler: BinaryIO = _Sampler()  # type: ignore[assignment]  # as above
    try:
        await source.fetch(export._replace(etag="0" * 32), sampler)
    except ExportChanged:
        return Finding(Level.OK, "exports: the store refuses a version that it does not have (If-Match)")
    except _Enough:
        pass
    cure = "ask whoever runs the store to honour If-Match; until then only its size reveals a rewrite during a read"
    return Finding(Level.WARNING, "exports: the store ignores If-Match", cure)


def _clock(listing: Listing, began: datetime) -> Finding:
    skew = (began - listing.now).total_seconds()
    if abs(skew) > CLOCK_TOLERANCE.total_seconds():
        sentence = f"clock: this machine is {skew:+.0f} s off the clock of the exports"
        return Finding(Level.CRITICAL, sentence, "timedatectl set-ntp true")
    return Finding(Level.OK, "clock: this machine agrees with the clock of the exports")


def _listing_command(config: Config) -> str:
    place = config.export.place
    return place.ls_command if isinstance(place, BucketPlace) else f"ls -l {shlex.quote(str(place))}"


# The store, the data folder and the service


async def _store(config: Config) -> AsyncIterator[Finding]:
    """Check whether the store permits what we need, and honours the condition on our writes."""
    if config.store is None:
        return
    from ..s3.objects import ObjectStore
    from ..storage.shelf import open_shelf, try_rights

    store, state = ObjectStore(config.store.place), config.store.state_prefix

    def tried() -> bool:
        with open_shelf(store, state) as shelf:
            return try_rights(shelf, shelf.remove)

    try:
        refuses = await in_thread(tried)
    except StoreError as error:
        yield Finding(Level.CRITICAL, f"store: {error}", error.hint)
        return
    yield Finding(Level.OK, f"store: {config.store.place} can be listed, written, read and cleaned up")
    if refuses:
        yield Finding(Level.OK, "store: it replaces nothing that is there (If-None-Match)")
        return
    if config.store.shared:
        sentence = "store: it ignores If-None-Match, so it cannot tell which of the nodes was first"
        yield Finding(Level.CRITICAL, sentence, "use another store, or set store.shared = false on one service only")
        return
    cure = "let nothing but this service write there; ask whoever runs the store to honour If-None-Match"
    yield Finding(
        Level.WARNING, "store: it ignores If-None-Match, so two writers could replace each other's logs", cure
    )


def _data_folder(config: Config) -> Iterator[Finding]:
    """Check whether the owner can write to the data folder, and link in it."""
    folder = config.data_dir
    try:
        if not folder.exists():
            sentence = f"data folder: {folder} does not exist yet; the first start creates it"
            yield Finding(Level.WARNING, sentence, START_HINT)
            return
        # The steps of a publication: write, fsync, link.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as trial:
            descriptor, path = tempfile.mkstemp(dir=trial)
            os.write(descriptor, b"doctor\n")
            os.fsync(descriptor)
            os.close(descriptor)
            os.link(path, f"{path}.link")
    except OSError as error:
        quoted = shlex.quote(str(folder))
        cure = f"{list_command(folder)}; df -h {quoted}; the file system must support hard links"
        yield Finding(Level.CRITICAL, f"data folder: cannot write to {folder}: {error.strerror}", cure)
    else:
        yield Finding(Level.OK, f"data folder: {folder} is writable")


def _kernel() -> Finding:
    """Return whether rows are converted by the kernel."""
    lack = kernel_lack()
    if lack is None:
        return Finding(Level.OK, "conversion: the kernel is in use")
    sentence, cure = lack
    return Finding(Level.WARNING, f"conversion: {sentence}, so a day takes about twenty times as long", cure)


def _service(snapshot: Snapshot, *, store_is_well: bool) -> Iterator[Finding]:
    """Report the disk, the service, and what `check` says; of the store only what was not found just now."""
    disk = snapshot.measured
    if not any(alarm.name == "disk" for alarm in snapshot.alarms):
        yield Finding(Level.OK, f"disk: {size_text(disk.disk_free_bytes)} free ({disk.disk_free:.0%})")
    if snapshot.running:
        yield Finding(Level.OK, "service: running")
    else:
        yield Finding(Level.CRITICAL, "service: not running", START_HINT)
    days = {str(day.day) for day in snapshot.days}
    for alarm in snapshot.alarms:
        if alarm.subject in days:
            continue
        if alarm.name == "feed_not_running" and snapshot.running and "last_round" not in snapshot.facts:
            yield Finding(
                Level.WARNING, "feed: the first round has not ended yet", "check again in a while: pickup-point status"
            )
        elif alarm.name == "feed_not_running" and not snapshot.running and STARTED in snapshot.facts:
            continue  # said above
        elif alarm.name == "store" and store_is_well:
            # A right may be missing where the partner reads: nothing is tried there, where nothing but logs may lie.
            yield Finding(Level.WARNING, f"store: when the service used it last, {alarm.sentence}", alarm.hint)
        elif alarm.name not in ("source", "store", "key_readable", NOTHING_DELIVERED):  # examined above, just now
            level = min(alarm.level, Level.WARNING) if alarm.subject else alarm.level
            yield Finding(level, f"{alarm.name.replace('_', ' ')}: {alarm.sentence}", alarm.hint)
    for cause in causes([alarm for alarm in snapshot.alarms if alarm.subject in days], snapshot.days):
        # What is wrong with a day is not the installation's fault.
        yield Finding(min(cause.level, Level.WARNING), f"days: {cause.sentence}", written(cause.steps))
    if not snapshot.alarms:
        yield Finding(Level.OK, f"check: {check_line(snapshot.alarms, snapshot.days, Call())[1]}".split(" | ")[0])


# The port, and a login


async def _port(config: Config, host_keys: set[bytes]) -> AsyncIterator[Finding]:
    """Exchange keys where the service listens (the first finding), then at the address that the partner uses."""
    own = await _exchange("port", _own(config), host_keys, config)
    yield own
    if config.sftp.address is None:
        sentence = "address: sftp.address is not set, so the partner's address was not tried"
        yield Finding(Level.WARNING, sentence, 'set sftp.address = "host:port"')
        return
    public = await _exchange("address", _split(config.sftp.address), host_keys, config)
    if own.level is Level.OK and public.level is Level.CRITICAL:
        advice = "the service itself answers, so check DNS, firewall and port forwarding, or try from another network: "
        advice += "some routers do not route their own public address back inside"
        public = replace(public, sentence=f"{public.sentence}; {advice}")
    yield public


async def _exchange(word: str, where: tuple[str, int], host_keys: set[bytes], config: Config) -> Finding:
    """Exchange keys with a server, and compare its host key with ours."""
    host, port = where
    shown = _shown(where)
    cure = f"ssh-keyscan -p {port} {host}"
    try:
        # At the public address the balancer is in between, and sends the header itself.
        found = await host_key(host, port, config.sftp.proxy_protocol_from if where == _own(config) else ())
    except HungUp as error:
        # The service closes a connection at once if no user may come from its address.
        if all(user.allow_from for user in config.sftp.users):
            sentence = f"{word}: {shown} closes connections from this machine, which is in no user's allow_from"
            cure = f"try from a machine that is in one: {cure}"
            return Finding(Level.WARNING, sentence, cure)
        cure = "journalctl -u pickup-point | grep 'sftp refused' | tail -n 3"
        return Finding(Level.CRITICAL, f"{word}: no key exchange at {shown}: {error}", cure)
    except NoAnswer as error:
        return Finding(Level.CRITICAL, f"{word}: no key exchange at {shown}: {error}", cure)
    if not host_keys:
        sentence = f"{word}: {shown} presents a host key, but there is none of ours to compare it with"
        return Finding(Level.WARNING, sentence, "to see what is wrong with ours: pickup-point keygen")
    if found not in host_keys:
        sentence = f"{word}: {shown} presents a host key that is not one of ours"
        cure = f"{cure}; the keys that belong here: pickup-point keygen; after a change of keys: "
        return Finding(Level.CRITICAL, sentence, f"{cure}systemctl restart pickup-point")
    return Finding(Level.OK, f"{word}: {shown} exchanges keys and presents our host key")


async def _login(config: Config, host_keys: set[bytes], attempt: LoginAttempt) -> Finding:
    """Log in where the service listens, fetch the newest log, and compare its SHA-256 with the ledger's."""
    where = _own(config)
    shown, newest = _shown(where), _newest_log(config)
    name = None if newest is None else str(newest.name)
    user = next(user for user in config.sftp.users if user.name == attempt.user)
    if not _may_come_from(where[0], user):
        sentence = f"login: {user.name} was not tried, because its allow_from does not include {where[0]}"
        host, port = _split(config.sftp.address) if config.sftp.address else where
        login = shlex.quote(f"{user.name}@{host}")
        cure = f"try from a machine that is in it: sftp -P {port} {login}"
        return Finding(Level.WARNING, sentence, cure)
    try:
        found = await fetch_sha256(*where, attempt, host_keys, name, config.sftp.proxy_protocol_from)
    except LoginRefused as error:
        sentence = f"login: {shown} refuses {attempt.user} with {attempt.file}"
        if str(error) != attempt.methods[0]:
            sentence += f" by {error}, though not by {attempt.methods[0]}"
        return Finding(Level.CRITICAL, sentence, _cure_of_refusal(user, attempt))
    except NoAnswer as error:
        cure = "journalctl -u pickup-point | tail -n 20"
        return Finding(Level.CRITICAL, f"login: {attempt.user} at {shown} was cut off: {error}", cure)
    except FileNotFoundError:
        sentence = f"login: {attempt.user} can log in at {shown}, but {name} is not served"
        return Finding(Level.CRITICAL, sentence, f"pickup-point trace {name}")
    ways = " and by ".join(attempt.methods)
    if newest is None:
        return Finding(Level.OK, f"login: {attempt.user} can log in at {shown} by {ways}; no log is published yet")
    if found != newest.sha256:
        sentence = f"login: {name} as fetched from {shown} is not the file that was published (SHA-256 {found})"
        return Finding(Level.CRITICAL, sentence, f"pickup-point trace {name}")
    sentence = f"login: {attempt.user} can log in at {shown} and {name} arrives whole (SHA-256 as in the ledger)"
    return Finding(Level.OK, f"{sentence}; tried by {ways}, as a test that does not count as a pickup")


def _not_tried(attempt: LoginAttempt) -> Finding:
    sentence = f"login: {attempt.user} was not tried, because the service has not presented our host key"
    file = shlex.quote(str(attempt.file))
    again = f"pickup-point doctor --user {attempt.user} --identity {file}"
    if attempt.key is None:
        again = f"pickup-point doctor --user {attempt.user} --password-file {file}"
    return Finding(Level.WARNING, sentence, f"once the findings above are fixed: {again}")


def _cure_of_refusal(user: UserSettings, attempt: LoginAttempt) -> str:
    journal = "journalctl -u pickup-point | grep 'sftp refused' | tail -n 3"
    file = shlex.quote(str(attempt.file))
    if attempt.password is not None:
        if user.password_hash is None:
            return f"set password_hash of {user.name} to what this prints: pickup-point hash-password < {file}"
        if password_matches(user.password_hash, attempt.password.encode()):
            # The file matches the configuration, so the service has not reloaded it, or refuses for another reason.
            return f"systemctl reload pickup-point; {journal}"
        set_it = f"set password_hash of {user.name} to what this prints: pickup-point hash-password < {file}"
        return f"if the password in the file is right, {set_it}; {journal}"
    if user.authorized_keys is None:
        return f"set authorized_keys of {user.name}; systemctl reload pickup-point"
    return f"the line that must be in {user.authorized_keys}: ssh-keygen -y -f {file}"


def _may_come_from(host: str, user: UserSettings) -> bool:
    """Return whether a user may log in at ``host``, an address of this machine: the connection comes from the same."""
    with contextlib.suppress(ValueError):  # a name: only the service knows its address
        return not user.allow_from or any(parse_address(host) in network for network in user.allow_from)
    return True


def _newest_log(config: Config) -> LedgerLog | None:
    """Return the log that was published last and not pruned, or None."""
    with contextlib.closing(Ledger.read(config.data_dir / LEDGER_FILE)) as ledger:
        return next(reversed(ledger.published_logs()), None)


def _shown(where: tuple[str, int]) -> str:
    host, port = where
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(address: str) -> tuple[str, int]:
    host, separator, _ = address.rpartition(":")
    return (host if separator else address).strip("[]"), port_of(address) if separator else 22


def _own(config: Config) -> tuple[str, int]:
    host = config.sftp.host
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), _listening(config)  # noqa: S104  # not bound here


def _listening(config: Config) -> int:
    """Return the port that the running service listens on, which differs from the configured one if systemd listens."""
    with contextlib.closing(Ledger.read(config.data_dir / LEDGER_FILE)) as ledger:
        return int(ledger.facts().get("service_port", config.sftp.port))
