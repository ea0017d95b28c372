"""`provider: supabase` under the real `charm run`, a process each time."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.charmos.conftest import EXAMPLE, CharmRun, charm_run, workspace  # noqa: F401 - fixtures
from tests.supabase.conftest import Project
from tests.supabase.gateway import SERVICE_KEY
from tests.supabase.support import memory


def example(folder: Path, config: str) -> Path:
    """Copy the example, with this memory."""
    copy = folder / "project"
    shutil.copytree(EXAMPLE, copy)
    file = copy / "charm.yaml"
    head, memory, _ = file.read_text().partition("memory:")
    file.write_text(f"{head}{memory} {{provider: supabase, config: {config}}}\n")
    return copy


def test_asked_in_one_process_and_answered_in_another(
    charm_run: CharmRun,  # noqa: F811
    workspace: Path,  # noqa: F811
    tmp_path: Path,
    project: Project,
) -> None:
    """Told where by the configuration, then by the variables that charmos's own provider of this name reads.

    The second is a device, with a replica.
    """
    told = example(tmp_path / "1", '{url: "${PROJECT}", key: "${SECRET}"}')
    asked = charm_run(
        told,
        {"thread_id": "case-7", "input": "Please refund order 1207"},
        PROJECT=project.url,
        SECRET=SERVICE_KEY,
    )
    assert asked.final == "Refund 40 euros for order 1207? (yes/no)"
    assert not workspace.exists()
    answered = charm_run(
        example(tmp_path / "2", "{replica: true}"),
        {"thread_id": "case-7", "input": "yes"},
        NEXT_PUBLIC_SUPABASE_URL=project.url,
        SUPABASE_SERVICE_ROLE_KEY=SERVICE_KEY,
    )
    assert answered.final == "Order 1207 is refunded."
    assert SERVICE_KEY not in asked.text + answered.text
    assert len([*workspace.glob(".charm/memory/replicas/*.db")]) == 1
    with memory(project) as store:
        [thread] = store.threads()
        assert (thread.thread_id, thread.status) == ("case-7", "idle")
