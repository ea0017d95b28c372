"""Lists what the remote has together with what is not there yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from charm_checkpoint.backend import Entry, Page, Scan, ThreadQuery, ThreadRow
from charm_checkpoint.rules import has_labels

__all__ = ["merge_pages", "merge_threads"]


def merge_pages(query: Scan, there: Page, here: Sequence[Entry]) -> Page:
    """One page out of the remote's page and this device's own entries, which take the place of the remote's.

    Args:
        query: What was asked for.
        there: The remote's answer.
        here: As many of this device's entries as `query.limit` asks for, and one more if there is one.
    """
    by_key = {_key(entry): entry for entry in (*there.entries, *here)}
    # Behind the remote's last entry it may have others that come before this device's.
    keys = sorted((k for k in by_key if there.next is None or k >= there.next), reverse=True)
    last = keys[query.limit - 1] if len(keys) > query.limit else there.next
    return Page([by_key[key] for key in keys[: query.limit]], last)


def _key(entry: Entry) -> tuple[str, str, str]:
    assert entry.snapshot.checkpoint is not None
    return entry.snapshot.checkpoint.checkpoint_id, entry.thread_id, entry.namespace


def merge_threads(
    query: ThreadQuery,
    there: Callable[[ThreadQuery], Sequence[ThreadRow]],
    here: Sequence[ThreadRow],
    hidden: frozenset[str],
) -> list[ThreadRow]:
    """One page of threads.

    Args:
        query: What was asked for.
        there: Reads a page of the remote's threads; a short one is the last.
        here: This device's threads that have something to send.
        hidden: Threads of which the remote's row is out of date.
    """
    found = [
        row
        for row in here
        if (query.after is None or (row.updated_at, row.thread_id) < query.after)
        and query.status in (None, row.status)
        and has_labels(row.labels, query.labels)
    ]
    own = {row.thread_id: row for row in found}
    if query.thread_id is not None:
        query = query._replace(limit=2)  # so that its page is a short one, the last
    asked = query
    kept = 0
    while kept < query.limit:
        page = there(asked)
        for row in page:
            if row.thread_id not in hidden:
                found.append(row)
                kept += 1
            elif row.thread_id in own:
                # Only the remote knows when a thread that was begun elsewhere began.
                newer = own[row.thread_id]
                found[found.index(newer)] = own[row.thread_id] = newer._replace(
                    created_at=min(newer.created_at, row.created_at)
                )
        if len(page) < query.limit:
            break
        asked = query._replace(after=(page[-1].updated_at, page[-1].thread_id))
    found.sort(key=lambda row: (row.updated_at, row.thread_id), reverse=True)
    return found[: query.limit]
