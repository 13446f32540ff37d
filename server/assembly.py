"""Assembly: the parts of a running pickup-point, put together from a configuration.

The composition that `service` and the commands share. Touches nothing but what the parts touch.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from .episodes.source import CatalogueSource
from .errors import ConfigError, Problem
from .megaphone.source import open_source
from .private_files import load_ip_hash_key
from .publish.decisions import FeedPolicy
from .publish.feed import Feed
from .publish.holds import HoldPolicy
from .publish.publisher import Publisher
from .sftp.keys import load_credentials
from .storage.folder import PickupPoint
from .storage.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import date

    from .settings import Config
    from .sftp.keys import Credentials

log = structlog.get_logger()


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
class Parts:
    """What a round needs, opened. Setting ``stop`` ends a conversion at once."""

    config: Config
    point: PickupPoint
    ledger: Ledger
    publisher: Publisher
    feed: Feed
    catalogue: CatalogueSource
    stop: threading.Event


@contextlib.asynccontextmanager
async def assembled(
    config: Config, hash_key: bytes, *, progress: Callable[[date, int, int], None] | None = None
) -> AsyncIterator[Parts]:
    """The parts, opened in order and closed in the opposite one; the ledger last.

    Raises:
        ConfigError: the catalogue must be changed.
        DataFolderError, LedgerError: the data folder cannot be used.
    """
    stop = threading.Event()
    point = PickupPoint(config.data_dir)
    point.prepare()
    ledger = Ledger.open(point.ledger_path)
    try:
        catalogue = CatalogueSource(config, ledger)
        holds = HoldPolicy(config.log.max_rejected, config.log.tokens)
        publisher = Publisher(
            ledger,
            point,
            hash_key=hash_key,
            policy=holds,
            workers=config.log.workers,
            max_rows_per_file=config.log.max_rows_per_file,
            stop=stop,
        )
        policy = FeedPolicy(config.export, config.log.log_rules, config.log.prefix, holds, config.retention.keep_days)
        source = await open_source(config.export)
        try:
            feed = Feed(
                policy, source, publisher, ledger, point, catalogue=catalogue.snapshot, stop=stop, progress=progress
            )
            yield Parts(config, point, ledger, publisher, feed, catalogue, stop)
        finally:
            await source.close()
    finally:
        ledger.close()
