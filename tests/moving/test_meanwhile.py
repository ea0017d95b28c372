"""What changes while threads are moved, and what was changed on purpose: heads are never left without checkpoints."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from charm_checkpoint import export_threads, import_threads
from charm_checkpoint.backend import Entry, MoveHead, PutCheckpoint
from charm_checkpoint.errors import (
    BackendCorrupt,
    BackendError,
    ThreadExistsError,
    ThreadNotFoundError,
)
from charm_checkpoint.memory import MemoryBackend
from charm_checkpoint.moving import BackendSource, Thread, copy_threads
from charm_checkpoint.replica import ReplicaBackend
from charm_checkpoint.saver import CheckpointSaver
from charm_checkpoint.sqlite import SqliteBackend
from charm_checkpoint.store import CheckpointStore, store_from_saver
from charm_checkpoint.testing.scenarios import chat, turn
from tests.core.support import WAIT
from tests.moving.support import at, entries, held, names
from tests.moving.test_copy import Watched
from tests.moving.test_file import lines_of, rezipped


@pytest.fixture
def saver() -> CheckpointSaver:
    """A store with two chats."""
    made = CheckpointSaver(MemoryBackend(), device="laptop")
    for thread in ("gone", "stays"):
        chat(made).invoke(turn("a"), at(thread))
        chat(made).invoke(turn("b"), at(thread))
    return made


class Interfering(BackendSource):
    """A source in which something happens before the `n`-th checkpoint of a thread is read, the first `times` times."""

    def __init__(
        self, saver: CheckpointSaver, do: Callable[[], object], n: int, times: int = 1
    ) -> None:
        super().__init__(saver.engine)
        self._do, self._n, self._times = do, n, times

    def entries(self, thread_id: str) -> Iterator[Entry]:
        if thread_id == "gone" and not self._n:
            self._interfere()
        for n, entry in enumerate(super().entries(thread_id), 1):
            if thread_id == "gone" and n == self._n:
                self._interfere()
            yield entry

    def _interfere(self) -> None:
        if self._times:
            self._times -= 1
            self._do()

    def listed(self, listing: object, keys: object) -> Iterator[Entry]:
        """One page at a time would hide what goes in between."""
        for key in sorted(keys):  # type: ignore[call-overload]
            yield from listing.read([key]).values()  # type: ignore[attr-defined]


# -- the source deletes it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("looks", [1, 2])
def test_deleted_while_it_is_copied(
    saver: CheckpointSaver, target: SqliteBackend, before: int, looks: int
) -> None:
    def delete() -> None:
        nonlocal looks
        looks -= 1
        if not looks:
            saver.delete_thread("gone")

    source = Interfering(saver, delete, before, times=looks)
    with pytest.raises(ThreadNotFoundError, match="'gone'"):
        copy_threads(source, target, ["gone"])
    assert not entries(target)
    # Nothing stands in the way of a copy that is wanted.
    chat(saver).invoke(turn("anew"), at("gone"))
    copy_threads(saver, target)
    assert held(target, "gone") == held(saver.engine.backend, "gone")


def test_the_others_are_copied(saver: CheckpointSaver, target: SqliteBackend) -> None:
    source = Interfering(saver, lambda: saver.delete_thread("gone"), 2)
    report = copy_threads(source, target)
    assert [(t.thread_id, t.outcome) for t in report.threads] == [("stays", "copied")]
    assert names(target) == {"stays"}
    assert {entry.thread_id for entry in entries(target)} == {"stays"}


def test_what_was_there_before_stays(saver: CheckpointSaver, target: SqliteBackend) -> None:
    copy_threads(saver, target)
    chat(saver).invoke(turn("c"), at("gone"))
    source = Interfering(saver, lambda: saver.delete_thread("gone"), 2)
    before = held(target, "gone")
    assert len(copy_threads(source, target).threads) == 1
    assert held(target, "gone") == before


def test_what_differs_is_left_however_often_it_is_read(
    saver: CheckpointSaver, target: SqliteBackend
) -> None:
    copy_threads(saver, target)
    chat(CheckpointSaver(target, device="phone")).invoke(turn("there"), at("gone"))
    chat(saver).invoke(turn("c"), at("gone"))

    def go_on() -> None:
        chat(saver).invoke(turn("d"), at("gone"))
        saver.prune(["gone"])

    before = held(target, "gone")
    report = copy_threads(Interfering(saver, go_on, 2), target, on_existing="skip")
    assert [t.thread_id for t in report.left] == ["gone"]
    assert held(target, "gone") == before


def test_a_source_without_heads(saver: CheckpointSaver, target: SqliteBackend) -> None:
    class Headless(BackendSource):
        def thread(self, thread_id: str) -> Thread:
            return Thread(thread_id, 1.0, ())

    with pytest.raises(ThreadNotFoundError, match="'stays'"):
        copy_threads(Headless(saver.engine), target, ["stays"])
    assert copy_threads(Headless(saver.engine), target).threads == ()
    assert export_threads(Headless(saver.engine), io.BytesIO()).threads == ()
    assert not entries(target)


def test_a_head_that_leads_nowhere(saver: CheckpointSaver, target: SqliteBackend) -> None:
    class Forged(BackendSource):
        def thread(self, thread_id: str) -> Thread | None:
            found = super().thread(thread_id)
            assert found is not None
            head = found.heads[0]._replace(checkpoint_id="ffff")
            return found._replace(heads=(head,))

    with pytest.raises(BackendError, match="'stays' changed each of the 8 times"):
        copy_threads(Forged(saver.engine), target, ["stays"])
    with pytest.raises(BackendError, match="'stays' lost checkpoints each of the 8 times"):
        export_threads(Forged(saver.engine), io.BytesIO(), ["stays"])
    assert not names(target)


# -- and while it is exported ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1, 3])
def test_deleted_while_it_is_exported(
    saver: CheckpointSaver, target: SqliteBackend, before: int
) -> None:
    file = io.BytesIO()
    source = Interfering(saver, lambda: saver.delete_thread("gone"), before)
    report = export_threads(source, file)
    assert report.threads == ("stays",)
    file.seek(0)
    assert [t.thread_id for t in import_threads(file, target).threads] == ["stays"]
    assert {entry.thread_id for entry in entries(target)} == {"stays"}
    with pytest.raises(ThreadNotFoundError, match="'gone'"):
        export_threads(source, io.BytesIO(), ["gone"])


def test_pruned_while_it_is_exported(saver: CheckpointSaver, target: SqliteBackend) -> None:
    """An agent goes on, and what was the newest checkpoint is pruned: the thread is read again."""

    def go_on() -> None:
        chat(saver).invoke(turn("c"), at("gone"))
        saver.prune(["gone"])

    file = io.BytesIO()
    report = export_threads(Interfering(saver, go_on, 2), file)
    assert report.checkpoints == len(entries(saver.engine.backend))
    file.seek(0)
    import_threads(file, target)
    for thread in ("gone", "stays"):
        assert held(target, thread) == held(saver.engine.backend, thread)


# -- the target was changed on purpose ---------------------------------------------------------------------------------


def test_a_head_that_was_moved_there_stays(saver: CheckpointSaver, target: SqliteBackend) -> None:
    """Somebody there went on from another branch; what the source has since is not what they chose."""
    past = list(chat(saver).get_state_history(at("stays")))[3].config
    newest = saver.engine.backend.read("stays", "", None).head
    chat(saver).update_state(past, {"items": ["aside"]}, as_node="say")
    aside = saver.engine.backend.read("stays", "", None).head
    assert newest is not None
    assert aside is not None
    copy_threads(saver, target)
    target.write([MoveHead("stays", "", newest, aside, "phone", 2e9)])
    chat(saver).invoke(turn("c"), at("stays"))
    before = held(target, "stays")
    for dry_run in (True, False):
        report = copy_threads(saver, target, on_existing="skip", dry_run=dry_run)
        outcomes = {t.thread_id: t.outcome for t in report.threads}
        assert outcomes == {"gone": "same", "stays": "differs"}
        [left] = report.left
        assert newest in left.detail
    with pytest.raises(ThreadExistsError, match=rf"'stays' .* \(it goes on from {newest}"):
        copy_threads(saver, target, ["stays"])
    assert held(target, "stays") == before


def test_a_subgraphs_head_that_was_moved_there(
    saver: CheckpointSaver, target: SqliteBackend
) -> None:
    def put(checkpoint_id: str, parent: str | None) -> None:
        row = saver.engine.backend.read("stays", "", None).checkpoint
        assert row is not None
        row = row._replace(checkpoint_id=checkpoint_id, parent_id=parent, versions={}, root_id=None)
        saver.engine.backend.write([PutCheckpoint("stays", "inner", row, (), False, "raise")])

    put("1", None)
    put("2", "1")
    put("3", "1")
    copy_threads(saver, target)
    target.write([MoveHead("stays", "inner", "2", "3", "phone", 2e9)])
    put("4", "3")
    [left] = copy_threads(saver, target, on_existing="skip").left
    assert left.detail == "it goes on from 2 in its subgraph 'inner', here from 4"


def test_a_dry_run_knows_of_deletions(saver: CheckpointSaver, target: SqliteBackend) -> None:
    copy_threads(saver, target)
    target.delete("gone", at=1e9)
    for dry_run in (True, False):
        watched = Watched(target)
        report = copy_threads(saver, watched, on_existing="skip", dry_run=dry_run)
        told = {t.thread_id: (t.outcome, t.deleted_at) for t in report.threads}
        assert told == {"gone": ("deleted", 1e9), "stays": ("same", 0.0)}
        assert not (dry_run and watched.writes)
    saver.delete_thread("gone")
    chat(saver).invoke(turn("anew"), at("gone"))
    for dry_run in (True, False):
        report = copy_threads(saver, target, dry_run=dry_run)
        assert {t.outcome for t in report.threads} == {"copied", "same"}


def test_into_a_replica_nothing_is_a_conflict(saver: CheckpointSaver, tmp_path: Path) -> None:
    """What goes beside the heads until all of it is there has not lost against anybody."""
    remote = SqliteBackend(tmp_path / "remote.db")
    replica = ReplicaBackend(tmp_path / "device.db", remote)
    copy_threads(saver, replica)
    store = store_from_saver(CheckpointSaver(replica, device="laptop"))
    assert isinstance(store, CheckpointStore)
    store.fork("stays", "forked")
    assert replica.flush(WAIT)
    assert replica.conflicts() == []
    for thread in ("gone", "stays"):
        assert held(remote, thread) == held(saver.engine.backend, thread)
    assert names(remote) == {"gone", "stays", "forked"}
    store.close()


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_whose_thread_is_not_whole(saver: CheckpointSaver, target: SqliteBackend) -> None:
    file = io.BytesIO()
    export_threads(saver, file, ["stays"])
    all_lines = lines_of(file.getvalue())
    head = saver.engine.backend.read("stays", "", None).head
    assert head is not None
    begins = f'{{"checkpoint":{{"namespace":"","checkpoint_id":"{head}"'.encode()
    lines = [line for line in all_lines if not line.startswith(begins)]
    assert len(lines) == len(all_lines) - 1
    count = len(entries(saver.engine.backend, "stays"))
    lines[-1] = lines[-1].replace(
        f'"checkpoints":{count}'.encode(), f'"checkpoints":{count - 1}'.encode()
    )
    with pytest.raises(BackendCorrupt, match="which a thread goes on from"):
        import_threads(io.BytesIO(rezipped(lines)), target, name="x.gz")
    lines = [re.sub(rb'"heads":\[.*\]', b'"heads":[]', line, count=1) for line in all_lines]
    with pytest.raises(BackendCorrupt, match="without a newest checkpoint"):
        import_threads(io.BytesIO(rezipped(lines)), target, name="x.gz")
    assert not entries(target)


def test_a_clock_that_goes_ahead_promoted_there(tmp_path: Path) -> None:
    """Where the copy set the target's head says nothing of when the source's next steps were made."""
    saver = CheckpointSaver(MemoryBackend(), device="laptop")
    graph = chat(saver)
    graph.invoke(turn("a"), at("t"))
    left = saver.engine.backend.read("t", "", None)
    assert left.checkpoint is not None
    assert left.checkpoint.parent_id is not None
    assert left.head is not None
    back = MoveHead("t", "", left.checkpoint.parent_id, left.head, "tablet", time.time() + 600)
    saver.engine.backend.write([back])
    with closing(SqliteBackend(tmp_path / "target.db")) as target:
        assert [each.outcome for each in copy_threads(saver, target).threads] == ["copied"]
        graph.invoke(turn("b"), at("t"))
        assert [each.outcome for each in copy_threads(saver, target).threads] == ["updated"]
        assert [each.outcome for each in copy_threads(saver, target).threads] == ["same"]
        assert held(target, "t") == held(saver.engine.backend, "t")
