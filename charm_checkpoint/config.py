"""What the configuration says: providers and URLs, `${VAR}`, charm.yaml, and texts without secrets.

A `Target` is what somebody wrote; `resolve` makes of it the provider to look up and the config to hand to it:

| written | provider | config |
|---|---|---|
| `local` | `local` | `{}` |
| `sqlite:///threads.db` (relative), `sqlite:////srv/threads.db`, `sqlite:///C:/threads.db` | `sqlite` | `{"path": …}` |
| `redis` and a config | `redis` | the config |
| `postgresql://…`, any other scheme | the scheme | `{"url": the URL as written}` |

URLs are not taken apart, except SQLite's, so a password may hold anything. Two keys are for this project and not for
the provider: `strict` (a provider that is not installed is an error) and `replica` (a file on this device goes in
front).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from charm_checkpoint.errors import ConfigError, MissingVariableError
from charm_checkpoint.secrets import is_secret_name

__all__ = [
    "Provider",
    "Target",
    "configured",
    "expand",
    "flag",
    "mask",
    "number",
    "resolve",
]

PROVIDER_VARIABLE = "CHARM_MEMORY_PROVIDER"


class Target(NamedTuple):
    """A store as somebody asked for it."""

    provider: str
    """A provider's name or a URL, with variables expanded."""
    config: Mapping[Any, Any]
    """As it was written: variables not expanded."""
    where: str
    """Where the config stands, for messages."""


class Provider(NamedTuple):
    """What to look up, and what to open it with."""

    name: str
    config: dict[str, Any]
    strict: bool
    """Whether it is an error if it is not installed."""
    replica: bool | str
    """Whether a file on this device goes in front, and which (`True`: the usual one)."""


def configured() -> Target:
    """Tell what the environment or charm.yaml says, `local` if neither says anything.

    `CHARM_MEMORY_PROVIDER` (a name or a URL) decides, then `runtime.memory` in charm.yaml; if both name the same
    provider, charm.yaml's config is its config. charm.yaml is looked for in the program's own folder (`sys.path[0]`,
    where `charm run` puts the project), then in the working directory.

    Raises:
        ConfigError: charm.yaml cannot be read, or `runtime.memory` has the wrong shape.
    """
    named = os.environ.get(PROVIDER_VARIABLE, "").strip()
    declared = _declared()
    if declared and named in ("", declared.provider):
        return declared
    return Target(named or "local", {}, PROVIDER_VARIABLE)


def resolve(target: Target) -> Provider:
    """Expand variables and tell provider and config apart.

    Raises:
        MissingVariableError: The config uses a variable that is not set.
        ConfigError: It is neither a name nor a URL, or the config has a wrong shape.
    """
    where = target.where
    if not isinstance(target.config, Mapping):
        raise ConfigError(f"{where} must be a mapping of settings, not {_kind(target.config)}")
    if odd := [key for key in target.config if not isinstance(key, str)]:
        raise ConfigError(f"{where} has a key that is no text: {odd[0]!r}; put it in quotes")
    config = {key: expand(value, f"{where}.{key}") for key, value in target.config.items()}
    replica = _replica(config.pop("replica", False), f"{where}.replica")
    strict = flag(config.pop("strict", False), f"{where}.strict")
    name, extra = _parse(target.provider)
    for key in extra.keys() & config.keys():
        raise ConfigError(f"{where}.{key}: the URL says this too; give it once")
    return Provider(name, {**config, **extra}, strict, replica)


_REFERENCE = re.compile(r"\$?\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^{}]*)?\})?")


def expand(value: Any, where: str) -> Any:
    """Put the values of environment variables into texts, at any depth of dicts, lists and tuples.

    `${VAR}`; `${VAR:-default}`, which also replaces an empty value; `$${` is a plain `${`. What a variable holds is
    taken as it is. Containers come back as copies.

    Args:
        value: Anything; what is no text or container is returned as it is.
        where: Where it stands, for messages.

    Raises:
        MissingVariableError: A variable without a default is not set.
        ConfigError: A `${` that begins no reference, or a container that holds itself.
    """

    def replace(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        name, default = match["name"], match["default"]
        if name is None:
            raise ConfigError(
                f"{where}: expected ${{NAME}} or ${{NAME:-default}}; write $${{ for a plain ${{"
            )
        found = os.environ.get(name)
        if default is not None:
            return found or str(default[2:])
        if found is None:
            raise MissingVariableError(
                f"{where} uses ${{{name}}}, which is not set; set {name} in the environment, or write "
                f"${{{name}:-default}}"
            )
        return found

    try:
        if isinstance(value, str):
            return _REFERENCE.sub(replace, value)
        if isinstance(value, Mapping):
            return {key: expand(item, f"{where}.{key}") for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(expand(item, f"{where}[{i}]") for i, item in enumerate(value))
    except RecursionError:
        raise ConfigError(f"{where[:80]}… holds itself, or is nested too deep") from None
    return value


def number(config: Mapping[str, Any], key: str, default: float, *, least: float) -> float:
    """Read a number of a config, where `${VAR}` makes texts of them; `default` if it is not given.

    Raises:
        ConfigError: It is no finite number, or below `least`.
    """
    value = config.get(key)
    if value is None:
        return default
    try:
        found = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = float("nan")
    if not least <= found < float("inf"):
        raise ConfigError(f"{key}={value!r} is not a number from {least} on")
    return found


def _parse(text: str) -> tuple[str, dict[str, str]]:
    scheme, is_url, rest = text.partition("://")
    if is_url and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        scheme = scheme.lower()
        return scheme, {"path": _sqlite_path(rest)} if scheme == "sqlite" else {"url": text}
    if re.fullmatch(r"[A-Za-z0-9_-]+", text):
        return text, {}
    raise ConfigError(
        f"{mask(text)!r} is neither a provider's name nor a URL; for a file of its own write sqlite:///threads.db"
    )


def _sqlite_path(rest: str) -> str:
    path = rest[1:]
    if not rest.startswith("/") or not path:
        raise ConfigError(
            "a SQLite URL has three slashes before a relative path and four before an absolute one: "
            "sqlite:///threads.db, sqlite:////srv/threads.db"
        )
    if path == ":memory:":
        raise ConfigError(
            "a store keeps threads in a file; for a test in memory use store_from_saver"
        )
    if "?" in path:
        raise ConfigError(
            'a SQLite URL takes no options; give them beside it, and a file with "?" in its name as path='
        )
    # The same URL is the same file, also after a change of the working directory.
    return path if path.startswith("~") else str(Path(path).absolute())


def flag(value: Any, where: str) -> bool:
    """Read a switch of a config, where `${VAR}` makes texts of `true` and `false`.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ConfigError(f"{where} must be true or false")


def _replica(value: Any, where: str) -> bool | str:
    if value is None or value == "":
        return False
    if isinstance(value, str) and value.lower() not in ("true", "false"):
        return value
    return flag(value, f"{where}, if it is no path,")


def _declared() -> Target | None:
    """Read `runtime.memory` of the first charm.yaml there is."""
    for folder in (*sys.path[:1], ""):
        path = Path(folder, "charm.yaml")
        if path.is_file():
            return _read_charm_yaml(path.absolute())
    return None


def _read_charm_yaml(path: Path) -> Target | None:
    import yaml

    try:
        with path.open(
            "rb"
        ) as stream:  # of text in memory, errors would quote lines, which may hold secrets
            document = yaml.safe_load(stream)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise ConfigError(f"{path} is not valid YAML{place}: {reason}") from error
    runtime = _section(_section(document, f"{path}: the file").get("runtime"), f"{path}: runtime")
    if runtime.get("memory") is None:
        return None
    memory = _section(runtime["memory"], f"{path}: runtime.memory")
    provider = memory.get("provider", "local")
    if not isinstance(provider, str) or not provider:
        raise ConfigError(f"{path}: runtime.memory.provider must be a name, not {_kind(provider)}")
    return Target(
        expand(provider, f"{path}: runtime.memory.provider"),
        _section(memory.get("config"), f"{path}: runtime.memory.config"),
        f"{path}: runtime.memory.config",
    )


def _section(value: Any, where: str) -> Mapping[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping, not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    return "empty" if value in ("", None) else type(value).__name__


_MASK = "***"
_URL = r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://"
# Up to the last "@", as passwords hold "@", "/", "?" and "#" unescaped. Bounded, so that long texts stay cheap.
_USERINFO = re.compile(rf"({_URL})\S{{1,4096}}@")
_SPACED_USERINFO = re.compile(rf"({_URL})[^\s/@:]*:(?!\d+(?:[/?\s]|$))[^\n]{{1,512}}@")
_BARE_USERINFO = re.compile(r"(?<![\w.+-])[\w.+-]+:(?!//)\S{1,512}@")
_NAMED = re.compile(
    r"(?<![\w.-])([A-Za-z_][\w.-]*)(?:['\"]?\s*[=:]\s*|(?<=\bbearer)\s+)", re.IGNORECASE
)
_VALUE = re.compile(
    r"(?:(?:Basic|Bearer|Token)\s+)?(?:'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|[^\s&]+)",
    re.IGNORECASE,
)


def mask(value: Any, known: object = None) -> Any:
    """Copy a text or config for people to see, with `***` in the place of secrets.

    In texts: what stands before the host in URLs, and the value of every `name=value` or `name: value` whose name is a
    credential's (`is_secret_name`). In dicts also the values of such names. Rather too much is masked than too little.

    Args:
        value: A text, a config, or any part of one. What is no text, number or container becomes its masked `repr`.
        known: A config whose secrets are masked wherever they stand, for texts written by others.
    """
    if isinstance(value, str):
        for secret in sorted(_secrets(known), key=len, reverse=True):
            value = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _MASK, value)
        return _mask_text(value)
    if isinstance(value, Mapping):
        return {
            key: _MASK if _is_secret(key, item) else mask(item, known)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [mask(item, known) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return mask(repr(value), known)


def _is_secret(key: object, value: object) -> bool:
    return not (value is None or isinstance(value, bool)) and is_secret_name(str(key))


def _mask_text(text: str) -> str:
    if "@" in text:
        text = re.sub(rf"^({_URL}).*@", rf"\1{_MASK}@", text, flags=re.DOTALL)
        for userinfo in (_USERINFO, _SPACED_USERINFO):
            text = userinfo.sub(rf"\1{_MASK}@", text)
        text = _BARE_USERINFO.sub(f"{_MASK}@", text)
    parts, end = [], 0
    for start, stop in _secret_values(text):
        parts += [text[end:start], _MASK]
        end = stop
    return "".join([*parts, text[end:]])


def _secret_values(text: str) -> Iterator[tuple[int, int]]:
    """Find where values of secret names stand in a text."""
    at = 0
    while named := _NAMED.search(text, at):
        at = named.end()
        if is_secret_name(named[1]) and (found := _VALUE.match(text, at)):
            at = found.end()
            yield found.span()


def _secrets(config: object, name: str = "") -> set[str]:
    """Collect the secrets in a config, also as they stand in its URLs."""
    if isinstance(config, Mapping):
        return set[str]().union(*(_secrets(value, str(key)) for key, value in config.items()))
    if isinstance(config, (list, tuple)):
        return set[str]().union(*(_secrets(value, name) for value in config))
    if not isinstance(config, str):
        return set()
    if is_secret_name(name):
        return {config} - {""}
    found = {config[start:stop].strip("'\"") for start, stop in _secret_values(config)}
    if re.match(_URL, config):
        userinfo = config.partition("://")[2].rpartition("@")[0]
        found.add(userinfo.partition(":")[2] or userinfo)
    return {text for secret in found for text in (secret, unquote(secret)) if text}
