"""The same mapping as other engines write it: `python -m benchmarks.peers ENGINE EXPORT OUTPUT`.

Each has the default rules as far as it can express them: rejected rows, the keyed hashes of tokens and addresses that
are not canonical are beyond all of them, and so are the books. The Hashed-IP column is always ``-``. Each is there
twice, as a careful user would write it, and lean: times are cut from the text and ids taken as they come, which only
days as clean as the made-up ones forgive.
"""

from __future__ import annotations

import io
import subprocess
import sys
from functools import partial
from pathlib import Path

COLUMNS = (
    "date", "start-time", "IP", "Hashed-IP", "method", "url", "status", "bytes", "object-size", "byte-range",
    "episode-guid", "podcast-id", "x-metric-id", "user-agent",
)  # fmt: skip
FIELDS = (
    "id", "created_at", "ip", "podcast_id", "episode_id", "filesize", "bytes_sent", "blacklisted_ip", "blacklisted_ua",
    "user_agent",
)  # fmt: skip
NUMBERS, FLAGS = ("filesize", "bytes_sent"), ("blacklisted_ip", "blacklisted_ua")
CONTROLS = r"[\x00-\x1f\x7f-\x{9f}\x{2028}\x{2029}]"
TOKEN = "^[0-9a-f]{32}$"


def polars(export: str, output: str, *, lean: bool = False, scan: bool = False) -> None:
    """Polars: NDJSON from memory and CSV written, both through isal; or (``scan``) all by Polars, as a stream."""
    import polars as pl
    from isal import igzip

    types = {name: pl.Int64 if name in NUMBERS else pl.Boolean if name in FLAGS else pl.String for name in FIELDS}
    if scan:
        rows = pl.scan_ndjson(export, schema=types)
    else:
        with igzip.open(export) as file:  # type: ignore[no-untyped-call]  # isal annotates in part
            text = file.read()
        rows = pl.read_ndjson(io.BytesIO(text), schema=types).lazy()
        del text
    col, partial = pl.col, pl.col("bytes_sent") < pl.col("filesize")
    sent = pl.min_horizontal("bytes_sent", "filesize")

    def clean(name: str) -> pl.Expr:
        cell = col(name).fill_null("").str.replace_all(CONTROLS, " ")
        cell = cell.str.replace_all('"', "%22", literal=True).str.replace_all("\\", "%5C", literal=True)
        return pl.when(cell.str.strip_chars() == "").then(pl.lit("-")).otherwise(cell)

    if lean:
        day, clock = col("created_at").str.slice(0, 10), col("created_at").str.slice(11, 8)
        guid, podcast, row_id = col("episode_id"), col("podcast_id"), col("id")
    else:
        created_at = col("created_at").str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="ms")
        day, clock = created_at.dt.strftime("%Y-%m-%d"), created_at.dt.strftime("%H:%M:%S")
        guid, podcast, row_id = clean("episode_id"), clean("podcast_id"), clean("id")
    lines = rows.filter((col("bytes_sent") > 0) & ~col("blacklisted_ip") & ~col("blacklisted_ua")).select(
        day.alias("date"),
        clock.alias("start-time"),
        pl.when(col("ip").str.contains(TOKEN)).then(pl.lit("-")).otherwise(col("ip")).alias("IP"),
        pl.lit("-").alias("Hashed-IP"),
        pl.lit("GET").alias("method"),
        pl.format("/{}/{}.mp3", podcast, guid).alias("url"),
        pl.when(partial).then(206).otherwise(200).alias("status"),
        sent.alias("bytes"),
        col("filesize").alias("object-size"),
        pl.when(partial).then(pl.format("0-{}", sent - 1)).otherwise(pl.lit("-")).alias("byte-range"),
        guid.alias("episode-guid"),
        podcast.alias("podcast-id"),
        row_id.alias("x-metric-id"),
        clean("user_agent").alias("user-agent"),
    )
    if scan:
        lines.sink_csv(output, separator="\t", quote_style="never", compression="gzip", compression_level=1)
        return
    with igzip.open(output, "wb", compresslevel=1) as file:  # type: ignore[no-untyped-call]
        lines.collect().write_csv(file, separator="\t", quote_style="never")


def duckdb(export: str, output: str, *, lean: bool = False) -> None:
    """DuckDB: read_json and COPY, both of gzip files."""
    import duckdb as engine

    types = ", ".join(
        f"{name}: '{'BIGINT' if name in NUMBERS else 'BOOLEAN' if name in FLAGS else 'VARCHAR'}'" for name in FIELDS
    )

    def clean(name: str) -> str:
        cell = f"regexp_replace(coalesce({name}, ''), '{CONTROLS}', ' ', 'g')"
        cell = f"replace(replace({cell}, '\"', '%22'), '\\', '%5C')"
        return f"CASE WHEN trim({cell}) = '' THEN '-' ELSE {cell} END"

    day, clock = "strftime(moment, '%Y-%m-%d')", "strftime(moment, '%H:%M:%S')"
    moment = "strptime(created_at, '%Y-%m-%dT%H:%M:%S.%gZ')"
    podcast, guid, row_id = clean("podcast_id"), clean("episode_id"), clean("id")
    if lean:
        day, clock, moment = "substr(moment, 1, 10)", "substr(moment, 12, 8)", "created_at"
        podcast, guid, row_id = "podcast_id", "episode_id", "id"
    engine.sql(f"""
        COPY (
            SELECT {day} AS "date", {clock} AS "start-time",
                CASE WHEN regexp_matches(ip, '{TOKEN}') THEN '-' ELSE ip END AS "IP",
                '-' AS "Hashed-IP", 'GET' AS "method", '/' || podcast || '/' || guid || '.mp3' AS "url",
                CASE WHEN bytes_sent < filesize THEN 206 ELSE 200 END AS "status",
                least(bytes_sent, filesize) AS "bytes", filesize AS "object-size",
                CASE WHEN bytes_sent < filesize THEN '0-' || (bytes_sent - 1) ELSE '-' END AS "byte-range",
                guid AS "episode-guid", podcast AS "podcast-id", row_id AS "x-metric-id", agent AS "user-agent"
            FROM (
                SELECT ip, filesize, bytes_sent, {moment} AS moment, {podcast} AS podcast, {guid} AS guid,
                    {row_id} AS row_id, {clean("user_agent")} AS agent
                FROM read_json('{export}', format = 'newline_delimited', columns = {{{types}}})
                WHERE bytes_sent > 0 AND NOT blacklisted_ip AND NOT blacklisted_ua
            )
        ) TO '{output}' (FORMAT csv, HEADER, DELIMITER '\t', QUOTE '', ESCAPE '', COMPRESSION gzip)
    """)


def jq(export: str, output: str, *, lean: bool = False) -> None:
    """Zcat, jq and gzip in a row."""
    keep = "def id_clean: .;" if lean else "def id_clean: clean;"
    program = r"""
        def clean: (. // "") | gsub("[\\x00-\\x1f\\x7f-\\x{9f}\\x{2028}\\x{2029}]"; " ") | gsub("\""; "%22")
            | gsub("\\\\"; "%5C") | if test("^\\s*$") then "-" else . end;
        KEEP
        select(.bytes_sent > 0 and (.blacklisted_ip | not) and (.blacklisted_ua | not))
        | ([.bytes_sent, .filesize] | min) as $sent | (.bytes_sent < .filesize) as $partial
        | (.podcast_id | id_clean) as $podcast | (.episode_id | id_clean) as $guid
        | [.created_at[0:10], .created_at[11:19], (if .ip | test("^[0-9a-f]{32}$") then "-" else .ip end), "-", "GET",
            "/\($podcast)/\($guid).mp3", (if $partial then "206" else "200" end), $sent, .filesize,
            (if $partial then "0-\($sent - 1)" else "-" end), $guid, $podcast, (.id | id_clean), (.user_agent | clean)]
        | map(tostring) | join("\t")
    """
    program = program.replace("KEEP", keep)
    header = "\t".join(COLUMNS)
    script = '{ printf "%s\\n" "$1"; zcat -- "$2" | jq -r "$3"; } | gzip > "$4"'
    subprocess.run(["bash", "-o", "pipefail", "-c", script, "jq", header, export, program, output], check=True)


def floor(export: str, output: str, text: str) -> None:
    """Gunzip of the export, then gzip of the log's text, one after the other, with isal."""
    from isal import igzip

    with igzip.open(export) as source:  # type: ignore[no-untyped-call]
        while source.read(1 << 20):
            pass
    with Path(text).open("rb") as lines, igzip.open(output, "wb", compresslevel=1) as target:  # type: ignore[no-untyped-call]
        while data := lines.read(1 << 20):
            target.write(data)


ENGINES = {
    "polars": polars,
    "polars-lean": partial(polars, lean=True),
    "polars-scan": partial(polars, scan=True),
    "polars-scan-lean": partial(polars, scan=True, lean=True),
    "duckdb": duckdb,
    "duckdb-lean": partial(duckdb, lean=True),
    "jq": jq,
    "jq-lean": partial(jq, lean=True),
    "floor": floor,
}

if __name__ == "__main__":
    ENGINES[sys.argv[1]](*sys.argv[2:])
