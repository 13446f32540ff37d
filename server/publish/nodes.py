"""The configured store: what keeps it in step with the folder, and, if it is shared, this node's part in it.

Touches a fact of the ledger (the node's name) and, once at start, the store, to try it. Promise: a node keeps its name
over restarts; a store that cannot tell who was first is refused as shared.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import structlog

from ..errors import ConfigError, Problem, StoreError
from ..s3.retry import RetryPolicy
from ..storage.sequence import Terms
from ..storage.shelf import open_shelf
from ..threads import in_thread
from .replay import LEFT
from .shared import SharedSequence
from .shared_pickups import SharedPickups
from .store_state import NODE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ..settings import Config, StoreSettings
    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger
    from ..storage.shelf import Shelf
    from .publisher import Publisher
    from .store_copy import StoreCopy

log = structlog.get_logger()

# With a store: clients wait for the start, and systemd ends one that takes 90 s. What is not known by then is found out
# before the next entry.
AT_START = RetryPolicy(connect=3, silence=5, call=10, sdk_tries=1)
LOOK_EVERY = timedelta(seconds=30)  # between looks at the sequence: what other nodes publish is served this soon


def shared_sequence(
    config: Config,
    ledger: Ledger,
    folder: DataFolder,
    hash_key: bytes | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> SharedSequence | None:
    """Return the sequence that this node takes part in, or None without one; without ``hash_key`` it may only prune."""
    if config.store is None or not config.store.shared:
        if ledger.entries.head() and not ledger.facts().get(LEFT):
            ledger.note(**{LEFT: True})
        return None
    terms = None
    if hash_key is not None:
        # A fingerprint: it does not give the key away, and shows whether two nodes have the same one.
        fingerprint = hashlib.sha256(b"pickup-point ip_hash.key" + hash_key).hexdigest()[:16]
        terms = Terms(fingerprint, config.log_rules.as_json(), config.log.prefix)
    return SharedSequence(_shelf(config.store, stopped), ledger, folder, terms, node_name(ledger))


def _shelf(
    store: StoreSettings, stopped: Callable[[], bool] = lambda: False, patience: RetryPolicy | None = None
) -> Callable[[], AbstractContextManager[Shelf]]:
    from ..s3.objects import ObjectStore

    return partial(open_shelf, ObjectStore(store.place, patience), store.state_prefix, stopped)


def store_copy(
    config: Config, ledger: Ledger, folder: DataFolder, publisher: Publisher, stopped: Callable[[], bool]
) -> StoreCopy | None:
    """Return what keeps the store in step with the folder, or None without a store."""
    if config.store is None:
        return None
    # Imported here, as below: without a store the AWS SDK is not loaded.
    from ..storage.log_store import LogStore
    from .store_copy import StoreCopy

    store = LogStore(config.store.place)
    if not config.store.shared:
        return StoreCopy(store, ledger, folder, stopped)
    pickups = SharedPickups(_shelf(config.store, stopped), ledger, node_name(ledger), partial(_new_name, ledger))

    def catch_up() -> None:
        # Not during a round: the ledger that it decides by must not change before it has written its decision.
        with folder.round_lock(lambda: None, stopped):
            publisher.catch_up()
        pickups.exchange()

    return StoreCopy(store, ledger, folder, stopped, catch_up, look_every=LOOK_EVERY)


async def refuse_unfit_store(config: Config, shared: SharedSequence | None) -> None:
    """Refuse a shared store that overwrites objects: two nodes could each believe they were first.

    Raises:
        ConfigError: the store ignores If-None-Match.
    """
    if config.store is None or shared is None:
        return
    try:
        refuses = await in_thread(shared.keeps_the_first, _shelf(config.store, patience=AT_START))
    except StoreError as error:  # no reason to stop: published logs are served without the store
        log.error("service could not try the shared store", why=str(error), hint=error.hint)
        return
    if not refuses:
        wrong = f"is true, but {config.store.place} ignores If-None-Match, so it cannot tell who was first"
        raise ConfigError(str(config.path), [Problem("store.shared", wrong, "use another store, or one service only")])


def node_name(ledger: Ledger) -> str:
    """Return this node's name, made at its first start: the machine's, and a suffix, since one machine may run two."""
    return str(ledger.facts().get(NODE) or _new_name(ledger))


def _new_name(ledger: Ledger) -> str:
    name = f"{socket.gethostname().partition('.')[0]}-{secrets.token_hex(2)}"
    ledger.note(**{NODE: name})
    return name
