"""Checkpoints as releases of LangGraph of their time left them: `old_checkpoints.json`, each format's thread "old"."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg

_ROWS = json.loads((Path(__file__).parent / "old_checkpoints.json").read_text())

FORMATS = sorted(_ROWS)


def insert(url: str, format: str) -> None:
    """Store them in a database that has the tables."""
    with psycopg.connect(url, autocommit=True) as connection:
        for table, rows in _ROWS[format].items():
            for row in rows:
                values = [
                    bytes.fromhex(v)
                    if k == "blob" and v
                    else json.dumps(v)
                    if isinstance(v, dict)
                    else v
                    for k, v in row.items()
                ]
                places = ", ".join(["%s"] * len(row))
                connection.execute(
                    f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})", values
                )
