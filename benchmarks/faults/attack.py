"""The part `attack`: what somebody can do who wants to read outside, write, learn, forge a pickup, or keep others out.

Three roles, each a row: a stranger with the port and no password (`attack_stranger`), a user with a password
(`attack_user`), the network in between (`attack_between`). Each attempt is a coroutine that notes a broken promise in
its row; after a handful of them the partner fetches everything, and `attack_target` looks at files, memory, log and
ledger. Runs a real `serve` on loopback.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import asyncssh

from tests.support.program import Program

from . import attack_between, attack_stranger, attack_user
from .attack_target import Target
from .result import Fault

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping

    from .result import Campaign

    Attempt = Callable[[Target, random.Random, Fault], Awaitable[int | None]]

TOGETHER = 6  # attempts between two looks
PATIENCE = 30.0  # seconds, for one attempt
ENDED = 8.0  # seconds that are kept for the end
MOST_LOST = 30


def run(campaign: Campaign) -> list[Fault]:
    """The rows of this part."""
    for name in ("asyncssh", "asyncio", "paramiko"):  # of our own connections, which end in every way
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="Diffie-Hellman over finite fields")  # cryptography, of one of our offers
    rows = [
        Fault("attack: a stranger with the port and no password"),
        Fault("attack: a user with a password"),
        Fault("attack: the network in between"),
    ]
    try:
        asyncio.run(_attack(campaign, rows))
    except Exception as error:
        traceback.print_exc()
        for row in rows:
            row.lost.append(f"the part did not come to its end: {type(error).__name__}: {error}".splitlines()[0])
    return rows


async def _attack(campaign: Campaign, rows: list[Fault]) -> None:
    program = Program(campaign.folder)
    try:
        target = await Target.begin(campaign, program)
        roles: list[Mapping[str, Attempt]] = [attack_stranger.ATTEMPTS, attack_user.ATTEMPTS, attack_between.ATTEMPTS]
        for number, (row, attempts) in enumerate(zip(rows, roles, strict=True)):
            await _role(campaign, target, row, attempts, campaign.left / (len(roles) - number))
        await attack_stranger.tell_timing(target, campaign, rows[0])
        await attack_stranger.audit(target, rows[0])
        code = await target.serving.running.stops()
        rows[1].expect(code == 0, f"the service ended with {code}")
    finally:
        (campaign.folder / "service.log").write_text("\n".join(running.text for running in program.started))
        program.end()


async def _role(
    campaign: Campaign, target: Target, row: Fault, attempts: Mapping[str, Attempt], seconds: float
) -> None:
    """Every attempt once, then again in turn with other dice until the time is over."""
    end = time.monotonic() + seconds - ENDED
    tried: Counter[str] = Counter()
    turn = 0
    while len(row.lost) < MOST_LOST:
        for at, (name, attempt) in enumerate(attempts.items()):
            if turn and time.monotonic() > end:
                break
            dice = campaign.rng("attack", row.name, name, turn)
            try:
                async with asyncio.timeout(PATIENCE):
                    tried[name] += await attempt(target, dice, row) or 1
            except (OSError, asyncssh.Error, asyncio.IncompleteReadError, TimeoutError):
                tried[name] += 1  # to be thrown out is right
            except Exception as error:
                traceback.print_exc()
                row.lost.append(f"{name}: {type(error).__name__}: {error}"[:300])
            if at % TOGETHER == TOGETHER - 1:
                await target.judge(row, name)
        await target.judge(row, "at the end")
        turn += 1
        if time.monotonic() > end:
            break
    row.tried = tried.total()
    row.figures["kinds"] = len(attempts)
