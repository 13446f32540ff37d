"""The command ``episodes``: to which episodes Triton can match a line.

Prints. Reads what is stored, and writes only with ``--refresh`` (the ledger) and ``--export`` (that file).
"""

from __future__ import annotations

import contextlib
import shlex
from datetime import UTC, datetime
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    ConfigOption,
    JsonOption,
    Out,
    Usage,
    VerboseOption,
    load_settings,
    print_hint,
    print_json,
    run_loop,
)
from .privileges import become_owner

if TYPE_CHECKING:
    from ..episodes.rss import RssFeed
    from ..episodes.source import EpisodesSnapshot
    from ..settings import Config
    from ..status.episodes import Matching

episode_commands = typer.Typer()

UNMATCHED_SHOWN = 30  # those with the most lines


@episode_commands.command()
def episodes(
    config: ConfigOption = None,
    unmatched: Annotated[
        bool, typer.Option("--unmatched", help="List the episodes of the last published days that match nothing.")
    ] = False,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write a CSV with these, to fill in by hand.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", metavar="FILE", help="Check such a CSV; exit 2 if anything is wrong with it."),
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="First read every RSS feed again.")] = False,
    days: Annotated[int, typer.Option("--days", min=1, help="How many published days to read.")] = 7,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show the episode catalogue. What the RSS feeds and the CSV have, and which episodes in the logs match nothing."""
    if check is not None:
        if export is not None or unmatched or refresh:
            raise Usage(
                "--check cannot be combined with other options",
                hint=f"pickup-point episodes --check {shlex.quote(str(check))}",
            )
        _check(check)
        return
    from ..episodes.source import episodes_snapshot
    from ..status.episodes import matching, new_csv, write_export
    from ..storage.ledger import LEDGER_FILE, Ledger

    settings = load_settings(config, verbose=verbose, quiet=not refresh)
    with contextlib.ExitStack() as stack:
        # Opened first: the file belongs to whoever typed the command; what is read belongs to the service.
        file = stack.enter_context(new_csv(export)) if export is not None else None
        become_owner(settings)
        if refresh:
            _refresh(settings, quiet=json)
        with contextlib.closing(Ledger.read(settings.data_dir / LEDGER_FILE)) as ledger:
            snapshot = episodes_snapshot(settings, ledger.rss)
            found = matching(settings, ledger, snapshot.catalogue, days)
        count = write_export(file, snapshot.written, found.unmatched) if file is not None else 0
    if export is not None:
        print(f"{export}: {count} episodes to fill in, and {len(snapshot.written)} filled in already")
        print_hint(f"fill them in, then: pickup-point episodes --check {shlex.quote(str(export))}")
        print_hint(f"then set log.episodes to {export}")
    elif unmatched:
        _print_unmatched(found, json=json)
    elif json:
        print_json(snapshot.as_json() | {"matching": found.as_json()})
    else:
        _print_summary(snapshot, found, settings)


def _check(path: Path) -> None:
    from ..episodes.catalogue import check_episodes, load_catalogue

    problems = check_episodes(path)
    for problem in problems:
        print(problem)
        print_hint(problem.cure)
    if problems:
        print(f"{path}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
        raise Out(2)
    print(f"{path}: {len(load_catalogue(path).episodes)} episodes, nothing is wrong")


def _refresh(settings: Config, *, quiet: bool) -> None:
    from ..episodes.source import CatalogueSource
    from ..storage.folder import DataFolder
    from ..storage.ledger import Ledger

    folder = DataFolder(settings.data_dir)
    folder.prepare()
    with contextlib.closing(Ledger.open(folder.ledger_path)) as ledger:
        source = CatalogueSource(settings, ledger.rss)
        outcomes = run_loop(source.refresh(datetime.now(UTC), force=True))
    for outcome in outcomes if not quiet else ():
        print(f"{outcome.word:10}{outcome.name}  {outcome.sentence}")
        print_hint(outcome.hint)


def _print_summary(snapshot: EpisodesSnapshot, found: Matching, settings: Config) -> None:
    now = datetime.now(UTC)
    stamp = snapshot.catalogue.stamp if snapshot.catalogue is not None else None
    if stamp is None:
        print("no episode catalogue is in use: every line is sent with Megaphone's episode_id as episode-guid")
        if not settings.feeds.configured and settings.log.episodes is None:
            print_hint("set feeds.urls to your RSS feeds, to see what Triton can match")
    else:
        print(f"version {stamp.version}: {stamp.episodes} episodes")
    if settings.log.episodes is not None:
        print(f"  {len(snapshot.written):>6}  written by hand in {settings.log.episodes}")
    for url, feed in snapshot.feeds:
        print(f"  {feed.item_count if feed is not None else 0:>6}  {_feed_text(url, feed, now)}")
        if feed is not None and feed.error:
            print(f"          {feed.error}")
            print_hint(feed.hint, 10)
        elif feed is None:
            print_hint("pickup-point episodes --refresh", 10)
    if found.share is not None:
        print(f"\n{found.share:.1%} of the {found.lines} lines of the last {len(found.days)} published days match")
        if found.unmatched:
            print(f"  {len(found.unmatched)} episodes match nothing")
            print_hint("pickup-point episodes --unmatched")


def _feed_text(url: str, feed: RssFeed | None, now: datetime) -> str:
    from ..episodes.rss import safe_url
    from ..status.days import span

    if feed is None:
        return f"{safe_url(url)}  not read yet"
    age = f"read {span(now - feed.read_at)} ago" if feed.read_at is not None else "never read"
    return f"{safe_url(url)}  {age}" + (f"  {feed.title}" if feed.title else "")


def _print_unmatched(found: Matching, *, json: bool) -> None:
    if json:
        print_json(found.as_json())
        return
    if not found.days:
        print("there are no logs to read")
        print_hint("pickup-point status")
        return
    if not found.unmatched:
        print(f"every one of the {found.lines} lines of the last {len(found.days)} published days matches")
        return
    print(f"{'lines':>10}  {'episode_id':36}  {'podcast_id':36}  last day")
    for episode in found.unmatched[:UNMATCHED_SHOWN]:
        print(f"{episode.lines:>10}  {episode.episode_id:36}  {episode.podcast_id:36}  {episode.last}")
    if (more := len(found.unmatched) - UNMATCHED_SHOWN) > 0:
        print(f"{'':>10}  and {more} more")
        print_hint("all of them: pickup-point episodes --unmatched --json", 10)
    share = f"{1 - (found.share or 0):.1%}"
    lines = sum(episode.lines for episode in found.unmatched)
    print(f"\n{lines} of {found.lines} lines ({share}) in {len(found.unmatched)} episodes match nothing")
    print_hint("pickup-point episodes --export episodes.csv")
    print_hint("fill in the guids of the RSS feeds, and set log.episodes to the file")
