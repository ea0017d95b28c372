"""LangGraph's msgpack serializer, strict: a stored type outside the allow-list is an error that names it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Union

from langgraph.checkpoint.serde.event_hooks import SerdeEvent, register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from charm_checkpoint.backend import SEALED
from charm_checkpoint.errors import ConfigError, DeserializationError, TypeNotAllowedError

__all__ = ["AllowedType", "StrictSerializer", "parse_allowed"]

AllowedType = Union[str, type, "tuple[str, ...]"]


class _Blocked(threading.local):
    """Types that LangGraph's unpacker refused during this thread's current load."""

    def __init__(self) -> None:
        self.names: list[str] = []


_blocked = _Blocked()


def _note_blocked(event: SerdeEvent) -> None:
    if event["kind"] in ("msgpack_blocked", "msgpack_method_blocked"):
        _blocked.names.append(f"{event['module']}:{event['name']}")


# LangGraph answers a refused type with its bare fields and tells only its listeners.
register_serde_event_listener(_note_blocked)


class StrictSerializer(JsonPlusSerializer):
    """Writes what LangGraph's serializer writes, and reads only types that are allowed.

    Args:
        allow: Types beside LangGraph's and LangChain's own; a compiled graph adds those of its state by
            `with_allowlist`. See `parse_allowed` for the forms.
    """

    def __init__(self, *, allow: Iterable[AllowedType] = ()) -> None:
        super().__init__(allowed_msgpack_modules=parse_allowed(allow) or None)

    def loads_opaque(self, data: tuple[str, bytes]) -> Any:
        """Read a value back for somebody who only passes it by: types that are not allowed come as bare fields."""
        return self._loads(data)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Read a value back.

        Raises:
            TypeNotAllowedError: It holds a type that is not allowed. Nothing of that type was imported.
            DeserializationError: It is encrypted.
        """
        _blocked.names.clear()
        value = self._loads(data)
        if _blocked.names:
            names = sorted(set(_blocked.names))
            raise TypeNotAllowedError(
                f"stored value holds {', '.join(names)}, not on the allow-list. If you trust it, open the store with "
                f"allow={names!r}. (Types of a graph's state are on it, if charm_checkpoint was imported before the "
                "graph was compiled.)"
            )
        return value

    def _loads(self, data: tuple[str, bytes]) -> Any:
        if data[0].endswith(SEALED):
            raise DeserializationError(
                "it is encrypted, and the store was opened without a key: give it encryption: {key: …}"
            )
        return super().loads_typed(data)


def parse_allowed(allow: Iterable[AllowedType]) -> list[tuple[str, ...]]:
    """Turn `"module:Class"`, `"module.Class"`, `(module, class)` or the class itself into `(module, class)`.

    Raises:
        ConfigError: An entry has none of these forms.
    """
    if isinstance(allow, (str, type)):
        raise ConfigError(f"allow must be a list of types, not {allow!r}")
    parsed: list[tuple[str, ...]] = []
    for entry in allow:
        if isinstance(entry, type):
            parsed.append((entry.__module__, entry.__name__))
        elif isinstance(entry, (tuple, list)) and len(entry) == 2:
            parsed.append((str(entry[0]), str(entry[1])))
        elif isinstance(entry, str) and ("." in entry or ":" in entry):
            module, _, name = entry.rpartition(":" if ":" in entry else ".")
            parsed.append((module, name))
        else:
            raise ConfigError(f'allow: {entry!r} is not a type; write "module:Class"')
    return parsed
