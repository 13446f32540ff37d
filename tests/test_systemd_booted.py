"""The unit in a really booted systemd: installed as the README says, literally, on a fresh Debian 12.

One machine for all tests of this file; each begins with a service that runs.
"""

from __future__ import annotations

import re
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import pytest

from server.cli.samples import write_day

from .support import container
from .support.program import day_before, export_name, export_of, not_just_before

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date
    from pathlib import Path

    from .support.container import Machine

pytestmark = [
    pytest.mark.skipif(bool(container.why_not()), reason=container.why_not()),
    pytest.mark.timeout(600),  # pip's lines are typed twice where the README's have changed
]
SFTP = (
    "SSH_ASKPASS=/root/askpass SSH_ASKPASS_REQUIRE=force sftp -q -o StrictHostKeyChecking=yes"
    " -o UserKnownHostsFile=/root/known_hosts -o NumberOfPasswordPrompts=1 "
)


def name_of(day: object) -> str:
    return f"MEGA{str(day).replace('-', '')}-00.tsv.gz"


@cache
def large() -> date:
    """The day whose export is large enough for worker processes: final at any hour, asked for first by `installed`."""
    return day_before(2)


@cache
def small() -> date:
    """The day before."""
    return large() - timedelta(days=1)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, str]]:
    """A machine on which the README's lines were typed, and what they printed."""
    not_just_before("00:00", 60)
    folder = tmp_path_factory.mktemp("booted")
    yours, key, rest = container.blocks("Install for real")[:3]
    clone = container.clone(folder / "clone")
    mounts = {"/mnt/repo": clone, "/mnt/wheels": container.WHEELS}
    machine = container.Machine(folder, mounts, container.installed_tree(clone))
    try:
        machine.run("mkdir /srv/exports")
        write_day(folder / "large", large(), 60_000)  # large enough for several threads
        for day, export in ((small(), export_of(small(), 50)), (large(), (folder / "large").read_bytes())):
            machine.put(f"/srv/exports/{export_name(day)}", export)
            machine.run(f"touch -d '{day} +1 day 03:00Z' /srv/exports/{export_name(day)}")
        assert set(re.findall(r"^(\w+)=", yours, re.MULTILINE)) == {
            "export_url", "address", "first_day", "publisher", "contact",
        }  # fmt: skip
        answers = f"export_url=/srv/exports; address=127.0.0.1:2222; first_day={small()}; publisher=P; contact=C"
        typed = f"cp -r /mnt/repo /root/clone; cd /root/clone; {answers}\n{key}{rest}"
        printed = machine.run(typed, timeout=240).stdout
        machine.put("/root/askpass", b"#!/bin/sh\ncat /root/triton-password\n")
        machine.run("chmod +x /root/askpass")
        keys = [line for line in printed.splitlines() if line.startswith("[127")]  # keygen is one of the lines
        machine.put("/root/known_hosts", "".join(f"{line}\n" for line in keys).encode())
        machine.until(f"test -e /var/lib/pickup-point/pickup/{name_of(large())}", "the large day's publication")
        yield machine, printed
    finally:
        machine.down()


@pytest.fixture
def machine(installed: tuple[Machine, str]) -> Machine:
    """Return the machine, with the service running as it was installed."""
    it = installed[0]
    it.run("systemctl reset-failed pickup-point || true; systemctl start pickup-point")
    return it


def fetch(machine: Machine, day: object, port: int = 2222) -> str:
    """Fetch a file with OpenSSH and the password; return its SHA-256."""
    machine.run(f"{SFTP} -P {port} triton@127.0.0.1:/{name_of(day)} /tmp/fetched")
    return machine.run("sha256sum < /tmp/fetched").stdout.split()[0]


@cache
def published(machine: Machine, day: object) -> str:
    """Return the SHA-256 in the ledger, asked once: whatever happens, what is served is to stay that."""
    found = re.search(r"sha256=(\w+)", machine.run(f"pickup-point trace {name_of(day)}").stdout)
    assert found is not None
    return found[1]


def test_the_lines_of_the_readme_lead_to_a_service_that_a_doctor_finds_well(installed: tuple[Machine, str]) -> None:
    """Typed as they are, every one of them succeeds, and the last says that the partner can log in."""
    machine, printed = installed
    assert "OK        login: triton can log in at 127.0.0.1:2222" in printed and "CRITICAL" not in printed
    assert machine.show("ActiveState") == "active"
    assert machine.show("StatusText").startswith("Serving ")


def test_the_unit_is_sound_and_tight(machine: Machine) -> None:
    """systemd does not criticise it, scores its exposure at most 1.2, and the service has no capability at all."""
    assert machine.run("systemd-analyze verify /etc/systemd/system/pickup-point.service 2>&1").stdout == ""
    machine.run("systemd-analyze security --threshold=12 pickup-point")
    status = machine.run(f"cat /proc/{machine.show('MainPID')}/status").stdout
    assert re.search(r"CapEff:\s+0{16}\n", status) and re.search(r"CapBnd:\s+0{16}\n", status)
    assert not re.search(r"Uid:\s+0\s", status)
    assert "warning" not in machine.journal().lower()


def test_a_day_is_converted_in_a_tighter_sandbox_than_the_units(machine: Machine, tmp_path: Path) -> None:
    """Stopped in the midst: the process has a filter of its own over the unit's, no socket, and may dump no core."""
    export = f"/srv/exports/{export_name(large())}"
    write_day(tmp_path / "more", large(), 60_500)  # a new version of a published day: its late rows
    machine.put(f"{export}.part", (tmp_path / "more").read_bytes())
    machine.run(f"touch -d '{large()} +1 day 03:10Z' {export}.part; mv {export}.part {export}")
    child = machine.run(
        "systemctl restart pickup-point & until child=$(pgrep -f 'server[.]convert'); do sleep 0.005; done;"
        " until grep -q 'address space  *[0-9]' /proc/$child/limits; do sleep 0.005; done; kill -STOP $child; wait;"
        " echo $child"
    ).stdout.strip()
    pid = machine.show("MainPID")
    try:
        status = {
            name: machine.run(f"cat /proc/{one}/status").stdout for name, one in (("service", pid), ("child", child))
        }
        filters = {name: int(re.findall(r"Seccomp_filters:\s+(\d+)", text)[0]) for name, text in status.items()}
        assert filters["child"] == filters["service"] + 1
        assert re.search(r"NoNewPrivs:\s+1\n", status["child"]) and re.search(r"CapEff:\s+0{16}\n", status["child"])
        assert "socket:" not in machine.run(f"ls -l /proc/{child}/fd").stdout
        limits = machine.run(f"cat /proc/{child}/limits").stdout
        assert re.search(r"Max core file size\s+0\s+0\s", limits)
        assert not re.search(r"Max address space\s+unlimited", limits)
    finally:
        machine.run(f"kill -CONT {child}")


def test_a_file_is_pulled_and_root_sees_it_in_status(machine: Machine) -> None:
    """OpenSSH logs in with the password, gets the bytes that were published; root reads what only the service owns."""
    assert fetch(machine, small()) == published(machine, small())
    machine.until("pickup-point status | grep -q 'picked up .*triton'", "the pickup in status")
    done = machine.run("pickup-point check", check=False)
    assert done.returncode in (0, 1, 2) and done.stdout.startswith("PICKUP-POINT ")
    machine.run("pickup-point backup /root/ledger-backup.sqlite3; test -s /root/ledger-backup.sqlite3")
    machine.run("pickup-point feed")  # by hand, as root: leaves nothing that the service could not open
    owners = machine.run("find /var/lib/private/pickup-point -printf '%u\\n' | sort -u").stdout.split()
    assert len(owners) == 1 and owners != ["root"]
    assert fetch(machine, small()) == published(machine, small())


def test_a_reload_takes_a_new_password_and_keeps_the_old_settings_when_the_file_is_broken(machine: Machine) -> None:
    """The same process all the while."""
    pid, wanted = machine.show("MainPID"), published(machine, small())
    machine.run("echo another-password > /root/triton-password;"
                " hashed=$(pickup-point hash-password < /root/triton-password);"
                ' sed -i "s|^password_hash.*|password_hash = \\"$hashed\\"|" /etc/pickup-point/config.toml;'
                " systemctl reload pickup-point")  # fmt: skip
    machine.until("journalctl -q -o cat -u pickup-point | grep -q 'reloaded users'", "the reload")
    assert fetch(machine, small()) == wanted
    machine.run("echo broken >> /etc/pickup-point/config.toml; systemctl reload pickup-point")
    try:
        machine.until("journalctl -q -o cat -u pickup-point | grep -q 'kept the old settings'", "the refusal")
        assert fetch(machine, small()) == wanted
    finally:
        machine.run("sed -i /^broken/d /etc/pickup-point/config.toml; systemctl reload pickup-point")
    machine.until("systemctl is-active pickup-point", "the end of the last reload")
    assert machine.show("MainPID") == pid


def test_a_killed_service_comes_back(machine: Machine) -> None:
    """kill -9: another process serves the same bytes."""
    pid = machine.show("MainPID")
    machine.run(f"kill -9 {pid}")
    machine.until('test "$(systemctl show --value -p NRestarts pickup-point)" -ge 1', "its restart")
    machine.until("systemctl is-active pickup-point", "its return")
    assert machine.show("MainPID") not in (pid, "0")
    assert fetch(machine, small()) == published(machine, small())


def test_a_service_that_hangs_is_ended_by_the_watchdog_and_comes_back(machine: Machine) -> None:
    """A stopped process sends no ping; the time within which systemd expects one is short for the test."""
    folder = "/etc/systemd/system/pickup-point.service.d"
    machine.run(
        f"mkdir -p {folder}; printf '[Service]\\nWatchdogSec=3\\n' > {folder}/test.conf; systemctl daemon-reload"
    )
    try:
        machine.run("systemctl restart pickup-point; sleep 4")
        pid = machine.show("MainPID")
        assert machine.show("NRestarts") == "0"  # it gives its signs of life
        machine.run(f"kill -STOP {pid}")
        machine.until('test "$(systemctl show --value -p NRestarts pickup-point)" -ge 1', "the watchdog")
        machine.until("systemctl is-active pickup-point", "its return")
        assert "watchdog" in machine.journal().lower()
        assert fetch(machine, small()) == published(machine, small())
    finally:
        machine.run(f"rm -r {folder}; systemctl daemon-reload")  # for the next start, of which each takes seconds


def test_a_stop_lets_a_running_transfer_finish(machine: Machine) -> None:
    """A client that takes five seconds gets its whole file, although the service is stopped in between."""
    before = published(machine, large())
    size = int(machine.run("stat -Lc %s /var/lib/pickup-point/pickup/" + name_of(large())).stdout)
    speed = size * 8 // 1000 // 5
    client = machine.start(f"{SFTP} -l {speed} -P 2222 triton@127.0.0.1:/{name_of(large())} /tmp/slow")
    machine.until("test -s /tmp/slow", "the first bytes")
    machine.run("systemctl stop pickup-point")
    said = client.communicate(timeout=container.PATIENCE)[0]
    assert client.returncode == 0, said
    assert machine.run("sha256sum < /tmp/slow").stdout.split()[0] == before
    assert (machine.show("ActiveState"), machine.show("Result")) == ("inactive", "success")


def test_a_missing_credential_stops_the_start(installed: tuple[Machine, str]) -> None:
    """systemd says 243/CREDENTIALS; with the key back in its place the service starts."""
    machine = installed[0]  # whether the service runs or not
    key = "/etc/pickup-point/keys/ip_hash.key"
    machine.run(f"systemctl stop pickup-point; mv {key} {key}.away")
    try:
        assert machine.run("systemctl start pickup-point", check=False).returncode
        assert machine.show("ExecMainStatus") == "243"
        found = machine.run("pickup-point doctor", check=False)
        assert found.returncode == 1 and "ip_hash.key: no such file" in found.stdout
    finally:
        machine.run(f"systemctl stop pickup-point; mv {key}.away {key}")
    machine.run("systemctl reset-failed pickup-point; systemctl start pickup-point")


def test_port_22_comes_by_a_socket_and_needs_no_right(machine: Machine) -> None:
    """The manual's lines for it, typed as they are; a connection starts the service if it is not running."""
    machine.run(container.blocks("Installing")[3])
    machine.run("sed 's/^.127.0.0.1.:2222/127.0.0.1/' /root/known_hosts >> /root/known_hosts.22;"
                " cat /root/known_hosts.22 >> /root/known_hosts")  # fmt: skip
    assert fetch(machine, small(), port=22) == published(machine, small())
    machine.run("systemctl stop pickup-point")
    assert machine.show("ActiveState") == "inactive"
    assert fetch(machine, small(), port=22) == published(machine, small())
    assert machine.show("ActiveState") == "active"
    status = machine.run(f"cat /proc/{machine.show('MainPID')}/status").stdout
    assert re.search(r"CapEff:\s+0{16}\n", status)
    machine.run("systemctl disable --now pickup-point.socket; systemctl stop pickup-point")
