"""All faults as test classes. Not collected by itself: `test_kit_catches.py` runs it, and expects it to fail."""

from __future__ import annotations

from charm_checkpoint.testing import MessagesContract
from tests.contract import (
    faulty_plugins,
    faulty_pulls,
    faulty_reads,
    faulty_sync,
    faulty_threads,
    faulty_writes,
)
from tests.contract.faults import CAUGHT_BY, TESTS, Sound, SoundPlugin, caught_by

__all__ = [
    "CAUGHT_BY",
    "UNBROKEN",
    "faulty_plugins",
    "faulty_pulls",
    "faulty_reads",
    "faulty_sync",
    "faulty_threads",
    "faulty_writes",
]

_all = {test for tests in CAUGHT_BY.values() for test in tests}
_of_plugins = {test for test in _all if hasattr(MessagesContract, test.partition("[")[0])}

UNBROKEN = {"TestSound": sorted(_all - _of_plugins), "TestSoundPlugin": sorted(_of_plugins)}
"""The control: without a fault, all those tests pass."""

caught_by()(Sound)
caught_by()(SoundPlugin)
globals().update(TESTS)
