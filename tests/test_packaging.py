"""What is shipped: wheel, sdist, and constraints.txt."""

from __future__ import annotations

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
    """The package with its typing marker and its monitoring files, no tests and no keys; the sdist builds the wheel."""
    leave = {"__pycache__", "build", "pickup_point.egg-info"}
    source = tmp_path / "source"
    for path in ("pyproject.toml", "README.md", "LICENSE", "server"):
        for file in [ROOT / path] if (ROOT / path).is_file() else (ROOT / path).rglob("*"):
            if file.is_file() and not leave & set(file.parts):
                target = source / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    made = repr(str(tmp_path))
    build = f"from setuptools import build_meta as b; b.build_sdist({made}); b.build_wheel({made})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {
        "server/cli/app.py",
        "server/py.typed",
        "server/monitoring/alerts.yml",
        "server/monitoring/dashboard.json",
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
        "server/cli/app.py",
    } <= inside
