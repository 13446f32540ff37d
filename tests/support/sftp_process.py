"""A listener in a process of its own, so that its memory can be measured: ``python -m tests.support.sftp_process``.

Arguments: the folder (its ``pickup`` is served as it is), the keys, and changes of the settings as JSON. Prints the
port, serves until standard input closes, then prints what it counted and ends.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class ServerProcess:
    """The process, seen from the test."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
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
    """A listener in a process of its own, for the length of a block; it must end in order."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.support.sftp_process", str(folder), str(keys_dir), json.dumps(changes)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield ServerProcess(process, int(await process.stdout.readline()))
    finally:
        process.stdin.close()
        rest = await process.stdout.read()
        assert await process.wait() == 0, rest


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


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])))
