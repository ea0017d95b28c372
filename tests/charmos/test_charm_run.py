"""The real `charm run`, a process each time; what it tells the runtime is read from its `__CHARM_EVENT__` lines."""

from __future__ import annotations

from pathlib import Path

from .conftest import EXAMPLE, PROJECTS, CharmRun, write_plugin


def test_an_interrupt_is_shown_in_one_process_and_answered_in_another(
    charm_run: CharmRun, workspace: Path
) -> None:
    asked = charm_run(EXAMPLE, {"thread_id": 7, "input": "Please refund order 1207"})
    assert asked.only("control") == {
        "type": "control",
        "status": "suspended",
        "thread_id": "7",
        "next_step": ["approve"],
    }
    assert asked.final == "Refund 40 euros for order 1207? (yes/no)"
    assert (workspace / ".charm" / "memory" / "threads.db").is_file()

    answered = charm_run(EXAMPLE, {"__charm_thread_id__": "7", "input": "yes"})
    assert answered.final == "Order 1207 is refunded."


def test_the_stock_adapter_reads_runtime_memory(
    charm_run: CharmRun, tmp_path: Path, workspace: Path
) -> None:
    threads = tmp_path / "elsewhere" / "threads.db"
    turn = {"thread_id": "t", "input": "hi"}
    # Patched by an import in the agent's code, then by charm.yaml alone.
    first = charm_run(PROJECTS / "stock_imports_patch", turn, THREADS_FILE=str(threads))
    assert first.final == "1 messages so far"
    second = charm_run(PROJECTS / "stock_telemetry", turn, THREADS_FILE=str(threads))
    assert second.final == "3 messages so far"
    assert threads.is_file()
    assert not workspace.exists()


def test_a_function_has_its_history(charm_run: CharmRun) -> None:
    project = PROJECTS / "history_agent"
    assert charm_run(project, {"input": "one"}).final == "one, after [] (LocalMemory)"
    assert charm_run(project, {"input": "two"}).final == "two, after ['one'] (LocalMemory)"


def test_a_provider_that_fails_is_an_error_and_no_local_files(
    charm_run: CharmRun, tmp_path: Path, workspace: Path
) -> None:
    # charmos goes on with local files when a provider fails.
    code = (
        "class Memory:\n"
        "    def __init__(self, config):\n"
        "        raise OSError(f\"no route to {config['url']} with {config['service_key']}\")\n"
    )
    plugin = tmp_path / "plugin"
    write_plugin(plugin, "broken", "broken_memory", code)
    memory = '{provider: broken, config: {url: "https://db.test", service_key: "${SECRET}"}}'
    run = charm_run(
        with_memory(tmp_path, memory), {"input": "hi"}, python_path=plugin, SECRET="hunter2"
    )
    assert "no route to https://db.test with ***" in run.error
    assert "hunter2" not in run.text
    assert not workspace.exists()


def test_a_provider_that_is_not_installed_is_told_and_local_files_serve(
    charm_run: CharmRun, tmp_path: Path, workspace: Path
) -> None:
    memory = "{provider: carrier-pigeon, config: {loft: north}}"
    run = charm_run(with_memory(tmp_path, memory), {"input": "hi"})
    assert run.final == "hi, after [] (LocalMemory)"
    assert "'carrier-pigeon' is not installed" in run.text
    assert (workspace / ".charm" / "memory" / "threads.db").is_file()


def with_memory(folder: Path, memory: str) -> Path:
    """Copy the history agent with another `runtime.memory`."""
    source, copy = PROJECTS / "history_agent", folder / "project"
    copy.mkdir()
    text = (source / "charm.yaml").read_text()
    (copy / "charm.yaml").write_text(text.replace("{provider: local}", memory))
    (copy / "listener.py").write_text((source / "listener.py").read_text())
    return copy
