"""The episode catalogue as a publisher meets it: three RSS feeds, a day's lines, what matches and what is left.

Listens on 127.0.0.1; runs the commands as an operator does.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import urllib.request
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from server.config import load_config
from server.episodes.catalogue import CatalogueStamp, check_episodes, load_urls
from server.episodes.source import CatalogueSource
from server.errors import ConfigError
from server.status.episodes import handover_lines
from server.storage.ledger import Ledger

from ..support.program import ServiceSite, day_before
from ..support.rows import GOOD, row
from ..support.rss_server import PREFIXES, RssHost, hostile, items, rss

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EPISODE = GOOD["episode_id"]
EVERY = timedelta(hours=6)
PODCASTS = {1: "11111111-0000-11ec-8000-0123456789ab", 2: "22222222-0000-11ec-8000-0123456789ab",
            3: "33333333-0000-11ec-8000-0123456789ab"}  # fmt: skip


class Publisher:
    """Three RSS feeds: a native one, an imported one with foreign guids, one with redirect prefixes and 5,000 items."""

    def __init__(self, host: RssHost) -> None:
        self.shows = {1: items(120, 1), 2: items(60, 2, foreign=True), 3: items(5000, 3, prefix=PREFIXES)}
        self.urls = [host.put(f"/show{n}", rss(show, f"Show {n}")) for n, show in self.shows.items()]

    def export(self, day: date) -> bytes:
        """A day on which every episode was downloaded, the imported ones more often the older they are."""
        rows = []
        for number, show in self.shows.items():
            for place, item in enumerate(show):
                rows += [
                    row(id=f"{day}-{number}-{place}-{copy}", episode_id=item.episode_id,
                        podcast_id=PODCASTS[number], created_at=f"{day}T10:00:00.000Z")
                    for copy in range(1 + place if number == 2 else 1)
                ]  # fmt: skip
        return gzip.compress(b"".join(line + b"\n" for line in rows), 1, mtime=0)

    @property
    def foreign_lines(self) -> int:
        """How many lines of a day are of imported episodes."""
        return sum(range(1, 61))

    @property
    def lines(self) -> int:
        """How many lines a day has."""
        return 120 + 5000 + self.foreign_lines


def feeds_table(urls: Sequence[str], **more: Any) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in more.items()]
    return "\n".join(["[feeds]", f"urls = {json.dumps(list(urls))}", "allow_local = true", *lines])


def log_lines(site: ServiceSite, day: date) -> list[dict[str, str]]:
    """The lines of a day's file, by column."""
    (path,) = site.pickup.glob(f"TEST{day:%Y%m%d}-*.tsv.gz")
    header, *lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def alarm(status: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((alarm for alarm in status["alarms"] if alarm["name"] == name), None)


def test_a_publisher_gets_every_native_line_matched_and_the_rest_listed(
    service_site: ServiceSite, rss_host: RssHost
) -> None:
    """The first day matches what can be matched; the CSV that is filled in by hand brings the second to all."""
    site, publisher = service_site, Publisher(rss_host)
    first, second = day_before(3), day_before(2)
    site.configure(more=feeds_table(publisher.urls))
    site.put(first, publisher.export(first))
    assert site.run("feed").returncode == 0

    status = site.status()
    day = next(day for day in status["days"] if day["day"] == str(first))
    share = 1 - publisher.foreign_lines / publisher.lines
    assert day["lines"] == publisher.lines
    assert day["matched_share"] == pytest.approx(share, abs=1e-4)
    tally = day["publications"][0]["tally"]
    assert tally["unmapped_episodes"] == tally["unmatched"] == publisher.foreign_lines
    assert day["publications"][0]["matched_share"] == day["matched_share"]
    stamp = day["publications"][0]["catalogue"]
    assert (stamp["episodes"], stamp["rss_feeds"]) == (5180, 3)
    assert len(stamp["version"]) == 12
    assert [feed["items"] for feed in status["rss_feeds"]] == [120, 60, 5000]
    warned = alarm(status, "episodes_unmatched")
    assert warned is not None
    assert (warned["level"], warned["hint"]) == ("WARNING", "pickup-point episodes --unmatched")

    # The rest is listed for the CSV, the most lines first, with its podcast.
    listed = json.loads(site.run("episodes", "--unmatched", "--json").stdout)
    foreign = list(reversed(publisher.shows[2]))
    assert [(e["episode_id"], e["podcast_id"], e["lines"]) for e in listed["unmatched"]] == [
        (item.episode_id, PODCASTS[2], 60 - place) for place, item in enumerate(foreign)
    ]
    shown = site.run("episodes", "--unmatched").stdout
    assert [item.episode_id for item in foreign if item.episode_id in shown] == [
        item.episode_id for item in foreign[:30]
    ]
    assert "and 30 more" in shown
    assert f"{publisher.foreign_lines} of {publisher.lines} lines" in shown

    # An operator fills it in.
    made = site.folder / "episodes.csv"
    assert "60 episodes to fill in" in site.run("episodes", "--export", made).stdout
    assert site.run("episodes", "--export", made).returncode == 1  # it is there
    guids = {item.episode_id: item.guid for item in foreign}
    with made.open(newline="") as file:
        found = [line | {"guid": guids[line["episode_id"]]} for line in csv.DictReader(file)]
    with made.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
    checked = site.run("episodes", "--check", made)
    assert (checked.returncode, "60 episodes, nothing is wrong" in checked.stdout) == (0, True)

    # What the catalogue has learnt counts for the list at once, and for the lines of the next day.
    site.configure(more=feeds_table(publisher.urls), log='episodes = "episodes.csv"\nurl = "{enclosure_url}"')
    assert json.loads(site.run("episodes", "--unmatched", "--json").stdout)["unmatched"] == []
    site.put(second, publisher.export(second))
    assert site.run("feed").returncode == 0
    status = site.status()
    day = next(day for day in status["days"] if day["day"] == str(second))
    assert day["matched_share"] == 1.0
    assert alarm(status, "episodes_unmatched") is None
    assert day["publications"][0]["catalogue"]["version"] != stamp["version"]
    for line in log_lines(site, second):
        number, place = (int(part) for part in line["x-metric-id"].split("-")[3:5])
        item = publisher.shows[number][place]
        assert (line["episode-guid"], line["url"], line["podcast-id"]) == (item.guid, item.url, PODCASTS[number])
    told = site.run("trace", f"TEST{second:%Y%m%d}-00.tsv.gz").stdout
    assert json.loads(site.run("trace", f"TEST{first:%Y%m%d}-00.tsv.gz", "--json").stdout)["matched_share"] == round(
        share, 4
    )
    assert f"episode catalogue {day['publications'][0]['catalogue']['version']}: 5240 episodes" in told
    assert "which match 100.0% of the lines" in told
    assert "100.0% of the lines" in handover_lines(load_config(site.config))[-1]
    shown = site.run("episodes").stdout
    assert "60  written by hand in" in shown
    assert "Show 3" in shown


async def test_a_service_publishes_whatever_its_rss_feeds_do(service_site: ServiceSite, rss_host: RssHost) -> None:
    """No day waits for them, no task dies of them, and check and status say which ones are bad."""
    day = day_before(2)
    native = items(3, 1)
    urls = [rss_host.put("/good", rss(native)), *(url for url in hostile(rss_host) if not url.endswith("/slow"))]
    service_site.configure(more=feeds_table(urls) + '\n[web]\nlisten = "127.0.0.1:0"')
    rows = [row(id=str(n), episode_id=item.episode_id, created_at=f"{day}T10:00:00Z") for n, item in enumerate(native)]
    service_site.put(day, gzip.compress(b"".join(line + b"\n" for line in rows)))
    serving = await service_site.serve()
    await serving.sees(f"TEST{day:%Y%m%d}-00.tsv.gz")
    status = service_site.status()
    published = next(found for found in status["days"] if found["day"] == str(day))
    assert published["matched_share"] == 1.0
    bad = [found for found in status["alarms"] if found["name"] == "rss_feed"]
    assert len(bad) == len(urls) - 1
    assert all("it was never read" in found["sentence"] and found["level"] == "WARNING" for found in bad)
    assert "100.0% of the lines of" in service_site.run("status").stdout
    assert "declares entities" in service_site.run("status", env={"COLUMNS": "500"}).stdout
    port = (await serving.running.says(r"service opened the page .*port=(\d+)"))[0][1]
    scraped = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics")
    with scraped:
        assert f'pickup_point_day_matched_share{{day="{day}"}} 1.0' in scraped.read().decode()
    assert serving.running.process.poll() is None
    assert "rss" not in " ".join(line for line in serving.running.err if "lost its task" in line)


async def test_the_snapshot_is_the_newest_that_is_good(service_site: ServiceSite, rss_host: RssHost) -> None:
    """A file damaged while the service runs changes nothing; an RSS feed that is no longer configured is removed."""
    folder = service_site.folder
    one, two = (rss_host.put(f"/{n}", rss(items(2, n))) for n in (1, 2))
    (folder / "feeds.txt").write_text(f"# mine\n\n{one}\n")
    (folder / "episodes.csv").write_text("episode_id,guid,url\na,b,c\n")
    service_site.configure(log='episodes = "episodes.csv"', more=feeds_table([], file="feeds.txt"))
    (folder / "data").mkdir()
    ledger = Ledger.open(folder / "data" / "ledger.sqlite3")
    try:
        source = CatalogueSource(load_config(service_site.config), ledger.rss)
        by_hand = source.snapshot()
        assert by_hand is not None
        assert set(by_hand.episodes) == {"a"}
        assert source.untried()
        await source.refresh(NOW)
        assert not source.untried()
        both = source.snapshot()
        assert both is not None
        assert both.stamp == CatalogueStamp(both.stamp.version if both.stamp else "", 3, 1, "2026-11-22T12:00:00Z")
        assert source.snapshot() is both
        (folder / "episodes.csv").write_text("episode_id,guid,url\na,b,c,d\n")
        (folder / "feeds.txt").write_text("no address\n")
        assert source.snapshot() is both
        (folder / "feeds.txt").write_text(f"{one}\n{two}\n{one}\n")
        assert source.urls() == [one, two]
        await source.refresh(NOW)
        more = source.snapshot()
        assert more is not None
        assert len(more.episodes) == 5
        (folder / "feeds.txt").write_text(f"{two}\n")
        await source.refresh(NOW)
        assert list(ledger.rss.feeds()) == [two]
    finally:
        ledger.close()


def test_a_conversion_by_hand_uses_what_the_service_knows(service_site: ServiceSite, rss_host: RssHost) -> None:
    """It uses the RSS feeds in the ledger; without a ledger it says that they are not used."""
    service_site.configure(more=feeds_table([rss_host.put("/show", rss(items(2, 1)))]), log='url = "{enclosure_url}"')
    item = items(2, 1)[1]
    export = service_site.folder / "any.json.gz"
    export.write_bytes(gzip.compress(row(episode_id=item.episode_id) + b"\n"))
    told = service_site.run("convert", export, "--output", service_site.folder / "a.tsv.gz")
    assert "the RSS feeds are not used" in told.stderr
    assert service_site.run("episodes", "--refresh").returncode == 0
    output = service_site.folder / "b.tsv.gz"
    done = service_site.run("convert", export, "--output", output, "--json")
    assert json.loads(done.stdout)["unmapped_episodes"] == 0
    assert item.url in gzip.decompress(output.read_bytes()).decode()


def test_a_list_of_rss_feeds_is_checked_line_by_line(tmp_path: Path) -> None:
    """Comments and blank lines are ignored; everything else must be a web address."""
    file = tmp_path / "feeds.txt"
    file.write_text("\ufeff# mine\n\nhttps://x.example/a b\nfile:///etc/passwd\n https://x.example/ \nhttp://[\n")
    with pytest.raises(ConfigError) as caught:
        load_urls(file)
    assert [problem.key for problem in caught.value.problems] == [f"{file} line {n}" for n in (3, 4, 6)]
    file.write_text("https://x.example/1\n# no\nhttps://x.example/2")
    assert load_urls(file) == ["https://x.example/1", "https://x.example/2"]
    with pytest.raises(ConfigError, match="1 problem"):
        load_urls(tmp_path / "gone")


CSV = f"""episode_id,guid,url
{EPISODE},g,
{EPISODE.upper()},h,
ABC1234567890,g,
nonsense,g,
,g,
22222222-0000-11ec-8000-0123456789ab,g,/{"x" * 2048}
"""


def test_a_check_reports_everything_that_is_wrong(tmp_path: Path, service_site: ServiceSite) -> None:
    """Unknown columns, repeated ids, long URLs, ids that are not ids: each with its line and a cure; exit 2."""
    file = tmp_path / "episodes.csv"
    file.write_text(CSV)
    told = [str(problem).removeprefix(f"{file} ") for problem in check_episodes(file)]
    assert told == [
        f"line 3: repeats the episode_id {EPISODE.upper()}",
        "line 4: has the episode_id 'ABC1234567890', which is the token of an enclosure URL",
        "line 5: has the episode_id 'nonsense', which is not a Megaphone id",
        "line 6: has no episode_id",
        "line 7: has a URL over 2048 characters",
    ]
    done = service_site.program.run("episodes", "--check", file)
    assert (done.returncode, "5 problems" in done.stdout) == (2, True)
    file.write_text("episode_id,gid\n")
    assert "its first line is" in str(check_episodes(file)[0])
    file.write_text("episode_id,guid,url,podcast_id,lines\n")
    assert check_episodes(file) == []


def test_without_a_catalogue_the_command_says_what_to_set(service_site: ServiceSite) -> None:
    """It counts no episode as known."""
    day = day_before(2)
    service_site.put(day, gzip.compress(row(created_at=f"{day}T10:00:00Z") + b"\n"))
    assert service_site.run("feed").returncode == 0
    done = service_site.run("episodes")
    assert "no episode catalogue is in use" in done.stdout
    assert "feeds.urls" in done.stdout
    published = next(found for found in service_site.status()["days"] if found["day"] == str(day))
    assert published["matched_share"] is None
    assert published["publications"][0]["catalogue"] is None


def test_a_refresh_by_hand_reads_everything_now(service_site: ServiceSite, rss_host: RssHost) -> None:
    """It prints what became of each RSS feed."""
    urls = [rss_host.put("/good", rss(items(3, 1))), rss_host.url("/gone")]
    service_site.configure(more=feeds_table(urls))
    done = service_site.run("episodes", "--refresh")
    assert done.returncode == 0
    assert "read      " in done.stdout
    assert "answered 404" in done.stdout
    everything = json.loads(service_site.run("episodes", "--json").stdout)
    assert [len(feed["items"]) for feed in everything["rss_feeds"]] == [3, 0]
    assert Counter(item["token"] for item in everything["rss_feeds"][0]["items"]).total() == 3
