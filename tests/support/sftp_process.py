"""A listener in a process of its own, so that its memory can be measured; forked from the `WARM` one.

It serves the folder's ``pickup`` as it is, prints the port, serves until standard input closes, then prints what it
counted and ends. Its journal goes to ``journal`` in the folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from server.sftp.keys import load_credentials
from server.sftp.server import SftpServer
from server.triton import LogFile, LogName

from .sftp import ServedFolder, sftp_settings
from .warm import OURS, ROOT, WARM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .warm import Forked


class ServerProcess:
    """The process, seen from the test."""

    def __init__(self, process: Forked, port: int) -> None:
        self.process = process
        self.port = port

    @property
    def memory(self) -> int:
        """Resident bytes now."""
        return self._status("VmRSS")

    @property
    def peak(self) -> int:
        """The most resident bytes there ever were."""
        return self._status("VmHWM")

    def _status(self, key: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
        raise AssertionError(key)


@asynccontextmanager
async def server_process(folder: Path, keys_dir: Path, **changes: Any) -> AsyncIterator[ServerProcess]:
    """A listener in a process of its own, for the length of a block; it must end properly."""
    stdin, end = os.pipe()
    serve = f"from tests.support.sftp_process import serve; serve({str(folder)!r}, {str(keys_dir)!r}, {changes!r})"
    WARM.begin()
    process = WARM.start([], cwd=ROOT, env={**os.environ, **OURS}, stdin=stdin, first=serve)
    os.close(stdin)
    try:
        yield ServerProcess(process, int(await asyncio.to_thread(process.stdout.readline)))
    finally:
        os.close(end)
        rest = await asyncio.to_thread(process.stdout.read)
        assert await asyncio.to_thread(process.wait) == 0, rest
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def serve(folder: str, keys_dir: str, changes: dict[str, Any]) -> None:
    """Be the listener; never return."""
    os.dup2(os.open(Path(folder) / "journal", os.O_WRONLY | os.O_CREAT, 0o600), 2)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(_serve(Path(folder), Path(keys_dir), changes))
    os._exit(0)


async def _serve(folder: Path, keys_dir: Path, changes: dict[str, Any]) -> None:
    for key in ("login_timeout", "idle_timeout", "keepalive", "ban_time"):
        if key in changes:
            changes[key] = timedelta(seconds=changes[key])
    served = ServedFolder(folder / "pickup")
    for path in served.folder.iterdir():
        name = LogName.parse(path.name)
        if name is not None:
            served.files[path.name] = LogFile(name, path.stat().st_size, int(path.stat().st_mtime))
    settings = sftp_settings(**changes)
    credentials = load_credentials(settings, keys_dir)
    server = SftpServer(settings, credentials, list_files=served.list_files, open_file=served.open_file)
    await server.start()
    print(server.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.drain(0)
    counters = server.registry.counters
    print(json.dumps({"refusals": counters.refusals, "pickups": counters.pickups}), flush=True)
