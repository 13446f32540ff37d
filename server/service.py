"""The service: the listener and its background tasks, from start to stop.

The composition's outermost part; it owns the tasks, the signals and systemd's readiness. Promise: one dead task ends
the service, by name; SIGTERM stops listening, lets transfers finish, stops the feed, and closes the ledger last.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

import structlog

from .config import load_config, load_ip_hash_key
from .convert.apart import kernel_lack
from .episodes.source import CatalogueSource
from .errors import ConfigError, DataFolderError, LedgerError, PickupPointError, Problem, SourceError
from .megaphone.source import open_source
from .publish.decisions import FeedPolicy
from .publish.feed import Feed
from .publish.holds import HoldPolicy
from .publish.publisher import Publisher
from .publish.retention import SteadyClock, prune
from .sftp.keys import load_credentials
from .sftp.server import SftpServer
from .status.metrics import MetricsServer, take_reading
from .status.webhook import AlarmWatch, Pushes
from .storage.folder import DataFolder
from .storage.ledger import Ledger
from .storage.pickup_writer import PickupWriter
from .systemd import Listener, keep_watchdog_fed
from .threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from datetime import date
    from pathlib import Path

    from .settings import Config
    from .sftp.keys import Credentials
    from .systemd import Supervisor

log = structlog.get_logger()

FIRST_RETRY = timedelta(seconds=15)  # after a round that could not reach the source; doubled up to poll_every
FIRST_CATALOGUE = 30.0  # seconds
PRUNE_EVERY = timedelta(hours=1)
REFRESH_EVERY = timedelta(seconds=2)
FACTS_EVERY = timedelta(seconds=10)


class TaskDied(PickupPointError):
    """A background task ended by itself; the service ends with it, and systemd starts it again."""


class CannotListen(PickupPointError):
    """The configured address and port are not to be had."""


class Service:
    """A running pickup point. `run` is its whole life."""

    def __init__(
        self,
        config: Config,
        installation: Installation,
        server: SftpServer,
        books: PickupWriter,
        supervisor: Supervisor,
    ) -> None:
        self._config = config
        self._installation = installation
        self._server = server
        self._supervisor = supervisor
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._books = books
        self._round_due = asyncio.Event()
        self._catalogue_read = asyncio.Event()
        self._source_state = ""
        self._clock, self._clock_compared = SteadyClock(), asyncio.Event()
        self._started = datetime.now(UTC)
        self._rounds: Counter[str] = Counter()
        self._metrics = MetricsServer(
            lambda: take_reading(config, server.registry, self._rounds, len(installation.folder.served))
        )
        self._pushes = Pushes(config.alerts.webhook_url, config.alerts.heartbeat_url)
        self._alarms = AlarmWatch(config, installation.ledger, self._pushes)

    async def run(self, on_listening: Callable[[int], None]) -> None:
        """Listen and feed until `stop`, then end in order.

        Raises:
            TaskDied: a task ended by itself.
            CannotListen: the address cannot be listened on.
        """
        try:
            await self._server.start(self._supervisor.listening)
        except OSError as error:
            where = f"{self._config.sftp.host}:{self._config.sftp.port}"
            hint = f"ss -ltnp 'sport = :{self._config.sftp.port}'; set sftp.host and sftp.port"
            raise CannotListen(f"cannot listen on {where}: {error.strerror}", hint=hint) from error
        if self._config.metrics is not None:
            metrics = self._metrics.start(*self._config.metrics.host_and_port)
            log.info("service offered metrics", port=metrics)
        listener = Listener(lambda: self._server.arrived, lambda: self._server.waiting)
        tasks = {
            name: asyncio.create_task(job, name=name)
            for name, job in {
                "sftp": self._server.wait(),
                "feed": self._feed_forever(),
                "retention": self._prune_forever(),
                "pickups": self._books.write_forever(),
                "served files": self._refresh_forever(),
                "facts": self._note_facts_forever(),
                "watchdog": keep_watchdog_fed(self._supervisor, listener),
                "alarms": self._alarms.watch(),
                "rss": self._installation.catalogue.keep_fresh(self._catalogue_read),
            }.items()
        }
        log.info(
            "service listened", host=self._config.sftp.host, port=self._server.port, export=self._config.export.url
        )
        self._supervisor.ready(f"Serving {len(self._installation.folder.served)} log files on port {self._server.port}")
        on_listening(self._server.port)
        stopping = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            done, _ = await asyncio.wait([*tasks.values(), stopping], return_when=asyncio.FIRST_COMPLETED)
            dead = [task for task in done if task is not stopping]
            if dead and not self._stopping.is_set():
                fault = dead[0].exception() if not dead[0].cancelled() else None
                why = f"{type(fault).__name__}: {fault}" if fault is not None else "it came to its end"
                log.critical(f"service lost its task {dead[0].get_name()}", why=why)
                raise TaskDied(
                    f"the task {dead[0].get_name()} died ({why})",
                    hint="systemd starts the service again; journalctl -u pickup-point",
                ) from fault
        finally:
            stopping.cancel()
            await self._end(tasks)

    def stop(self) -> None:
        """End in order; what SIGTERM and Ctrl-C do. A second call ends transfers at once."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def _end(self, tasks: dict[str, asyncio.Task[None]]) -> None:
        self._supervisor.stopping()
        self._server.stop_listening()
        log.info("service stopped listening", transfers=self._server.registry.transfers)
        draining = asyncio.create_task(self._server.drain(self._config.sftp.drain_seconds))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([draining, hurry], return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            await self._server.drain(0)
        hurry.cancel()
        await draining
        self._installation.stop.set()
        for name, task in tasks.items():
            if name != "pickups":
                task.cancel()
        await asyncio.gather(*(task for name, task in tasks.items() if name != "pickups"), return_exceptions=True)
        await self._books.close(tasks["pickups"])
        await self._pushes.close()
        await in_thread(self._metrics.stop)
        log.info("service ended")

    # The feed

    async def _feed_forever(self) -> None:
        pause = timedelta()
        failures = 0
        facts: dict[str, Any]
        await self._first_catalogue()
        while True:
            await self._pause(pause)
            now, counted = datetime.now(UTC), monotonic()
            try:
                outcome = await self._installation.feed.run_round(now)
            except SourceError as error:
                failures += 1
                pause = min(FIRST_RETRY * 2 ** min(failures - 1, 12), self._config.export.poll_every)
                self._tell_source(f"{error}", error.hint)
                facts = {"source_error": str(error), "source_hint": error.hint}
            except (DataFolderError, LedgerError) as error:
                failures += 1
                pause = min(FIRST_RETRY * 2 ** min(failures - 1, 12), self._config.export.poll_every)
                log.error("feed gave up a round", why=str(error), hint=error.hint)
                facts = {"round_error": str(error)}
            else:
                failures = 0
                waited = outcome.at - now  # until the source was asked
                self._clock.compared(now, outcome.source_now - waited, counted)
                self._clock_compared.set()
                if not any(result.word == "failed" for result in outcome.results):
                    await self._pushes.heartbeat()
                pause = self._config.export.poll_every
                self._tell_source("", "")
                facts = {
                    "source_error": "",
                    "source_hint": "",
                    "round_error": "",
                    "last_good_round": now.isoformat(),
                    "last_published": [str(name) for name in outcome.published],
                }
                if not outcome.published:
                    facts.pop("last_published")
            pause *= random.uniform(0.9, 1.1)  # noqa: S311  # jitter: two services do not ask the bucket in step
            facts |= {"last_round": now.isoformat(), "next_round": (datetime.now(UTC) + pause).isoformat()}
            await self._note(facts)
            self._rounds["failed" if failures else "good"] += 1
            self._alarms.round_ended()
            self._supervisor.status(
                f"Serving {len(self._installation.folder.served)} log files; "
                f"next round {datetime.now(UTC) + pause:%H:%M:%SZ}"
            )

    async def _first_catalogue(self) -> None:
        """With an RSS feed that was never asked, let it answer first, for a moment: no round ever waits again."""
        with contextlib.suppress(TimeoutError, LedgerError):
            if await in_thread(self._installation.catalogue.untried):
                await asyncio.wait_for(self._catalogue_read.wait(), timeout=FIRST_CATALOGUE)

    async def _pause(self, pause: timedelta) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._round_due.wait(), timeout=pause.total_seconds())
        self._round_due.clear()

    def _tell_source(self, state: str, hint: str) -> None:
        """Say a change of the source's state once."""
        if state and state != self._source_state:
            log.error("feed lost the source", why=state, hint=hint)
        elif not state and self._source_state:
            log.info("feed reached the source again", source=self._config.export.url)
        self._source_state = state

    async def _note(self, facts: dict[str, Any]) -> None:
        try:
            await in_thread(lambda: self._installation.ledger.note(**facts))
        except LedgerError as error:
            log.error("service could not write the ledger", why=str(error), hint=error.hint)

    # Retention, served files, facts

    async def _prune_forever(self) -> None:
        await self._clock_compared.wait()
        while True:
            try:
                await in_thread(self._prune)
            except (DataFolderError, LedgerError) as error:
                log.error("retention gave up a pass", why=str(error), hint=error.hint)
            await asyncio.sleep(PRUNE_EVERY.total_seconds())

    def _prune(self) -> None:
        installation = self._installation
        with installation.folder.round_lock(lambda: None, installation.stop.is_set):
            if (now := self._clock.now(monotonic())) is not None:
                prune(installation.ledger, installation.folder, self._config.retention.keep_days, now, steady=True)

    async def _refresh_forever(self) -> None:
        """Serve what a command run by hand has published or pruned."""
        seen = None
        while True:
            try:
                now = await in_thread(self._installation.ledger.changed_elsewhere)
                if seen is not None and now != seen:
                    await in_thread(self._installation.publisher.serve_published)
                seen = now
            except (LedgerError, DataFolderError) as error:
                log.error("service could not read the ledger", why=str(error), hint=error.hint)
                seen = -1
            await asyncio.sleep(REFRESH_EVERY.total_seconds())

    async def _note_facts_forever(self) -> None:
        """What `status` shows of the running service: written when it changes."""
        written: dict[str, Any] = {}
        while True:
            facts = {
                "service_pid": os.getpid(),
                "service_started": self._started.isoformat(),
                "service_port": self._server.port,
                "bans": [
                    {"address": ban.address, "until": ban.until.isoformat(timespec="minutes"), "failures": ban.failures}
                    for ban in self._server.registry.bans()
                ],
            }
            if facts != written:
                await self._note(facts)
                written = facts
            await asyncio.sleep(FACTS_EVERY.total_seconds())

    # Reload

    async def reload(self, path: Path) -> bool:
        """Read users, keys, limits again and swap them when all is right; False keeps the old ones.

        ``[sftp]`` except host and port counts from the next connection on; the rest of the file at the next start.
        """
        self._supervisor.reloading()
        try:
            config = await in_thread(load_config, path)
            credentials = await in_thread(load_credentials, config.sftp, config.keys_dir)
            self._server.replace(config.sftp, credentials)
        except (ConfigError, ValueError) as error:
            problems = error.problems if isinstance(error, ConfigError) else [error]
            for problem in problems:
                log.error("service kept the old settings", why=str(problem))
            return False
        else:
            self._config = self._config.model_copy(update={"sftp": config.sftp})
            log.info("service reloaded users, keys and limits", users=len(config.sftp.users))
            return True
        finally:
            self._supervisor.ready(
                f"Serving {len(self._installation.folder.served)} log files on port {self._server.port}"
            )


async def serve(
    config: Config,
    keys: tuple[Credentials, bytes],
    supervisor: Supervisor,
    on_listening: Callable[[int], None] = lambda _: None,
) -> None:
    """Run the service until SIGTERM or SIGINT; SIGHUP reloads. ``keys`` are those of `load_keys`.

    Raises:
        ConfigError: the catalogue must be changed.
        DataFolderBusy: another service has the data folder.
        TaskDied: a background task ended by itself.
    """
    credentials, hash_key = keys
    async with contextlib.AsyncExitStack() as stack:
        folder = DataFolder(config.data_dir)
        folder.prepare()
        stack.enter_context(
            folder.service_lock()
        )  # before anything in the folder is opened, until everything is closed
        installation = await stack.enter_async_context(assembled(config, hash_key))
        await in_thread(_recover, installation)
        if lack := await in_thread(kernel_lack):
            log.warning(f"service converts the {lack[0]}", hint=lack[1])
        books = PickupWriter(installation.ledger)
        server = SftpServer(
            config.sftp,
            credentials,
            list_files=lambda: installation.folder.served,
            open_file=installation.folder.open,
            on_pickup=books.on_pickup,
            on_login=books.on_login,
        )
        service = Service(config, installation, server, books, supervisor)
        with _signals(service, config.path):
            await service.run(on_listening)


def _recover(installation: Installation) -> None:
    """Before anybody can log in: end what a crash interrupted, and serve what is published."""
    now = datetime.now(UTC)
    if interrupted := installation.ledger.interrupt_open_pickups():
        log.warning(f"service marked {interrupted} pickups interrupted")
    with installation.folder.round_lock(lambda: log.info("service waited for another round to end"), lambda: False):
        installation.publisher.recover(now)
        installation.publisher.adopt(installation.feed.rules, now)
        installation.publisher.serve_published()


@contextlib.contextmanager
def _signals(service: Service, path: Path) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task: asyncio.Task[bool] = loop.create_task(service.reload(path))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGTERM, service.stop)
    loop.add_signal_handler(signal.SIGINT, service.stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


def load_keys(config: Config) -> tuple[Credentials, bytes]:
    """The credentials of the listener, and the secret for hashed addresses.

    Raises:
        ConfigError: with every problem of every key file.
    """
    problems: list[Problem] = []
    credentials, hash_key = None, b""
    try:
        credentials = load_credentials(config.sftp, config.keys_dir)
    except ConfigError as error:
        problems += error.problems
    try:
        hash_key = load_ip_hash_key(config.keys_dir)
    except ConfigError as error:
        problems += error.problems
    if credentials is None or problems:
        raise ConfigError(str(config.keys_dir), problems)
    return credentials, hash_key


@dataclass(frozen=True, slots=True)
class Installation:
    """What a round needs, opened. Setting ``stop`` ends a conversion at once."""

    config: Config
    folder: DataFolder
    ledger: Ledger
    publisher: Publisher
    feed: Feed
    catalogue: CatalogueSource
    stop: threading.Event


@contextlib.asynccontextmanager
async def assembled(
    config: Config, hash_key: bytes, *, progress: Callable[[date, int, int], None] | None = None
) -> AsyncIterator[Installation]:
    """The parts, opened in order and closed in the opposite one; the ledger last.

    Raises:
        ConfigError: the catalogue must be changed.
        DataFolderError, LedgerError: the data folder cannot be used.
    """
    stop = threading.Event()
    folder = DataFolder(config.data_dir)
    folder.prepare()
    ledger = Ledger.open(folder.ledger_path)
    try:
        catalogue = CatalogueSource(config, ledger.rss)
        holds = HoldPolicy(config.log.max_rejected, config.log.tokens)
        publisher = Publisher(
            ledger,
            folder,
            hash_key=hash_key,
            policy=holds,
            workers=config.log.workers,
            max_rows_per_file=config.log.max_rows_per_file,
            stop=stop,
        )
        policy = FeedPolicy(config.export, config.log.log_rules, config.log.prefix, holds, config.retention.keep_days)
        source = await open_source(config.export.place)
        try:
            feed = Feed(
                policy, source, publisher, ledger, folder, catalogue=catalogue.snapshot, stop=stop, progress=progress
            )
            yield Installation(config, folder, ledger, publisher, feed, catalogue, stop)
        finally:
            await source.close()
    finally:
        ledger.close()
