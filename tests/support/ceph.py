"""A one-node Ceph object store on loopback: a monitor, an in-memory disk and radosgw, which speaks S3.

Starts Debian's own programs as this user, on free ports of 127.0.0.1, in a scratch folder; `Ceph.up` gives it and
leaves no process behind. Where a program is missing, `missing_packages` says what to install.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROGRAMS = {
    "ceph": "ceph-common",
    "monmaptool": "ceph-common",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "radosgw": "radosgw",
    "radosgw-admin": "radosgw",
}
OWNER = ("CEPHOWNERKEY", "owner-secret-of-the-test")
READER = ("CEPHREADERKEY", "reader-secret-of-the-test")
STRANGER = ("CEPHSTRANGER", "stranger-secret-of-the-test")


def missing_packages() -> str | None:
    """A sentence with the Debian packages that the tests lack, or None."""
    packages = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if not packages:
        return None
    return f"Ceph is not installed; type: apt-get install --no-install-recommends {' '.join(packages)}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


# One copy of everything, few placement groups, no authentication among the daemons, no second protocol. Without the
# gateway's cache nothing waits for a killed gateway to acknowledge changes (half a minute each).
_SETTINGS = """
[global]
fsid = {fsid}
mon initial members = m
mon host = [v1:127.0.0.1:{mon_port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr2 = false
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
pid file = {folder}/$name.pid
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
mon data = {folder}/mon
mon data avail crit = 1
paxos propose interval = 0.1
mon allow pool size one = true
mon max pg per osd = 1000
osd data = {folder}/osd
osd objectstore = memstore
osd class update on start = false
osd crush update on start = false
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
memstore device bytes = 2147483648
osd memory target = 939524096
[client.rgw.g]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw thread pool size = 32
rgw cache enabled = false
"""


@dataclass
class Ceph:
    """A running store. `kill_gateway` and `start_gateway` take radosgw away and bring it back."""

    folder: Path
    port: int = field(default_factory=_free_port)
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The S3 endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @classmethod
    @contextmanager
    def up(cls, folder: Path) -> Iterator[Ceph]:
        """A store with three users: `OWNER`, `READER` and `STRANGER`."""
        with ExitStack() as stack:
            ceph = cls(folder)
            stack.callback(ceph._down)
            ceph._start()
            yield ceph

    def _start(self) -> None:
        mon_port, fsid = _free_port(), str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir()
        text = _SETTINGS.format(fsid=fsid, mon_port=mon_port, folder=self.folder, port=self.port)
        (self.folder / "ceph.conf").write_text(text)
        monmap = str(self.folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "m", f"[v1:127.0.0.1:{mon_port}]", monmap)
        self._run("ceph-mon", "--mkfs", "-i", "m", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "m", ready=lambda: True)
        disk = str(uuid.uuid4())
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=h", "root=default")
        self._daemon("ceph-osd", "-i", "0", ready=self._disk_is_up)
        for name, (access_key, secret_key) in {"owner": OWNER, "reader": READER, "stranger": STRANGER}.items():
            keys = ("--access-key", access_key, "--secret-key", secret_key)
            self._run("radosgw-admin", "user", "create", "--uid", name, "--display-name", name, *keys)
        self.start_gateway()

    def start_gateway(self) -> None:
        """Start radosgw and wait until it answers."""
        self._daemon("radosgw", "-n", "client.rgw.g", ready=self._gateway_answers)

    def _disk_is_up(self) -> bool:
        state = json.loads(self._run("ceph", "osd", "stat", "--format", "json"))
        return bool(state["num_up_osds"] == 1)

    def _gateway_answers(self) -> bool:
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(self.url, timeout=2).close()
            return True
        return False

    def kill_gateway(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        daemon = self._daemons.pop("radosgw")
        daemon.kill()
        daemon.wait(10)

    def freeze_gateway(self) -> None:
        """SIGSTOP: its connections stay open, and nothing answers on them."""
        self._daemons["radosgw"].send_signal(signal.SIGSTOP)

    def thaw_gateway(self) -> None:
        """SIGCONT: it goes on where it stood."""
        self._daemons["radosgw"].send_signal(signal.SIGCONT)

    def read_policy(self, bucket: str) -> str:
        """The bucket policy that gives `READER` what the manual asks for, and no more."""
        rights = {"s3:ListBucket": f"arn:aws:s3:::{bucket}", "s3:GetObject": f"arn:aws:s3:::{bucket}/*"}
        who = {"AWS": ["arn:aws:iam:::user/reader"]}
        statements = [
            {"Effect": "Allow", "Principal": who, "Action": action, "Resource": resource}
            for action, resource in rights.items()
        ]
        return json.dumps({"Version": "2012-10-17", "Statement": statements})

    # A Ceph 16 client may speak to the monitor before it knows the cluster's id, and is sent away ("wrong fsid"):
    # commands are repeated, and daemons that ended at their start are started again.

    def _run(self, program: str, *args: str) -> bytes:
        settings = [] if program == "monmaptool" else ["-c", str(self.folder / "ceph.conf")]
        with (self.folder / "commands.err").open("ab") as errors:
            for last in (False, False, False, False, True):
                done = subprocess.run(
                    [program, *settings, *args],
                    check=last,
                    timeout=60,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=self._environment,
                )
                if done.returncode == 0:
                    break
                time.sleep(0.3)
        return done.stdout

    def _daemon(self, program: str, *args: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        daemon: subprocess.Popen[bytes] | None = None
        while time.monotonic() < deadline:
            if daemon is None or daemon.poll() is not None:
                with (self.folder / f"{program}.out").open("ab") as out:
                    self._daemons[program] = daemon = subprocess.Popen(
                        [program, "-c", str(self.folder / "ceph.conf"), *args, "-f"],
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=out,
                        env=self._environment,
                        start_new_session=True,
                    )
            if ready():
                return
            time.sleep(0.1)
        raise TimeoutError(f"{program} does not come up: see {self.folder}/*.log")

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"CEPH_CONF": str(self.folder / "ceph.conf")}

    def _down(self) -> None:
        while self._daemons:
            _, daemon = self._daemons.popitem()  # the gateway first, the monitor last
            daemon.send_signal(signal.SIGKILL)  # nothing in there is worth an orderly stop
            daemon.wait(10)
