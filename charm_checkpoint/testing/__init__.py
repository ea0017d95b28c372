"""The contract kit: subclass a contract in your own tests, and pytest runs it over your backend or plugin.

```python
import pytest
from charm_checkpoint.testing import BackendContract

class TestMyBackend(BackendContract):
    @pytest.fixture
    def backend(self):
        yield MyBackend(...)          # fresh and empty

    def reopen(self, backend):        # optional: the same data, as another process or device would open it
        return MyBackend(...)
```

A plugin that only keeps messages subclasses `MessagesContract` and gives it a fixture `store`. The parts that
`BackendContract` is made of can be used one by one, while a backend is being written: `WriteContract` first.

Needs `pip install "charm-checkpoint[testing]"`, and no setting of pytest or pytest-asyncio.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

try:
    import pytest

    for _needed in ("langgraph.graph", "langgraph.checkpoint.conformance", "pytest_asyncio"):
        import_module(_needed)
except ImportError as error:
    raise ImportError(
        f"charm_checkpoint.testing needs {error.name or error}, which is not installed: "
        'pip install "charm-checkpoint[testing]"'
    ) from error

# Before they are imported, so that their failed asserts show values as a test module's own do.
pytest.register_assert_rewrite(*(f"{__name__}.{part.name}" for part in iter_modules(__path__)))

from charm_checkpoint.testing.concurrency import ConcurrencyContract  # noqa: E402
from charm_checkpoint.testing.conformance import ConformanceContract  # noqa: E402
from charm_checkpoint.testing.delta import DeltaContract  # noqa: E402
from charm_checkpoint.testing.faces import MessageFaceContract  # noqa: E402
from charm_checkpoint.testing.fencing import FencingContract  # noqa: E402
from charm_checkpoint.testing.graphs import GraphContract  # noqa: E402
from charm_checkpoint.testing.ids import IdContract  # noqa: E402
from charm_checkpoint.testing.listing import ListingContract  # noqa: E402
from charm_checkpoint.testing.messages import MessagesContract  # noqa: E402
from charm_checkpoint.testing.pull import PullContract  # noqa: E402
from charm_checkpoint.testing.read import ReadContract  # noqa: E402
from charm_checkpoint.testing.sync import SyncContract  # noqa: E402
from charm_checkpoint.testing.threads import ThreadContract  # noqa: E402
from charm_checkpoint.testing.write import WriteContract  # noqa: E402

__all__ = [
    "BackendContract",
    "ConcurrencyContract",
    "ConformanceContract",
    "DeltaContract",
    "FencingContract",
    "GraphContract",
    "IdContract",
    "ListingContract",
    "MessageFaceContract",
    "MessagesContract",
    "PullContract",
    "ReadContract",
    "SyncContract",
    "ThreadContract",
    "WriteContract",
]


class BackendContract(
    WriteContract,
    ReadContract,
    ListingContract,
    ThreadContract,
    PullContract,
    SyncContract,
    IdContract,
    ConformanceContract,
    DeltaContract,
    FencingContract,
    GraphContract,
    ConcurrencyContract,
    MessageFaceContract,
):
    """Everything a backend has to do, from single rows to graphs that several devices run at once.

    A subclass gives it a fixture `backend`, and by methods what the backend can beyond the minimum.
    """
