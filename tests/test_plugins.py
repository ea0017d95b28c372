"""Plugins are found by name among installed distributions, and whatever works as one gets everything."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint import BaseMemoryStore, plugins
from charm_checkpoint.errors import (
    BackendError,
    BackendUnavailable,
    ConfigError,
    ProviderNotFoundError,
)
from tests.distributions import FOLDER_MEMORY, Site
from tests.distributions import site as fresh_site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with fresh_site(tmp_path, monkeypatch) as found:
        yield found


def opened(name: str, **config: Any) -> BaseMemoryStore:
    plugin = plugins.find(name)
    return plugins.open_plugin(plugin, plugins.load(plugin), config)


def test_plugins_are_listed_and_found_without_importing_them(site: Site) -> None:
    site.install(
        "charm-memory-folder",
        {"folder": "folder_plugin:FolderMemory", "broken": "no value at all"},
        "2.1",
        folder_plugin="raise SystemExit('imported')",
    )
    ours = [
        plugin for plugin in plugins.installed() if plugin.distribution == "charm-memory-folder"
    ]
    assert ours == [
        plugins.Plugin(
            "broken", "charm-memory-folder", "2.1", "no value at all", "no value at all", True
        ),
        plugins.Plugin(
            "folder",
            "charm-memory-folder",
            "2.1",
            "folder_plugin",
            "folder_plugin:FolderMemory",
            True,
        ),
    ]
    assert plugins.find("folder") == ours[1]
    assert str(ours[1]) == "charm-memory-folder 2.1"
    assert "folder_plugin" not in sys.modules


def test_only_the_plugin_asked_for_is_imported(site: Site) -> None:
    site.install("a", {"a": "plugin_a:dict"}, plugin_a="")
    site.install("b", {"b": "plugin_b:A.B"}, plugin_b="class A:\n    class B: pass")
    assert plugins.load(plugins.find("b")).__qualname__ == "A.B"
    assert "plugin_b" in sys.modules
    assert "plugin_a" not in sys.modules


def test_local_is_built_in_and_cannot_be_taken_over(site: Site) -> None:
    site.install("thief", {"local": "thief:Thief"})
    with pytest.warns(
        RuntimeWarning, match=r"'local' is offered by charm-checkpoint\S* .*and thief 1.0"
    ):
        assert plugins.find("local").value == "charm_checkpoint.sqlite:LocalMemory"
    assert plugins.find("sqlite").value == "charm_checkpoint.sqlite:LocalMemory"
    offers = [
        (plugin.distribution, plugin.used)
        for plugin in plugins.installed()
        if plugin.name == "local"
    ]
    assert offers == [("charm-checkpoint", True), ("thief", False)]


def test_of_two_distributions_ours_is_used_and_the_user_is_told(site: Site) -> None:
    for distribution in (
        "a-store",
        "charm_Memory.Redis",
        "charm-memory-all",
        "z-store",
        "same-thing",
    ):
        module = (
            "a_store"
            if distribution == "same-thing"
            else distribution.replace("-", "_").replace(".", "_")
        )
        site.install(distribution, {"redis": f"{module}:Store"})
    with pytest.warns(RuntimeWarning) as caught:
        assert plugins.find("redis").distribution == "charm_Memory.Redis"
    assert str(caught[0].message) == (
        "memory provider 'redis' is offered by charm_Memory.Redis 1.0 and charm-memory-all 1.0 and a-store 1.0 and "
        "z-store 1.0; charm_Memory.Redis is used. Uninstall what is not meant."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plugins.find("redis")  # told once
    offers = [plugin for plugin in plugins.installed() if plugin.name == "redis"]
    assert [plugin.used for plugin in offers] == [True, False, False, False]


@pytest.mark.parametrize(
    ("name", "distribution"),
    [
        ("redis", "charm-memory-redis"),
        ("rediss", "charm-memory-redis"),
        ("valkey", "charm-memory-redis"),
        ("mongo", "charm-memory-mongo"),
    ],
)
def test_one_that_is_not_installed_says_what_to_install(
    site: Site, name: str, distribution: str
) -> None:
    with pytest.raises(ProviderNotFoundError) as caught:
        plugins.find(name)
    assert str(caught.value) == (
        f"memory provider {name!r} is not installed; install it with: pip install {distribution}"
    )
    site.install(distribution, {name: "builtins:dict"})
    assert plugins.find(name).distribution == distribution


BASES = {
    "this project's": (
        "from charm_checkpoint import BaseMemoryStore",
        "BaseMemoryStore",
        "super().__init__(config)",
    ),
    "charmos's": (
        "from charm.core.storage import BaseMemoryStore",
        "BaseMemoryStore",
        "super().__init__(config)",
    ),
    "neither": ("", "object", "pass"),
}


@pytest.mark.parametrize("base", BASES)
async def test_a_plugin_that_loads_and_saves_gets_the_rest(site: Site, base: str) -> None:
    imports, name, init = BASES[base]
    source = FOLDER_MEMORY.format(imports=imports, base=name, init=init)
    site.install(
        "charm-memory-folder", {"folder": "folder_plugin:FolderMemory"}, folder_plugin=source
    )
    url = f"folder://{site.folder.parent / 'threads'}"
    one, two = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}
    with opened("folder", url=url) as store:
        assert isinstance(store, BaseMemoryStore)
        assert store.config == {"url": url}
        assert store.load_messages("t") == []
        store.save_messages("t", [one])
        store.append_messages("t", [two])
        assert store.load_messages("t") == await store.aload_messages("t") == [one, two]
        await store.asave_messages("t", [two])
        await store.aappend_messages("t", [one])
        assert store.load_messages("t") == [two, one]
        assert store.get_langgraph_checkpointer() is None
        assert store.folder.name == "threads"  # type: ignore[attr-defined]
    assert type(store).__name__ == ("FolderMemory" if base == "this project's" else "AdaptedStore")


async def test_what_a_plugin_has_of_its_own_is_used(site: Site) -> None:
    site.install(
        "own",
        {"own": "own_plugin:Own"},
        own_plugin="""
            class Own:
                def __init__(self, config): self.calls = []
                def load_messages(self, thread_id): return []
                def save_messages(self, thread_id, messages): self.calls.append("save")
                def append_messages(self, thread_id, messages): self.calls.append("append")
                async def aload_messages(self, thread_id): return [{"content": thread_id}]
                def get_langgraph_checkpointer(self): return self
                def close(self): self.calls.append("close")
        """,
    )
    store = opened("own")
    assert isinstance(store, plugins.AdaptedStore)
    store.append_messages("t", [])
    await store.aappend_messages("t", [])
    await store.asave_messages("t", [])
    assert await store.aload_messages("t") == [{"content": "t"}]
    assert store.get_langgraph_checkpointer() is store.plugin
    store.close()
    assert store.calls == ["append", "append", "save", "close"]
    with pytest.raises(AttributeError, match="nothing"):
        store.nothing  # noqa: B018


def test_a_plugin_may_be_a_function(site: Site) -> None:
    site.install(
        "made",
        {"made": "made_plugin:make"},
        made_plugin="from charm_checkpoint.sqlite import LocalMemory as make",
    )
    with opened("made", path="x.db") as store:
        assert type(store).__name__ == "LocalMemory"


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "import no_such_driver",
            ConfigError,
            "plugin:P cannot be imported: ModuleNotFoundError: No module",
        ),
        ("raise RuntimeError", ConfigError, "plugin:P cannot be imported: RuntimeError$"),
        ("Q = 1", ConfigError, "plugin:P cannot be imported: AttributeError: .*'P'"),
        ("P = 1", ConfigError, "plugin:P is no class"),
        (
            "class P:\n  def __init__(self, c): pass",
            ConfigError,
            "plugin:P has no load_messages; a memory plugin",
        ),
        ("P = lambda config: None", ConfigError, "plugin:P has no load_messages"),
        (
            "class P:\n  def __init__(self, c): pass\n  def load_messages(self, t): pass",
            ConfigError,
            "plugin:P has no save_messages",
        ),
        ("P = lambda config: config['dsn']", BackendError, "could not be opened: KeyError: 'dsn'"),
        (
            "def P(config): raise OSError('no route to ' + config['url'])",
            BackendError,
            r"to redis://\*\*\*@h/0$",
        ),
        (
            "def P(config): raise ValueError('odd: q pw')",
            BackendError,
            r"opened: ValueError: odd: \*\*\*$",
        ),
        (
            "from charm_checkpoint.errors import *\ndef P(config): raise BackendUnavailable('down')",
            BackendUnavailable,
            "^down$",
        ),
        (
            "from charm_checkpoint import BaseMemoryStore\nclass P(BaseMemoryStore): pass",
            BackendError,
            "could not be opened: TypeError: Can't instantiate abstract class P",
        ),
    ],
)
def test_one_that_is_installed_and_fails_says_why(
    site: Site, source: str, error: type[Exception], message: str
) -> None:
    site.install("charm-memory-redis", {"redis": "plugin:P"}, "3.2", plugin=source)
    with pytest.raises(error, match=message) as caught:
        opened("redis", url="redis://u:q pw@h/0")
    assert type(caught.value) is error
    if message != "^down$":
        assert "memory provider 'redis' (charm-memory-redis 3.2)" in str(caught.value)
    if "raise" in source and error is not BackendUnavailable:
        assert caught.value.__cause__ is not None


def test_an_entry_point_without_a_value_is_an_error(site: Site) -> None:
    site.install("odd", {"odd": "not a value"})
    with pytest.raises(ConfigError, match="not a value cannot be imported"):
        plugins.load(plugins.find("odd"))


def test_an_adapted_store_can_be_copied(site: Site) -> None:
    import copy

    source = FOLDER_MEMORY.format(imports="", base="object", init="pass")
    site.install(
        "charm-memory-folder", {"folder": "folder_plugin:FolderMemory"}, folder_plugin=source
    )
    store = opened("folder", url=f"folder://{site.folder.parent / 'threads'}")
    twin = copy.copy(store)
    twin.save_messages("t", [{"content": "x"}])
    assert store.load_messages("t") == [{"content": "x"}]


def test_looking_for_plugins_imports_no_driver() -> None:
    code = "import sys; from charm_checkpoint import plugins; plugins.installed(); print('sqlite3' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
