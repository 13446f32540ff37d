"""Fail on a skipped test that was not expected: ``skips.py JUNIT_XML EXPECTED``.

EXPECTED holds a line for each skip that is allowed: a pattern of the test's name (``fnmatch``), then ``#`` and why.
"""

import sys
from fnmatch import fnmatch
from pathlib import Path
from xml.etree import ElementTree


def main(report: Path, expected: Path) -> int:
    """The number of unexpected skips, at most 1 as an exit code."""
    patterns = [line.split("#")[0].strip() for line in expected.read_text().splitlines()]
    patterns = [pattern for pattern in patterns if pattern]
    unexpected = 0
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        name = f"{case.get('classname')}.{case.get('name')}"
        if skipped is not None and not any(fnmatch(name, pattern) for pattern in patterns):
            print(f"unexpected skip: {name}: {skipped.get('message')}")
            unexpected += 1
    print(f"{unexpected} unexpected skips")
    return min(unexpected, 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
