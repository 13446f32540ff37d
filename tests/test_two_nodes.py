"""Two services on one bucket, as the manual's script starts them; a client that hops, a killed node, a third."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from server.cli.manual import read_chapter

from .support.program import ServiceSite, Serving, day_before, environment, export_name, export_of, log_of, until
from .support.sftp import CHEAP_HASH

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .support.s3 import S3Server


async def seen(service: Serving) -> dict[str, tuple[bytes, int, int]]:
    """What a client gets of a node: bytes, size and mtime of every file."""
    found = {}
    async with service.client() as sftp:
        for entry in await sftp.readdir("."):
            name = str(entry.filename)
            if name not in (".", ".."):
                async with sftp.open(name, "rb") as file:
                    data = await file.read()
                assert isinstance(data, bytes)
                found[name] = (data, int(entry.attrs.size or 0), int(entry.attrs.mtime or 0))
    return found


async def test_two_nodes_publish_together_one_dies_and_a_third_joins(
    service_site: ServiceSite, s3: S3Server, tmp_path: Path, keys_dir: Path
) -> None:
    """All show the same; the dead one catches up; what is picked up at one is picked up at all."""
    sites = [service_site]
    for word in "bc":
        (tmp_path / word).mkdir()
        sites.append(ServiceSite(tmp_path / word, keys_dir, service_site.program))
    place = f'region = "us-east-1"\nendpoint_url = "{s3.url}"\n'
    more = f'[store]\nurl = "s3://{s3.bucket}/for-triton"\nshared = true\n{place}'
    for site in sites:
        site.configure(f'url = "s3://{s3.bucket}/megaphone"\n{place}', more=more)
    s3.put(f"megaphone/{export_name(day_before(2))}", export_of(day_before(2), 30))
    a, b = [await site.serve() for site in sites[:2]]
    for service in (a, b):
        await service.sees(log_of(2))
    assert await seen(a) == await seen(b)

    a.running.send(signal.SIGKILL)
    await a.running.waits()
    s3.put(f"megaphone/{export_name(day_before(2))}", export_of(day_before(2), 35))
    s3.put(f"megaphone/{export_name(day_before(1))}", export_of(day_before(1), 40))
    names = log_of(2), log_of(2, 1), log_of(1)
    await b.sees(*names)
    a, c = [await sites[number].serve() for number in (0, 2)]
    for service in (a, c):
        await service.sees(*names)
    shown = await seen(a)
    assert shown == await seen(b) == await seen(c)
    assert len({mtime for _, _, mtime in shown.values()}) == 3

    for name in names:
        await a.fetch(name)
    for site in sites:
        await until(
            lambda site=site: _picked_up(site) == {str(day_before(1)), str(day_before(2))}, "picked up everywhere", 0.5
        )
    # Each says who it is, and whom it knows.
    node = sites[1].status()["service"]["node"]
    assert sites[1].run("check").stdout.startswith(f"PICKUP-POINT OK at {node} - ")
    page = sites[1].run("status").stdout
    assert re.search(rf"^Node +{node}$", page, re.MULTILINE) and page.count(node) == 1
    assert re.search(r"^Other nodes +\S+: entry \d+, .* ago", page, re.MULTILINE), page
    held = s3.client.list_objects_v2(Bucket=s3.bucket, Prefix="for-triton/")["Contents"]
    assert {entry["Key"] for entry in held} == {f"for-triton/{name}" for name in names}
    for entry in held:
        body = s3.client.get_object(Bucket=s3.bucket, Key=entry["Key"])["Body"].read()
        assert body == shown[entry["Key"].partition("/")[2]][0]
    for service in (a, b, c):
        assert await service.running.stops() == 0


def _wait_for(true: Callable[[], bool], journals: list[Path]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "\n".join(path.read_text() for path in journals if path.exists())
        time.sleep(0.1)


def _picked_up(site: ServiceSite) -> set[str]:
    return {day["day"] for day in site.status()["days"] if day["state"] == "picked up"}


def test_the_manuals_script_runs_two_nodes_and_a_third(tmp_path: Path, s3: S3Server) -> None:
    """As it is printed, but for its ports and the place of the buckets."""
    blocks = r"```sh tests/test_two_nodes.py\n(.*?)```"
    (script,) = re.findall(blocks, read_chapter("two-nodes").text, re.DOTALL)
    ports = []
    with ExitStack() as held:
        for _ in "abc":
            listener = held.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    for number, port in enumerate(ports):
        script = script.replace(str(2222 + number), str(port))
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "pickup-point"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m server "$@"\n')
    program.chmod(0o755)
    s3.put(f"megaphone/{export_name(day_before(2))}", export_of(day_before(2), 30))
    env = environment(
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}", EXPORTS=f"s3://{s3.bucket}/megaphone", ENDPOINT=s3.url,
        STORE=f"s3://{s3.bucket}/for-triton", HASH=CHEAP_HASH, THIRD="yes",
    )  # fmt: skip
    script = script.replace("[export]", '[export]\nsettle = "0s"\nfinal_at = "00:00"\npoll_every = "1s"')
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    process = subprocess.Popen(["sh", "-c", script], cwd=nodes, env=env, start_new_session=True)
    try:
        journals = [nodes / word / "journal" for word in "abc"]
        name = f"MEGA{day_before(2):%Y%m%d}-00.tsv.gz"
        for journal in journals:
            _wait_for(lambda j=journal: j.exists() and "started listening" in j.read_text(), journals)
            _wait_for((journal.parent / "data" / "pickup" / name).exists, journals)
        contents = {(path.parent / "data" / "pickup" / name).read_bytes() for path in journals}
        assert len(contents) == 1
        said = [path.read_text() for path in journals]
        assert sum(text.count(f"feed published {name}") for text in said) == 1
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
