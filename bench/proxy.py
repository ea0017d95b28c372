"""A TCP proxy that keeps what passes for a while, as a long line does, and counts it.

It is a process of its own, so that it waits for no interpreter but its own. Bytes are delayed, not queued up behind one
another: what is sent at once arrives at once. A new connection waits for its handshake, too.

`python bench/proxy.py PORT SECONDS` prints the port it listens on, then, for each line it reads, how many bytes went to
the server and how many came from it. It ends with its input.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import NamedTuple

__all__ = ["Counts", "Proxy"]

CHUNK = 1 << 20


class Counts(NamedTuple):
    """Bytes that passed."""

    sent: int
    received: int


class Proxy:
    """Stands before a server on this machine. Use as a context manager.

    Args:
        port: The server's.
        delay: Seconds that a byte is on the way, in either direction.

    Attributes:
        port: Where it listens.
    """

    def __init__(self, port: int, delay: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(port), str(delay)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the benchmark
        )
        self.port = int(self._answer())

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def counts(self) -> Counts:
        """What has passed so far."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return Counts(*map(int, self._answer().split()))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


class _Line:
    """What lies between the clients and the server."""

    def __init__(self, port: int, delay: float) -> None:
        self.passed = [0, 0]
        self._port = port
        self._delay = delay
        self._clients: set[asyncio.Task[None]] = set()

    def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until both sides have closed."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * self._delay)
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionError:
            writer.close()
            return
        await asyncio.gather(self._carry(reader, requests, 0), self._carry(answers, writer, 1))

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int
    ) -> None:
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await under_way.get()
                await asyncio.sleep(due - loop.time())
                if not data:
                    writer.close()
                    return
                writer.write(data)

        delivery = asyncio.create_task(deliver())
        while data := await _read(reader):
            self.passed[way] += len(data)
            under_way.put_nowait((loop.time() + self._delay, data))
        under_way.put_nowait((loop.time() + self._delay, b""))
        await delivery


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(CHUNK)
    except ConnectionError:
        return b""


async def _serve(port: int, delay: float) -> None:
    line = _Line(port, delay)
    over = asyncio.Event()

    def asked() -> None:
        if sys.stdin.readline():
            print(*line.passed, flush=True)
        else:
            over.set()

    listener = await asyncio.start_server(line.connect, "127.0.0.1", 0)
    print(listener.sockets[0].getsockname()[1], flush=True)
    asyncio.get_running_loop().add_reader(sys.stdin, asked)
    await over.wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
