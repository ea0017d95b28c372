"""What a backend gives the kit, and what the kit makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from charm_checkpoint.backend import Backend
from charm_checkpoint.saver import CheckpointSaver


class BackendFixtures:
    """The door between a plugin's tests and the kit's."""

    @pytest.fixture
    def backend(self) -> Backend:
        """A fresh and empty backend, not set up yet. Every subclass has its own."""
        raise NotImplementedError(
            f"{type(self).__name__} has to define a fixture `backend` that yields a fresh, empty backend"
        )

    def reopen(self, backend: Backend) -> Backend | None:
        """Open the data of `backend` once more, as another process or device would.

        The kit closes what it gets. `None`, the default, says that the data cannot be reached from elsewhere: tests
        about that are skipped, and two savers share the one object.
        """
        return None

    @pytest.fixture
    def ready(self, backend: Backend) -> Backend:
        """The backend, set up."""
        backend.setup()
        return backend

    @pytest.fixture
    def elsewhere(self, ready: Backend) -> Iterator[Backend]:
        """The same data, opened once more."""
        second = self.reopen(ready)
        if second is None:
            pytest.skip(f"{type(self).__name__}.reopen opens no second backend over the same data")
        second.setup()
        yield second
        second.close()

    @pytest.fixture
    def saver(self, backend: Backend) -> Iterator[CheckpointSaver]:
        """The saver of the device *laptop*."""
        saver = CheckpointSaver(backend, device="laptop")
        yield saver
        saver.close()

    @pytest.fixture
    def phone(self, backend: Backend) -> Iterator[CheckpointSaver]:
        """The saver of another device, on the same threads."""
        saver = CheckpointSaver(self.reopen(backend) or backend, device="phone")
        yield saver
        saver.close()
