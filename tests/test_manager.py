"""One store per provider and config; the active one; the fall-back to local files."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint import BaseMemoryStore, StorageManager, open_store
from charm_checkpoint.errors import (
    BackendError,
    ConfigError,
    MissingVariableError,
    ProviderNotFoundError,
)
from charm_checkpoint.sqlite import LocalMemory
from tests.distributions import FOLDER_MEMORY, Site
from tests.distributions import site as fresh_site

TURN = [{"role": "user", "content": "hi"}]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A place with the providers `fake` and `other`, which keep what they were given."""
    for name in ("CHARM_MEMORY_PROVIDER", "CHARM_WORKSPACE_DIR"):
        monkeypatch.delenv(name, raising=False)
    with fresh_site(tmp_path, monkeypatch) as found:
        source = """
            from charm_checkpoint import BaseMemoryStore

            class Fake(BaseMemoryStore):
                made = []

                def __init__(self, config):
                    super().__init__(config)
                    self.made.append(self)
                    self.closed = 0

                def load_messages(self, thread_id): return []
                def save_messages(self, thread_id, messages): pass
                def close(self): self.closed += 1

            class Other(Fake):
                pass
        """
        names = {
            "fake": "fake_plugin:Fake",
            "other": "fake_plugin:Other",
            "valkey": "fake_plugin:Other",
        }
        found.install(
            "charm-memory-fake", {**names, "redis": "fake_plugin:Other"}, fake_plugin=source
        )
        yield found


def name_of(store: BaseMemoryStore) -> str:
    return type(store).__name__


# -- one store per provider and config ---------------------------------------------------------------------------------


def test_the_same_provider_and_config_are_the_same_store(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("URL", "redis://h")
    store = open_store("fake", url="redis://h", pool={"a": 1, "b": [1, {2}]}, on=True)
    assert name_of(store) == "Fake"
    assert open_store("fake", on=True, pool={"b": [1, {2}], "a": 1}, url="${URL}") is store
    assert (
        StorageManager.get_provider(
            "fake", {"pool": {"a": 1, "b": (1, {2})}, "url": "redis://h", "on": True}
        )
        is store
    )
    assert (
        open_store("fake", url="redis://h", pool={"a": 1, "b": [1, {2}]}, on=True, strict=True)
        is store
    )
    for other in (
        open_store("fake", url="redis://h", pool={"a": 1, "b": [1, {3}]}, on=True),
        open_store("fake", url="redis://h", pool={"a": 1, "b": [1, {2}]}, on=1),
        open_store("other", url="redis://h", pool={"a": 1, "b": [1, {2}]}, on=True),
        open_store("fake"),
    ):
        assert other is not store


def test_values_of_any_kind_make_a_key(site: Site) -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise AssertionError("not to be compared")

    odd, data = Unhashable(), bytearray(b"x")
    store = open_store("fake", odd=odd, allow=[dict, "a:B"], data=data)
    assert open_store("fake", data=data, allow=[dict, "a:B"], odd=odd) is store
    assert open_store("fake", odd=Unhashable(), allow=[dict, "a:B"], data=data) is not store
    assert (
        store.config == {"odd": odd, "allow": [dict, "a:B"], "data": data}
        or store.config["odd"] is odd
    )


def test_what_a_plugin_does_to_its_config_does_not_matter(site: Site) -> None:
    config = {"nested": {"a": [1]}}
    store = StorageManager.get_provider("fake", config)
    store.config["nested"]["a"].append(2)
    assert config == {"nested": {"a": [1]}}
    assert StorageManager.get_provider("fake", config) is store


def test_many_threads_open_one_store(site: Site) -> None:
    site.install(
        "slow",
        {"slow": "slow_plugin:Slow"},
        slow_plugin="""
            import contextlib, threading
            from fake_plugin import Fake

            class Slow(Fake):
                two_at_once = threading.Barrier(2)

                def __init__(self, config):
                    with contextlib.suppress(threading.BrokenBarrierError):
                        self.two_at_once.wait(timeout=0.2)
                    super().__init__(config)
        """,
    )
    with ThreadPoolExecutor(8) as pool:
        stores = set(pool.map(lambda _: open_store("slow"), range(8)))
    assert len(stores) == 1
    assert stores.pop().made == [open_store("slow")]  # type: ignore[attr-defined]


def test_a_plugin_may_open_another_store_when_it_is_opened(site: Site) -> None:
    site.install(
        "nest",
        {"nest": "nest_plugin:make"},
        nest_plugin="from charm_checkpoint import open_store\ndef make(config): return open_store('fake', inner=True)",
    )
    assert open_store("nest").config == {"inner": True}


# -- closing -----------------------------------------------------------------------------------------------------------


def test_a_closed_store_is_not_handed_out_again(site: Site) -> None:
    with open_store("fake", a=1) as first:
        pass
    second = open_store("fake", a=1)
    assert second is not first
    second.close()
    second.close()
    assert (first.closed, second.closed) == (1, 2)  # type: ignore[attr-defined]
    third = open_store("fake", a=1)
    second.close()
    assert open_store("fake", a=1) is third
    assert open_store() is third


def test_a_closed_store_is_not_active(site: Site) -> None:
    open_store("fake", a=1).close()
    assert isinstance(open_store(), LocalMemory)


def test_all_are_closed_even_if_one_fails(site: Site) -> None:
    site.install(
        "stuck",
        {"stuck": "stuck_plugin:Stuck"},
        stuck_plugin="from fake_plugin import Fake\nclass Stuck(Fake):\n    def close(self): raise OSError('stuck')",
    )
    first, stuck, last = open_store("fake"), open_store("stuck"), open_store("other")
    with pytest.raises(OSError, match="stuck"):
        StorageManager.close_all()
    assert (first.closed, last.closed) == (1, 1)  # type: ignore[attr-defined]
    assert open_store("stuck") is not stuck
    with pytest.raises(OSError, match="stuck"):
        StorageManager.close_all()


# -- which store -------------------------------------------------------------------------------------------------------


def test_no_name_means_the_active_store(site: Site) -> None:
    store = open_store("fake", a=1)
    assert (
        open_store()
        is StorageManager.get_provider()
        is StorageManager.get_provider("", {})
        is store
    )
    other = StorageManager.get_provider("other", {"b": 1})
    assert open_store() is other
    assert open_store("fake", a=1) is store
    assert open_store() is store


def test_the_idiom_of_the_charm_docs_means_the_active_store(site: Site) -> None:
    store = StorageManager.get_provider("fake", {"url": "x"})
    assert StorageManager.get_provider("local", {}) is store
    assert StorageManager.get_provider("fake", {}) is store
    assert StorageManager.get_provider("local", None) is store
    other = StorageManager.get_provider("other", {})
    assert name_of(other) == "Other"
    assert other.config == {}
    assert StorageManager.get_provider("local", {}) is other


def test_open_store_means_what_it_says(site: Site) -> None:
    store = open_store("fake", a=1)
    assert open_store("fake") is not store
    assert isinstance(open_store("local"), LocalMemory)
    with pytest.raises(ConfigError, match="device, path: name the provider"):
        open_store(device="laptop", path="x")


def test_a_url_and_the_names_of_its_provider(site: Site) -> None:
    store = open_store("valkey://u:p@ss/w#rd?@h/db", pool=3)
    assert store.config == {"url": "valkey://u:p@ss/w#rd?@h/db", "pool": 3}
    assert StorageManager.get_provider("redis", {}) is store
    assert StorageManager.get_provider("valkey://h2", {}).config == {"url": "valkey://h2"}


def test_charm_yaml_is_used_when_nothing_is_active(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("charm.yaml").write_text(
        "runtime: {memory: {provider: fake, config: {url: '${URL}', n: 1}}}"
    )
    with pytest.raises(
        MissingVariableError, match=r"charm.yaml: runtime.memory.config.url uses \$\{URL\}"
    ):
        StorageManager.get_provider("local", {})
    monkeypatch.setenv("URL", "x")
    store = StorageManager.get_provider("local", {})
    assert (name_of(store), store.config) == ("Fake", {"url": "x", "n": 1})
    assert open_store() is store
    StorageManager.close_all()
    assert StorageManager.get_provider("fake", {}).config == {"url": "x", "n": 1}
    StorageManager.close_all()
    assert StorageManager.get_provider("other", {}).config == {}
    StorageManager.close_all()
    monkeypatch.setenv("CHARM_MEMORY_PROVIDER", "valkey://h")
    assert open_store().config == {"url": "valkey://h"}


@pytest.mark.parametrize("provider", [Path("x.db"), 7, b"local"])
def test_asking_with_something_else(site: Site, provider: Any) -> None:
    with pytest.raises(ConfigError, match="by name or URL, not by"):
        open_store(provider)
    with pytest.raises(ConfigError, match="by name or URL, not by"):
        StorageManager.get_provider(provider, {})


def test_a_config_that_is_none(site: Site) -> None:
    with pytest.raises(ConfigError, match="config must be a mapping of settings, not list"):
        StorageManager.get_provider("fake", ["url"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"config\.replica, if it is no path, must be true or"):
        open_store("fake", replica=1)


def test_a_replica_of_messages_only(site: Site) -> None:
    """Refused and not ignored; what was opened behind it is closed."""
    with pytest.raises(ConfigError, match="Fake keeps messages only; a replica needs a store of"):
        open_store("fake", replica=True)
    [fake] = importlib.import_module("fake_plugin").Fake.made
    assert fake.closed == 1


# -- the fall-back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda: open_store("mongo", url="mongo://u:pw@h", on_conflict="branch"),
        lambda: StorageManager.get_provider(
            "mongo", {"url": "mongo://u:pw@h", "on_conflict": "branch"}
        ),
    ],
)
def test_a_provider_that_is_not_installed_gives_way_to_local_files(site: Site, ask: Any) -> None:
    with pytest.warns(RuntimeWarning) as caught:
        store = ask()
    assert str(caught[0].message) == (
        "memory provider 'mongo' is not installed; install it with: pip install charm-memory-mongo. Threads are kept "
        "in local files instead; strict: true in the config makes this an error."
    )
    assert caught[0].filename == __file__
    assert isinstance(store, LocalMemory)
    assert store.config == {"on_conflict": "branch"}
    assert StorageManager.get_provider("mongo", {}) is store
    assert open_store("local", on_conflict="branch") is store


def test_strict_makes_it_an_error(site: Site) -> None:
    Path("charm.yaml").write_text("runtime: {memory: {provider: mongo, config: {strict: true}}}")
    with pytest.raises(ProviderNotFoundError, match="pip install charm-memory-mongo"):
        open_store("mongo://h", strict=True)
    with pytest.raises(ProviderNotFoundError):
        StorageManager.get_provider("local", {})
    assert not Path("workspace").exists()


def test_one_that_is_installed_and_fails_never_gives_way(site: Site) -> None:
    site.install(
        "down",
        {"down": "down_plugin:connect"},
        down_plugin="def connect(config): raise OSError('refused')",
    )
    for _ in range(2):
        with pytest.raises(BackendError, match="could not be opened: OSError: refused"):
            open_store("down", url="x")
    assert isinstance(open_store(), LocalMemory)


def test_a_name_offered_twice_is_told_where_it_is_asked_for(site: Site) -> None:
    site.install("zz", {"fake": "zz_plugin:Fake"})
    with pytest.warns(
        RuntimeWarning, match="'fake' is offered by charm-memory-fake 1.0 and zz 1.0"
    ) as caught:
        store = open_store("fake")
    assert caught[0].filename == __file__
    assert name_of(store) == "Fake"


# -- the real thing ----------------------------------------------------------------------------------------------------


def test_local_files_by_every_name(site: Site) -> None:
    with open_store("local") as store:
        assert isinstance(store, LocalMemory)
        store.save_messages("t", TURN)
    assert Path("workspace/.charm/memory/threads.db").is_file()
    url = f"sqlite:///{Path('workspace/.charm/memory/threads.db').absolute()}"
    for same in (url, "sqlite:///workspace/.charm/memory/threads.db"):
        with open_store(same, device="laptop") as store:
            assert store.load_messages("t")[0]["content"] == "hi"
    assert open_store("sqlite") is open_store("local")
    with pytest.raises(ConfigError, match="does not know url"):
        open_store("local", url="x")


def test_a_messages_only_plugin_from_charm_yaml(site: Site) -> None:
    source = FOLDER_MEMORY.format(imports="", base="object", init="pass")
    site.install(
        "charm-memory-folder", {"folder": "folder_plugin:FolderMemory"}, folder_plugin=source
    )
    Path("charm.yaml").write_text(
        "runtime: {memory: {provider: folder, config: {url: 'folder://threads'}}}"
    )
    store = StorageManager.get_provider(os.getenv("CHARM_MEMORY_PROVIDER", "local"), {})
    store.append_messages("t", TURN)
    store.close()
    assert open_store() is not store
    assert open_store().load_messages("t") == TURN


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_can_ask_while_the_parent_was_opening(site: Site) -> None:
    code = """if True:
        import os, signal, threading, warnings
        from charm_checkpoint import StorageManager, open_store
        kept, held, go = open_store("local"), threading.Event(), threading.Event()
        kept.save_messages("t", [{"role": "user", "content": "hi"}])

        def hold():
            with StorageManager._lock:
                held.set()
                go.wait()

        threading.Thread(target=hold).start()
        held.wait()
        warnings.simplefilter("ignore", DeprecationWarning)  # that other threads run is the point
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # one that waits for ever fails
            same = open_store("local") is kept
            os._exit(0 if same and kept.load_messages("t")[0]["content"] == "hi" else 1)
        status = os.waitpid(child, 0)[1]
        go.set()
        print(os.waitstatus_to_exitcode(status))
    """
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.strip() == "0"


def test_the_manager_imports_no_driver() -> None:
    code = "import sys, charm_checkpoint.manager; print('sqlite3' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
