"""The workers that run this suite: what a process of pytest would tell, they tell, and one that dies is noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
TESTS = """
import os, signal, time, warnings
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

def test_waits():
    Path("waiting").touch()
    time.sleep(100)

globals().update({f"test_passes_{n}": lambda: None for n in range(20)})
"""


def begin(folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start a pytest of its own on `TESTS`, as a terminal does."""
    (folder / "test_it.py").write_text(TESTS)
    (folder / "conftest.py").write_text('pytest_plugins = ["tests.support.workers"]')
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra -p no:xdist --junitxml=report.xml\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DEBUG_TEMPROOT": str(folder)}
    command = [sys.executable, "-m", "pytest", *options]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def run(folder: Path, *options: str) -> tuple[int, str, dict[str, str]]:
    """Run `TESTS`; return the exit code, what was printed, and what became of each test."""
    with begin(folder, *options) as process:
        said = process.communicate(timeout=100)[0]
    cases = ElementTree.parse(folder / "report.xml").iter("testcase")
    return process.returncode, said, {case.get("name", ""): "/".join(child.tag for child in case) for case in cases}


def test_workers_tell_what_one_process_would_and_one_that_dies_fails_its_test(tmp_path: Path) -> None:
    """Failures, errors of a fixture's end, skips and warnings; what a dead worker leaves is done by another."""
    code, said, became = run(tmp_path, "-n", "2", "-k", "not waits")
    assert code == 1, said
    bad = {"test_fails": "failure", "test_dies[2]": "failure", "test_skips": "skipped", "test_ends_badly": "error"}
    good = ["test_dies[1]", "test_dies[3]", "test_warns", *(f"test_passes_{n}" for n in range(20))]
    assert became == bad | dict.fromkeys(good, "")
    for words in ("AssertionError: for a reason", "before", "exit code -9", "not today", "with care", "at the end"):
        assert words in said
    assert "2 failed, 24 passed, 1 skipped, 1 deselected, 1 warning, 1 error" in said
    assert len(list(tmp_path.glob("torn-down-*"))) == 2  # of three, one of which died


def test_the_first_failure_is_the_last_test_if_so_asked(tmp_path: Path) -> None:
    """A worker has at most one more test in its hands then."""
    code, said, became = run(tmp_path, "-n", "1", "-x", "-k", "fails or passes")
    assert code == 1 and "stopping after 1 failures" in said, said
    assert became["test_fails"] == "failure" and len(became) <= 2
    assert len(list(tmp_path.glob("torn-down-*"))) == 1


def test_an_interrupt_ends_what_the_tests_have_started(tmp_path: Path) -> None:
    """The fixtures of a whole run are torn down by the workers, too."""
    with begin(tmp_path, "-n", "2", "-k", "waits or skips") as process:
        while not (tmp_path / "waiting").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate(timeout=100)[0]
    assert process.returncode == 2 and "KeyboardInterrupt" in said, said
    assert len(list(tmp_path.glob("torn-down-*"))) == 2
