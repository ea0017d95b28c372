"""The in-memory backend keeps the contract."""

from __future__ import annotations

import pytest

from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.testing import BackendContract


class TestMemory(BackendContract):
    @pytest.fixture
    def backend(self) -> MemoryBackend:
        return MemoryBackend()
