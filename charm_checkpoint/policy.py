"""What to keep of threads: the `retention` of a config, and of `prune`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from charm_checkpoint.errors import ConfigError

__all__ = ["RETENTION_LABEL", "RetentionPolicy", "byte_count", "seconds"]

RETENTION_LABEL = "retention"
"""The label of a thread that goes before the policy: `"keep"`, or a number in the place of `keep_last`."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
# No clock and no disk reaches it; what is larger, infinity too, cannot be counted with.
_NO_END = 2**63
_BYTES = {"": 1, "b": 1}
_BYTES |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)}
_BYTES |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", 1)}


@dataclass(frozen=True)
class RetentionPolicy:
    """What `prune` keeps of every thread. A checkpoint goes if any of the limits says so; `None` is no limit.

    Whatever it says, these stay: the newest checkpoint of each namespace, all that a checkpoint which stays is read
    from, and threads that wait for an answer. Of branches those stay that somebody may have to decide about: their end,
    where a step waits for an answer, and all of them, with the step they lost to, where two devices went on from one
    checkpoint. A thread whose newest metadata has `retention: keep` stays as it is; one with a number there keeps so
    many in the place of `keep_last`.

    Args:
        keep_last: How many of the newest checkpoints of each namespace stay; those of forks count, too.
        max_age: Seconds for which a checkpoint stays.
        idle_ttl: Seconds since a thread was last written, after which all of it is deleted. Not if its last step has
            not ended: it waits at a breakpoint (`interrupt_before`, `interrupt_after`), failed, or was killed; such a
            thread stays whole until it goes on, or is deleted by name.
        max_bytes: How much a thread may take, about: its oldest checkpoints go until it takes no more.

    Raises:
        ConfigError: A limit is no number, too small, or too large.
    """

    keep_last: int | None = None
    max_age: float | None = None
    idle_ttl: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("keep_last", 1), ("max_age", 0), ("idle_ttl", 0), ("max_bytes", 0)):
            value = getattr(self, name)
            kinds = int if name in ("keep_last", "max_bytes") else (int, float)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
                raise ConfigError(f"retention.{name}={value!r} is no number from {least} on")
            if not value < _NO_END:
                raise ConfigError(f"retention.{name} is too large: leave it out for no limit")

    @classmethod
    def of(cls, setting: Any) -> RetentionPolicy:
        """Read what a config says: a mapping of the limits, where durations may be `"30d"` and sizes `"100MB"`.

        Raises:
            ConfigError: It has another shape, or a limit that is not known.
        """
        if isinstance(setting, cls):
            return setting
        if not isinstance(setting, Mapping):
            raise ConfigError(
                f"retention must be a mapping such as {{keep_last: 20, max_age: 30d}}, not {setting!r}"
            )
        known = [field.name for field in fields(cls)]
        if unknown := sorted(str(key) for key in setting if key not in known):
            raise ConfigError(
                f"retention does not know {', '.join(unknown)}; it takes {', '.join(known)}"
            )
        given = {name: value for name, value in setting.items() if value is not None}
        readers = {"max_age": seconds, "idle_ttl": seconds, "max_bytes": byte_count}
        return cls(**{name: readers.get(name, _count)(name, v) for name, v in given.items()})

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return self != RetentionPolicy()


def seconds(name: str, value: Any) -> Any:
    """Read a duration: a number of seconds, or one with a unit such as `"90s"`, `"15m"`, `"12h"`, `"30d"`, `"2w"`.

    Args:
        name: Of what, for the message.
        value: What is no text is returned as it is.

    Raises:
        ConfigError: The text is no duration.
    """
    return _with_unit(name, value, {"": 1, **_SECONDS}, "a duration such as 12h or 30d")


def byte_count(name: str, value: Any) -> Any:
    """Read a size: a number of bytes, or one with a unit such as `"100MB"` or `"1GiB"`.

    Args:
        name: Of what, for the message.
        value: What is no text is returned as it is.

    Raises:
        ConfigError: The text is no size.
    """
    found = _with_unit(name, value, _BYTES, "a size such as 100MB or 1GiB")
    return int(found) if isinstance(value, str) else found


def _count(name: str, value: Any) -> Any:
    found = _with_unit(name, value, {"": 1}, "a whole number")
    return int(found) if isinstance(value, str) and found == int(found) else found


def _with_unit(name: str, value: Any, units: Mapping[str, int], what: str) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", value.lower())
    unit = units.get(match[2]) if match else None
    found = float(match[1]) * unit if match and unit else _NO_END
    if not found < _NO_END:
        raise ConfigError(f"{name}={value[:40]!r} is not {what}")
    return found
