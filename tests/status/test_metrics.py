"""Metrics: what the real service shows to Prometheus, the alert rules and the dashboard on top of it.

promtool and prometheus (Debian: ``prometheus``) are run for real where they are installed.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import asyncssh
import pytest
import yaml

from ..support.program import PATIENCE, day_before, export_of, log_in, secrets_of, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from ..support.program import ServiceSite, Serving

MONITORING = Path(__file__).parent.parent.parent / "server" / "monitoring"
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")


@asynccontextmanager
async def measured(site: ServiceSite) -> AsyncIterator[tuple[Serving, str]]:
    """Run a service with a day published, another one missing, and metrics on a free port."""
    yesterday = day_before(1)
    site.put(yesterday, export_of(yesterday, 20, b"no JSON"))
    first = f'url = "exports"\nfirst_day = "{day_before(2)}"'
    site.configure(export=first, log="max_rejected = 0.5", more='[web]\nlisten = "127.0.0.1:0"\n')
    serving = await site.serve()
    (said,) = await serving.running.says(r"service opened the page .*port=(\d+)")
    await serving.sees(f"TEST{yesterday:%Y%m%d}-00.tsv.gz")
    yield serving, f"http://127.0.0.1:{said[1]}/metrics"
    assert await serving.running.stops() == 0


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
        return text


def value(text: str, sample: str) -> float:
    """The value of one sample, written as it stands in the exposition."""
    for line in text.splitlines():
        name, _, number = line.rpartition(" ")
        if name == sample:
            return float(number)
    raise AssertionError(f"no {sample} in:\n{text}")


async def test_a_scrape_counts_what_happened(service_site: ServiceSite) -> None:
    """A pickup, a wrong password, a published day and a missing one: each is in its metric."""
    yesterday, missing = day_before(1), day_before(2)
    async with measured(service_site) as (serving, url):
        before = scrape(url)
        log = await serving.fetch(f"TEST{yesterday:%Y%m%d}-00.tsv.gz")
        with pytest.raises(asyncssh.PermissionDenied):
            async with log_in(serving.port, "triton", "wrong"):
                pass
        done = f'pickup_point_day_done{{day="{yesterday}",deadline="picked_up"}}'
        await until(lambda: value(scrape(url), done) == 1, "the pickup in the metrics")
        text = scrape(url)
    assert value(before, done) == 0
    assert value(text, f'pickup_point_day_done{{day="{yesterday}",deadline="published"}}') == 1
    assert value(text, f'pickup_point_day_lines{{day="{yesterday}"}}') == 20
    assert value(text, f'pickup_point_day_rejected_rows{{day="{yesterday}"}}') == 1
    assert value(text, f'pickup_point_day_state{{day="{yesterday}",state="picked up"}}') == 1
    assert value(text, f'pickup_point_day_state{{day="{missing}",state="missing"}}') == 1
    by = value(text, f'pickup_point_day_deadline_timestamp_seconds{{day="{yesterday}",deadline="picked_up"}}')
    assert by - value(text, f'pickup_point_day_deadline_timestamp_seconds{{day="{missing}",deadline="picked_up"}}') == (
        24 * 3600
    )
    assert value(text, 'pickup_point_rows_total{outcome="line"}') == 20
    assert value(text, 'pickup_point_rows_total{outcome="malformed_json"}') == 1
    assert value(text, 'pickup_point_rounds_total{result="good"}') >= 1
    assert value(text, 'pickup_point_pickups_total{grade="complete"}') == 1
    assert value(text, "pickup_point_sftp_sent_bytes_total") >= len(log)
    assert value(text, "pickup_point_sftp_logins_total") >= 2
    assert value(text, 'pickup_point_sftp_refusals_total{reason="wrong-password"}') == 1
    assert value(text, "pickup_point_served_files") == 1
    assert value(text, "pickup_point_disk_free_bytes") > 0
    for what in ("round", "publication", "pickup", "login"):
        at = value(text, f'pickup_point_last_success_timestamp_seconds{{what="{what}"}}')
        assert abs(at - time.time()) < PATIENCE * 3


async def test_no_label_holds_anything_of_a_listener_or_an_address(service_site: ServiceSite) -> None:
    """There are no addresses, no user agents, and nothing about who logged in from where and with what."""
    async with measured(service_site) as (serving, url):
        await serving.fetch(f"TEST{day_before(1):%Y%m%d}-00.tsv.gz")
        text = scrape(url)
    secrets = secrets_of(next(service_site.exports.iterdir()).read_bytes())
    assert len(secrets) >= 2
    for secret in {*secrets, "127.0.0.1", "AsyncSSH"}:
        assert secret not in text
    labels = set(re.findall(r'(\w+)="', text))
    assert labels == {"day", "deadline", "state", "result", "outcome", "grade", "level", "what", "reason"} & labels


@promtool
async def test_the_names_follow_prometheus_practice(service_site: ServiceSite) -> None:
    """promtool has nothing to criticise."""
    async with measured(service_site) as (serving, url):
        await serving.names()
        text = scrape(url)
    done = await asyncio.to_thread(
        subprocess.run, ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@promtool
def test_the_alert_rules_are_rules(tmp_path: Path) -> None:
    """promtool accepts them, and each has a summary and something to type."""
    done = subprocess.run(
        ["promtool", "check", "rules", MONITORING / "alerts.yml"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for rule in rules().values():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"] and "pickup-point" in rule["annotations"]["description"]


def rules() -> dict[str, Any]:
    """The alert rules, by name."""
    loaded = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    return {rule["alert"]: rule for group in loaded["groups"] for rule in group["rules"]}


# At the test's time 0 (the epoch), by each alert: series that raise it within two hours.
HOUR = 3600
RAISES: Mapping[str, Mapping[str, float]] = {
    "PickupPointDown": {'up{job="pickup-point"}': 0},
    "PickupPointDayNotPublished": {
        'pickup_point_day_deadline_timestamp_seconds{day="D",deadline="published"}': 7 * HOUR,
        'pickup_point_day_deadline_timestamp_seconds{day="D",deadline="picked_up"}': 31 * HOUR,
        'pickup_point_day_done{day="D",deadline="published"}': 0,
    },
    "PickupPointDayNotPickedUp": {
        'pickup_point_day_deadline_timestamp_seconds{day="D",deadline="picked_up"}': 13 * HOUR,
        'pickup_point_day_done{day="D",deadline="published"}': 1,
        'pickup_point_day_done{day="D",deadline="picked_up"}': 0,
    },
    "PickupPointDayHeld": {'pickup_point_day_state{day="D",state="held"}': 1},
    "PickupPointFeedStopped": {'pickup_point_last_success_timestamp_seconds{what="round"}': 0},
    "PickupPointDiskNearlyFull": {"pickup_point_disk_free_bytes": 9e8},
    "PickupPointAlarms": {'pickup_point_alarms{level="critical"}': 1},
}
WELL: Mapping[str, float] = {
    'up{job="pickup-point"}': 1,
    'pickup_point_day_deadline_timestamp_seconds{day="D",deadline="published"}': 7 * HOUR,
    'pickup_point_day_deadline_timestamp_seconds{day="D",deadline="picked_up"}': 31 * HOUR,
    'pickup_point_day_done{day="D",deadline="published"}': 1,
    'pickup_point_day_done{day="D",deadline="picked_up"}': 0,
    'pickup_point_day_state{day="D",state="published"}': 1,
    'pickup_point_last_success_timestamp_seconds{what="round"}': 6000,
    "pickup_point_disk_free_bytes": 5e9,
}


@promtool
def test_each_alert_fires_when_it_should_and_none_when_all_is_well(tmp_path: Path) -> None:
    """The rules are run over series made by hand, by promtool."""
    assert set(RAISES) == set(rules())
    tests = []
    for name, series in [*RAISES.items(), ("", WELL)]:
        fired = [{"exp_labels": labels_of(name, series), "exp_annotations": annotations_of(name)}] if name else []
        alerts = [name] if name else list(RAISES)
        told = [{"eval_time": "2h", "alertname": alert, "exp_alerts": fired} for alert in alerts]
        inputs = [{"series": sample, "values": f"{number:.0f}x130"} for sample, number in series.items()]
        tests.append({"interval": "1m", "input_series": inputs, "alert_rule_test": told})
    path = tmp_path / "alerts_test.yml"
    path.write_text(json.dumps({"rule_files": [str(MONITORING / "alerts.yml")], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def labels_of(name: str, series: Mapping[str, float]) -> dict[str, str]:
    """The labels of the alert: those of its series, and the severity."""
    first = next(iter(series))
    found = dict(re.findall(r'(\w+)="([^"]*)"', first))
    return found | {"severity": rules()[name]["labels"]["severity"]}


def annotations_of(name: str) -> dict[str, str]:
    """The annotations, filled in for day D."""
    filled = rules()[name]["annotations"]
    words = {"{{ $labels.day }}": "D", "{{ $labels.state }}": "held"}
    for mark, word in words.items():
        filled = {key: text.replace(mark, word) for key, text in filled.items()}
    return dict(filled)


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus: apt-get install prometheus")
async def test_a_real_prometheus_scrapes_it_and_understands_the_dashboard(
    service_site: ServiceSite, tmp_path: Path
) -> None:
    """Scraped, with the rules loaded; every query of the dashboard is answered, and names metrics that there are."""
    async with measured(service_site) as (serving, url):
        await serving.fetch(f"TEST{day_before(1):%Y%m%d}-00.tsv.gz")
        prometheus, base = start_prometheus(tmp_path, url)
        try:
            await until(lambda: ask(base, "pickup_point_served_files") == [1.0], "the scraped number of files")
            loaded = json.loads(get(f"{base}/api/v1/rules"))["data"]["groups"]
            assert {rule["name"] for group in loaded for rule in group["rules"]} == set(RAISES)
            assert {rule["health"] for group in loaded for rule in group["rules"]} <= {"ok", "unknown"}
            known = set(re.findall(r"^# TYPE (pickup_point_\w+)", scrape(url), re.MULTILINE))
            dashboard = json.loads((MONITORING / "dashboard.json").read_text())
            queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
            assert queries
            for query in queries:
                ask(base, query.replace("$__rate_interval", "5m"))
                assert set(re.findall(r"pickup_point_\w+", query)) <= known, query
        finally:
            prometheus.terminate()
            prometheus.wait(PATIENCE)


def start_prometheus(folder: Path, url: str) -> tuple[subprocess.Popen[bytes], str]:
    """A Prometheus on 127.0.0.1 that scrapes ``url`` every second, with the alert rules."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [{"job_name": "pickup-point", "static_configs": [{"targets": [url.split("/")[2]]}]}]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "alerts.yml")],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    arguments = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb"]
    process = subprocess.Popen(
        ["prometheus", *arguments, f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return process, f"http://127.0.0.1:{port}"


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
        return text


def ask(base: str, query: str) -> list[float]:
    """The values of a query; empty as long as nobody answers, an error for one that is not a query."""
    try:
        answer = json.loads(get(f"{base}/api/v1/query?query={quote(query)}"))
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it is still starting
            return []
        raise AssertionError(f"{query}: {error.read().decode()}") from error
    except OSError:
        return []
    return [float(sample["value"][1]) for sample in answer["data"]["result"]]
