"""Signals, and tasks that die: how the service ends, and how it changes its users while it runs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import urllib.error
import urllib.request
from contextlib import asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING

import asyncssh
import pytest
from argon2 import PasswordHasher

from server.storage.ledger import LEDGER_FILE, Ledger

from .support.program import (
    PATIENCE,
    Serving,
    day_before,
    export_of,
    log_in,
    log_of,
    port_of,
    until,
)
from .support.sftp import CHEAP_HASH, PASSWORD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .support.program import Program, ServiceSite
    from .support.webhook_server import Ear

OTHER_PASSWORD = "another horse"


# Signals


@asynccontextmanager
async def transfer(port: int, name: str) -> AsyncIterator[asyncssh.SFTPClientFile[bytes]]:
    """A client in the middle of a file."""
    async with (
        log_in(port, "triton", PASSWORD) as connection,
        connection.start_sftp_client() as sftp,
        sftp.open(name, "rb") as file,
    ):
        yield file


async def test_sigterm_lets_a_transfer_finish_lets_nobody_in_and_exits_0(service_site: ServiceSite) -> None:
    """The client that was reading gets the rest and closes; the pickup is in the ledger afterwards, complete."""
    service_site.put(day_before(1), export_of(day_before(1), 5000))
    service = await service_site.serve()
    await service.sees(log_of(1))
    content = service_site.published()[log_of(1)][0]
    half = len(content) // 2
    async with transfer(service.port, log_of(1)) as file:
        first = await file.read(half, 0)
        service.running.send(signal.SIGTERM)
        await service.running.says("service stopped listening transfers=1")
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", service.port), timeout=5)
        await asyncio.sleep(0.3)
        assert service.running.process.poll() is None
        rest = await file.read(len(content) - half, half)
        assert first + rest == content
        await file.read(1, len(content))
    assert await service.running.waits() == 0
    assert "service ended" in service.running.err[-1]
    assert f"picked up {log_of(1)}" in service.running.text
    story = service_site.run("trace", log_of(1)).stdout
    assert "complete pickup by triton from 127.0.0.1" in story
    status = service_site.status()
    assert status["running"] is False
    assert status["service"]["service_ended"] > status["service"]["service_started"]  # a minute without an alarm


async def test_a_second_sigterm_does_not_wait_for_a_transfer(service_site: ServiceSite) -> None:
    """A client that stops reading delays the first signal, not the second; its pickup is partial."""
    service_site.configure(drain=3600)
    service_site.put(day_before(1), export_of(day_before(1), 5000))
    service = await service_site.serve()
    await service.sees(log_of(1))
    with suppress(asyncssh.Error, OSError):
        async with transfer(service.port, log_of(1)) as file:
            await file.read(1000, 0)
            service.running.send(signal.SIGTERM)
            await service.running.says("service stopped listening transfers=1")
            service.running.send(signal.SIGTERM)
            assert await service.running.waits() == 0
    assert "complete pickup" not in service_site.run("trace", log_of(1)).stdout


async def test_sighup_swaps_users_whole_and_a_bad_file_keeps_the_old_ones(service_site: ServiceSite) -> None:
    """The new password works, the old one does not; a broken file changes nothing, and the journal says why."""
    service = await service_site.serve()
    async with service.client():
        pass
    hashed = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(OTHER_PASSWORD)
    service_site.configure(password_hash=hashed)
    service.running.send(signal.SIGHUP)
    await service.running.says("service reloaded users, keys, limits and alerts")
    async with service.client(OTHER_PASSWORD):
        pass
    with pytest.raises(asyncssh.PermissionDenied):
        async with service.client(PASSWORD):
            pass

    service_site.configure(more="max_conections = 5\n")
    service.running.send(signal.SIGHUP)
    told = await service.running.says("service kept the old settings why=")
    assert "max_conections" in told[0].string
    async with service.client(OTHER_PASSWORD):
        pass
    service_site.configure(more='[[sftp.users]]\nname = "keyed"\nauthorized_keys = "nowhere.pub"\n')
    service.running.send(signal.SIGHUP)
    assert "nowhere.pub" in (await service.running.says("service kept the old settings why=", 2))[1].string
    # Nothing waits for a FIFO in the file's place, and the next file is read.
    good = service_site.config.read_bytes()
    service_site.config.unlink()
    os.mkfifo(service_site.config)
    service.running.send(signal.SIGHUP)
    assert "regular file" in (await service.running.says("service kept the old settings why=", 3))[2].string
    service_site.config.unlink()
    service_site.config.write_bytes(good.replace(b"nowhere.pub", b"nobody.pub"))
    service.running.send(signal.SIGHUP)
    assert "nobody.pub" in (await service.running.says("service kept the old settings why=", 4))[3].string
    async with service.client(OTHER_PASSWORD):
        pass
    assert OTHER_PASSWORD not in service.running.text
    assert "$argon2id" not in service.running.text
    assert await service.running.stops() == 0


async def test_of_two_reloads_at_once_the_newest_file_wins(service_site: ServiceSite, program: Program) -> None:
    """The first one, which has read its file and takes long, does not put a user back whom the second took away."""
    more = f'[[sftp.users]]\nname = "revoked"\npassword_hash = "{CHEAP_HASH}"\n'
    service_site.configure(more=more)
    slow = """
import threading, time
from server import service
load, loads, second = service.load_config, [], threading.Event()
def slow(path):
    config = load(path)
    loads.append(path)
    if len(loads) == 1:
        print("read", flush=True)
        if second.wait(1):
            time.sleep(1)
    second.set()
    return config
service.load_config = slow
"""
    running = program.start("serve", "--config", service_site.config, first=slow)
    service = Serving(running, await port_of(running))
    async with service.client(username="revoked"):
        pass
    running.send(signal.SIGHUP)
    await running.says("^read$", stream="out")
    service_site.configure()
    running.send(signal.SIGHUP)
    await running.says("service reloaded users", 2)
    with pytest.raises(asyncssh.PermissionDenied):
        async with service.client(username="revoked"):
            pass
    assert await running.stops() == 0


async def test_a_reload_asked_for_while_the_service_starts_or_ends_harms_nothing(
    service_site: ServiceSite, program: Program
) -> None:
    """It does not end the process; at the start it takes away a user whom the file, already read, no longer has."""
    without = service_site.config.read_text()
    service_site.configure(more=f'[[sftp.users]]\nname = "revoked"\npassword_hash = "{CHEAP_HASH}"\n')
    starting = f"""
import os, pathlib, signal
from server.cli import options
load = options.load_config
def changed(path):
    config = load(path)
    pathlib.Path(path).write_text({without!r})
    os.kill(os.getpid(), signal.SIGHUP)
    return config
options.load_config = changed
from server.storage.ledger import Ledger
close = Ledger.close
def closing(ledger):
    os.kill(os.getpid(), signal.SIGHUP)
    close(ledger)
Ledger.close = closing
"""
    running = program.start("serve", "--config", service_site.config, first=starting)
    service = Serving(running, await port_of(running))
    await running.says("service reloaded users")
    with pytest.raises(asyncssh.PermissionDenied):
        async with service.client(username="revoked"):
            pass
    assert await running.stops() == 0


async def test_after_a_reload_alarms_metrics_and_pushes_use_the_new_settings(
    service_site: ServiceSite, ear: Ear
) -> None:
    """A user who is gone is no longer waited for, a new webhook hears of the alarms; what needs a restart is logged."""
    service_site.put(day_before(1), export_of(day_before(1)))
    export = f'url = "exports"\nfirst_day = "{day_before(2)}"'  # of which there is no export: an alarm
    metrics = '[web]\nlisten = "127.0.0.1:0"\n'
    second = f'[[sftp.users]]\nname = "second"\npassword_hash = "{CHEAP_HASH}"\n'
    service_site.configure(export=export, more=f"{second}{metrics}")
    service = await service_site.serve()
    await service.sees(log_of(1))
    await service.fetch(log_of(1))
    await service.running.says(f"picked up {log_of(1)}")
    (told,) = await service.running.says(r"service opened the page .*port=(\d+)")
    done = f'pickup_point_day_done{{day="{day_before(1)}",deadline="picked_up"}}'

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{told[1]}/metrics", timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    assert f"{done} 0.0" in scrape()
    assert not ear.hooks

    publisher = '[publisher]\nname = "Example Media"\n'  # which the service does not use
    service_site.configure(export=export, log='rows = "all"', more=f"{publisher}{metrics}{ear.alerts}", drain=21)
    service.running.send(signal.SIGHUP)
    await ear.until(lambda: bool(ear.told("raised", "day_missing")), "the missing day, at the new webhook")
    await ear.until(lambda: ear.beats > 0, "a beat at the new address")
    await until(lambda: f"{done} 1.0" in scrape(), "nobody else to wait for")
    assert service.running.count("service kept the old values of some keys .*keys=log.rows( |$)") == 1
    # The page's password, too: from the next request on.
    service_site.configure(export=export, more=f'{metrics}password_hash = "{CHEAP_HASH}"\n{ear.alerts}')
    service.running.send(signal.SIGHUP)
    await service.running.says("service reloaded users", 2)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        scrape()
    assert await service.running.stops() == 0
    assert "s3cret" not in service.running.text


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(f'[[sftp.users]]\nname = "x"\nauthorized_keys = "{"x" * 300}"\n', id="too long a name"),
        pytest.param('[[sftp.users]]\nname = "x"\nauthorized_keys = "config.toml/x"\n', id="below a file"),
    ],
)
async def test_a_reload_that_the_system_refuses_is_told_in_a_sentence(more: str, service_site: ServiceSite) -> None:
    """No error is lost in a task, and none comes bare; the old users stay."""
    service = await service_site.serve()
    service_site.configure(more=more)
    service.running.send(signal.SIGHUP)
    told = await service.running.says("service kept the old settings why=")
    assert "sftp.users[1].authorized_keys: " in told[0].string
    async with service.client():
        pass
    assert await service.running.stops() == 0
    assert "Task exception" not in service.running.text and "Traceback" not in service.running.text


DYING = {
    "feed": ("server.publish.feed", "Feed", "run_round"),
    "retention": ("server.service", "Service", "_prune_forever"),
    "pickups": ("server.storage.pickup_writer", "PickupWriter", "write_forever"),
    "sftp": ("server.sftp.server", "SftpServer", "wait"),
}


@pytest.mark.parametrize("name", DYING)
async def test_a_dead_task_ends_the_service_by_name(name: str, service_site: ServiceSite, program: Program) -> None:
    """systemd sees exit code 1, and the journal and the last sentence name the task and what killed it."""
    module, owner, method = DYING[name]
    dying = f"""
import asyncio, importlib
owner = getattr(importlib.import_module({module!r}), {owner!r})
async def dies(*_):
    await asyncio.sleep(0.2)
    raise ZeroDivisionError("by the test")
setattr(owner, {method!r}, dies)
"""
    service = program.start("serve", "--config", service_site.config, first=dying)
    assert await service.waits() == 1
    assert service.count(f"service lost its task {name} why=") == 1
    assert f"pickup-point: the task {name} died (ZeroDivisionError: by the test)" in service.err[-4:]
    assert "service ended" in service.text
    assert "Traceback" not in service.text
    with closing(Ledger.read(service_site.folder / "data" / LEDGER_FILE)) as ledger:
        assert "service_ended" not in ledger.facts()  # an alarm at once


# What never ends

NEVER = {
    "a task": "from server.service import Service as owner; owner._note_facts_forever = stubborn",
    "the event loop": "from server.sftp.registry import Registry as owner; owner.close = lambda _: time.sleep(1000)",
    "a thread": "from server.service import Service as owner; owner._prune_forever = thread",
    "the interpreter": "from server.sftp.registry import Registry as owner; owner.close = lambda _: locked(1000)",
}


@pytest.mark.parametrize("what", NEVER)
async def test_a_service_that_stops_ends_whatever_never_does(
    what: str, service_site: ServiceSite, program: Program
) -> None:
    """By force, before systemd would; what it says shows where it hung, and nobody's words."""
    hanging = f"""
import asyncio, ctypes, time
from server import service, threads
locked = ctypes.PyDLL(None).sleep  # which keeps the lock
service.END_SECONDS, threads.CANCEL_EVERY = 0.3, 0.1
async def never(*_):
    await asyncio.Event().wait()
async def stubborn(*_):
    while True:
        try:
            await never()
        except asyncio.CancelledError:
            pass
async def thread(*_):
    await threads.in_thread(time.sleep, 1000)
{NEVER[what]}
"""
    service_site.configure(drain=0)
    running = program.start("serve", "--config", service_site.config, first=hanging)
    await port_of(running)
    await running.says("service started listening")
    assert await running.stops() == 1
    how = r"^Timeout \(" if what == "the interpreter" else "^Timeout after 0.3 s"
    assert running.count(how) == 1 and running.count("most recent call first") >= 1
    assert bool(running.count("service waits for its tasks")) is (what in ("a task", "a thread"))


async def test_a_connection_that_never_ends_does_not_keep_the_service(
    service_site: ServiceSite, program: Program
) -> None:
    """The rest of the shutdown is done in order: the pickups are recorded, and the exit code is 0."""
    endless = """
import asyncio
from server.sftp import server
server.CLOSE_SECONDS = 0.1
async def never(*_):
    await asyncio.Event().wait()
server.SshConnection.wait_closed = never
"""
    running = program.start("serve", "--config", service_site.config, first=endless)
    async with log_in(await port_of(running), "triton", PASSWORD):
        assert await running.stops() == 0
    assert running.count("sftp could not end its connections connections=1") == 1
    assert "service ended" in running.err[-1]
