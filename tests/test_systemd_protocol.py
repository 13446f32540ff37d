"""What systemd and the service say to each other: datagrams, inherited sockets, the environment of children."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from server.systemd import Supervisor

from .support.program import Serving, command, day_before, export_name, export_of, port_of, until
from .support.sftp import PASSWORD
from .support.warm import OWN_CONVERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .support.program import Program, ServiceSite


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def hears(self, word: str) -> bool:
        """Return whether a datagram with this assignment has come."""
        while True:
            try:
                self.heard.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return any(word in datagram.split("\n") for datagram in self.heard)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """A socket in a folder."""
    with closing(Systemd(str(tmp_path / "notify"))) as it:
        yield it


async def test_ready_watchdog_reload_and_stop_are_sent_in_order(service_site: ServiceSite, systemd: Systemd) -> None:
    """READY only once the port answers; watchdog pings; RELOADING with its clock, READY again; STOPPING."""
    service = service_site.program.start(
        "serve", "--config", service_site.config, env={"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "900000"}
    )
    await until(lambda: systemd.hears("READY=1"), "READY")
    ready = next(datagram for datagram in systemd.heard if datagram.startswith("READY=1"))
    assert ready.startswith("READY=1\nSTATUS=Serving 0 log files on port ")
    socket.create_connection(("127.0.0.1", int(ready.rpartition(" ")[2])), timeout=5).close()
    assert not any(datagram.startswith("STOPPING") for datagram in systemd.heard)

    systemd.hears("")
    before = sum("WATCHDOG=1" in datagram for datagram in systemd.heard)
    await until(
        lambda: systemd.hears("") or sum("WATCHDOG=1" in datagram for datagram in systemd.heard) > before + 1,
        "signs of life",
    )

    readies = sum(datagram.startswith("READY=1") for datagram in systemd.heard)
    asked = time.monotonic_ns() // 1000
    service.send(signal.SIGHUP)
    await until(
        lambda: systemd.hears("") or sum(d.startswith("READY=1") for d in systemd.heard) > readies, "READY again"
    )
    position = next(n for n, datagram in enumerate(systemd.heard) if datagram.startswith("RELOADING=1\n"))
    assert asked <= int(systemd.heard[position].partition("MONOTONIC_USEC=")[2]) <= time.monotonic_ns() // 1000
    assert any(datagram.startswith("READY=1") for datagram in systemd.heard[position:])

    assert await service.stops() == 0
    assert systemd.hears("STOPPING=1")


async def test_a_failed_reload_ends_too(service_site: ServiceSite, systemd: Systemd) -> None:
    """systemd waits for READY after RELOADING; a bad file must not leave it waiting."""
    service = service_site.program.start(
        "serve", "--config", service_site.config, env={"NOTIFY_SOCKET": systemd.address}
    )
    await until(lambda: systemd.hears("READY=1"), "READY")
    service_site.config.write_text("nothing = 1\n")
    service.send(signal.SIGHUP)
    await until(lambda: systemd.hears("RELOADING=1"), "RELOADING")
    position = next(n for n, datagram in enumerate(systemd.heard) if datagram.startswith("RELOADING=1"))
    await until(
        lambda: systemd.hears("") or any(d.startswith("READY=1") for d in systemd.heard[position:]), "READY again"
    )
    assert await service.stops() == 0


async def test_a_start_that_fails_never_says_ready(service_site: ServiceSite, systemd: Systemd) -> None:
    """A missing key: no READY, and systemd sees the exit code."""
    (service_site.folder / "keys" / "ip_hash.key").unlink()
    done = service_site.run("serve", env={"NOTIFY_SOCKET": systemd.address})
    assert done.returncode == 2
    assert not systemd.hears("READY=1")


def test_an_abstract_socket_is_reached_and_a_missing_one_is_no_error() -> None:
    """``@`` stands for the NUL of the abstract namespace; a notification never raises."""
    with closing(Systemd(f"@pickup-point-test-{os.getpid()}")) as systemd:
        Supervisor(systemd.address).status("Serving")
        assert systemd.hears("STATUS=Serving")
    Supervisor("/nowhere/at/all").alive()
    Supervisor().stopping()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "own"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({"WATCHDOG_USEC": "\u00b2"}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_watchdog_counts_when_it_is_meant_for_this_process(
    variables: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either way the variables are gone from the environment afterwards."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(os.getpid()) if value == "own" else value)
    assert Supervisor.from_environment().watchdog_seconds == seconds
    assert not {name for name in os.environ if name.startswith(("WATCHDOG_", "LISTEN_"))}


def test_sockets_meant_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """If LISTEN_PID is somebody else's, descriptor 3 is not touched."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", "1")
    assert Supervisor.from_environment().listening is None
    assert "LISTEN_FDS" not in os.environ


def activated(program: Program, site: ServiceSite, listening: socket.socket) -> object:
    """Start the service as systemd does with a socket unit: descriptor 3, and LISTEN_PID its own."""
    wrapper = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": "pickup-point.socket"}
os.execv(sys.argv[2], sys.argv[2:])
"""
    argv = [sys.executable, "-c", wrapper, str(listening.fileno()), *command("serve", "--config", site.config)]
    return program.start(argv=argv, pass_fds=(listening.fileno(),))


async def test_an_inherited_socket_is_served_instead_of_the_configured_port(
    service_site: ServiceSite, program: Program
) -> None:
    """Port 22 without privileges: the service listens on systemd's socket, and serves who connected before it ran."""
    with socket.socket() as configured, socket.socket() as listening:
        configured.bind(("127.0.0.1", 0))  # taken: if the service tried to listen on it, it would fail
        service_site.configure(port=configured.getsockname()[1])
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=30) as early:
            running = activated(program, service_site, listening)
            assert await port_of(running) == port  # type: ignore[arg-type]  # what `start` gives
            early.settimeout(30)
            assert early.recv(8) == b"SSH-2.0-"
        # Without [web], webhook and RSS feeds, it starts without what they need.
        assert "aiohttp" not in Path(f"/proc/{running.process.pid}/maps").read_text()  # type: ignore[attr-defined]
        service = Serving(running, port)  # type: ignore[arg-type]  # as above
        assert await service.names() == []
        assert await service.running.stops() == 0


async def test_the_process_that_converts_knows_nothing_of_systemd(
    service_site: ServiceSite, program: Program, systemd: Systemd
) -> None:
    """Neither the notification socket nor the watchdog nor the listening socket reaches a child process."""
    from server.cli.samples import write_day

    write_day(service_site.exports / export_name(day_before(1)), day_before(1), 60_000)
    running = program.start(
        "serve", "--config", service_site.config, first=OWN_CONVERSIONS,
        env={"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": "30000000"},
    )  # fmt: skip
    seen: dict[int, bytes] = {}
    descriptors: dict[int, list[str]] = {}

    def looked() -> bool:
        for task in Path(f"/proc/{running.process.pid}/task").glob("*/children"):
            try:
                for child in task.read_text().split():
                    environ = Path(f"/proc/{child}/environ").read_bytes()
                    if b"server.convert" in Path(f"/proc/{child}/cmdline").read_bytes() and environ:
                        seen[int(child)] = environ
                        links = [str(link.readlink()) for link in Path(f"/proc/{child}/fd").iterdir()]
                        descriptors[int(child)] = links
            except OSError:
                continue
        return bool(seen)

    await until(looked, "the process that converts")
    for environ in seen.values():
        names = {entry.partition(b"=")[0] for entry in environ.split(b"\0")}
        assert not names & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"LISTEN_FDS", b"LISTEN_PID"}
    assert not [link for links in descriptors.values() for link in links if link.startswith("socket:")]
    assert await running.stops() == 0


def test_no_day_is_needed_to_be_ready(service_site: ServiceSite, systemd: Systemd) -> None:
    """A slow first round does not keep systemd waiting: READY comes before the first publication."""
    service_site.put(day_before(1), export_of(day_before(1), 20_000))
    running = service_site.program.start(
        "serve", "--config", service_site.config, env={"NOTIFY_SOCKET": systemd.address}
    )
    running.said("feed published")
    assert systemd.hears("READY=1")
    assert systemd.heard[0].startswith("READY=1\nSTATUS=Serving 0 log files")
    assert PASSWORD not in "".join(systemd.heard)
    assert running.stop() == 0
