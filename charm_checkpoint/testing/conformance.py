"""LangGraph's own conformance suite, in both colours, each of its tests on a fresh backend."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

import pytest
from langgraph.checkpoint import conformance
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.conformance.capabilities import Capability, DetectedCapabilities

from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.testing.colours import ColourFixtures, Saver

UpstreamTest = Callable[[Saver], Awaitable[None]]


def _suite(capability: Capability) -> list[UpstreamTest]:
    module = import_module(f"{conformance.__name__}.spec.test_{capability.value}")
    suite: list[UpstreamTest] = getattr(module, f"ALL_{capability.name}_TESTS")
    return suite


_SUITES = {capability: _suite(capability) for capability in Capability}


class ConformanceContract(ColourFixtures):
    """What LangGraph asks of a checkpointer."""

    @pytest.mark.asyncio
    @pytest.mark.parametrize(
        "upstream",
        [test for suite in _SUITES.values() for test in suite],
        ids=lambda test: test.__name__.removeprefix("test_"),
    )
    async def test_langgraph_conformance(self, face: Saver, upstream: UpstreamTest) -> None:
        await upstream(face)

    def test_conformance_is_full(self, saver: CheckpointSaver) -> None:
        """The suite's own report says FULL, too, of a saver that implements nothing."""
        assert DetectedCapabilities.from_instance(saver).missing == frozenset()
        assert all(_SUITES.values())
        for capability in Capability:
            method: Any = getattr(type(saver), capability.value)
            assert method is not getattr(BaseCheckpointSaver, capability.value)
