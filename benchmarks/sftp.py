"""How fast a file leaves, beside OpenSSH's internal-sftp and ``rclone serve sftp``: ``python -m benchmarks.sftp``.

Starts each server on a free port of 127.0.0.1 over the same folder, with the same host keys, and lets each client fetch
with the cipher that it negotiates by itself, the servers in turn; prints that cipher, the median of the times and its
share of the time with OpenSSH's server, which should be at most `MOST_ONE` for one client and `MOST_MANY` for four at
once. OpenSSH's client fetches once more with AES-128-GCM, which it would choose last.

Needs sshd and sftp (``apt-get install openssh-server openssh-client``). The other clients (psftp of putty-tools, JSch
of libjsch-java with a JDK, paramiko) and rclone's server are left out when they are not there. Our server has
``legacy_algorithms``, without which JSch 0.1.5x cannot connect; it changes nothing for the others.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import pwd
import re
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
    from collections.abc import Callable, Iterator

    from server.sftp.registry import Login

GCM = "aes128-gcm@openssh.com"
JSCH = Path("/usr/share/java/jsch.jar")
MOST_ONE, MOST_MANY = 0.95, 1.0
TINY = "MEGA20261101-00.tsv.gz"  # fetched to see what is negotiated
USER = pwd.getpwuid(os.geteuid()).pw_name


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
def openssh(folder: Path, level: str = "INFO") -> Iterator[int]:
    """sshd with internal-sftp, as it is delivered but for its place and its keys; its log is ``sshd.log``."""
    port = free_port()
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or "sshd"
    config = folder / "sshd_config"
    host_keys = "".join(f"HostKey {folder}/keys/ssh_host_{kind}_key\n" for kind in ("ed25519", "ecdsa", "rsa"))
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\n{host_keys}LogLevel {level}\n"
        f"AuthorizedKeysFile {folder}/client.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
        f"PasswordAuthentication no\nSubsystem sftp internal-sftp -d {folder}/pickup\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with running(sshd, "-D", "-E", str(folder / "sshd.log"), "-f", str(config)):
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


class Clients:
    """The clients that are installed: for each the command that fetches a file from a port and throws it away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: dict[str, Callable[[int, str], list[str]]] = {
            "OpenSSH": self._openssh,
            "OpenSSH, AES-128-GCM": lambda port, name: self._openssh(port, name, "-o", f"Ciphers={GCM}"),
        }
        if shutil.which("psftp") and shutil.which("puttygen"):
            private = ["puttygen", folder / "client", "-O", "private", "-o", folder / "client.ppk"]
            subprocess.run(private, check=True)
            self.commands["PuTTY"] = self._putty
        if importlib.util.find_spec("paramiko"):
            self.commands["paramiko"] = self._paramiko
        if shutil.which("javac") and JSCH.exists():
            source = Path(__file__).with_name("JschFetch.java")
            subprocess.run(["javac", "-cp", JSCH, "-d", folder / "java", source], check=True)
            self.commands["JSch"] = self._jsch

    def _openssh(self, port: int, name: str, *options: str) -> list[str]:
        return [
            *("sftp", "-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "-i", str(self.folder / "client"), *options),
            *("-P", str(port), f"{USER}@127.0.0.1:{name}", "/dev/null"),
        ]

    def _putty(self, port: int, name: str) -> list[str]:
        batch = self.folder / f"{name}.batch"
        batch.write_text(f"get {name} /dev/null\n")
        prints = []
        for key in (self.folder / "keys").glob("ssh_host_*_key"):
            line = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True).stdout
            prints += ["-hostkey", line.split()[1]]
        return [
            *("psftp", "-batch", *prints, "-P", str(port), "-i", str(self.folder / "client.ppk"), "-b", str(batch)),
            f"{USER}@127.0.0.1",
        ]

    def _paramiko(self, port: int, name: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks.sftp", "--paramiko", str(port), str(self.folder / "client"), name]

    def _jsch(self, port: int, name: str) -> list[str]:
        return [
            *("java", "-cp", f"{JSCH}:{self.folder / 'java'}", "JschFetch", str(port), USER),
            *(str(self.folder / "client"), name),
        ]

    def fetch(self, client: str, port: int, names: list[str]) -> float:
        """Return the seconds for as many of a client at once as there are names, each fetching its file."""
        commands = [self.commands[client](port, name) for name in names]
        started = time.monotonic()
        processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
        statuses = [process.wait() for process in processes]  # of all: the time is that of the last
        if any(statuses):
            raise SystemExit(f"{client} failed at port {port}")
        return time.monotonic() - started

    def negotiated(self, client: str, ours: int) -> tuple[str, str]:
        """Return the cipher and the MAC that a client negotiates by itself, with OpenSSH's server and with ours."""
        with openssh(self.folder, "DEBUG1") as port:
            self.fetch(client, port, [TINY])
        found = re.findall(r"server->client cipher: (\S+) MAC: (\S+)", (self.folder / "sshd.log").read_text())
        self.fetch(client, ours, [TINY])
        return " ".join(found[-1]), (self.folder / "logins").read_text().splitlines()[-1]


def fetch_with_paramiko(port: int, key: Path, name: str) -> None:
    """Fetch a file as a program with paramiko's defaults does."""
    import paramiko

    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect("127.0.0.1", port, USER, key_filename=str(key), look_for_keys=False, allow_agent=False)
    with client, client.open_sftp() as sftp, Path(os.devnull).open("wb") as nowhere:
        sftp.getfo(name, nowhere)


def compare(clients: Clients, client: str, ports: dict[str, int], names: list[str], pairs: int) -> dict[str, float]:
    """Fetch from each server in turn, so often; print the medians; return each server's share of OpenSSH's time."""
    size = sum((clients.folder / "pickup" / name).stat().st_size for name in names)
    times: dict[str, list[float]] = {server: [] for server in ports}
    for turn in range(pairs):
        order = list(ports) if turn % 2 == 0 else list(reversed(ports))
        for server in order:
            times[server].append(clients.fetch(client, ports[server], names))
    shares = {}
    for server, seconds in times.items():
        median = statistics.median(seconds)
        shares[server] = statistics.median(a / b for a, b in zip(seconds, times["OpenSSH"], strict=True))
        rate = size / median / 1e6
        print(f"  {server:<20} {median:7.3f} s {rate:8.0f} MB/s   {shares[server]:5.2f} of OpenSSH's time", flush=True)
    return shares


def prepare(folder: Path, megabytes: int, parallel: int) -> list[str]:
    """Make keys, and files of random bytes; return the names: the large one, then those for several clients."""
    from server.sftp.keys import make_keys

    make_keys(folder / "keys")
    # In PEM, as the one kind of key that every client here can use.
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-f", folder / "client"], check=True)
    (folder / "java").mkdir()
    pickup = folder / "pickup"
    pickup.mkdir()
    (pickup / TINY).write_bytes(b"tiny")
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
    user = UserSettings(name=USER, authorized_keys=folder / "client.pub")
    settings = SftpSettings(host="127.0.0.1", port=0, users=[user], legacy_algorithms=True)
    credentials = load_credentials(settings, folder / "keys")
    assert isinstance(credentials.access, Access)
    assert all(isinstance(one, User) for one in credentials.access.users.values())
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

    def on_login(login: Login) -> None:
        with (folder / "logins").open("a") as logins:
            logins.write(f"{login.cipher} {'<implicit>' if login.mac == login.cipher else login.mac}\n")

    server = SftpServer(
        settings,
        credentials,
        list_files=lambda: files,
        open_file=lambda file: os.open(pickup / str(file.name), flags),
        on_login=on_login,
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
    parser.add_argument("--client", action="append", help="only this one, as it is printed; may be repeated")
    parser.add_argument("--json", action="store_true", help="also print the shares as JSON, last")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--paramiko", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.paramiko:
        port, key, name = arguments.paramiko
        fetch_with_paramiko(int(port), Path(key), name)
        return
    if arguments.serve:
        if arguments.loop == "uvloop":
            import uvloop

            uvloop.run(serve(arguments.serve))
        else:
            asyncio.run(serve(arguments.serve))
        return
    report = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        names = prepare(folder, arguments.megabytes, arguments.parallel)
        clients = Clients(folder)
        ports = {"OpenSSH": stack.enter_context(openssh(folder))}
        ports["pickup-point"] = stack.enter_context(ours(folder, arguments.loop))
        if shutil.which("rclone"):
            ports["rclone serve sftp"] = stack.enter_context(rclone(folder))
        for client in clients.commands:
            if arguments.client and client not in arguments.client:
                continue
            # rclone offers JSch 0.1.5x no host key that it knows.
            servers = {server: port for server, port in ports.items() if client != "JSch" or "rclone" not in server}
            theirs, here = clients.negotiated(client, ports["pickup-point"])
            print(f"{client}: {theirs} with OpenSSH, {here} with pickup-point")
            print(f" one client, {arguments.megabytes} MB, median of {arguments.pairs}:")
            one = compare(clients, client, servers, names[:1], arguments.pairs)
            print(f" {arguments.parallel} clients at once, {arguments.megabytes * 3 // 10} MB each:")
            many = compare(clients, client, servers, names[1:], arguments.pairs)
            report[client] = {"openssh": theirs, "pickup-point": here, "one": one, "many": many}
            for what, shares, most in (("one client", one, MOST_ONE), ("several", many, MOST_MANY)):
                if shares["pickup-point"] > most:
                    print(
                        f" {what}: {shares['pickup-point']:.2f} of OpenSSH's time, above the {most:.2f} that is wanted"
                    )
    if arguments.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
