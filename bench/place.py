"""Where a saver keeps its threads: a fresh folder and, for a remote saver, a fresh database on a server of our own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.proxy import Proxy
from bench.servers import Database, Servers

__all__ = ["Place", "new_place"]


@dataclass(frozen=True)
class Place:
    """One saver's own.

    Attributes:
        folder: For its files. A remote saver finds the URL of its database in the file `url`.
        database: The database.
        proxy: What stands before the database on the way of the saver.
    """

    folder: Path
    database: Database | None = None
    proxy: Proxy | None = None

    def stored(self) -> int:
        """Bytes in files, and in the database."""
        files = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return files + (self.database.stored() if self.database else 0)

    def sent(self) -> int:
        """Bytes that went to the database, if a proxy counts them."""
        return self.proxy.counts().sent if self.proxy else 0


@contextmanager
def new_place(
    base: Path | None = None, servers: Servers | None = None, delay: float | None = None
) -> Iterator[Place]:
    """A place that is gone at the end.

    Args:
        base: The folder in which the place gets its own.
        servers: Where it gets a database, if it is to have one.
        delay: Seconds that the server is to be away, each way. Without it, no proxy stands between.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=base)))
        if servers is None:
            yield Place(folder)
            return
        database = stack.enter_context(servers.database(folder.name))
        proxy = None if delay is None else stack.enter_context(Proxy(database.port, delay))
        (folder / "url").write_text(database.url(proxy.port if proxy else database.port))
        yield Place(folder, database, proxy)
