"""A Supabase project's database: its roles, its schema `auth` and what it grants on `public`, over a real Postgres.

Taken from what Supabase's images do (supabase/postgres, `migrations/db`; supabase/auth, `migrations/tenant`), as far as
a migration of ours can notice: above all that `postgres`, who runs migrations, is no superuser, and that whatever it
makes in `public` is everybody's by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import psycopg
from psycopg import sql

from tests.postgres.server import Server

__all__ = ["OWNER", "ROLES", "SUPERUSER", "connect", "new_database", "prepare"]

SUPERUSER = "supabase_admin"
OWNER = "postgres"
"""Who runs migrations."""
ROLES = ("anon", "authenticated", "service_role")
"""Whom requests run as."""

_TEMPLATE = "supabase"
_numbers = count()

# `postgres` cannot be made less than a superuser while it is who made the cluster, nor be renamed by itself.
_HAND_OVER = f"""
ALTER ROLE postgres RENAME TO {SUPERUSER};
CREATE ROLE {OWNER} LOGIN NOSUPERUSER CREATEDB CREATEROLE REPLICATION BYPASSRLS;
"""

_ROLES = f"""
CREATE ROLE anon NOLOGIN;
CREATE ROLE authenticated NOLOGIN;
CREATE ROLE service_role NOLOGIN BYPASSRLS;
CREATE ROLE authenticator LOGIN NOINHERIT;
CREATE ROLE supabase_auth_admin LOGIN NOINHERIT CREATEROLE;
GRANT anon, authenticated, service_role TO authenticator, {OWNER};
ALTER ROLE anon SET statement_timeout = '3s';
ALTER ROLE authenticated SET statement_timeout = '8s';
ALTER ROLE authenticator SET statement_timeout = '8s';
ALTER ROLE authenticator SET lock_timeout = '8s';
"""

_DEFAULT_GRANTS = "".join(
    f"""
ALTER DEFAULT PRIVILEGES FOR ROLE {maker} IN SCHEMA public
    GRANT ALL ON {kind} TO {OWNER}, anon, authenticated, service_role;"""
    for maker in (OWNER, SUPERUSER)
    for kind in ("TABLES", "FUNCTIONS", "SEQUENCES")
)

# Settings are '' after the first transaction that had them, as PostgREST's page "Transactions" says.
_DATABASE = f"""
CREATE SCHEMA extensions;
GRANT USAGE ON SCHEMA extensions TO {OWNER}, anon, authenticated, service_role;
GRANT USAGE ON SCHEMA public TO {OWNER}, anon, authenticated, service_role;
{_DEFAULT_GRANTS}

CREATE SCHEMA auth;
GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role;
GRANT ALL ON SCHEMA auth TO {OWNER}, supabase_auth_admin;
CREATE TABLE auth.users (id uuid PRIMARY KEY, email text);
GRANT ALL ON auth.users TO {OWNER}, supabase_auth_admin;
ALTER TABLE auth.users OWNER TO supabase_auth_admin;

CREATE FUNCTION auth.jwt() RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('request.jwt.claim', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')
    )::jsonb
$$;
CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'
    )::uuid
$$;
CREATE FUNCTION auth.role() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('request.jwt.claim.role', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role'
    )
$$;
ALTER FUNCTION auth.jwt() OWNER TO supabase_auth_admin;
ALTER FUNCTION auth.uid() OWNER TO supabase_auth_admin;
ALTER FUNCTION auth.role() OWNER TO supabase_auth_admin;
"""


def prepare(server: Server) -> None:
    """Make a new cluster Supabase's: its roles, and a template for the databases of projects."""
    with psycopg.connect(server.url(), autocommit=True) as first:
        first.execute("CREATE ROLE deputy LOGIN SUPERUSER")
    with psycopg.connect(server.url(role="deputy"), autocommit=True) as deputy:
        deputy.execute(_HAND_OVER.encode())
    with psycopg.connect(server.url(role=SUPERUSER), autocommit=True) as admin:
        admin.execute("DROP ROLE deputy")
        admin.execute(_ROLES.encode())
        admin.execute(f"CREATE DATABASE {_TEMPLATE} OWNER {OWNER}")
    with connect(server, _TEMPLATE, SUPERUSER) as database:
        database.execute(_DATABASE.encode())


def connect(server: Server, database: str, role: str = OWNER) -> psycopg.Connection:
    """A connection in autocommit mode; to a project's own database, as its owner has it from Supabase."""
    return psycopg.connect(server.url(database, role=role), autocommit=True)


@contextmanager
def new_database(server: Server) -> Iterator[str]:
    """A project's database as it is on its first day. Yields its name."""
    name = f"project_{next(_numbers)}"
    with psycopg.connect(server.url(role=SUPERUSER), autocommit=True) as admin:
        made = sql.SQL("CREATE DATABASE {} TEMPLATE {} OWNER {}")
        admin.execute(made.format(*map(sql.Identifier, (name, _TEMPLATE, OWNER))))
        try:
            yield name
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
