"""An episode catalogue as large as a network's, for a day that was made: a configuration, and a ledger with RSS items.

Writes into the folder that it is given. Every episode of the day is in the catalogue, as one item among many others.
"""

from __future__ import annotations

import gzip
import random
import re
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from server.episodes.rss import RssFeed, RssItem
from server.storage.ledger import Ledger

if TYPE_CHECKING:
    from pathlib import Path

URL = "https://feeds.example.com/show"
CONFIG = """\
data_dir = "data"
[export]
url = "exports"
%s
[[sftp.users]]
name = "nobody"
authorized_keys = "nobody.pub"
"""


def write_catalogue(folder: Path, export: Path, count: int) -> Path:
    """A configuration whose catalogue knows ``count`` episodes, those of the export among them; plain.toml has none."""
    rng = random.Random(7)
    ids: dict[str, None] = {}
    with gzip.open(export) as rows:
        for row in rows:
            match = re.search(rb'"episode_id": ?"([^"]*)"', row)
            if match is not None:
                ids.setdefault(match[1].decode())
    wanted = [*ids]
    while len(wanted) < count:
        wanted.append(str(uuid.UUID(int=rng.getrandbits(128))))
    rng.shuffle(wanted)
    folder.mkdir(exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "nobody.pub").touch()
    config = folder / "config.toml"
    config.write_text(CONFIG % f'[feeds]\nurls = ["{URL}"]')
    (folder / "plain.toml").write_text(CONFIG % "")
    now = datetime.now(UTC)
    ledger = Ledger.open(folder / "data" / "ledger.sqlite3")
    try:
        ledger.rss.keep(RssFeed(URL, now, now, "Shows", items=tuple(map(_item, wanted))))
    finally:
        ledger.close()
    print(f"a catalogue of {len(wanted):,} episodes, {len(ids):,} of them with rows in the export")
    return config


def _item(guid: str) -> RssItem:
    token = f"ABC{int(guid[:8], 16):010d}" if re.match(r"[0-9a-f]{8}-", guid) else "ABC0000000000"
    url = f"https://op3.dev/e/dts.podtrac.com/redirect.mp3/traffic.megaphone.fm/{token}.mp3?updated=1"
    return RssItem(guid, url, f"Episode {token}", datetime(2026, 11, 1, tzinfo=UTC), 3720, 67332401, url, token)
