"""How fast a file leaves, beside OpenSSH's internal-sftp and ``rclone serve sftp``: ``python -m benchmarks.sftp``.

Starts each server on a free port of 127.0.0.1 over the same folder, with keys of its own, and lets OpenSSH's client
fetch with AES-128-GCM, the servers in turn; prints the median of the times and its share of OpenSSH's. Needs sshd and
sftp (``apt-get install openssh-server openssh-client``); rclone is left out when it is not there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pwd
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "MEGA20261120-00.tsv.gz"
CIPHER = "aes128-gcm@openssh.com"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def wait_for(port: int) -> None:
    """Until something says hello there."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as sock:
                if sock.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


@contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server for the length of a block."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def ours(folder: Path, loop: str) -> Iterator[int]:
    """Our listener, on asyncio's loop or on uvloop."""
    with running(sys.executable, "-m", "benchmarks.sftp", "--serve", str(folder), "--loop", loop) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextmanager
def openssh(folder: Path) -> Iterator[int]:
    """sshd with internal-sftp, as it is delivered but for its place and its keys."""
    port = free_port()
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or "sshd"
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/keys/ssh_host_ed25519_key\n"
        f"AuthorizedKeysFile {folder}/client.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
        f"PasswordAuthentication no\nSubsystem sftp internal-sftp -d {folder}/pickup\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with running(sshd, "-D", "-f", str(config)):
        wait_for(port)
        yield port


@contextmanager
def rclone(folder: Path) -> Iterator[int]:
    """rclone serve sftp."""
    port = free_port()
    with running(
        *("rclone", "serve", "sftp", str(folder / "pickup"), f"--addr=127.0.0.1:{port}"),
        *(f"--authorized-keys={folder}/client.pub", f"--key={folder}/keys/ssh_host_rsa_key", "--read-only"),
    ):
        wait_for(port)
        yield port


def fetch(folder: Path, port: int, names: list[str]) -> float:
    """Seconds for as many clients at once as there are names, each fetching its file to /dev/null."""
    command = [
        *("sftp", "-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
        *("-o", f"Ciphers={CIPHER}", "-o", "IdentitiesOnly=yes", "-i", str(folder / "client"), "-P", str(port)),
    ]
    user = pwd.getpwuid(os.geteuid()).pw_name
    started = time.monotonic()
    clients = [
        subprocess.Popen([*command, f"{user}@127.0.0.1:{name}", "/dev/null"], stdout=subprocess.DEVNULL)
        for name in names
    ]
    if any(client.wait() for client in clients):
        raise SystemExit(f"a client of port {port} failed")
    return time.monotonic() - started


def compare(folder: Path, ports: dict[str, int], names: list[str], pairs: int) -> dict[str, float]:
    """Each server in turn, so often; the medians, and each server's median share of OpenSSH's time."""
    size = sum((folder / "pickup" / name).stat().st_size for name in names)
    times: dict[str, list[float]] = {server: [] for server in ports}
    for port in ports.values():
        fetch(folder, port, names[:1])
    for turn in range(pairs):
        order = list(ports) if turn % 2 == 0 else list(reversed(ports))
        for server in order:
            times[server].append(fetch(folder, ports[server], names))
    shares = {}
    for server, seconds in times.items():
        median = statistics.median(seconds)
        shares[server] = statistics.median(a / b for a, b in zip(seconds, times["OpenSSH"], strict=True))
        rate = size / median / 1e6
        print(f"  {server:<20} {median:7.3f} s {rate:8.0f} MB/s   {shares[server]:5.2f} of OpenSSH's time", flush=True)
    return shares


def prepare(folder: Path, megabytes: int, parallel: int) -> list[str]:
    """Keys, and files of random bytes; gives the names: the large one, then those for several clients."""
    from server.sftp.keys import make_keys

    make_keys(folder / "keys")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "client"], check=True)
    pickup = folder / "pickup"
    pickup.mkdir()
    sizes = [megabytes, *[megabytes * 3 // 10] * parallel]
    names = [f"MEGA202611{20 - number:02d}-00.tsv.gz" for number in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        with (pickup / name).open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(1_000_000))
    return names


async def serve(folder: Path) -> None:
    """Our listener over the folder, until it is stopped; prints the port."""
    import structlog

    from server.settings import SftpSettings, UserSettings
    from server.sftp.keys import load_credentials
    from server.sftp.server import SftpServer
    from server.sftp.users import Access, User
    from server.triton import LogFile, LogName

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    pickup = folder / "pickup"
    files = {}
    for path in pickup.iterdir():
        name = LogName.parse(path.name)
        if name is not None:
            files[path.name] = LogFile(name, path.stat().st_size, int(path.stat().st_mtime))
    user = UserSettings(name=pwd.getpwuid(os.geteuid()).pw_name, authorized_keys=folder / "client.pub")
    settings = SftpSettings(host="127.0.0.1", port=0, users=[user])
    credentials = load_credentials(settings, folder / "keys")
    assert isinstance(credentials.access, Access)
    assert all(isinstance(one, User) for one in credentials.access.users.values())
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    server = SftpServer(
        settings,
        credentials,
        list_files=lambda: files,
        open_file=lambda file: os.open(pickup / str(file.name), flags),
    )
    await server.start()
    print(server.port, flush=True)
    await server.wait()


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="of the one large file; the four have 3/10 of it")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--json", action="store_true", help="also print the shares as JSON, last")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        if arguments.loop == "uvloop":
            import uvloop

            uvloop.run(serve(arguments.serve))
        else:
            asyncio.run(serve(arguments.serve))
        return
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        names = prepare(folder, arguments.megabytes, arguments.parallel)
        ports = {"OpenSSH": stack.enter_context(openssh(folder))}
        ports["pickup-point"] = stack.enter_context(ours(folder, arguments.loop))
        if shutil.which("rclone"):
            ports["rclone serve sftp"] = stack.enter_context(rclone(folder))
        print(f"one client, {arguments.megabytes} MB, {CIPHER}, median of {arguments.pairs}:")
        one = compare(folder, ports, names[:1], arguments.pairs)
        print(f"{arguments.parallel} clients at once, {arguments.megabytes * 3 // 10} MB each:")
        many = compare(folder, ports, names[1:], arguments.pairs)
    if arguments.json:
        print(json.dumps({"one": one, "many": many}))


if __name__ == "__main__":
    main()
