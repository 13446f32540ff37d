"""The workers that run this suite: what a process of pytest would tell, they tell, and one that dies is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
TESTS = """
import os, signal, warnings
from pathlib import Path
import pytest

@pytest.fixture(scope="session", autouse=True)
def whole_run():
    yield
    Path(f"torn-down-{os.getpid()}").touch()

def test_fails():
    print("said before")
    assert 1 == 2, "for a reason"

@pytest.mark.parametrize("n", [1, 2, 3])
def test_dies(n, tmp_path):
    assert tmp_path.parent.name.startswith("w")
    if n == 2:
        os.kill(os.getpid(), signal.SIGKILL)

def test_skips():
    pytest.skip("not today")

def test_warns():
    class Own(UserWarning): pass
    warnings.warn("with care", Own)

@pytest.fixture
def broken():
    yield
    raise OSError("at the end")

def test_ends_badly(broken): pass

globals().update({f"test_passes_{n}": lambda: None for n in range(20)})
"""


def run(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run `TESTS` in a pytest of its own; return that, and what became of each test."""
    (folder / "test_it.py").write_text(TESTS)
    (folder / "conftest.py").write_text('pytest_plugins = ["tests.support.workers"]')
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra -p no:xdist --junitxml=report.xml\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DEBUG_TEMPROOT": str(folder)}
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    cases = ElementTree.parse(folder / "report.xml").iter("testcase")
    return done, {case.get("name", ""): "/".join(child.tag for child in case) for case in cases}


def test_workers_tell_what_one_process_would_and_one_that_dies_fails_its_test(tmp_path: Path) -> None:
    """Failures, errors of a fixture's end, skips and warnings; what a dead worker leaves is done by another."""
    done, became = run(tmp_path, "-n", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    bad = {"test_fails": "failure", "test_dies[2]": "failure", "test_skips": "skipped", "test_ends_badly": "error"}
    good = ["test_dies[1]", "test_dies[3]", "test_warns", *(f"test_passes_{n}" for n in range(20))]
    assert became == bad | dict.fromkeys(good, "")
    for said in ("AssertionError: for a reason", "said before", "exit code -9", "not today", "with care", "at the end"):
        assert said in done.stdout
    assert "2 failed, 24 passed, 1 skipped, 1 warning, 1 error" in done.stdout
    assert len(list(tmp_path.glob("torn-down-*"))) == 2  # of three, one of which died


def test_the_first_failure_is_the_last_test_if_so_asked(tmp_path: Path) -> None:
    """A worker has at most one more test in its hands then."""
    done, became = run(tmp_path, "-n", "1", "-x", "-k", "fails or passes")
    assert done.returncode == 1 and "stopping after 1 failures" in done.stdout, done.stdout + done.stderr
    assert became["test_fails"] == "failure" and len(became) <= 2
    assert len(list(tmp_path.glob("torn-down-*"))) == 1
