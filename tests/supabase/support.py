"""What the tests of the Supabase store share: who asks, and ways to ask."""

from __future__ import annotations

import pickle
import traceback
from typing import Any

from charm_checkpoint.engine import RetryPolicy
from charm_memory_supabase import SupabaseBackend, SupabaseMemory
from tests.supabase.conftest import Project
from tests.supabase.gateway import ANON_KEY, SERVICE_KEY
from tests.supabase.tokens import token

__all__ = [
    "ALICE",
    "BOB",
    "PATIENT",
    "SECRETS",
    "assert_no_keys",
    "function_of",
    "memory",
    "open_as",
    "open_service",
    "user",
]

ALICE = "a11ce000-0000-4000-8000-000000000001"
BOB = "b0b00000-0000-4000-8000-000000000002"

PATIENT = RetryPolicy(budget=60.0, first_pause=0.01, max_pause=0.2)


def user(name: str, **claims: Any) -> str:
    """The token of a user who has signed in."""
    return token("authenticated", sub=name, aud="authenticated", **claims)


def open_service(project: Project, **options: Any) -> SupabaseBackend:
    """With the project's service key, as a server has it."""
    return _opened(project, SupabaseBackend(project.url, key=SERVICE_KEY, **options))


def open_as(project: Project, access_token: Any, **options: Any) -> SupabaseBackend:
    """With the project's public key and a user's token, as a device has it."""
    made = SupabaseBackend(project.url, key=ANON_KEY, access_token=access_token, **options)
    return _opened(project, made)


def _opened(project: Project, backend: SupabaseBackend) -> SupabaseBackend:
    project.opened.callback(backend.close)
    return backend


def memory(project: Project, **config: Any) -> SupabaseMemory:
    return SupabaseMemory({"url": project.url, "key": SERVICE_KEY, **config})


def function_of(project: Project, verb: str) -> str:
    """The name of the function of a verb."""
    [name] = {name for _, name in project.postgrest.cache.routines if verb in name.split("_")}
    return name


SECRETS = [SERVICE_KEY.rpartition(".")[2], ANON_KEY.rpartition(".")[2]]
"""The keys' signatures: what nobody can make up."""


def assert_no_keys(error: BaseException, *more: str) -> None:
    """Neither in its message, nor in what caused it, nor in what a log or another process gets of it."""
    texts = ["".join(traceback.format_exception(error)), repr(error), str(pickle.dumps(error))]
    each: BaseException | None = error
    while each is not None:
        texts += [repr(each), str(each), repr(each.args), repr(getattr(each, "__dict__", ""))]
        each = each.__cause__ or each.__context__
    for secret in (*SECRETS, *(each_token.rpartition(".")[2] for each_token in more if each_token)):
        assert secret not in "\n".join(texts)
