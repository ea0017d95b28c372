"""What people build with LangGraph, run over the backend and over LangGraph's own memory: both must end alike.

It is here that a fence which is too eager shows: none of these runs may meet a conflict.
"""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import StateSnapshot

from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import (
    DURABILITIES,
    Colour,
    ColourFixtures,
    Driver,
    Durability,
    needs_context,
)
from charm_checkpoint.testing.scenarios import SCENARIOS, Scenario


def _view(state: StateSnapshot) -> Any:
    """All of a state that does not change from run to run."""
    metadata = state.metadata or {}
    return (
        state.values,
        state.next,
        metadata.get("source"),
        metadata.get("step"),
        [i.value for i in state.interrupts],
        [
            (t.name, [i.value for i in t.interrupts], repr(t.error), t.result, _substate(t.state))
            for t in state.tasks
        ],
    )


def _substate(state: Any) -> Any:
    return _view(state) if isinstance(state, StateSnapshot) else state is not None


class GraphContract(ColourFixtures):
    """Whole graphs: no false conflict, and the same end as with `InMemorySaver`."""

    @pytest.mark.asyncio
    @pytest.mark.parametrize("durability", DURABILITIES)
    @pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
    async def test_ends_as_in_memory(
        self, saver: CheckpointSaver, colour: Colour, durability: Durability, scenario: Scenario
    ) -> None:
        if scenario.context:
            needs_context(colour)
        seen = []
        for checkpointer in (InMemorySaver(), saver):
            driver = Driver(scenario.build(checkpointer), colour, durability)
            told = await scenario.play(driver)
            state = _view(await driver.state(subgraphs=True))
            seen.append((told, state, [_view(s) for s in await driver.history()]))
        assert seen[0] == seen[1]
