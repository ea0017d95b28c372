"""Which types a graph's state may hold, so that a strict saver reads them back.

LangGraph tells a saver the types of a graph's state when the graph is compiled, but only while its strict mode is on
for the whole process, and its own collector passes over types inside `Sequence[…]` and fails on some of them under
Python 3.10. `announce_graph_types` turns on just the switch that the compiler looks at, and has the compiler use the
collector of this module. For savers that are not strict nothing changes: they ignore what they are told, and
serializers take their default from another switch.
"""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

__all__ = ["announce_graph_types", "collect"]

TypeName = tuple[str, ...]


def announce_graph_types() -> None:
    """Have LangGraph tell savers the types of a graph's state. Without langgraph installed there is nothing to do."""
    try:
        from langgraph._internal import _serde
    except ImportError:
        return
    switches: Any = _serde
    switches.STRICT_MSGPACK_ENABLED = True
    switches.build_serde_allowlist = _allowlist


def _allowlist(
    *, schemas: list[type[Any]] | None = None, channels: Mapping[str, Any] | None = None
) -> set[TypeName]:
    """Takes the place of LangGraph's `build_serde_allowlist`."""
    from langgraph._internal._serde import curated_core_allowlist

    declared: list[Any] = list(schemas or ())
    for channel in (channels or {}).values():
        declared += [getattr(channel, "ValueType", None), getattr(channel, "UpdateType", None)]
    return curated_core_allowlist() | collect(declared)


def collect(declared: Iterable[Any]) -> set[TypeName]:
    """Name the data classes that annotations mention, however deep, and the known subclasses of these.

    Args:
        declared: Types and annotations: classes, `TypedDict`s, `list[Model]`, `Annotated[Sequence[Model], reducer]` …

    Returns:
        `(module, name)` of every pydantic model, dataclass, `NamedTuple` and `Enum` found.
    """
    found: set[TypeName] = set()
    seen: set[int] = set()
    waiting = list(declared)
    # Annotations may be made on the spot: kept alive, so that no id is taken twice.
    kept: list[Any] = []
    while waiting:
        annotation = waiting.pop()
        if id(annotation) in seen:
            continue
        seen.add(id(annotation))
        kept.append(annotation)
        arguments = typing.get_args(annotation)
        if typing.get_origin(annotation) is typing.Literal:
            continue
        if arguments:
            # Annotated[type, reducer, …]: only the first is a type.
            annotated = hasattr(annotation, "__metadata__")
            waiting += [typing.get_origin(annotation), *(arguments[:1] if annotated else arguments)]
        elif hasattr(annotation, "__supertype__"):
            waiting.append(annotation.__supertype__)
        elif isinstance(annotation, type):
            if _is_data_class(annotation):
                found.add((annotation.__module__, annotation.__name__))
                waiting += annotation.__subclasses__()
            waiting += _field_types(annotation)
    return found


def _is_data_class(cls: type) -> bool:
    return (
        hasattr(cls, "model_fields")
        or hasattr(cls, "__fields__")
        or dataclasses.is_dataclass(cls)
        or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
        or issubclass(cls, Enum)
    )


def _field_types(cls: type) -> list[Any]:
    if cls.__module__ == "builtins" or not getattr(cls, "__annotations__", None):
        return []
    try:
        return list(typing.get_type_hints(cls, include_extras=True).values())
    except (NameError, TypeError, AttributeError):
        # A forward reference to what is defined in a function: pydantic has resolved it, for the others what is
        # written out counts.
        fields = getattr(cls, "model_fields", {})
        resolved = [field.annotation for field in fields.values()] if fields else []
        module = vars(sys.modules.get(cls.__module__, object))
        written = vars(cls).get("__annotations__", {}).values()
        return resolved or [module.get(a) if isinstance(a, str) else a for a in written]
