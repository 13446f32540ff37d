"""What is shipped: wheel, sdist, and constraints.txt."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    _build("sdist", source, tmp_path)
    _build("wheel", source, tmp_path)
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
    _build("wheel", again, tmp_path / "without", PICKUP_POINT_KERNEL="none")
    (wheel,) = (tmp_path / "without").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "server/convert/libkernel.so" not in archive.namelist()


def _build(what: str, source: Path, target: Path, **environment: str) -> None:
    """Build as pip does: by the backend that pyproject.toml names, in a folder with the sources."""
    target.mkdir(exist_ok=True)
    code = f"import sys; sys.path[:0] = ['build_kernel']; import kernel_backend as b; b.build_{what}({str(target)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=150, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("machine", "path", "wanted"),
    [
        ("x86_64", "", ["ziglang"]), ("aarch64", "", ["ziglang"]), ("riscv64", "", []), ("x86_64", "none", []),
        ("x86_64", "cc", []),
    ],
)  # fmt: skip
def test_zig_is_asked_for_where_there_is_no_compiler_and_it_has_a_wheel(
    machine: str, path: str, wanted: list[str], tmp_path: Path
) -> None:
    """And never else: not beside a compiler, not for a platform without a wheel, not where no kernel is wanted."""
    if path == "cc":
        (tmp_path / "cc").write_text("#!/bin/sh\n")
        (tmp_path / "cc").chmod(0o755)
    code = (
        "import sys, platform; sys.path[:0] = ['build_kernel']; import kernel_backend as b;"
        f"platform.machine = lambda: {machine!r}; print(*b.get_requires_for_build_wheel(), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
        env={"PATH": str(tmp_path), "PICKUP_POINT_KERNEL": path if path == "none" else ""},
    )  # fmt: skip
    assert [line.partition(">")[0] for line in done.stdout.splitlines() if "zig" in line] == wanted
