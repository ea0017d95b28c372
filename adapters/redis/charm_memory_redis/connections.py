"""Connections to a server or a cluster: opened when needed, looked at before each use, never shared across a fork.

redis-py keeps the pools and knows the cluster; how a call is sent is decided here, so that calls to several servers go
out together and nothing is repeated but by the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import redis
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from charm_checkpoint.config import mask
from charm_checkpoint.errors import BackendError, BackendUnavailable, ConfigError
from charm_checkpoint.forks import ForkAware
from charm_memory_redis.errors import translate
from charm_memory_redis.scripts import Script

# Half of redis-py has types.
_driver: Any = redis

__all__ = ["Call", "Connections"]

_OLDEST = (6, 2)
_NAMELESS: dict[str, Any] = (
    {"driver_info": None}
    if hasattr(redis, "DriverInfo")
    else {"lib_name": None, "lib_version": None}
)
_ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError)
# Seconds more than it was told to wait after which a server answers `WAIT`: it looks at its clock ten times a second.
_WAIT_SLACK = 0.5
_MOVING = (exceptions.AskError, exceptions.TryAgainError, exceptions.ClusterDownError)


class Call(NamedTuple):
    """One run of one script."""

    script: Script
    keys: Sequence[bytes]
    arguments: Sequence[Any]

    def command(self, *, whole: bool = False) -> list[Any]:
        """What is sent; `whole` teaches the server the script."""
        named = ("EVAL", self.script.source) if whole else ("EVALSHA", self.script.sha)
        return [*named, len(self.keys), *self.keys, *self.arguments]


class Connections(ForkAware):
    """Runs scripts, at most `size` calls at a time.

    Args:
        url: As redis-py takes it; `valkey://` and `valkeys://` are other names of `redis://` and `rediss://`.
        size: How many connections may be in use, for each server.
        timeout: Seconds to wait for the server, or for a connection that others use.
        cluster: Whether it is one; `None` asks.
        replicas: How many replicas of each server have to acknowledge what is to be waited for.

    Raises:
        ConfigError: `url` is not valid.
    """

    def __init__(
        self, url: str, *, size: int, timeout: float, cluster: bool | None, replicas: int
    ) -> None:
        super().__init__()
        scheme, found, rest = url.partition("://")
        self._url = f"{scheme.lower().replace('valkey', 'redis')}{found}{rest}"
        try:
            told: dict[str, Any] = _driver.connection.parse_url(self._url)
        except ValueError as error:
            raise ConfigError(
                f"url {mask(url)!r} is not valid: {mask(str(error), {'url': url})}"
            ) from None
        self.name = _name(scheme, told)
        self._options: dict[str, Any] = {
            "socket_timeout": timeout + _WAIT_SLACK * bool(replicas),
            "socket_connect_timeout": timeout,
            "socket_keepalive": True,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            # To tell a server this library's name and version costs each connection two round trips.
            **_NAMELESS,
        }
        self._size = size
        self._timeout = timeout
        self._wanted = cluster
        self._replicas = replicas
        self._inherited: list[Any] = []
        self._client: Any = None
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        # The sockets are the parent's: nothing may be said on them, not even good-bye.
        if self._client is not None:
            self._inherited.append(self._client)
        self._client = None
        self._nodes: Mapping[str, Any] = {}
        self._pools: set[Any] = set()
        self._lock = threading.Lock()
        self._free = threading.BoundedSemaphore(self._size)

    def close(self) -> None:
        """Close what is idle; the next use opens anew."""
        with self._lock:
            client, self._client = self._client, None
        if client is None:
            return
        if _is_cluster(client):
            client.close()
            for pool in self._pools.copy():
                pool.disconnect(inuse_connections=False)
        else:
            # Calls that other threads have under way end as they would have.
            client.connection_pool.disconnect(inuse_connections=False)

    @property
    def is_cluster(self) -> bool:
        """Whether the keys are spread over several servers. Connects.

        Raises:
            BackendError: As `run`.
        """
        with self._translated():
            return _is_cluster(self._connected())

    def run(self, *calls: Call, waits: bool = False) -> list[Any]:
        """Send all calls at once and return what they answered.

        Args:
            calls: In which order they are run is not defined.
            waits: Whether to wait until the replicas have acknowledged.

        Raises:
            BackendUnavailable: A server cannot be reached, or too few replicas acknowledged. Some of the calls may have
                been run.
            BackendError: The server refused one, or as `translate` says. The others may have been run.
        """
        answers = self.each(*calls, waits=waits)
        for answer in answers:
            _raised(answer)
        return answers

    def each(self, *calls: Call, waits: bool = False) -> list[Any]:
        """As `run`, but the answer of a call that its server refused is the error, a `BackendError`."""
        with self._translated(), self._turn():
            client = self._connected()
            try:
                with _closed_meanwhile():
                    answers = self._run(client, calls, waits)
            except _ERRORS as error:
                self._look_around(client, error)
                raise
            finally:
                self._leave_nodes(client)
        for n, answer in enumerate(answers):
            if isinstance(answer, Exception):
                answers[n] = ours = translate(answer, self.name)
                ours.__cause__ = answer
                if isinstance(ours, BackendUnavailable):
                    self._look_around(client, answer)
        return answers

    def ask(self, *command: Any) -> Any:
        """Run a command that no key goes with, in a cluster on every primary: a list of answers."""
        with self._translated(), self._turn():
            client = self._connected()
            if _is_cluster(client):
                nodes = [client.get_redis_connection(node) for node in client.get_primaries()]
                return [node.execute_command(*command) for node in nodes]
            return [client.execute_command(*command)]

    # -- sending ---------------------------------------------------------------------------------------------------

    def _run(self, client: Any, calls: Sequence[Call], waits: bool) -> list[Any]:
        answers: list[Any] = [None] * len(calls)
        by_pool: dict[Any, list[int]] = {}
        for n, call in enumerate(calls):
            by_pool.setdefault(self._pool(client, call), []).append(n)
        taken: list[tuple[Any, Any, list[int]]] = []
        waited: list[Any] = []
        done = False
        try:
            for pool, numbers in by_pool.items():
                connection = pool.get_connection()
                taken.append((pool, connection, numbers))
                self._send(connection, [calls[n].command() for n in numbers], waits)
            for _, connection, numbers in taken:
                for n in numbers:
                    answers[n] = _answer(connection)
                if waits:
                    waited.append(_answer(connection))
            # After a restart a server knows no scripts.
            for _, connection, numbers in taken:
                for n in numbers:
                    if isinstance(answers[n], exceptions.NoScriptError):
                        self._send(connection, [calls[n].command(whole=True)], waits)
                        answers[n] = _answer(connection)
                        if waits:
                            waited.append(_answer(connection))
            done = True
        finally:
            for pool, connection, _ in taken:
                if not done:
                    connection.disconnect()  # answers may still come on it
                pool.release(connection)
        if _is_cluster(client) and not waits:
            for n, call in enumerate(calls):
                if isinstance(answers[n], _MOVING):
                    try:
                        answers[n] = client.execute_command(*call.command(whole=True))
                    except exceptions.ResponseError as error:
                        answers[n] = error
        if waits and not any(isinstance(answer, Exception) for answer in answers):
            self._check_acknowledged(waited)
        return answers

    def _send(self, connection: Any, commands: list[list[Any]], waits: bool) -> None:
        if waits:
            # 0 milliseconds would be for ever.
            commands.append(["WAIT", self._replicas, max(1, round(self._timeout * 1000))])
        connection.send_packed_command(connection.pack_commands(commands))

    def _check_acknowledged(self, waited: Sequence[Any]) -> None:
        refusals = [each for each in waited if isinstance(each, Exception)]
        fewest = 0 if refusals else min(waited)
        if fewest < self._replicas:
            why = f" ({mask(str(refusals[0]))})" if refusals else ""
            raise BackendUnavailable(
                f"{self.name}: {fewest} of {self._replicas} replicas (wait_replicas) acknowledged within "
                f"{self._timeout:g} s{why}; the primary has it"
            ) from (refusals[0] if refusals else None)

    @staticmethod
    def _pool(client: Any, call: Call) -> Any:
        if _is_cluster(client):
            client = client.get_redis_connection(client.get_node_from_key(call.keys[0]))
        return client.connection_pool

    def _look_around(self, client: Any, error: Exception) -> None:
        """After a failover, have the next call find the new primary."""
        if _is_cluster(client):
            with suppress(*_ERRORS), _closed_meanwhile():
                client.nodes_manager.initialize()
        elif isinstance(error, exceptions.ReadOnlyError) or "READONLY" in str(error):
            client.connection_pool.disconnect(inuse_connections=False)

    def _know_pools(self, client: Any) -> None:
        """Know every pool that redis-py makes: those of nodes that it knows no more it only forgets."""
        manager = client.nodes_manager
        make = manager.create_redis_node

        def made(*args: Any, **options: Any) -> Any:
            node = make(*args, **options)
            self._pools.add(node.connection_pool)
            return node

        manager.create_redis_node = made
        self._pools = _pools(manager.nodes_cache) | _pools(manager.startup_nodes)

    def _leave_nodes(self, client: Any) -> None:
        """Close connections to nodes that are not of the cluster any more."""
        if _is_cluster(client) and client.nodes_manager.nodes_cache is not self._nodes:
            self._nodes = client.nodes_manager.nodes_cache
            for pool in self._pools.copy() - _pools(self._nodes):
                pool.disconnect(inuse_connections=False)

    # -- connecting ------------------------------------------------------------------------------------------------

    def _connected(self) -> Any:
        client = self._client
        if client is None:
            with self._lock:
                if self._client is None:
                    self._client = self._connect()
                client = self._client
        return client

    def _connect(self) -> Any:
        single = _driver.Redis.from_url(self._url, **self._options)
        try:
            facts: Any = single.info()
        except exceptions.NoPermissionError:
            facts = {}
        if (version := facts.get("redis_version")) and _numbers(version) < _OLDEST:
            single.close()
            raise BackendError(f"{self.name} is Redis {version}; 6.2 or newer is needed")
        cluster = self._wanted
        if cluster is None:
            cluster = bool(facts.get("cluster_enabled"))
        if not cluster:
            return single
        single.close()
        client = _driver.RedisCluster.from_url(self._url, **self._options)
        self._know_pools(client)
        return client

    @contextmanager
    def _turn(self) -> Iterator[None]:
        free = self._free
        if not free.acquire(timeout=self._timeout):
            raise BackendUnavailable(
                f"{self.name}: all {self._size} connections were in use for {self._timeout:g} s; raise pool_size"
            )
        try:
            yield
        finally:
            free.release()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _ERRORS as error:
            raise translate(error, self.name) from error


def _is_cluster(client: Any) -> bool:
    return isinstance(client, redis.RedisCluster)


def _answer(connection: Any) -> Any:
    """What a call answered: its error, too, as the answers of the calls behind it have to be read."""
    try:
        return connection.read_response()
    except (exceptions.ResponseError, exceptions.BusyLoadingError) as error:
        return error


def _pools(nodes: Mapping[str, Any]) -> set[Any]:
    clients = [node.redis_connection for node in list(nodes.values())]
    return {client.connection_pool for client in clients if client is not None}


@contextmanager
def _closed_meanwhile() -> Iterator[None]:
    """When a cluster changes, redis-py closes connections that others read from, and these fail anyhow."""
    try:
        yield
    except (AttributeError, ValueError) as error:
        raise exceptions.ConnectionError("the connection was closed meanwhile") from error


def _raised(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2] if number.isdigit())


def _name(scheme: str, told: dict[str, Any]) -> str:
    """Where the server is, for people."""
    if "path" in told:
        return f"unix://{told['path']}"
    return f"{scheme}://{told.get('host') or 'localhost'}:{told.get('port') or 6379}/{told.get('db') or 0}"
