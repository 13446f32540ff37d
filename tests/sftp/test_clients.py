"""The clients that a partner may have: each fetches a whole file, is refused cleanly, and goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh
import paramiko
import pytest

from server.megaphone.exports import DayExport
from server.pickups import Grade
from server.settings import UserSettings
from server.storage.ledger import Ledger
from server.storage.records import LedgerLog, Publication
from server.triton import LogRules

from ..support.between import HeldAnswers
from ..support.sftp import NAME, PASSWORD, REKEYED, RawSftp, Running, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

CLIENTS = Path(__file__).parent / "clients"
JSCH = Path("/usr/share/java/jsch.jar")
JSCH_PULL = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", str(JSCH), str(CLIENTS / "JschPull.java")]
SIZE = 5_000_011


def needs(*programs: str, package: str) -> Any:
    """Skip without the programs, and say how to get them."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is missing: apt-get install {package}")


class Partner:
    """A partner's folder and programs, beside a running listener."""

    def __init__(self, listener: Running, home: Path, served_by_key: list[int]) -> None:
        self.listener = listener
        self.served_by_key = served_by_key
        self.home = home
        self.network = 0  # the port of a network in between, if there is one
        self.content = listener.served.add(NAME, os.urandom(SIZE))
        self.before = listener.served.state()
        askpass = home / "askpass"
        askpass.write_text(f"#!/bin/sh\necho '{PASSWORD}'\n")
        askpass.chmod(0o700)
        (home / "upload.gz").write_bytes(b"u" * 100_000)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.fspath(home),
            "SSH_ASKPASS": os.fspath(askpass),
            "SSH_ASKPASS_REQUIRE": "force",
            "RCLONE_CONFIG": "/dev/null",
        }

    @property
    def port(self) -> str:
        return str(self.network or self.listener.port)

    async def start(self, *command: str, **environment: str) -> asyncio.subprocess.Process:
        """Start a client in its home, in a session of its own."""
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.home,
            env=self.environment | environment,
            start_new_session=True,
        )

    async def run(self, *command: str, stdin: str = "", **environment: str) -> tuple[int, str]:
        """Run a client in its home; return the exit status, and both outputs as one text."""
        process = await self.start(*command, **environment)
        async with asyncio.timeout(60):
            output, _ = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return process.returncode, output.decode("utf-8", "replace")

    def got(self, *names: str) -> None:
        """Check that the fetched files are whole."""
        for name in names:
            assert (self.home / name).read_bytes() == self.content, name

    async def unharmed(self, pickups: int) -> None:
        """Check that this many complete pickups were reported, and that nothing was changed."""
        async with asyncio.timeout(10):
            while len(self.complete) < pickups:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert self.listener.served.state() == self.before
        assert sum(served > REKEYED // 2 for served in self.served_by_key) >= pickups, "keys were renewed meanwhile"

    async def begin(self, target: str, size: int) -> None:
        """Fetch the first ``size`` bytes into a file, as a client does whose connection is cut then."""
        connection = await self.listener.connect()
        raw = await RawSftp.open(connection)
        handle = await raw.open_file(NAME)
        with (self.home / target).open("wb") as file:
            while file.tell() < size:
                file.write(await raw.read(handle, file.tell(), min(100_000, size - file.tell())) or b"")
        connection.abort()
        await connection.wait_closed()
        await self.listener.finished_pickups()

    async def kill(self, command: Callable[[], list[str]], target: str, size: int) -> None:
        """Kill a client when ``target`` has more than ``size`` bytes, and has answered for none beyond ``size``."""
        async with (network := HeldAnswers(self.listener.port, size)) as self.network:
            process = await self.start(*command())
            async with asyncio.timeout(30):
                await network.held.wait()
                (connection,) = self.listener.server.registry.connections()
                stream = connection.stream
                # All of it: a client that lives for some milliseconds longer may write what is on its way.
                while stream.acknowledged() < stream.written or (self.home / target).stat().st_size <= size:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()
        self.network = 0
        await self.listener.finished_pickups()

    async def has_all(self, handles: int) -> None:
        """Check that this many handles together make the file picked up."""
        with closing(Ledger.open(self.home / "ledger.sqlite3")) as ledger:
            size, now = len(self.content), datetime.now(UTC)
            (entry,) = self.listener.served.files.values()
            log = LedgerLog(entry.name, 0, size, "", 1, 1, "published")
            export = DayExport(entry.name.day, "", "", 0, now)
            ledger.adopt(Publication(0, entry.name.day, "adopted", export, LogRules(), None, now, now), [log])
            async with asyncio.timeout(10):
                while True:
                    for pickup in list(self.listener.pickups):
                        ledger.pickups.record(pickup)
                    (found,) = ledger.pickups.delivered([entry.name])
                    if found.completed is not None:
                        break
                    await asyncio.sleep(0.02)
        assert found.handles >= handles and found.addresses == ("127.0.0.1",)
        assert self.listener.served.state() == self.before

    @property
    def complete(self) -> list[Any]:
        return [pickup for pickup in self.listener.finished if pickup.grade is Grade.COMPLETE]


@pytest.fixture
async def partner(
    tmp_path: Path, keys_dir: Path, served_by_key: list[int], request: pytest.FixtureRequest
) -> AsyncIterator[Partner]:
    """A partner whose server renews its keys in the middle of each file; the parameter is more of its settings."""
    home = tmp_path / "home"
    home.mkdir()
    async with running(tmp_path, keys_dir, **getattr(request, "param", {})) as it:
        yield Partner(it, home, served_by_key)


OPENSSH = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]


@needs("sftp", package="openssh-client")
async def test_openssh_sftp(partner: Partner) -> None:
    """sftp lists, fetches, is refused rm, rename, put, mkdir and ln, and fetches again in the same session."""
    refused = f"-rm {NAME}\n-rename {NAME} x\n-put upload.gz\n-mkdir d\n-ln {NAME} l\n-df\n"
    (partner.home / "batch").write_text(f"ls -l\nget {NAME} one\n{refused}get {NAME} two\n")
    status, output = await partner.run(
        *("sftp", *OPENSSH, "-oBatchMode=no", "-P", partner.port, "-b", "batch", "triton@127.0.0.1")
    )
    assert status == 0, output
    assert "-r--r-----    1 pickup   pickup " in output
    assert output.count("Permission denied") >= 3
    partner.got("one", "two")
    await partner.unharmed(2)


@needs("scp", package="openssh-client")
async def test_openssh_scp(partner: Partner) -> None:
    """scp fetches over SFTP, is refused the upload, and the old protocol ends with exit status 1."""
    remote = f"triton@127.0.0.1:{NAME}"
    status, output = await partner.run("scp", *OPENSSH, "-P", partner.port, remote, "one")
    assert status == 0, output
    partner.got("one")
    status, output = await partner.run("scp", *OPENSSH, "-P", partner.port, "upload.gz", "triton@127.0.0.1:x")
    assert status != 0
    assert "ermission denied" in output
    status, output = await partner.run("scp", "-O", *OPENSSH, "-P", partner.port, remote, "two")
    assert status != 0
    await partner.unharmed(1)


@needs("lftp", package="lftp")
async def test_lftp(partner: Partner) -> None:
    """lftp fetches, mirrors, and is refused rm, mv and put."""
    script = (
        "set sftp:auto-confirm yes; set net:max-retries 1; set cmd:fail-exit no; set sftp:connect-program "
        f"'ssh -a -x -oUserKnownHostsFile=/dev/null -oStrictHostKeyChecking=no'; ls; get {NAME} -o one; rm {NAME}; "
        f"mv {NAME} x; put upload.gz; mirror / mirrored; get {NAME} -o two; rm {NAME}; echo over; bye"
    )  # lftp sends the CLOSE of a file with its next request, or not at all when "bye" comes first
    status, output = await partner.run(
        "lftp", "-u", f"triton,{PASSWORD}", "-e", script, f"sftp://127.0.0.1:{partner.port}"
    )
    assert status == 0, output
    assert output.count("Permission denied") >= 3
    partner.got("one", "two", f"mirrored/{NAME}")
    await partner.unharmed(3)


def lftp(partner: Partner, commands: str) -> list[str]:
    connect = "ssh -a -x -oUserKnownHostsFile=/dev/null -oStrictHostKeyChecking=no"
    script = f"set sftp:auto-confirm yes; set net:max-retries 1; set sftp:connect-program '{connect}'; {commands}; bye"
    return ["lftp", "-u", f"triton,{PASSWORD}", "-e", script, f"sftp://127.0.0.1:{partner.port}"]


def psftp(partner: Partner, batch: str) -> list[str]:
    key = asyncssh.read_private_key(partner.listener.keys_dir / "ssh_host_ed25519_key")
    (partner.home / "batch").write_text(batch)
    options = ("-batch", "-P", partner.port, "-pw", PASSWORD, "-hostkey", key.convert_to_public().get_fingerprint())
    return ["psftp", *options, "-b", "batch", "triton@127.0.0.1"]


def openssh(partner: Partner, batch: str) -> list[str]:
    (partner.home / "batch").write_text(batch)
    return ["sftp", *OPENSSH, "-oBatchMode=no", "-P", partner.port, "-b", "batch", "triton@127.0.0.1"]


def curl(partner: Partner, *options: str) -> list[str]:
    return ["curl", "-sS", "-k", "-u", f"triton:{PASSWORD}", *options, f"sftp://127.0.0.1:{partner.port}/{NAME}"]


@pytest.mark.parametrize("program", [
    pytest.param(lambda it: openssh(it, f"reget {NAME} one\n"), marks=needs("sftp", package="openssh-client")),
    pytest.param(lambda it: psftp(it, f"reget {NAME} one\n"), marks=needs("psftp", package="putty-tools")),
    pytest.param(lambda it: lftp(it, f"get -c {NAME} -o one"), marks=needs("lftp", package="lftp")),
    pytest.param(lambda it: curl(it, "-C", "-", "-o", "one"), marks=needs("curl", package="curl")),
], ids=["sftp reget", "psftp reget", "lftp get -c", "curl -C -"])  # fmt: skip
async def test_a_resumed_download_is_a_pickup(partner: Partner, program: Callable[[Partner], list[str]]) -> None:
    """A connection that was cut after two fifths, and a client that fetches the rest: together the whole file."""
    await partner.begin("one", 2_000_000)
    status, output = await partner.run(*program(partner))
    assert status == 0, output
    partner.got("one")
    await partner.has_all(2)
    assert partner.complete == []


@pytest.mark.parametrize(("first", "second"), [
    pytest.param(lambda it: openssh(it, f"get {NAME} one\n"), lambda it: openssh(it, f"reget {NAME} one\n"),
                 marks=needs("sftp", package="openssh-client"), id="sftp"),
    pytest.param(lambda it: psftp(it, f"get {NAME} one\n"), lambda it: psftp(it, f"reget {NAME} one\n"),
                 marks=needs("psftp", package="putty-tools"), id="psftp"),
    pytest.param(lambda it: lftp(it, f"get {NAME} -o one"), lambda it: lftp(it, f"get -c {NAME} -o one"),
                 marks=needs("lftp", package="lftp"), id="lftp"),
    pytest.param(lambda it: curl(it, "-o", "one"), lambda it: curl(it, "-C", "-", "-o", "one"),
                 marks=needs("curl", package="curl"), id="curl"),
])  # fmt: skip
async def test_a_client_that_was_killed_and_resumes_has_it_all(
    partner: Partner,
    first: Callable[[Partner], list[str]],
    second: Callable[[Partner], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was killed with more on its disk than it had answered for, and shows by where it goes on what it has."""
    # No renewal of keys, during which nobody can say what has left.
    monkeypatch.setattr("server.sftp.connection.REKEY_BYTES", 1 << 35)
    server = partner.listener.server
    server.replace(server.settings, server._credentials)
    await partner.kill(lambda: first(partner), "one", 1_000_000)
    had = (partner.home / "one").stat().st_size
    (pickup,) = partner.listener.finished
    # On a busy machine it may have been killed before any of its answers came through.
    assert max((end for _, end in pickup.ranges), default=0) < had, "the client has more than is proven"
    status, output = await partner.run(*second(partner))
    assert status == 0, output
    partner.got("one")
    await partner.has_all(2)
    assert partner.complete == []


@needs("lftp", package="lftp")
async def test_a_file_fetched_in_parallel_ranges_is_a_pickup(partner: Partner) -> None:
    """lftp's pget: four connections, each with a part of the file, and the first may read on into the others'."""
    status, output = await partner.run(*lftp(partner, f"set pget:min-chunk-size 100k; pget -n 4 {NAME} -o one"))
    assert status == 0, output
    partner.got("one")
    await partner.has_all(1)


async def remote_of(partner: Partner) -> list[str]:
    """Return rclone's options for the partner's server and login."""
    _, obscured = await partner.run("rclone", "obscure", PASSWORD)
    return ["--sftp-host=127.0.0.1", f"--sftp-port={partner.port}", "--sftp-user=triton",
            f"--sftp-pass={obscured.strip()}"]  # fmt: skip


@needs("rclone", package="rclone")
async def test_rclone_in_streams(partner: Partner) -> None:
    """Ranges of the file over several handles at once."""
    streams = ["--multi-thread-cutoff=1M", "--multi-thread-streams=4"]
    status, output = await partner.run("rclone", "copyto", f":sftp:{NAME}", "one", *await remote_of(partner), *streams)
    assert status == 0, output
    partner.got("one")
    await partner.has_all(2)


@needs("rclone", package="rclone")
async def test_rclone(partner: Partner) -> None:
    """rclone copies, finds nothing new the second time, and is refused delete, move and upload."""
    remote, once = await remote_of(partner), ["--retries=1", "--low-level-retries=1"]
    for _ in range(2):
        status, output = await partner.run("rclone", "copy", ":sftp:", "copied", *remote, *once)
        assert status == 0, output
    partner.got(f"copied/{NAME}")
    for command in (
        ["deletefile", f":sftp:{NAME}"],
        ["moveto", f":sftp:{NAME}", ":sftp:x"],
        ["copy", "upload.gz", ":sftp:"],
    ):
        status, output = await partner.run("rclone", *command, *remote, *once)
        assert status != 0, output
        assert "denied" in output.lower(), output
    await partner.unharmed(1)


@needs("psftp", "ssh-keygen", package="putty-tools openssh-client")
async def test_putty_psftp(partner: Partner) -> None:
    """psftp fetches, is refused rm, mv and put, and fetches again in the same session."""
    key = asyncssh.read_private_key(partner.listener.keys_dir / "ssh_host_ed25519_key")
    fingerprint = key.convert_to_public().get_fingerprint()
    (partner.home / "batch").write_text(f"ls\nget {NAME} one\nrm {NAME}\nmv {NAME} x\nput upload.gz\nget {NAME} two\n")
    status, output = await partner.run(
        *("psftp", "-batch", "-be", "-P", partner.port, "-pw", PASSWORD, "-hostkey", fingerprint, "-b", "batch"),
        "triton@127.0.0.1",
    )
    assert output.count("permission denied") == 3, output
    assert status == 0
    partner.got("one", "two")
    await partner.unharmed(2)


def _curl_speaks_sftp() -> bool:
    curl = shutil.which("curl")
    return (
        curl is not None and "sftp" in subprocess.run([curl, "-V"], capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.skipif(not _curl_speaks_sftp(), reason="curl with SFTP is missing: apt-get install curl")
async def test_curl(partner: Partner) -> None:
    """curl (libssh2) lists and fetches, and is refused rm, rename and upload."""
    base = ["curl", "-sS", "-k", "-u", f"triton:{PASSWORD}"]
    url = f"sftp://127.0.0.1:{partner.port}/"
    status, output = await partner.run(*base, url)
    assert status == 0
    assert NAME in output
    status, output = await partner.run(*base, "-o", "one", url + NAME)
    assert status == 0, output
    partner.got("one")
    for command in (["-Q", f"rm /{NAME}", url], ["-Q", f"rename /{NAME} /x", url], ["-T", "upload.gz", url]):
        status, output = await partner.run(*base, *command)
        assert status != 0, output
        assert "denied" in output.lower(), output
    await partner.unharmed(1)


async def test_paramiko(partner: Partner) -> None:
    """paramiko prefetches, is refused remove, rename and put, and fetches again in the same session."""

    def pull() -> None:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        client.connect(
            "127.0.0.1", partner.listener.port, "triton", PASSWORD, look_for_keys=False, allow_agent=False, timeout=10
        )
        with client, client.open_sftp() as sftp:
            assert sftp.listdir() == [NAME]
            sftp.get(NAME, str(partner.home / "one"))
            for attempt in (
                lambda: sftp.remove(NAME),
                lambda: sftp.rename(NAME, "x"),
                lambda: sftp.put(str(partner.home / "upload.gz"), "upload.gz"),
                lambda: sftp.chmod(NAME, 0o777),
                lambda: sftp.truncate(NAME, 0),
                lambda: sftp.utime(NAME, (0, 0)),
                lambda: sftp.mkdir("d"),
            ):
                with pytest.raises(PermissionError):
                    attempt()
            sftp.get(NAME, str(partner.home / "two"))

    await asyncio.to_thread(pull)
    partner.got("one", "two")
    await partner.unharmed(2)


async def test_asyncssh(partner: Partner) -> None:
    """asyncssh fetches, is refused remove, rename and put, and fetches again in the same session."""
    async with partner.listener.connect() as connection, connection.start_sftp_client() as sftp:
        await sftp.get(NAME, partner.home / "one")
        for attempt in (sftp.remove(NAME), sftp.rename(NAME, "x"), sftp.put(partner.home / "upload.gz", "x")):
            with pytest.raises(asyncssh.SFTPPermissionDenied):
                await attempt
        await sftp.get(NAME, partner.home / "two")
    partner.got("one", "two")
    await partner.unharmed(2)


@cache
def _node_has_client() -> bool:
    node = shutil.which("node")
    return (
        node is not None
        and subprocess.run([node, "-e", "require('ssh2-sftp-client')"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(
    not _node_has_client(), reason="ssh2-sftp-client is missing: npm install --prefix DIR, NODE_PATH=DIR/node_modules"
)
async def test_node_ssh2_sftp_client(partner: Partner) -> None:
    """Node's client fetches in parallel pieces, is refused delete, rename and put, and fetches again."""
    status, output = await partner.run(
        *("node", str(CLIENTS / "node_pull.js"), partner.port, PASSWORD, NAME, "one"),
        NODE_PATH=os.environ.get("NODE_PATH", ""),
    )
    assert status == 0, output
    assert output.count("refused") == 3
    partner.got("one", "one.again")
    await partner.unharmed(2)


@pytest.mark.parametrize("partner", [{"legacy_algorithms": True}], indirect=True)
@needs("java", package="default-jdk-headless libjsch-java")
@pytest.mark.skipif(not JSCH.exists(), reason="JSch is missing: apt-get install libjsch-java")
async def test_jsch_with_legacy_algorithms(partner: Partner) -> None:
    """JSch 0.1.5x, which an old JVM client is likely to use, fetches, is refused, and fetches again in its session."""
    status, output = await partner.run(*JSCH_PULL, partner.port, PASSWORD, NAME, "one")
    assert status == 0, output
    assert output.count("refused 3") == 3
    partner.got("one", "one.again")
    await partner.unharmed(2)
    assert partner.listener.logins[0].client.startswith("JSCH-0.1.5")
    # It leaves with the code of a failed key exchange after a wrong password, which is not believed.
    assert partner.listener.server.registry.counters.refusals.keys() == {"wrong-password"}


@needs("java", package="default-jdk-headless libjsch-java")
@pytest.mark.skipif(not JSCH.exists(), reason="JSch is missing: apt-get install libjsch-java")
async def test_jsch_without_them_is_diagnosed(partner: Partner) -> None:
    """The default profile refuses it, and the service log names the setting that would help."""
    from structlog.testing import capture_logs

    with capture_logs() as entries:
        status, output = await partner.run(*JSCH_PULL, partner.port, PASSWORD, NAME, "one")
        await partner.listener.left_alone()
    assert status == 1
    assert "negotiation fail" in output
    (line,) = [entry for entry in entries if entry.get("reason") == "no-common-algorithm"]
    assert line["hint"] == "set legacy_algorithms = true in [sftp]"
    assert line["client"].startswith("JSCH-0.1.5")


@pytest.fixture(scope="module", params=[1, 7, 33])
def agent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path, Path]]:
    """An agent with this many keys: their number, its socket, and the public key of the last."""
    folder = tmp_path_factory.mktemp("agent")
    paths = [folder / f"key{number}" for number in range(request.param)]
    for path in paths:
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(path)
        path.chmod(0o600)
        key.write_public_key(folder / f"{path.name}.pub")
    socket = folder / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert process.poll() is None
            time.sleep(0.01)
        environment = {"PATH": os.environ["PATH"], "SSH_AUTH_SOCK": os.fspath(socket)}
        subprocess.run(["ssh-add", "-q", *paths], env=environment, check=True)
        yield request.param, socket, folder / f"{paths[-1].name}.pub"
    finally:
        process.terminate()
        process.wait()


def _pull_with_paramiko(port: str, target: Path) -> None:
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    client.connect("127.0.0.1", int(port), "triton", look_for_keys=False, timeout=10)
    with client, client.open_sftp() as sftp:
        sftp.get(NAME, str(target))


@needs("ssh-agent", "ssh-add", package="openssh-client")
@pytest.mark.parametrize(
    "client",
    [
        pytest.param("openssh", marks=needs("sftp", package="openssh-client")),
        "paramiko",
        pytest.param("node", marks=pytest.mark.skipif(not _node_has_client(), reason="ssh2-sftp-client is missing")),
        pytest.param("putty", marks=needs("psftp", package="putty-tools")),
    ],
)
async def test_an_agent_with_many_keys(
    client: str, agent: tuple[int, Path, Path], tmp_path: Path, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last of its keys gets in; those before it are no failures, and the 31st of them is a line."""
    count, socket, public = agent
    (home := tmp_path / "home").mkdir()
    (home / "batch").write_text(f"get {NAME} one\n")
    users = [UserSettings(name="triton", authorized_keys=public)]
    async with running(tmp_path, keys_dir, users=users, ban_after=1) as it:
        partner = Partner(it, home, [])
        here = ["-b", "batch", "-P", partner.port]
        fingerprint = asyncssh.read_private_key(keys_dir / "ssh_host_ed25519_key").get_fingerprint()
        commands = {
            "openssh": ["sftp", "-F/dev/null", *OPENSSH, *here, "triton@127.0.0.1"],
            "node": ["node", str(CLIENTS / "node_pull.js"), partner.port, "", NAME, "one"],
            "putty": ["psftp", "-batch", "-be", "-hostkey", fingerprint, *here, "triton@127.0.0.1"],
        }
        if client == "paramiko":
            monkeypatch.setenv("SSH_AUTH_SOCK", os.fspath(socket))
            await asyncio.to_thread(_pull_with_paramiko, partner.port, home / "one")
        else:
            there = {"SSH_AUTH_SOCK": os.fspath(socket), "NODE_PATH": os.environ.get("NODE_PATH", "")}
            status, output = await partner.run(*commands[client], **there)
            assert status == 0, output
        partner.got("one")
        assert [login.method for login in it.logins] == ["publickey"]
        assert it.server.registry.counters.refusals == ({"too-many-keys": 1} if count > 31 else {})
        assert it.server.registry.bans() == []
