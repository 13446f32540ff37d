"""The units that `systemd-unit` prints, judged by systemd's own tools; and the health check before a watchdog ping.

What the unit does in a running systemd is in test_systemd_booted.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from server import systemd
from server.systemd import Listener

from .support.program import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from .support.program import ServiceSite
    from .support.sftp import Running

analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd"
)
MOST_EXPOSURE = 12  # tenths


def unit(site: ServiceSite, folder: Path, *options: str) -> Path:
    """The printed unit, in a file."""
    done = site.run("systemd-unit", *options)
    assert done.returncode == 0, done.stderr
    path = folder / ("pickup-point.socket" if options else "pickup-point.service")
    path.write_text(done.stdout)
    return path


@analyze
@pytest.mark.parametrize("options", [(), ("--socket",)])
def test_systemd_does_not_criticise_a_unit(service_site: ServiceSite, tmp_path: Path, options: tuple[str, ...]) -> None:
    """`systemd-analyze verify` is silent; a socket unit is verified beside its service."""
    paths = [unit(service_site, tmp_path, *options), unit(service_site, tmp_path)]
    done = subprocess.run(
        ["systemd-analyze", "verify", paths[0]], capture_output=True, text=True, timeout=PATIENCE, check=False,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@analyze
def test_the_exposure_is_at_most_1_2(service_site: ServiceSite, tmp_path: Path) -> None:
    """`systemd-analyze security`, offline."""
    path = unit(service_site, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSURE}", "--no-pager", path],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-400:] + done.stderr


def test_a_static_aws_key_beside_the_others_is_handed_over(service_site: ServiceSite, tmp_path: Path) -> None:
    """With keys/aws the unit loads it and sets its path; without it the unit does not mention it."""
    assert "LoadCredential=aws" not in unit(service_site, tmp_path).read_text()
    key = service_site.folder / "keys" / "aws"
    key.write_text("[default]\n")
    text = unit(service_site, tmp_path).read_text()
    assert f"LoadCredential=aws:{key}\n" in text and "AWS_SHARED_CREDENTIALS_FILE=%d/aws\n" in text


def test_systemd_waits_longer_than_a_stop_may_take(service_site: ServiceSite, tmp_path: Path) -> None:
    """The transfers have their time, what follows has its own, and only then would systemd kill."""
    service_site.configure(drain=100)
    (told,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit(service_site, tmp_path).read_text(), re.MULTILINE)
    assert int(told) > 100 + systemd.END_SECONDS


# The watchdog


def watched(listener: Running) -> Listener:
    """What the service shows of its SFTP server."""
    return Listener(lambda: listener.server.arrived, lambda: listener.server.waiting)


async def test_a_healthy_service_gives_no_reason(listener: Running) -> None:
    """The loop turns, a thread answers, no connection is waiting."""
    assert await systemd.unhealthy_reason(watched(listener), 5) == ""


async def test_a_thread_pool_that_does_not_answer_is_unhealthy(listener: Running) -> None:
    """All its threads are blocked."""
    free = threading.Event()
    loop = asyncio.get_running_loop()
    hanging = [loop.run_in_executor(None, free.wait) for _ in range(64)]
    try:
        assert "no thread was free" in await systemd.unhealthy_reason(watched(listener), 0.2)
    finally:
        free.set()
        await asyncio.gather(*hanging)
    assert await systemd.unhealthy_reason(watched(listener), 5) == ""


async def test_connections_that_nobody_accepts_are_unhealthy(listener: Running) -> None:
    """The listener's task is gone, and the kernel goes on queueing."""
    accepting = listener.server._accept_task
    assert accepting is not None
    accepting.cancel()
    await asyncio.wait([accepting])
    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
    assert listener.server.waiting == 1
    assert "1 connections are waiting" in await systemd.unhealthy_reason(watched(listener), 5)
    writer.close()


async def test_the_watchdog_is_fed_only_while_all_is_well(listener: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets no ping while the service is unhealthy, and gets pings again afterwards."""
    signs: list[str] = []
    ill = asyncio.Event()

    class Watched:
        watchdog_seconds = 0.03

        def alive(self) -> None:
            signs.append("alive")

    async def unhealthy_reason(*_: object) -> str:
        return "a test" if ill.is_set() else ""

    monkeypatch.setattr(systemd, "unhealthy_reason", unhealthy_reason)
    task = asyncio.create_task(systemd.keep_watchdog_fed(Watched(), watched(listener)))  # type: ignore[arg-type]  # what it uses
    async with asyncio.timeout(PATIENCE):
        while len(signs) < 2:  # noqa: ASYNC110  # a beat signals nothing
            await asyncio.sleep(0.01)
        ill.set()
        await asyncio.sleep(0.1)
        silent = len(signs)
        await asyncio.sleep(0.2)
        assert len(signs) == silent
        ill.clear()
        while len(signs) == silent:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
