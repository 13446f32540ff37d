"""The kernel alone, fuzzed under AddressSanitizer and UndefinedBehaviorSanitizer.

    python -m tests.support.fuzz_kernel [--seconds 60] [--seed 1] [--folder FOLDER]
    python -m tests.support.fuzz_kernel --write FOLDER      only the rules and the inputs, for `.ci/variants`

Writes the rules of the tests as C, compiles `fuzz_kernel.c` (which tells how it fuzzes) with gcc into a folder, and
runs it, beginning with the corpus of `rows`. Ends with 1 if the kernel broke a promise or touched what is not its own;
the input lies in the folder as `input` then, its length in the first four bytes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson

from server.convert.conversion import Conversion
from server.convert.kernel import CompiledRules, Names, _pack_catalogue
from server.megaphone.exports import DELIVERY_V2
from server.triton import UrlTemplate, safe_text

from .kernel_ways import EPISODES, FRESH_AFTER, MORE_RULES, ROWS, V2_RULES, kernel
from .odd_rows import GOOD
from .reference_conversion import DAY, KEY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SOURCE = Path(__file__).with_name("fuzz_kernel.c")
_SMALL_ROOM = 16  # a flag of fuzz_kernel.c
_FLAGS = (0, 1, 2, 4, 8, 16, 16 | 2, 16 | 4, 16 | 8, 64, 128)
_WITHOUT_TEXTS = {name: value for name, value in GOOD.items() if name not in ("city", "user_agent")}
_NEEDED = ("created_at", "ip", "podcast_id", "episode_id", "filesize")
_SEVERAL = b"\n".join(
    orjson.dumps({"id": f"i{n}", "bytes_sent": n % 3 * 500} | {name: GOOD[name] for name in _NEEDED}) for n in range(9)
)
CORPUS = Path(__file__).parent.parent / "corpus" / "rows"
FLAGS = (
    "-std=gnu11", "-g", "-O1", "-DALONE", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    "-fsanitize-coverage=trace-pc", "-fno-omit-frame-pointer",
)  # fmt: skip
_PLAIN = ("rows", "truncated", "partial", "clamp", "percent", "hashes", "has_day", "has_fresh_after", "by_podcast",
          "index_rows", "features", "known", "required", "typed", "sizeless", "rss_size", "cell_count", "url_count",
          "other_url_count", "wants_token", "wants_enclosure")  # fmt: skip


_ARRAYS = ("day", "fresh_after", "hash_key", "id_key")


class Fuzzed(NamedTuple):
    """How it ended (0: nothing was found), how many inputs were tried, how many branches reached, what was said."""

    code: int
    tried: int
    branches: int
    said: str


def build(folder: Path) -> Path:
    """The fuzzer as a program.

    Raises:
        FileNotFoundError: there is no gcc.
        subprocess.CalledProcessError: it does not compile.
    """
    write(folder)
    program = folder / "fuzz_kernel"
    subprocess.run(["gcc", *FLAGS, f"-I{folder}", "-o", program, SOURCE], check=True)
    return program


def write(folder: Path) -> int:
    """Write the rules as C, and into ``seeds`` the corpus and more inputs to begin with; return how many."""
    (folder / "fuzz_rules.h").write_text(_rules())
    inputs = folder / "seeds"
    inputs.mkdir(exist_ok=True)
    for number, row in enumerate(ROWS[::5]):
        (inputs / f"row-{number}").write_bytes(bytes((number % 256, number % 3)) + row)
    for number, letter in itertools.product(
        range(len(MORE_RULES)), ('\\"', "%", "\u0085", "\u3000")
    ):  # texts that grow most
        text = letter * (3000 // len(letter.encode()))
        row = b'{"city":"HERE","user_agent":"HERE",%b' % orjson.dumps(_WITHOUT_TEXTS)[1:]
        for name in (b"city", b"user_agent"):
            one = row.replace(b'"%b":"HERE"' % name, b'"%b":"%b"' % (name, text.encode())).replace(b"HERE", b"x")
            (inputs / f"grows-{number}-{ord(letter[-1])}-{name.decode()}").write_bytes(
                bytes((number, _SMALL_ROOM)) + one
            )
    for number, flags in itertools.product(range(0, len(MORE_RULES), 4), _FLAGS):  # rows enough to fill every room
        (inputs / f"several-{number}-{flags}").write_bytes(bytes((number, flags)) + _SEVERAL)
    for path in CORPUS.iterdir():
        (inputs / path.name).write_bytes(path.read_bytes())
    return len(list(inputs.iterdir()))


def fuzz(program: Path, seconds: float, seed: int, folder: Path) -> Fuzzed:
    """Fuzz for this long."""
    seeds = sorted((folder / "seeds").iterdir())
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(
        [program, str(seconds), str(seed), folder / "input", *seeds],
        capture_output=True, text=True, errors="replace", check=False, env=environment, timeout=seconds + 300,
    )  # fmt: skip
    words = done.stdout.split()
    tried, branches = (int(words[1]), int(words[5])) if done.returncode == 0 else (0, 0)
    return Fuzzed(done.returncode, tried, branches, done.stdout + done.stderr)


def _rules() -> str:
    """The header: names, a catalogue, and the rules of every setting, with pointers to arrays of their own."""
    parts = ["/* Written by fuzz_kernel.py. */"]
    names, count = Names(DELIVERY_V2).packed((*GOOD, "delivery_type", "media_type"))
    parts += [f"static const uint8_t NAMES[] = {_bytes(names[:-8])};", f"enum {{ NAME_COUNT = {count} }};"]
    entries, episodes = _pack_catalogue(EPISODES, UrlTemplate("/{token}/{enclosure_url}"), safe_text)
    parts += [f"static const uint8_t CATALOGUE[] = {_bytes(entries)};"]
    parts += [f"enum {{ CATALOGUE_COUNT = {episodes}, CATALOGUE_SIZE = {len(entries) - 16} }};"]
    structs = []
    for number, rules in enumerate((MORE_RULES | V2_RULES).values()):
        made = CompiledRules(kernel(), Conversion(rules, KEY, None, DAY), FRESH_AFTER)
        fields = [f".{name} = {getattr(made.rules, name)}" for name in _PLAIN]
        fields += [f".{name} = {_bytes(getattr(made.rules, name))}" for name in _ARRAYS]
        parts.append(f"static const uint8_t literals_{number}[] = {_bytes(made._kept[0])};")
        fields.append(f".literals = literals_{number}")
        for name in ("cells", "url", "other_url"):
            some = getattr(made.rules, name)[: getattr(made.rules, f"{name.removesuffix('s')}_count")]
            rows = ", ".join(f"{{{part.part}, {part.field}, {part.offset}, {part.length}}}" for part in some)
            parts.append(f"static const struct part_of {name}_{number}[] = {{{rows}}};")
            fields.append(f".{name} = {name}_{number}")
        structs.append(f"{{{', '.join(fields)}}}")
    parts += [
        f"static const struct rules RULES[] = {{{', '.join(structs)}}};",
        f"enum {{ RULES_COUNT = {len(structs)} }};",
    ]
    return "\n".join(parts) + "\n"


def _bytes(data: Iterable[int]) -> str:
    return f"{{{','.join(map(str, data))}}}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, fuzz, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    given = parser.parse_args(arguments)
    if given.write is not None:
        given.write.mkdir(exist_ok=True)
        print(write(given.write), "inputs")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        done = fuzz(build(folder), given.seconds, given.seed, folder)
        print(done.said)
        if done.code and given.folder is None:
            print("the input:", shutil.copy(folder / "input", tempfile.mkdtemp(prefix="fuzz-kernel-")))
    return bool(done.code)


if __name__ == "__main__":
    sys.exit(main())
