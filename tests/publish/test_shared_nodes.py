"""Nodes that are killed, cut off, overtaken and answered wrongly: the campaign's part `nodes`, on a small scale."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests.support.crash_nodes import SCENARIOS, deaths
from tests.support.cut_store import cut_days
from tests.support.nodes import NodesWalk

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("number", "scenario"), [*enumerate(SCENARIOS)])
def test_a_node_that_is_killed_leaves_nothing_for_a_person_to_do(tmp_path: Path, number: int, scenario: str) -> None:
    """At some of its steps; the campaign tries each. The other carries on, then so does the one that died."""
    wrong = list(deaths(tmp_path, scenario, 2 + number, 19))
    assert wrong != [] and [sentences for sentences in wrong if sentences] == []


def test_weeks_of_nodes_lose_nothing_and_send_nothing_twice(tmp_path: Path) -> None:
    """Splits, lost answers, entries and ledgers, clocks apart; a third node joins in the middle."""
    walk = NodesWalk(tmp_path, random.Random(1), 9, kills=True)
    walk.run()
    walk.settle()
    walk.stop()
    assert walk.wrong == [] and walk.rows > 20


def test_two_nodes_over_http_on_a_store_that_cuts_half_of_its_answers(tmp_path: Path) -> None:
    """Requests that are done and answered by nothing, refused, or neither."""
    requests, wrong = cut_days(tmp_path, random.Random(1))
    assert wrong == [] and requests > 50
