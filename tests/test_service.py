"""The service as it runs: a process, a bucket on loopback, clients that log in, signals."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import socket
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import asyncssh
import pytest

from .support.program import (
    ServiceSite,
    day_before,
    export_name,
    export_of,
    listening_addresses,
    log_of,
    secrets_of,
    until,
)
from .support.rows import row_v2
from .support.sftp import CHEAP_HASH, PASSWORD
from .support.warm import OWN_CONVERSIONS

if TYPE_CHECKING:
    from pathlib import Path

    from .support.s3 import S3Server


def bucket(url: str, name: str) -> str:
    """``[export]`` for a bucket."""
    return f'url = "s3://{name}"\nendpoint_url = "{url}"\nregion = "us-east-1"'


# From a bucket to a client


async def test_a_day_that_becomes_final_in_the_bucket_is_served_without_a_restart(
    service_site: ServiceSite, s3: S3Server
) -> None:
    """Final days come, today does not, further rounds publish nothing, and without the ledger no name comes twice."""
    service_site.configure(bucket(s3.url, s3.bucket))
    s3.put(export_name(day_before(2)), export_of(day_before(2)))
    s3.put(f"impression-day-{day_before(2)}.json.gz", b"not ours")
    service = await service_site.serve()
    await service.sees(log_of(2))

    s3.put(export_name(day_before(1)), export_of(day_before(1), 30))
    s3.put(export_name(day_before(0)), export_of(day_before(0)))
    await service.sees(log_of(2), log_of(1))
    lines = gzip.decompress(await service.fetch(log_of(1))).decode().splitlines()
    assert len(lines) == 31
    assert lines[1].split("\t")[12] == f"{day_before(1)}-0"

    published = service_site.published()
    await service_site.rounds(2)
    assert await service.names() == sorted([log_of(2), log_of(1)])
    assert service_site.published() == published
    assert service.running.count("feed published .* rows=") == 2
    assert await service.running.stops() == 0

    for path in (service_site.folder / "data").glob("ledger.sqlite3*"):
        path.unlink()
    again = await service_site.serve()
    await service_site.rounds(2)
    assert await again.names() == sorted([log_of(2), log_of(1)])
    assert service_site.published() == published
    assert again.running.count("feed adopted") == 2
    assert again.running.count("feed published") == 0
    assert await again.running.stops() == 0


async def test_two_services_on_one_bucket_give_the_same_bytes(
    service_site: ServiceSite, s3: S3Server, tmp_path: Path, keys_dir: Path
) -> None:
    """Each has a data folder of its own, at the same time; neither depends on the other."""
    (tmp_path / "other").mkdir()
    sites = service_site, ServiceSite(tmp_path / "other", keys_dir, service_site.program)
    for days in (2, 1):
        s3.put(export_name(day_before(days)), export_of(day_before(days), 40, b"{"))
    for site in sites:
        site.configure(bucket(s3.url, s3.bucket), log="max_rejected = 0.5")
    services = [await site.serve() for site in sites]
    for service in services:
        await service.sees(log_of(2), log_of(1))
    ours, theirs = ({name: data for name, (data, _) in site.published().items()} for site in sites)
    assert ours == theirs
    for service in services:
        assert await service.running.stops() == 0


class Door:
    """A proxy to a server on loopback that can be closed."""

    def __init__(self, url: str) -> None:
        self._to = int(url.rpartition(":")[2])
        self.port = 0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Let connections through, always on the same port."""
        self._server = await asyncio.start_server(self._through, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        """Refuse connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(1 << 16):
                    to.write(data)
                    await to.drain()
            to.close()

        there, out = await asyncio.open_connection("127.0.0.1", self._to)
        await asyncio.gather(copy(reader, out), copy(there, writer))


async def test_a_bucket_that_is_down_is_logged_once_and_the_service_lives_on(
    service_site: ServiceSite, s3: S3Server
) -> None:
    """Down at the start and again later: clients can always log in, and the days come when it is back."""
    door = Door(s3.url)
    await door.open()
    await door.shut()
    service_site.configure(bucket(f"http://127.0.0.1:{door.port}", s3.bucket))
    s3.put(export_name(day_before(2)), export_of(day_before(2)))
    service = await service_site.serve()
    await service.running.says("feed lost the source")
    assert await service.names() == []
    await service_site.rounds(1)
    assert service.running.count("feed lost the source") == 1
    assert "source" in [alarm["name"] for alarm in service_site.status()["alarms"]]

    await door.open()
    await service.running.says("feed reached the source again")
    await service.sees(log_of(2))
    await door.shut()
    await service.running.says("feed lost the source", 2)
    assert await service.names() == [log_of(2)]
    assert await service.running.stops() == 0
    assert "Traceback" not in service.running.text


# Bad input


async def test_malformed_exports_leave_the_service_running_and_the_good_day_published(
    service_site: ServiceSite,
) -> None:
    """A torn file fails, a day of garbage is held, a day with few bad rows goes out; status says what to do."""
    whole = export_of(day_before(3), 2000)
    service_site.put(day_before(3), whole[: len(whole) // 2])
    service_site.put(day_before(2), export_of(day_before(2), 5, b"{", b"[1]", b'{"id":null}', b"\xff\xfe", b'"x"'))
    service_site.put(day_before(1), export_of(day_before(1), 500, b'{"id":', b"", b'{"id": "no fields"}'))
    service = await service_site.serve()
    await service.sees(log_of(1))
    await service_site.rounds(1)

    days = {day["day"]: day for day in service_site.status()["days"]}
    assert [days[str(day_before(n))]["state"] for n in (3, 2, 1)] == ["failed", "held", "published"]
    torn = days[str(day_before(3))]["advice"]
    assert f"{export_name(day_before(3))} is not a complete gzip file" in torn
    assert f"pickup-point feed --day {day_before(3)}" in torn
    assert "staging" not in torn
    assert f"pickup-point feed --day {day_before(2)} --accept-rejects" in days[str(day_before(2))]["advice"]
    assert (days[str(day_before(1))]["rows"], days[str(day_before(1))]["rejected"]) == (502, 2)
    shown = service_site.run("status").stdout
    assert f"{day_before(2)} is held: 5 of 10 rows were rejected (50.0%, allowed 1.0%)" in re.sub(r"\s+", " ", shown)
    check = service_site.run("check")
    assert check.returncode == 2
    assert f"{day_before(2)} is held" in check.stdout
    assert f"{day_before(3)} has failed" in check.stdout

    rejects = service_site.folder / "data" / "rejects" / log_of(1).replace(".gz", ".rejects.ndjson.gz")
    told = [json.loads(line) for line in gzip.decompress(rejects.read_bytes()).splitlines()]
    assert [(entry["line"], entry["reason"]) for entry in told] == [(501, "malformed_json"), (503, "bad_created_at")]
    assert service.running.count(f"feed held {day_before(2)}") == 1
    assert service.running.process.poll() is None
    assert await service.running.stops() == 0


async def test_what_a_feed_by_hand_publishes_the_running_service_shows(service_site: ServiceSite) -> None:
    """An operator accepts a held day; clients see the file without a restart and without another round."""
    service_site.configure(poll="1h")
    service_site.put(day_before(1), export_of(day_before(1), 5, b"{"))
    service = await service_site.serve()
    await service.running.says(f"feed held {day_before(1)}")
    fed = await asyncio.to_thread(service_site.run, "feed", "--day", str(day_before(1)), "--accept-rejects")
    assert fed.returncode == 0, fed.stderr
    assert fed.stdout == f"{day_before(1)}  published   {log_of(1)} (5 lines of 6 rows)\n"
    await service.sees(log_of(1))
    assert service.running.count("feed published .* rows=") == 0
    assert await service.running.stops() == 0


async def test_a_file_that_the_ledger_does_not_know_is_neither_served_nor_deleted(service_site: ServiceSite) -> None:
    """Whatever somebody puts beside the logs stays there, unseen; a published file that was changed is not served."""
    service_site.put(day_before(1), export_of(day_before(1)))
    service_site.put(day_before(2), export_of(day_before(2)))
    assert service_site.run("feed").returncode == 0
    stranger = service_site.pickup / "TEST20200101-00.tsv.gz"
    stranger.write_bytes(gzip.compress(b"a stranger\n"))
    changed = service_site.pickup / log_of(2)
    changed.chmod(0o640)
    changed.write_bytes(changed.read_bytes() + b"more")
    service = await service_site.serve()
    await service_site.rounds(1)
    assert await service.names() == [log_of(1)]
    assert stranger.exists()
    assert changed.exists()
    assert await service.running.stops() == 0


# Refusals at the start


async def test_a_second_service_on_the_folder_refuses_with_a_sentence(service_site: ServiceSite) -> None:
    """It says what has the folder and what to type, exit code 1; the first one is not disturbed."""
    service = await service_site.serve()
    second = await asyncio.to_thread(service_site.run, "serve")
    assert second.returncode == 1
    lines = second.stderr.splitlines()
    assert lines[0] == f"pickup-point: another pickup-point already serves {service_site.folder / 'data'}"
    assert lines[1:] == [
        f"      {sys.executable} -m server status --config {service_site.config}",
        "      systemctl status pickup-point",
    ]
    assert await service.names() == []
    assert await service.running.stops() == 0


async def test_status_and_check_in_a_loop_keep_no_service_from_starting(service_site: ServiceSite) -> None:
    """They take the service's lock for a moment; a service that starts then waits for that moment."""
    service_site.run("feed")
    looking = service_site.program.start(
        first=f"""
import time
from pathlib import Path
from server.status.snapshot import _is_running
end = time.monotonic() + 20
print("looking", flush=True)
while time.monotonic() < end:
    _is_running(Path({str(service_site.folder / "data")!r}))
"""
    )
    await looking.says("looking", stream="out")
    service = await service_site.serve()
    assert await service.running.stops() == 0


async def test_a_port_in_use_is_one_sentence(service_site: ServiceSite) -> None:
    """It names the address and the command that shows who has it; exit code 1."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service_site.configure(port=port)
        done = await asyncio.to_thread(service_site.run, "serve")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not re.match(r"\d{4}-", line)]
    assert lines[0] == f"pickup-point: cannot listen on 127.0.0.1:{port}: Address already in use"
    assert lines[1:] == [f"      ss -ltnp 'sport = :{port}'", "  → set sftp.host and sftp.port"]


def test_a_missing_key_stops_the_start_with_the_cure_and_exit_code_2(service_site: ServiceSite) -> None:
    """``serve`` creates no key itself: it names every missing one at once, with the command that creates it."""
    for name in ("ssh_host_ed25519_key", "ip_hash.key"):
        (service_site.folder / "keys" / name).unlink()
    done = service_site.run("serve")
    assert done.returncode == 2
    assert "2 problems" in done.stderr
    assert done.stderr.count("no such file") == 2
    assert done.stderr.count(f" -m server keygen --config {service_site.config}\n") == 2
    assert not (service_site.folder / "keys" / "ip_hash.key").exists()


# Surroundings


async def test_the_service_runs_without_home_and_listens_on_loopback_only(service_site: ServiceSite) -> None:
    """As under systemd without HOME: logins work; the only listening socket is the configured one."""
    service_site.put(day_before(1), export_of(day_before(1)))
    service = await service_site.serve(env={"HOME": None})
    await service.sees(log_of(1))
    assert listening_addresses(service.running.process.pid) == {"0100007F"}
    assert await service.running.stops() == 0


async def test_strangers_leave_listed_addresses_their_descriptors(service_site: ServiceSite) -> None:
    """With 64 descriptors, all taken by strangers, an address in an allow_from still logs in and fetches, each time."""
    user = f'[[sftp.users]]\nname = "other"\npassword_hash = "{CHEAP_HASH}"\nallow_from = ["127.0.0.1/32"]'
    service_site.configure(more=user)
    service_site.put(day_before(1), export_of(day_before(1)))
    limited = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    service = await service_site.serve(first=limited)
    await service.sees(log_of(1))
    strangers = [
        await asyncio.open_connection("127.0.0.1", service.port, local_addr=(f"127.0.1.{number}", 0))
        for number in range(1, 91)
    ]
    async with AsyncExitStack() as stack:
        for _ in range(6):
            sftp = await stack.enter_async_context(service.client())
            assert await (await stack.enter_async_context(sftp.open(log_of(1), "rb"))).read()
    await service_site.rounds(1)
    for _, writer in strangers:
        writer.close()
    assert service.running.count("Too many open files|could not accept") == 0
    assert await service.running.stops() == 0


async def test_nothing_of_a_listener_and_no_secret_is_in_the_log(service_site: ServiceSite) -> None:
    """In a verbose run with good, bad, held and torn days there is no address, no user agent, no password."""
    from server.cli.samples import write_day

    for days, rows in ((3, 2000), (2, 400)):
        write_day(service_site.exports / export_name(day_before(days)), day_before(days), rows, broken=True)
    torn = export_of(day_before(1), 3000)
    service_site.put(day_before(1), torn[: len(torn) // 2])
    service = await service_site.serve()
    running = service_site.program.started[-1]
    await service.sees(log_of(3), log_of(2))
    await service.fetch(log_of(3))
    with pytest.raises(asyncssh.PermissionDenied):
        async with service.client("wrong guess"):
            pass
    await running.says(f"feed held {day_before(2)}")
    await running.says(f"feed failed {day_before(1)}")
    assert await running.stops() == 0
    said = running.text + service_site.run("status").stdout + service_site.run("check").stdout
    secrets = {"203.0.113.77", "Darwin/23.4.0", PASSWORD, "wrong guess", "$argon2id"}
    for days in (3, 2):
        secrets |= secrets_of((service_site.exports / export_name(day_before(days))).read_bytes())
    assert len(secrets) > 500
    assert [secret for secret in secrets if secret in said] == []


async def test_a_marked_delivery_export_v2_goes_from_its_bucket_to_the_partner(
    service_site: ServiceSite, s3: S3Server
) -> None:
    """Beside an export of the other kind, and not before its marker; what comes after it is a second file."""

    def put(count: int) -> None:
        lines = [row_v2(created_at=f"{day_before(1)}T00:00:00Z", user_agent=f"Agent {n}") for n in range(count)]
        s3.put(f"delivery-v2-day-{day_before(1)}.json.gz", gzip.compress(b"\n".join(lines)))

    service_site.configure(f'{bucket(s3.url, s3.bucket)}\nkind = "delivery-v2"\nagreed = true')
    s3.put(export_name(day_before(1)), export_of(day_before(1)))
    put(7)
    service = await service_site.serve()
    await service.running.says("started listening")
    for number, count in enumerate((7, 9)):
        put(count)
        assert log_of(1, number) not in service_site.published()
        s3.put(f"_finalized_delivery_{day_before(1)}_{number}", b"")
        await service.sees(*(log_of(1, earlier) for earlier in range(number + 1)))
        await service.fetch(log_of(1, number))
    texts = [gzip.decompress(content).decode() for content, _ in service_site.published().values()]
    assert sorted(text.count("Agent ") for text in texts) == [2, 7]
    assert await service.running.stops() == 0


async def test_a_conversion_and_its_service_end_together(service_site: ServiceSite) -> None:
    """SIGTERM in the middle of a conversion: exit 0, no child left, nothing half-published."""
    service_site.configure(log="")
    from server.cli.samples import write_day

    write_day(service_site.exports / export_name(day_before(1)), day_before(1), 60_000)
    running = service_site.program.start("serve", "--config", service_site.config, first=OWN_CONVERSIONS)
    await running.says("started listening")  # before that, SIGTERM ends it as it ends any program
    children: set[int] = set()

    def converts() -> bool:
        children.update(_children(running.process.pid))
        return bool(children)

    await until(converts, "the process that converts")
    assert await running.stops() == 0
    await until(lambda: not any(_lives(child) for child in children), "its end")
    there = list(service_site.published())
    assert there in ([], [log_of(1)])
    assert [path for path in (service_site.folder / "data" / "staging").iterdir() if path.is_dir()] == []


def _children(pid: int) -> set[int]:
    found = set()
    for path in _proc(pid):
        with suppress(OSError):
            found.update(int(word) for word in path.read_text().split())
    return found


def _proc(pid: int) -> list[Path]:
    from pathlib import Path

    return list(Path(f"/proc/{pid}/task").glob("*/children"))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
