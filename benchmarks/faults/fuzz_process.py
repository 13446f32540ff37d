"""One fuzzed target in a process of its own: `python -m benchmarks.faults.fuzz_process TARGET [OPTION | FOLDER ...]`.

Options and folders are libFuzzer's. Wants the extra `fuzz`. Half of the mutations are those of `mutation`, where
it has one for the target; the other half are libFuzzer's. An input that breaks a promise ends the process, and lies in
the ``-artifact_prefix``.
"""

from __future__ import annotations

import random
import sys

import atheris

with atheris.instrument_imports(include=["server"]):
    from tests.support.fuzz_targets import TARGETS

from tests.support.mutation import MUTATIONS


def main() -> None:
    """Fuzz until an option says to stop."""
    name = sys.argv[1]
    mutation = MUTATIONS.get(name)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if mutation is None or dice.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        return mutation(data, most, dice)

    # To make a corpus small, libFuzzer starts itself again, by a shell and what it takes for its own name.
    itself = f"{sys.executable} -P -m benchmarks.faults.fuzz_process {name}"
    atheris.Setup([itself, *sys.argv[2:]], TARGETS[name], custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
