"""What an RSS document says, and every way in which one can attack its reader.

No outside world.
"""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime

import pytest

from server.episodes.rss import (
    DEEPEST,
    LONGEST_GUID,
    MOST_ITEMS,
    NotRss,
    RssDocument,
    RssItem,
    bare_url,
    known_charset,
    megaphone_token,
    safe_url,
)

from ..support.rss_server import HEAD, PREFIXES, items, parse_rss, rss


def document(inside: str, head: str = HEAD) -> bytes:
    return f"{head}{inside}</channel></rss>".encode()


def one(inside: str) -> RssItem:
    (item,) = parse_rss(document(f"<item>{inside}</item>")).items
    return item


def test_an_item_is_read_with_everything_that_it_says() -> None:
    """Guid, enclosure as published and bare, Megaphone's token, title, date in UTC, seconds, bytes."""
    (made,) = items(1, 7, prefix=PREFIXES)
    found = parse_rss(rss([made], "Show & Tell"))
    assert found.title == "Show & Tell"
    assert found.items == [
        RssItem(
            guid=made.guid, enclosure_url=made.url, title=f"Episode & {made.token}",
            published=datetime(2026, 11, 20, 9, tzinfo=UTC), duration=3723, length=67332401,
            bare_url=f"https://traffic.megaphone.fm/{made.token}.mp3?updated=1", token=made.token,
        )
    ]  # fmt: skip


def test_a_document_may_come_in_any_pieces() -> None:
    """Parsing byte by byte gives the same result as parsing the whole."""
    whole = rss(items(3, 1, foreign=True))
    document_ = RssDocument()
    for byte in whole:
        document_.feed(bytes([byte]))
    assert document_.close() == parse_rss(whole).items


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "windows-1252"])
def test_encodings_of_one_byte_a_letter_and_unicode_are_read(encoding: str) -> None:
    """As the document declares it."""
    text = f'<?xml version="1.0" encoding="{encoding}"?><rss><channel><title>Käse</title></channel></rss>'
    assert parse_rss(text.encode(encoding)).title == "Käse"


@pytest.mark.parametrize(
    ("inside", "guid", "url"),
    [
        ("<guid>g</guid>", "g", ""),
        ('<enclosure url="https://x.example/a.mp3"/>', "", "https://x.example/a.mp3"),
        ('<guid>g</guid><enclosure url="https://x.example/a"/><enclosure url="https://x.example/b"/>', "g",
         "https://x.example/a"),
        ('<guid>g</guid><guid>h</guid><enclosure url="file:///etc/passwd"/>', "g", ""),
        (f'<guid>g</guid><enclosure url="https://x.example/{"x" * 2100}"/>', "g", ""),
        (f'<guid>{"g" * (LONGEST_GUID + 1)}</guid><enclosure url="https://x.example/a"/>', "", "https://x.example/a"),
        ("<guid><b>no</b>g</guid>", "nog", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_left_away(inside: str, guid: str, url: str) -> None:
    """Duplicates, URLs that are invalid or too long, endless guids."""
    assert (one(inside).guid, one(inside).enclosure_url) == (guid, url)


def test_items_without_guid_and_enclosure_are_none() -> None:
    """A blog post in the same RSS feed matches nothing."""
    assert parse_rss(document("<item><title>News</title></item><item/>")).items == []


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3720", 3720), ("1:02:00", 3720), ("62:00", 3720), ("62:00.5", 3720), ("", None), ("x", None), ("-1", None),
     ("9" * 40, None)],
)  # fmt: skip
def test_durations_are_seconds(text: str, seconds: int | None) -> None:
    """In all three forms."""
    assert one(f"<guid>g</guid><itunes:duration>{text}</itunes:duration>").duration == seconds


@pytest.mark.parametrize(
    ("text", "iso"),
    [("Fri, 20 Nov 2026 10:00:00 -0000", "2026-11-20T10:00:00"), ("2026-11-20T10:00:00+01:00", "2026-11-20T09:00:00"),
     ("yesterday", None), ("Fri, 99 Nov 2026 10:00:00 GMT", None), ("Fri, 31 Dec 9999 23:59:59 -1200", None)],
)  # fmt: skip
def test_dates_are_instants_or_nothing(text: str, iso: str | None) -> None:
    """An invalid date loses only the date."""
    published = one(f"<guid>g</guid><pubDate>{text}</pubDate>").published
    assert (published and published.replace(tzinfo=None).isoformat()) == iso


def test_a_title_cannot_speak_to_a_terminal() -> None:
    """Control characters that XML permits become blanks, and an overlong title is cut."""
    item = one(f"<guid>g</guid><title>a\u009b31mb\n\u202ec{'x' * 9000}</title>")
    assert item.title.startswith("a 31mb  c") or item.title.startswith("a 31mb c")
    assert item.title.isprintable()
    assert len(item.title) == 300


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE rss [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    + "".join(f'<!ENTITY {chr(n + 1)} "{f"&{chr(n)};" * 10}">' for n in range(ord("b"), ord("j")))
    + "]><rss><channel><title>&j;</title></channel></rss>"
)
HOSTILE = [
    (BOMB, "declares entities"),
    ('<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><rss><channel><title>&x;</title></channel></rss>',
     "declares entities"),
    ('<!DOCTYPE r [<!ENTITY % x SYSTEM "http://127.0.0.1/x.dtd">%x;]><rss/>', "declares entities"),
    ('<rss a="&undefined;"/>', "not well-formed XML"),
    ("<a>" * (DEEPEST + 1), "deep"),
    (HEAD + "<item>" * 3, "not well-formed XML"),
    (HEAD + "<item><guid>g</guid></item>", "not well-formed XML"),
    ("", "not well-formed XML"),
    ("\0" * 100, "not well-formed XML"),
    ("<!doctype html><html><body>Sorry</body></html>", "not well-formed XML"),
    ("<html><body/></html>", "it is not RSS"),
    ('<feed xmlns="http://www.w3.org/2005/Atom"/>', "it is not RSS: its first element is <feed>"),
    ('<?xml version="1.0" encoding="shift_jis"?><rss/>', "its encoding"),
    ('<?xml version="1.0" encoding="nonsense"?><rss/>', "its encoding"),
    (f'<rss a="{"x" * 3_000_000}"/>', "tags or comments is over 1 MiB"),
    (f"{HEAD}<!--{'x' * 3_000_000}", "tags or comments is over 1 MiB"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "why"), HOSTILE)
def test_a_hostile_or_broken_document_is_refused_with_a_word(text: str, why: str) -> None:
    """Entities that grow or fetch, endless markup, endless depth, a truncated end, other things than RSS."""
    with pytest.raises(NotRss, match=why):
        parse_rss(text.encode())


def test_an_outer_document_type_is_never_fetched() -> None:
    """Old documents name it; its entities are dropped."""
    text = '<!DOCTYPE rss SYSTEM "http://127.0.0.1:1/rss.dtd"><rss><channel><title>a&b;c</title></channel></rss>'
    assert parse_rss(text.encode()).title == "ac"


def test_memory_grows_with_the_items_and_not_with_the_document() -> None:
    """Forty megabytes of notes around one item need almost no memory."""
    document_ = RssDocument()
    document_.feed(HEAD.encode() + b"<item><guid>g</guid><description>")
    tracemalloc.start()
    for _ in range(160):
        document_.feed(b"x" * (256 << 10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    document_.feed(b"</description></item></channel></rss>")
    assert [item.guid for item in document_.close()] == ["g"]
    assert peak < 4 << 20


def test_a_document_with_too_many_items_is_refused() -> None:
    """No show has that many."""
    with pytest.raises(NotRss, match="more than 50000 items"):
        parse_rss(document("<item><guid>g</guid></item>" * (MOST_ITEMS + 1)))


@pytest.mark.parametrize(
    ("url", "bare", "token"),
    [
        ("https://traffic.megaphone.fm/ABC1234567890.mp3", "https://traffic.megaphone.fm/ABC1234567890.mp3",
         "ABC1234567890"),
        (f"{PREFIXES}traffic.megaphone.fm/ABC1234567890.mp3?updated=1",
         "https://traffic.megaphone.fm/ABC1234567890.mp3?updated=1", "ABC1234567890"),
        ("https://www.podtrac.com/pts/redirect.mp3/traffic.megaphone.fm/GLT9999999999.mp3",
         "https://traffic.megaphone.fm/GLT9999999999.mp3", "GLT9999999999"),
        ("https://op3.dev/e,pg=1/https://traffic.megaphone.fm/ABC1234567890.mp3",
         "https://traffic.megaphone.fm/ABC1234567890.mp3", "ABC1234567890"),
        ("https://op3.dev/e/http://traffic.megaphone.fm/ABC1234567890.mp3",
         "http://traffic.megaphone.fm/ABC1234567890.mp3", "ABC1234567890"),
        ("https://pdst.fm/e/https%3A%2F%2Ftraffic.megaphone.fm%2FABC1234567890.mp3",
         "https://traffic.megaphone.fm/ABC1234567890.mp3", "ABC1234567890"),
        ("https://pdst.fm/e/chrt.fm/track/1/traffic.libsyn.com:8080/secure/show/a.mp3",
         "https://traffic.libsyn.com:8080/secure/show/a.mp3", ""),
        ("https://cdn.example.com/v1.2/show.final/redirect.mp3/a.mp3",
         "https://cdn.example.com/v1.2/show.final/redirect.mp3/a.mp3", ""),
        ("https://megaphone.fm.evil.example/ABC1234567890.mp3",
         "https://megaphone.fm.evil.example/ABC1234567890.mp3", ""),
        ("https://notmegaphone.fm/ABC1234567890.mp3", "https://notmegaphone.fm/ABC1234567890.mp3", ""),
        ("https://www.podtrac.com/pts/redirect.mp3/traffic.megaphone.fm/EXAMPLECOMPANYLLC7453036557.mp3?updated=1",
         "https://traffic.megaphone.fm/EXAMPLECOMPANYLLC7453036557.mp3?updated=1", "EXAMPLECOMPANYLLC7453036557"),
        (f"https://traffic.megaphone.fm/{'A' * 500}1.mp3", f"https://traffic.megaphone.fm/{'A' * 500}1.mp3",
         f"{'A' * 500}1"),
        ("https://traffic.megaphone.fm/a1", "https://traffic.megaphone.fm/a1", "a1"),
        ("https://traffic.megaphone.fm/ABC.mp3", "https://traffic.megaphone.fm/ABC.mp3", ""),
        ("https://traffic.megaphone.fm/123.mp3", "https://traffic.megaphone.fm/123.mp3", ""),
        ("https://traffic.megaphone.fm/ABC123X.mp3", "https://traffic.megaphone.fm/ABC123X.mp3", ""),
        ("https://traffic.megaphone.fm/a/ABC1234567890.mp3", "https://traffic.megaphone.fm/a/ABC1234567890.mp3", ""),
        ("https://[::1", "https://[::1", ""),
        ("", "", ""),
        ("no url", "no url", ""),
    ],
)  # fmt: skip
def test_redirect_prefixes_are_taken_off(url: str, bare: str, token: str) -> None:
    """Whoever runs them: the last host in the path, and what follows it."""
    assert bare_url(url) == bare
    assert megaphone_token(bare) == token


BARE = "<rss><channel><title>Küche</title><item><guid>é</guid></item></channel></rss>"
DECLARED = '<?xml version="1.0" encoding="{}"?>' + BARE


@pytest.mark.parametrize("piece", [1, 5, 10_000])
@pytest.mark.parametrize(
    ("document", "charset"),
    [
        (BARE.encode(), None),
        (BARE.encode("latin-1"), "ISO-8859-1"),
        (BARE.encode("cp1252"), "windows-1252"),
        (f'<?xml version="1.0"?>{BARE}'.encode("latin-1"), "latin1"),
        (BARE.encode(), "utf8"),
        # What they might as well not have said.
        (BARE.encode(), "us-ascii"),
        (BARE.encode(), "no such thing"),
        # The document's own word comes first.
        (DECLARED.format("utf-8").encode(), "iso-8859-1"),
        (DECLARED.format("iso-8859-1").encode("latin-1"), "utf-8"),
        (DECLARED.format("iso-8859-1").encode("latin-1"), "windows-1251"),
        (BARE.encode("utf-8-sig"), "iso-8859-1"),
        (BARE.encode("utf-16"), "iso-8859-1"),
        ((" " * 2000 + BARE).encode("latin-1"), "iso-8859-1"),
    ],
)
def test_the_encoding_may_stand_in_the_servers_header_alone(document: bytes, charset: str | None, piece: int) -> None:
    """It counts where the document names none."""
    reader = RssDocument(known_charset(charset))
    for start in range(0, len(document), piece):
        reader.feed(document[start : start + piece])
    assert ([item.guid for item in reader.close()], reader.title) == (["é"], "Küche")


@pytest.mark.parametrize("charset", ["hex", "idna", "utf-7", "shift_jis", "undefined"])
def test_an_encoding_that_cannot_be_read_is_refused_in_a_sentence(charset: str) -> None:
    """Those of several bytes a character, and one that is not a text encoding."""
    reader = RssDocument(known_charset(charset))
    with pytest.raises(NotRss, match="encoding is unknown"):
        reader.feed(BARE.encode("latin-1"))


def test_an_address_is_shown_without_its_secrets() -> None:
    """No password or query gets into the journal, nor anything that breaks its line or a shell's quotes."""
    assert safe_url("https://me:secret@x.example/a'b\nc?key=1#f") == "https://x.example/a?bc"
    assert safe_url("https://[") == "an invalid URL"
