"""Redis's errors as this project's, told apart by their code."""

from __future__ import annotations

import re
import ssl

from redis import exceptions

from charm_checkpoint.config import mask
from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    BackendFull,
    BackendReadOnly,
    BackendUnavailable,
)

__all__ = ["translate"]

# After these the same call may succeed: a failover, a restart, a slow script of somebody else, slots on the move.
_PASSING = frozenset(
    {
        *("ASK", "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "NOREPLICAS", "NOSCRIPT"),
        *("READONLY", "TRYAGAIN", "UNBLOCKED", "UNKILLABLE"),
    }
)
_KNOWN = _PASSING | {"CORRUPT", "MISCONF", "NOAUTH", "NOPERM", "OOM", "WRONGPASS", "WRONGTYPE"}
# Within a script's error the code stands behind where in the script it was raised.
_CODE = re.compile(r"(?:^|-)([A-Z]{3,})(?= )")

_REFUSED_IN_SCRIPT = re.compile(r"ACL failure|user executing the script can't")

_HINTS = {
    "READONLY": ". It is a replica: a failover may be under way; if this lasts, the url does not lead to the primary",
    "ASK": ". It is a cluster: say so with cluster=true if it was not noticed",
}


def translate(error: Exception, name: str) -> BackendError:
    """Make this project's error of one that redis-py raised."""
    told = mask(str(error).strip()) or type(error).__name__
    code = _code(error, told)
    if code in _PASSING:
        return BackendUnavailable(f"{name} cannot answer now ({told}){_HINTS.get(code, '')}")
    if code == "OOM":
        return BackendFull(
            f"{name} has no room left (maxmemory); nothing of this step was stored ({told})"
        )
    if code == "MISCONF":
        return BackendReadOnly(
            f"{name} takes no writes, because it cannot save them to its disk ({told})"
        )
    if code == "NOPERM":
        return BackendReadOnly(
            f"{name}: this user may not do that; it needs +@read +@write +@scripting +@connection +time +info +wait "
            f"(of a cluster also +cluster), and the keys that begin with the prefix ({told})"
        )
    if code == "CORRUPT":
        return BackendCorrupt(
            f"{name}: a thread is damaged, nothing was changed; restore a backup, or delete the thread ({told})"
        )
    if code == "WRONGTYPE":
        return BackendCorrupt(f"{name}: keys under this prefix are not this store's ({told})")
    if _is_distrusted(error):
        return BackendError(
            f"{name}: the server's certificate is not trusted here; name the file of who signed it in the url "
            f"(?ssl_ca_certs=/path/ca.pem), and the host as the certificate does ({told})"
        )
    if isinstance(error, exceptions.AuthenticationError) or code in ("NOAUTH", "WRONGPASS"):
        return BackendError(f"{name} refused the user or password ({told})")
    if isinstance(error, (exceptions.ConnectionError, exceptions.TimeoutError, OSError)):
        return BackendUnavailable(f"{name} cannot be reached ({told})")
    if isinstance(error, exceptions.RedisClusterException):
        return BackendUnavailable(f"{name}: the cluster cannot be reached ({told})")
    return BackendError(f"{name}: {told}")


def _is_distrusted(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


_BY_TYPE = {
    # redis-py takes the code away from the text of these.
    exceptions.BusyLoadingError: "LOADING",
    exceptions.ReadOnlyError: "READONLY",
    exceptions.NoScriptError: "NOSCRIPT",
    exceptions.NoPermissionError: "NOPERM",
    exceptions.OutOfMemoryError: "OOM",
    exceptions.AskError: "ASK",  # MovedError is one
    exceptions.TryAgainError: "TRYAGAIN",
    exceptions.ClusterDownError: "CLUSTERDOWN",  # MasterDownError is one
    exceptions.ClusterError: "TRYAGAIN",  # redis-py gave up following a slot on the move
}


def _code(error: Exception, told: str) -> str:
    for type_, code in _BY_TYPE.items():
        if isinstance(error, type_):
            return code
    if isinstance(error, exceptions.ResponseError):
        if _REFUSED_IN_SCRIPT.search(told):
            return "NOPERM"
        return next((found for found in _CODE.findall(told) if found in _KNOWN), "")
    return ""
