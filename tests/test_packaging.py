"""What is shipped: wheel, sdist, and constraints.txt."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, tuple[str, int]]:
    """By name: the pinned version, and how many hashes it has."""
    found = {}
    text = (ROOT / "constraints.txt").read_text()
    for name, version, hashes in re.findall(
        r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)", text, re.MULTILINE
    ):
        found[canonicalize_name(name)] = (version, hashes.count("--hash"))
    assert text.count("==") == len(found)  # not a line without hashes
    return found


def closure() -> dict[str, list[Requirement]]:
    """Everything that an installation needs, by name, with who asks for which version."""
    found: dict[str, list[Requirement]] = {}
    waiting = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    while waiting:
        wanted = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({**default_environment(), "extra": ""}):
            continue
        name = canonicalize_name(wanted.name)
        if name not in found:
            waiting += [Requirement(text) for text in metadata.requires(wanted.name) or ()]
        found.setdefault(name, []).append(wanted)
    return found


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="constraints.txt is made for Python 3.11, as Debian 12 has it"
)
def test_everything_that_is_installed_is_pinned_with_hashes() -> None:
    """Direct and indirect, with what builds the wheel; as pip --require-hashes demands it. No registry is named."""
    found = pins()
    for name in (*closure(), "setuptools"):
        assert name in found, f"{name} is not in constraints.txt: run .ci/pin"
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_the_pins_are_within_the_ranges_of_the_project() -> None:
    """What is pinned is what pyproject.toml allows."""
    found = pins()
    for text in (*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(found[canonicalize_name(wanted.name)][0]), text


@pytest.mark.timeout(180)
def test_wheel_and_sdist_hold_what_they_must(tmp_path: Path) -> None:
    """The package with its typing marker, monitoring files and kernel, no tests, no keys; the sdist builds it."""
    leave = {"__pycache__", "build", "pickup_point.egg-info"}
    source = tmp_path / "source"
    for path in (
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "config.example.toml",
        "CONTRIBUTING.md",
        "LICENSE",
        "server",
        "build_kernel",
    ):
        for file in [ROOT / path] if (ROOT / path).is_file() else (ROOT / path).rglob("*"):
            if file.is_file() and not leave & set(file.parts):
                target = source / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    _build(("sdist", "wheel"), source, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert re.fullmatch(r"pickup_point-[\d.]+-py3-none-(many)?linux_.+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "server/cli/app.py",
        "server/py.typed",
        "server/monitoring/alerts.yml",
        "server/monitoring/dashboard.json",
        "server/manual/operating.md",
        "server/manual/config.example.toml",
        "server/manual/next-engineer.md",
        "server/convert/libkernel.so",
        "server/web/templates/overview.html",
        "server/web/static/style.css",
    } <= names
    assert not [name for name in names if name.startswith(("tests", "keys", "benchmarks"))]
    assert {f"server/{path.name}" for path in (ROOT / "server").glob("*.py")} <= names
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "config.example.toml",
        "server/cli/app.py",
        "server/convert/kernel.c",
        "build_kernel/kernel_backend.py",
    } <= inside
    copies = {"server/manual/config.example.toml", "server/manual/next-engineer.md"}
    assert not {"server/convert/libkernel.so", *copies} & inside
    unpacked = tmp_path / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (again,) = unpacked.iterdir()
    _build(("wheel",), again, tmp_path / "without", PICKUP_POINT_KERNEL="none")
    (wheel,) = (tmp_path / "without").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "server/convert/libkernel.so" not in archive.namelist()


def _build(what: Sequence[str], source: Path, target: Path, **environment: str) -> None:
    """Build as pip does: by the backend that pyproject.toml names, in a folder with the sources."""
    target.mkdir(exist_ok=True)
    builds = "; ".join(f"b.build_{one}({str(target)!r})" for one in what)
    code = f"import sys; sys.path[:0] = ['build_kernel']; import kernel_backend as b; {builds}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=150, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


PLATFORMS = [
    ("x86_64", "", ["ziglang"]), ("aarch64", "", ["ziglang"]), ("riscv64", "", []), ("x86_64", "none", []),
    ("x86_64", "cc", []),
]  # fmt: skip
ASK = """
import contextlib, json, os, platform, sys
sys.path[:0] = ["build_kernel"]
import kernel_backend
for machine, environment in json.load(sys.stdin):
    platform.machine = lambda: machine
    os.environ.clear()
    os.environ.update(environment)
    with contextlib.redirect_stdout(sys.stderr):
        asked = kernel_backend.get_requires_for_build_wheel()
    print(json.dumps(asked))
"""


@pytest.fixture(scope="module")
def asked_for(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What a build asks for on each of the platforms, of one process: setuptools takes its time to load."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "cc").mkdir()
    (folder / "cc" / "cc").write_text("#!/bin/sh\n")
    (folder / "cc" / "cc").chmod(0o755)
    cases = [
        (machine, {"PATH": str(folder / path), "PICKUP_POINT_KERNEL": path if path == "none" else ""})
        for machine, path, _ in PLATFORMS
    ]
    done = subprocess.run(
        [sys.executable, "-c", ASK], cwd=ROOT, input=json.dumps(cases), capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("machine", "path", "wanted"), PLATFORMS)
def test_zig_is_asked_for_where_there_is_no_compiler_and_it_has_a_wheel(
    machine: str, path: str, wanted: list[str], asked_for: list[list[str]]
) -> None:
    """And never else: not beside a compiler, not for a platform without a wheel, not where no kernel is wanted."""
    asked = asked_for[PLATFORMS.index((machine, path, wanted))]
    assert [line.partition(">")[0] for line in asked if "zig" in line] == wanted
