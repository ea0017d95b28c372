"""The replica: a file on this device in front of a database that may be far away."""

from __future__ import annotations

from charm_checkpoint.replica.backend import ReplicaBackend
from charm_checkpoint.replica.conflicts import Conflict
from charm_checkpoint.replica.options import ReplicaOptions
from charm_checkpoint.replica.status import SyncStatus, Waiting
from charm_checkpoint.replica.store import ReplicaStore

__all__ = ["Conflict", "ReplicaBackend", "ReplicaOptions", "ReplicaStore", "SyncStatus", "Waiting"]
