"""The service: the listener and its background tasks, from start to stop.

The outermost part of the composition; it owns the tasks, the signals and systemd's readiness. Promise: one dead task
ends the service, by name; SIGTERM stops the listener, lets transfers finish, stops the feed, and closes the ledger
last.
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

from .config import after_reload, changed_keys, load_config, load_ip_hash_key
from .convert.apart import kernel_lack
from .convert.export_row import with_fingerprint
from .episodes.source import CatalogueSource
from .errors import (
    CannotListen,
    ConfigError,
    DataFolderError,
    LedgerError,
    NodesDiffer,
    PickupPointError,
    Problem,
    SourceError,
    StoreError,
    unexpected,
)
from .megaphone.source import open_source
from .publish.clock import SteadyClock, doubt
from .publish.decisions import FeedPolicy, Round
from .publish.feed import Feed
from .publish.holds import HoldPolicy
from .publish.nodes import refuse_unfit_store, shared_sequence, store_copy
from .publish.publisher import Publisher
from .publish.retention import prune, thin_out_pickups
from .sftp.keys import load_credentials
from .sftp.server import SftpServer
from .status.alarms import ENDED, STARTED
from .status.webhook import AlarmWatch, Pushes
from .storage.folder import DataFolder
from .storage.ledger import Ledger
from .storage.pickup_writer import PickupWriter
from .systemd import END_SECONDS, Listener, keep_watchdog_fed, unhealthy_reason
from .threads import end_all, in_thread
from .web.access import load_access

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from datetime import date

    from .publish.shared import SharedSequence
    from .settings import Config
    from .sftp.keys import Credentials
    from .systemd import Supervisor
    from .web.site import Page

log = structlog.get_logger()

FIRST_RETRY = timedelta(seconds=15)  # after a round that could not reach the source; doubled up to poll_every
FIRST_CATALOGUE = 30.0  # seconds that the first round waits for RSS feeds that were never read
PRUNE_EVERY = timedelta(hours=1)
REFRESH_EVERY = timedelta(seconds=2)
FACTS_EVERY = timedelta(seconds=10)
HEALTH_SECONDS = 5.0  # a thread may take this long to become free


class TaskDied(PickupPointError):
    """A background task ended by itself; the service ends with it, and systemd starts it again."""


class Service:
    """A running pickup point, from `run` to its end."""

    def __init__(
        self,
        config: Config,
        installation: Installation,
        server: SftpServer,
        pickup_writer: PickupWriter,
        supervisor: Supervisor,
        exit_within: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._exit_within = exit_within
        self._config = config
        self._installation = installation
        self._server = server
        self._supervisor = supervisor
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._pickup_writer = pickup_writer
        self._round_due = asyncio.Event()
        self._reload_due = asyncio.Event()
        self._catalogue_read = asyncio.Event()
        self._source_state = ""
        self._clock, self._clock_compared = SteadyClock(), asyncio.Event()
        self._started = datetime.now(UTC)
        self._rounds: Counter[str] = Counter()
        # All three ask for the settings each time: a reload replaces them.
        self._page: Page | None = None
        if config.web is not None:
            # Only here: what the page needs takes as long to load as half of the rest.
            from .status.metrics import take_reading
            from .web.site import Page

            self._page = Page(
                lambda: self._config,
                lambda: take_reading(self._config, server.registry, self._rounds, len(installation.folder.served)),
                self._unhealthy_reason,
            )
        self._pushes = Pushes(lambda: self._config.alerts)
        self._listener = Listener(lambda: self._server.arrived, lambda: self._server.waiting)
        self._alarms = AlarmWatch(lambda: self._config, installation.ledger, self._pushes)
        parts = installation.ledger, installation.folder, installation.publisher
        self._store = store_copy(config, *parts, installation.stop.is_set)

    async def run(self, on_listening: Callable[[int, int | None], None]) -> None:
        """Serve logs and run rounds until `stop`, then shut down in order.

        Raises:
            TaskDied: a task ended by itself.
            CannotListen: the address cannot be listened on.
        """
        try:
            await self._server.start(self._supervisor.listening)
        except (OSError, UnicodeError) as error:
            where, port = f"{self._config.sftp.host}:{self._config.sftp.port}", self._config.sftp.port
            raise CannotListen.because(error, where, port, "sftp.host and sftp.port") from error
        page = await self._page.start() if self._page is not None else None
        tasks = {
            name: asyncio.create_task(job, name=name)
            for name, job in {
                "sftp": self._server.wait(),
                "feed": self._feed_forever(),
                "retention": self._prune_forever(),
                "pickups": self._pickup_writer.write_forever(),
                "served files": self._refresh_forever(),
                "facts": self._note_facts_forever(),
                "watchdog": keep_watchdog_fed(self._supervisor, self._listener),
                "alarms": self._alarms.watch(),
                "reloads": self._reload_forever(),
                "rss": self._installation.catalogue.keep_fresh(self._catalogue_read),
            }.items()
        }
        if self._store is not None:
            following = self._store.keep(self._config.export.poll_every, self._alarms.check_now)
            tasks["store"] = asyncio.create_task(following, name="store")
        log.info(
            "service started listening",
            host=self._config.sftp.host,
            port=self._server.port,
            export=self._config.export.url,
        )
        # Only now: systemd starts what depends on the service, and the port answers.
        self._supervisor.ready(f"Serving {len(self._installation.folder.served)} log files on port {self._server.port}")
        on_listening(self._server.port, page)
        stopping = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            done, _ = await asyncio.wait([*tasks.values(), stopping], return_when=asyncio.FIRST_COMPLETED)
            # A task that ends by itself is a fault, unless the service was asked to stop in the same instant.
            dead = [task for task in done if task is not stopping]
            if dead and not self._stopping.is_set():
                fault = dead[0].exception() if not dead[0].cancelled() else None
                why = f"{type(fault).__name__}: {fault}" if fault is not None else "it returned"
                log.critical(f"service lost its task {dead[0].get_name()}", why=why)
                raise TaskDied(
                    f"the task {dead[0].get_name()} died ({why})",
                    hint="systemd restarts the service; journalctl -u pickup-point",
                ) from fault
        finally:
            stopping.cancel()
            await self._end(tasks)

    def stop(self) -> None:
        """Shut down in order, as SIGTERM and Ctrl-C ask; a second call cuts off transfers at once."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def _end(self, tasks: dict[str, asyncio.Task[None]]) -> None:
        """Shut down in order: listener, transfers, rounds, pickups, pushes, page."""
        # Tell systemd first: an unexpected end would count as a failure, and restart the service.
        self._supervisor.stopping()
        # Everything below may hang: a disk that does not answer, a library that loses a cancellation.
        self._exit_within(self._config.sftp.drain_seconds + END_SECONDS)
        # Accept nobody new, and let running transfers finish; pickups are still recorded meanwhile.
        self._server.stop_listening()
        log.info("service stopped listening", transfers=self._server.registry.transfers)
        draining = asyncio.create_task(self._server.drain(self._config.sftp.drain_seconds))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([draining, hurry], return_when=asyncio.FIRST_COMPLETED)
        self._exit_within(END_SECONDS)
        # A second signal: close what is left now. The first drain then sees no transfer, and returns.
        if not draining.done():
            await self._server.drain(0)
        hurry.cancel()
        await draining
        # A conversion runs in a thread, which no cancellation reaches: it looks at this event between two blocks.
        self._installation.stop.set()
        # The task that writes pickups outlives the others: transfers that have just ended must still be recorded.
        await end_all([task for name, task in tasks.items() if name != "pickups"])
        await self._pickup_writer.close(tasks["pickups"])
        # After the rounds and the alarm watch, which push.
        await self._pushes.close()
        if self._page is not None:
            await self._page.close()
        # Not after a fault: only a service that was asked to end may be away for a moment without an alarm. As late as
        # possible, since that moment begins now.
        if self._stopping.is_set():
            await self._record_facts({ENDED: datetime.now(UTC).isoformat()})
        log.info("service ended")

    async def _unhealthy_reason(self) -> str:
        """Return why the service is unhealthy, or ''."""
        if self._stopping.is_set():
            return "the service is stopping"
        return await unhealthy_reason(self._listener, HEALTH_SECONDS)

    # The feed

    async def _feed_forever(self) -> None:
        """Run rounds, ``poll_every`` apart or sooner after a failure; record and log how each one ended."""
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
                pause = self._retry_pause(failures)
                self._log_source_state(f"{error}", error.hint)
                facts = round_facts(now, error)
            except (DataFolderError, LedgerError, StoreError, NodesDiffer) as error:
                failures += 1
                pause = self._retry_pause(failures)
                log.error("feed gave up on a round", why=str(error), hint=error.hint)
                facts = round_facts(now, error)
            else:
                failures = 0
                waited = outcome.at - now  # until the source was asked
                self._clock.compared(now, outcome.source_now - waited, counted)
                # Retention waits for this: until the clocks are compared, a wrong one could make every file old.
                self._clock_compared.set()
                if not any(result.word == "failed" for result in outcome.results):
                    await self._pushes.heartbeat()
                pause = self._config.export.poll_every
                self._log_source_state("", "")
                facts = round_facts(now, outcome)
            pause *= random.uniform(0.9, 1.1)  # noqa: S311  # jitter: two services should not list the bucket in step
            facts |= {"next_round": (datetime.now(UTC) + pause).isoformat()}
            await self._record_facts(facts)
            # Alarms are checked once this round's facts are in the ledger, from which they are read.
            self._rounds["failed" if failures else "good"] += 1
            self._alarms.check_now()
            self._wake_store()
            self._supervisor.status(
                f"Serving {len(self._installation.folder.served)} log files; "
                f"next round {datetime.now(UTC) + pause:%H:%M:%SZ}"
            )

    async def _first_catalogue(self) -> None:
        """Wait up to `FIRST_CATALOGUE` seconds for RSS feeds that were never read; no later round waits for any."""
        with contextlib.suppress(TimeoutError, LedgerError):
            if await in_thread(self._installation.catalogue.untried):
                async with asyncio.timeout(FIRST_CATALOGUE):
                    await self._catalogue_read.wait()

    def _retry_pause(self, failures: int) -> timedelta:
        """Return how long to wait after ``failures`` failed rounds in a row."""
        # The exponent is bounded: in a long outage the product would overflow a timedelta.
        return min(FIRST_RETRY * (1 << min(failures - 1, 12)), self._config.export.poll_every)

    async def _pause(self, pause: timedelta) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause.total_seconds()):
                await self._round_due.wait()
        self._round_due.clear()

    def _log_source_state(self, state: str, hint: str) -> None:
        """Log a change of the source's state once; ``state`` is what is wrong, or ''."""
        if state and state != self._source_state:
            log.error("feed lost the source", why=state, hint=hint)
        elif not state and self._source_state:
            log.info("feed reached the source again", source=self._config.export.url)
        self._source_state = state

    async def _record_facts(self, facts: dict[str, Any]) -> None:
        """Write facts to the ledger; log an error instead of raising it."""
        try:
            await in_thread(lambda: self._installation.ledger.note(**facts))
        except LedgerError as error:
            log.error("service could not write the ledger", why=str(error), hint=error.hint)

    # Retention, served files, facts

    async def _prune_forever(self) -> None:
        """Run a retention pass every hour, once a round has compared the clocks."""
        await self._clock_compared.wait()
        while True:
            try:
                await in_thread(self._prune)
            except (DataFolderError, LedgerError, StoreError, NodesDiffer) as error:
                log.error("retention gave up on a pass", why=str(error), hint=error.hint)
            self._wake_store()
            await asyncio.sleep(PRUNE_EVERY.total_seconds())

    def _prune(self) -> None:
        installation = self._installation
        with installation.folder.round_lock(lambda: None, installation.stop.is_set):
            if (now := self._clock.now(monotonic())) is not None:
                keep_days, shared = self._config.retention.keep_days, installation.shared
                prune(installation.ledger, installation.folder, keep_days, now, steady=True, shared=shared)
                thin_out_pickups(installation.ledger, self._config.retention.keep_pickups_days, now)

    async def _refresh_forever(self) -> None:
        """Serve what another process, a command typed by an operator, has published or pruned."""
        seen = None
        while True:
            try:
                now = await in_thread(self._installation.ledger.changed_elsewhere)
                if seen is not None and now != seen:
                    await in_thread(self._installation.publisher.serve_published)
                    self._wake_store()
                seen = now
            except (LedgerError, DataFolderError) as error:
                log.error("service could not read the ledger", why=str(error), hint=error.hint)
                seen = -1  # no version: whatever the ledger returns next is new
            await asyncio.sleep(REFRESH_EVERY.total_seconds())

    def _wake_store(self) -> None:
        if self._store is not None:
            self._store.wake()

    async def _note_facts_forever(self) -> None:
        """Record what `status` shows about the running service, whenever it changes."""
        written: dict[str, Any] = {}
        while True:
            bans = [ban.as_json("sftp") for ban in self._server.registry.bans()]
            if self._page is not None:
                self._page.summarize()
                bans += [ban.as_json("web") for ban in self._page.bans()]
            facts = {
                "service_pid": os.getpid(),
                STARTED: self._started.isoformat(),
                "service_port": self._server.port,
                "bans": bans,
            }
            if facts != written:
                await self._record_facts(facts)
                written = facts
            await asyncio.sleep(FACTS_EVERY.total_seconds())

    # Reload

    def reload(self) -> None:
        """Read the configuration and the keys again, as SIGHUP asks, once a reload under way has ended."""
        self._reload_due.set()

    async def _reload_forever(self) -> None:
        """Reload one at a time, so that the newest file wins; signals during a reload ask for one more."""
        while True:
            await self._reload_due.wait()
            # Cleared before the file is read: a signal from now on leads to another reload.
            self._reload_due.clear()
            self._supervisor.reloading()
            try:
                await self._reload()
            except ConfigError as error:
                for problem in error.problems:
                    log.error("service kept the old settings", why=str(problem), hint=problem.cure)
            except Exception as error:  # whatever a file can do to a reload, the old settings stay in force
                why = unexpected(error)
                log.error("service kept the old settings", why=str(why), hint=why.hint)
            # Even after a failure: until READY, systemd believes that the service is reloading, and in the end hung.
            self._supervisor.ready(
                f"Serving {len(self._installation.folder.served)} log files on port {self._server.port}"
            )

    async def _reload(self) -> None:
        """Put in force what can be changed while the service runs; on any error nothing is changed.

        Raises:
            ConfigError: the configuration or a key cannot be used.
        """
        config = await in_thread(load_config, self._config.path)
        credentials = await in_thread(load_credentials, config.sftp, self._config.keys_dir)
        in_force = after_reload(self._config, config)
        page = in_force.web
        access = await in_thread(load_access, page) if page is not None else None
        # Everything has been read and found valid before anything is replaced.
        self._server.replace(config.sftp, credentials)
        if self._page is not None and page is not None:
            self._page.replace(page, access)
        self._config = in_force
        log.info("service reloaded users, keys, limits and alerts", users=len(config.sftp.users))
        # Compared with the settings in force, so that they are named at every reload until a restart.
        if waiting := changed_keys(self._config, config):
            hint = "systemctl restart pickup-point"
            log.warning("service kept the old values of some keys", keys=", ".join(waiting), hint=hint)
        # Not before the first round: until then everything looks wrong.
        if self._rounds:
            self._alarms.check_now()


def round_facts(at: datetime, ended: Round | PickupPointError) -> dict[str, Any]:
    """Return the facts to record about a round that began ``at``, by how it ended."""
    facts: dict[str, Any] = {"last_round": at.isoformat()}
    if isinstance(ended, SourceError):
        return facts | {"source_error": str(ended), "source_hint": ended.hint}
    if isinstance(ended, StoreError):  # `StoreCopy` reports it, and serving goes on
        return facts | {"round_error": ""}
    if isinstance(ended, PickupPointError):
        return facts | {"round_error": str(ended)}
    if ended.published:
        facts["last_published"] = [str(name) for name in ended.published]
    return facts | {"source_error": "", "source_hint": "", "round_error": "", "last_good_round": at.isoformat()}


async def serve(
    config: Config,
    keys: tuple[Credentials, bytes],
    supervisor: Supervisor,
    on_listening: Callable[[int, int | None], None] = lambda _, __: None,
    *,
    exit_within: Callable[[float], None] = lambda _: None,
) -> None:
    """Run the service until SIGTERM or SIGINT; SIGHUP reloads. ``keys`` are those of `load_keys`.

    ``exit_within`` is called when it stops: after that many seconds the process must be gone, whatever hangs in it.

    Raises:
        ConfigError: the episode catalogue has to be corrected.
        DataFolderBusy: another service has the data folder.
        TaskDied: a background task ended by itself.
    """
    credentials, hash_key = keys
    async with contextlib.AsyncExitStack() as stack:
        folder = DataFolder(config.data_dir)
        folder.prepare()
        # Before anything in the folder is opened, and until everything is closed.
        stack.enter_context(folder.service_lock())
        installation = await stack.enter_async_context(assembled(config, hash_key))
        await refuse_unfit_store(config, installation.shared)
        # Before there is a listener: no client may see a folder that a crash left between two steps.
        await in_thread(_recover, installation)
        if lack := await in_thread(kernel_lack):
            log.warning(f"service converts the {lack[0]}", hint=lack[1])
        pickup_writer = PickupWriter(installation.ledger, lambda at: doubt(installation.ledger, at))
        server = SftpServer(
            config.sftp,
            credentials,
            list_files=lambda: installation.folder.served,
            open_file=installation.folder.open,
            on_pickup=pickup_writer.on_pickup,
            on_login=pickup_writer.on_login,
        )
        service = Service(config, installation, server, pickup_writer, supervisor, exit_within)
        with _signals(service):
            await service.run(on_listening)


def _recover(installation: Installation) -> None:
    """Finish what a crash interrupted, adopt the folder of a lost ledger, and serve what is published."""
    now = datetime.now(UTC)
    if interrupted := installation.ledger.pickups.interrupt_open():
        log.warning(f"service marked {interrupted} pickups as interrupted")
    with installation.folder.round_lock(lambda: log.info("service waited for another round to end"), lambda: False):
        installation.publisher.recover(now)
        # What other nodes have published is taken over once clients are served: the store may be away, and a node that
        # joins may have much to download. The first round adopts what is left then.
        if installation.shared is None:
            installation.publisher.adopt(installation.feed.rules, now)


@contextlib.contextmanager
def _signals(service: Service) -> Iterator[None]:
    """Handle SIGTERM, SIGINT and SIGHUP while the service runs."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, service.stop)
    loop.add_signal_handler(signal.SIGINT, service.stop)
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    # One that came since the process began has waited: the configuration may have been read before it was changed.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
        # Too late for a reload, but no reason to die of one.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def load_keys(config: Config) -> tuple[Credentials, bytes]:
    """Load the credentials of the listener, and the secret for hashed addresses.

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
    # Everything is read before anything is raised, so that one attempt names every problem.
    if credentials is None or problems:
        raise ConfigError(str(config.keys_dir), problems)
    return credentials, hash_key


@dataclass(frozen=True, slots=True)
class Installation:
    """The open parts that a round needs; setting ``stop`` ends a conversion at once."""

    config: Config
    folder: DataFolder
    ledger: Ledger
    publisher: Publisher
    feed: Feed
    catalogue: CatalogueSource
    stop: threading.Event
    shared: SharedSequence | None = None


@contextlib.asynccontextmanager
async def assembled(
    config: Config, hash_key: bytes, *, progress: Callable[[date, int, int], None] | None = None
) -> AsyncIterator[Installation]:
    """Open the parts in order, and close them in reverse, the ledger last.

    Raises:
        ConfigError: the episode catalogue has to be corrected.
        DataFolderError, LedgerError: the data folder cannot be used.
    """
    stop = threading.Event()
    folder = DataFolder(config.data_dir)
    folder.prepare()
    ledger = Ledger.open(folder.ledger_path)
    try:
        catalogue = CatalogueSource(config, ledger.rss)
        holds = HoldPolicy(config.log.max_rejected, config.log.tokens)
        shared = shared_sequence(config, ledger, folder, hash_key, stop.is_set)
        publisher = Publisher(
            ledger,
            folder,
            hash_key=hash_key,
            policy=holds,
            workers=config.log.workers,
            max_rows_per_file=config.log.max_rows_per_file,
            stop=stop,
            shared=shared,
        )
        policy = FeedPolicy(
            config.export,
            with_fingerprint(config.log_rules, hash_key),
            config.log.prefix,
            holds,
            config.retention.keep_days,
            config.alerts.pull_every,
        )
        source = await open_source(config.export.place, config.export.export_kind)
        try:
            feed = Feed(
                policy, source, publisher, ledger, folder, catalogue=catalogue.snapshot, stop=stop, progress=progress
            )
            yield Installation(config, folder, ledger, publisher, feed, catalogue, stop, shared)
        finally:
            await source.close()
    finally:
        ledger.close()
