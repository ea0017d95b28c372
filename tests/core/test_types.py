"""What may be read back, and what must not be stored: types outside the allow-list, credentials of a config."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from charm_checkpoint.errors import TypeNotAllowedError
from tests.core.support import chat_graph, latest, opened, place, put, run


def _shapes() -> Any:
    from tests.core import shapes

    return shapes


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "threads.db"
    run("shapes", path)
    return path


class TestTypes:
    """The types were stored by another process; this one reads them back only if it is told that it may."""

    @pytest.fixture
    def path(self, stored: Path, tmp_path: Path) -> Path:
        shutil.copy(stored, tmp_path / "threads.db")
        return tmp_path / "threads.db"

    @pytest.mark.parametrize(
        ("channel", "name"), [("point", "Point"), ("person", "Person"), ("mood", "Mood")]
    )
    async def test_one_that_is_not_allowed_is_named(
        self, path: Path, channel: str, name: str
    ) -> None:
        wanted = f"tests.core.shapes:{name}"
        with opened(path) as saver:
            with pytest.raises(TypeNotAllowedError, match=wanted) as raised:
                saver.get_tuple(place(channel))
            with pytest.raises(TypeNotAllowedError, match=wanted):
                await saver.aget_tuple(place(channel))
            with pytest.raises(TypeNotAllowedError, match=wanted):
                list(saver.list(place(channel)))
            assert f"{channel!r}" in str(raised.value)
            assert "allow=" in str(raised.value)
            # A put that never read the thread is as good as on any other.
            put(saver, place(channel), plain=1)
            assert latest(saver, channel) == {"plain": 1}
        shapes = _shapes()
        for allow in ([wanted], [wanted.replace(":", ".")], [getattr(shapes, name)]):
            with opened(path, allow=allow) as saver:
                found = list(saver.list(place(channel)))[1]
                assert found.checkpoint["channel_values"] == {channel: shapes.VALUES[channel]}

    def test_nothing_is_imported_for_it(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "tests.core.shapes", raising=False)
        with opened(path) as saver, pytest.raises(TypeNotAllowedError):
            saver.get_tuple(place("all"))
        assert "tests.core.shapes" not in sys.modules

    def test_those_of_a_graphs_state_are_allowed(self, path: Path) -> None:
        shapes = _shapes()
        with opened(path) as saver:
            graph = shapes.shapes_graph(saver)
            assert graph.get_state(place("all")).values == shapes.VALUES
            assert graph.invoke({"mood": shapes.Mood.GOOD}, place("all")) == shapes.VALUES
            with pytest.raises(TypeNotAllowedError):
                saver.get_tuple(place("all"))

    def test_what_cannot_be_read_can_be_copied_and_deleted(self, path: Path) -> None:
        with opened(path) as saver:
            saver.copy_thread("all", "copy")
            saver.delete_thread("all")
            assert saver.get_tuple(place("all")) is None
        with opened(path, allow=[type(v) for v in _shapes().VALUES.values()]) as saver:
            assert latest(saver, "copy") == _shapes().VALUES


class TestSecrets:
    NAMES = (
        "api_key",
        "OPENAI_API_KEY",
        "x-api-key",
        "accessToken",
        "token",
        "db_password",
        "client_secret",
        "Authorization",
        "bearer",
        "service_role",
        "credentials",
        "cookie",
    )

    def test_of_a_config_are_not_stored(self, tmp_path: Path) -> None:
        path = tmp_path / "threads.db"
        secret = "sk-do-not-store-me"
        config = place("t")
        config["configurable"].update(dict.fromkeys(self.NAMES, secret))
        config["configurable"].update({"user_id": "ada", "thread_key": "kept", "max_tokens": 9})
        config["metadata"] = {"api_key": secret, "app": "demo"}
        with opened(path) as saver:
            graph = chat_graph(saver)
            for durability in ("sync", "async", "exit"):
                graph.invoke({"turns": ["hi"]}, config, durability=durability)
            graph.update_state(config, {"turns": ["by hand"]})
            for found in saver.list(place("t")):
                assert not set(self.NAMES) & set(found.metadata)
                kept = {"user_id": "ada", "thread_key": "kept", "max_tokens": 9, "app": "demo"}
                assert kept.items() <= found.metadata.items()
        for file in tmp_path.iterdir():
            assert secret.encode() not in file.read_bytes()
