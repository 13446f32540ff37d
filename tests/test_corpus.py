"""What fuzzing found once stays found: every file of the corpus keeps every promise of its target."""

from __future__ import annotations

import pytest

from .support.fuzz_targets import CORPUS, TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_every_file_of_the_corpus_keeps_the_promises_of_its_target(target: str) -> None:
    """The inputs that reach every branch that fuzzing reached, and those that once broke something."""
    files = sorted((CORPUS / target).iterdir())
    assert files
    for path in files:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(CORPUS)}: {error!r}") from error
