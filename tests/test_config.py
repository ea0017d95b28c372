"""Names, URLs, `${VAR}`, charm.yaml, and what must not be printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charm_checkpoint.config import Provider, Target, configured, expand, mask, resolve
from charm_checkpoint.errors import ConfigError, MissingVariableError
from charm_checkpoint.secrets import is_secret_name

AWKWARD = [
    "p@ss",
    "a/b?c#d",
    "a:b",
    "://",
    "x y",
    "100%",
    "%40",
    "sqlite:///",
    "é\u2028",
    "'\"",
    "&k=v",
    "$x{",
    "***",
]


def resolved(provider: str, **config: Any) -> Provider:
    return resolve(Target(provider, config, "config"))


# -- names of credentials ----------------------------------------------------------------------------------------------


CREDENTIALS = """
    OPENAI_API_KEY api-key accessToken db_password x-api-key bearer key token secret password apikey authorization
    service_role SUPABASE_SERVICE_ROLE_KEY PGPASSWORD clientSecret APIKey oauth2Token githubtoken db_pass pwd passwd
    openai_key AccountKey X-Auth-Token refresh_tokens aws_secret_access_key private_key_pem credentials jwt sig
    Proxy-Authorization basic_auth set-cookie password2 api_key_1 passphrase
"""
OTHERS = """
    thread_key monkey tokens_used max_tokens keyboard thread_id checkpoint_ns url host user max_token token_count
    tokenizer next_page_token eos_token primary_key cacheKey keys key_prefix secretary author authority oauth_url
    langgraph_auth_user user-agent bypass compass passes public_key idempotency-key history_messages_key - 1 ключ
"""


@pytest.mark.parametrize("name", CREDENTIALS.split())
def test_names_of_credentials(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["", *OTHERS.split()])
def test_names_of_other_things(name: str) -> None:
    assert not is_secret_name(name)


def test_the_rule_for_names_imports_nothing_more() -> None:
    code = """if True:
        import functools, re, sys
        import charm_checkpoint
        before = set(sys.modules)
        import charm_checkpoint.secrets
        print(*sys.modules.keys() - before)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["charm_checkpoint.secrets"]


# -- what is masked ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("password", AWKWARD)
@pytest.mark.parametrize("form", ["{}", "cannot reach {}", "{} is down"])
def test_passwords_in_urls_are_masked(password: str, form: str) -> None:
    text = form.format(f"postgresql://zoe:q{password}q@db.example:5432/app")
    assert f"q{password}q" not in mask(text)
    assert "zoe" not in mask(text)
    assert "postgresql://***@db.example:5432/app" in mask(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:pw@h:6379/0", "redis://***@h:6379/0"),
        ("postgresql://u:a@b c@h/db", "postgresql://***@h/db"),
        ("https://token@h/x", "https://***@h/x"),
        ("at https://h:8080/x by bob@example.org", "at https://h:8080/x by bob@example.org"),
        ("rediss://h/0?password=pw&db=1", "rediss://h/0?password=***&db=1"),
        ("from redis://a:b@h1 to redis://c:d@h2", "from redis://***@h1 to redis://***@h2"),
        ("host=h password='a b' user=u", "host=h password=*** user=u"),
        ("AccountName=n;AccountKey=abc==", "AccountName=n;AccountKey=***"),
        ("{'api_key': 'sk-1', 'max_tokens': 5}", "{'api_key': ***, 'max_tokens': 5}"),
        ('{"token":"a\\"b","n":1}', '{"token":***,"n":1}'),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("sent Bearer abc.def there", "sent Bearer *** there"),
        ("ann:pw@h/db is no URL", "***@h/db is no URL"),
        ("KeyError: 'url'", "KeyError: 'url'"),
        ("thread_key=7 max_tokens=9", "thread_key=7 max_tokens=9"),
        ("", ""),
    ],
)
def test_what_is_masked_in_texts(text: str, shown: str) -> None:
    assert mask(text) == shown


def test_what_is_masked_in_configs() -> None:
    config = {
        "url": "postgresql://u:a b@h/db",
        "pool": {"size": 3, "password": "x", "token": None, "secret": False},
        "hosts": ["redis://u:pw@h1", ("redis://h2",)],
        "key": ["one", "two"],
        "pin_token": 1234,
        "path": Path("x"),
        1: b"odd",
    }
    assert mask(config) == {
        "url": "postgresql://***@h/db",
        "pool": {"size": 3, "password": "***", "token": None, "secret": False},
        "hosts": ["redis://***@h1", ["redis://h2"]],
        "key": "***",
        "pin_token": "***",
        "path": repr(Path("x")),
        1: "b'odd'",
    }


def test_known_secrets_are_masked_wherever_they_stand() -> None:
    config = {
        "url": "postgresql://u:a%20b@h/db",
        "nested": [{"api_key": "k-1", "token": "k-1 k-2"}],
        "dsn": "host=h password='c d'",
        "password": "postgres",
        "name": "kept",
    }
    text = "tried 'a%20b', then a b, then k-1, k-1 k-2, c d, postgres and kept on postgresql://h"
    assert (
        mask(text, config)
        == "tried '***', then ***, then ***, ***, ***, *** and kept on postgresql://h"
    )


@given(st.text(), st.text())
def test_masking_takes_any_text(text: str, secret: str) -> None:
    mask(text, {"password": secret, "url": text})
    assert mask(f"password={text}".partition("\n")[0]) is not None


def test_masking_long_texts_is_cheap() -> None:
    # Were it quadratic, this would take hours: the time limit of the run is the check.
    for piece in ("a", "a:", "a://", "a=", "key=", "://", "a:@", "' "):
        mask(piece * (200_000 // len(piece)))


# -- ${VAR} ------------------------------------------------------------------------------------------------------------


def test_variables_are_expanded_at_any_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "1")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    given = {
        "a": "x${A}y${A}",
        "b": {"c": ["${UNSET:-d}", ("${EMPTY:-e}", "${EMPTY}")]},
        "f": "${UNSET:-}",
        "g": 7,
        "h": None,
        "escaped": "$${A} $A $ $$ {A} $$${A}",
    }
    assert expand(given, "config") == {
        "a": "x1y1",
        "b": {"c": ["d", ("e", "")]},
        "f": "",
        "g": 7,
        "h": None,
        "escaped": "${A} $A $ $$ {A} $${A}",
    }
    assert given["b"] == {"c": ["${UNSET:-d}", ("${EMPTY:-e}", "${EMPTY}")]}


@pytest.mark.parametrize("password", [*AWKWARD, "${NOT_A_VARIABLE}", "$${x}"])
def test_what_a_variable_holds_is_taken_as_it_is(
    password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("URL", url := f"redis://u:{password}@h:1/0")
    assert resolved("redis", url="${URL}") == Provider("redis", {"url": url}, False, False)
    assert resolve(Target(expand("${URL}", "x"), {}, "config")) == Provider(
        "redis", {"url": url}, False, False
    )


def test_an_unset_variable_is_named_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    with pytest.raises(
        MissingVariableError, match=r"config\.hosts\[1\]\.url uses \$\{UNSET\}, which is not set"
    ):
        expand({"hosts": ["x", {"url": "redis://u:pw@${UNSET}"}]}, "config")
    with pytest.raises(MissingVariableError) as caught:
        expand({"url": "redis://u:pw@${UNSET}"}, "config")
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["${", "${A", "${1A}", "${A-b}", "${A:?b}", "${}", "${A:-${B}}", "pa${ss"]
)
def test_what_begins_like_a_variable_and_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.url: expected \$\{NAME\}"):
        expand({"url": text}, "config")


def test_a_config_that_holds_itself() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ConfigError, match="holds itself"):
        resolved("redis", loop=loop)


# -- names and URLs ----------------------------------------------------------------------------------------------------


def test_names_and_urls() -> None:
    assert resolved("local") == Provider("local", {}, False, False)
    assert resolved("local", path="x.db", strict=True) == Provider(
        "local", {"path": "x.db"}, True, False
    )
    assert resolved("my-db_2", a=1, strict="false") == Provider("my-db_2", {"a": 1}, False, False)
    assert resolved("Rediss://H/0") == Provider("rediss", {"url": "Rediss://H/0"}, False, False)
    assert resolved("postgres+x://h", pool=1) == Provider(
        "postgres+x", {"pool": 1, "url": "postgres+x://h"}, False, False
    )


@pytest.mark.parametrize("password", AWKWARD)
def test_a_url_reaches_the_plugin_as_it_was_written(password: str) -> None:
    url = f"supabase://u:{password}@h/x?y=z"
    assert resolved(url) == Provider("supabase", {"url": url}, False, False)


def test_sqlite_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, path in {
        "sqlite:///rel.db": str(tmp_path / "rel.db"),
        "sqlite:///a b/%20#@.db": str(tmp_path / "a b" / "%20#@.db"),
        "SQLITE:////srv/abs.db": str(Path("/srv/abs.db").absolute()),
        "sqlite:///~/threads.db": "~/threads.db",
        "sqlite:///C:/dir/threads.db": str(Path("C:/dir/threads.db").absolute()),
    }.items():
        assert resolved(url) == Provider("sqlite", {"path": path}, False, False)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite://rel.db",
        "sqlite://h/x.db",
        "sqlite:///x.db?mode=ro",
        "sqlite:///:memory:",
    ],
)
def test_sqlite_urls_that_mean_something_else(url: str) -> None:
    with pytest.raises(ConfigError, match=r"SQLite URL|test in memory"):
        resolved(url)


@pytest.mark.parametrize(
    "text",
    ["threads.db", "./x", "redis:6379", "a b", "ann:pw@h/db", "host=h password=pw", "1://x/y"],
)
def test_neither_name_nor_url(text: str) -> None:
    with pytest.raises(ConfigError, match="neither a provider's name nor a URL") as caught:
        resolved(text)
    assert "pw" not in str(caught.value)


def test_a_setting_given_twice() -> None:
    with pytest.raises(ConfigError, match=r"config\.url: .* once"):
        resolved("redis://a", url="redis://b")
    with pytest.raises(ConfigError, match=r"config\.path: .* once"):
        resolved("sqlite:///a", path="b")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (True, True),
        ("True", True),
        ("${ON}", True),
        ("replica.db", "replica.db"),
        ("${HOME_OF_REPLICAS}/a.db", "/r/a.db"),
        (False, False),
        ("false", False),
        ("${UNSET:-}", False),
        (None, False),
    ],
)
def test_a_replica_in_front(
    written: object, meant: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no setting of the provider. A text in the place of `true` is what a variable makes of it."""
    monkeypatch.setenv("ON", "true")
    monkeypatch.setenv("HOME_OF_REPLICAS", "/r")
    monkeypatch.delenv("UNSET", raising=False)
    assert resolved("redis", n=1, replica=written) == Provider("redis", {"n": 1}, False, meant)


@pytest.mark.parametrize("replica", [1, 0, 1.5, ["a.db"], {"path": "a.db"}])
def test_a_replica_that_is_neither_path_nor_flag(replica: object) -> None:
    with pytest.raises(
        ConfigError, match=r"config\.replica, if it is no path, must be true or false"
    ):
        resolved("redis", url="redis://h", replica=replica)


def test_configs_of_a_wrong_shape() -> None:
    with pytest.raises(ConfigError, match="config must be a mapping of settings, not list"):
        resolve(Target("redis", ["url"], "config"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="config has a key that is no text: 1"):
        resolve(Target("redis", {1: 2}, "config"))
    with pytest.raises(ConfigError, match=r"config\.strict must be true or false"):
        resolved("redis", strict="yes")


# -- charm.yaml and the environment ------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with the program's own folder elsewhere."""
    (tmp_path / "cwd").mkdir()
    (tmp_path / "program").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "program"), *sys.path[1:]])
    monkeypatch.delenv("CHARM_MEMORY_PROVIDER", raising=False)
    return tmp_path / "cwd"


def test_nothing_is_configured(project: Path) -> None:
    assert configured()[:2] == ("local", {})
    (project / "charm.yaml").write_text("version: '0.4'\nruntime: {adapter: {type: python}}")
    assert configured()[:2] == ("local", {})
    (project / "charm.yaml").write_text("runtime: {memory: null}")
    assert configured()[:2] == ("local", {})
    (project / "charm.yaml").write_text("")
    assert configured()[:2] == ("local", {})


def test_charm_yaml_is_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIND", "red")
    file = project / "charm.yaml"
    file.write_text(
        "runtime: {memory: {provider: '${KIND}is', config: {url: '${REDIS_URL}'}}}",
        encoding="utf-8",
    )
    target = configured()
    assert target == ("redis", {"url": "${REDIS_URL}"}, f"{file}: runtime.memory.config")
    with pytest.raises(
        MissingVariableError, match=r"charm.yaml: runtime.memory.config.url uses \$\{REDIS_URL\}"
    ):
        resolve(target)
    file.write_text("runtime: {memory: {config: null}}")
    assert configured()[:2] == ("local", {})


def test_the_programs_own_folder_comes_first(project: Path) -> None:
    (project / "charm.yaml").write_text("runtime: {memory: {provider: cwd}}")
    assert configured().provider == "cwd"
    (project.parent / "program" / "charm.yaml").write_text("runtime: {memory: {provider: own}}")
    assert configured().provider == "own"


def test_the_environment_decides(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "charm.yaml").write_text("runtime: {memory: {provider: redis, config: {url: x}}}")
    for value, expected in {
        "redis": ("redis", {"url": "x"}),
        " postgres ": ("postgres", {}),
        "redis://h": ("redis://h", {}),
        "local": ("local", {}),
        "": ("redis", {"url": "x"}),
    }.items():
        monkeypatch.setenv("CHARM_MEMORY_PROVIDER", value)
        assert configured()[:2] == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "a: [1\nurl: redis://u:pw@h",
            r"is not valid YAML at line 2, column \d+: expected ',' or ']'",
        ),
        ("a: 2024-99-99", "is not valid YAML: month must be in 1..12"),
        ("a: \x07pw", "is not valid YAML: .*not allowed"),
        ("a: !!python/object:os.system pw", "is not valid YAML at line 1"),
        ("[1]", "the file must be a mapping, not list"),
        ("runtime: pw", "runtime must be a mapping, not str"),
        ("runtime: {memory: redis}", "runtime.memory must be a mapping, not str"),
        ("runtime: {memory: {provider: 7}}", "runtime.memory.provider must be a name, not int"),
        (
            "runtime: {memory: {provider: null}}",
            "runtime.memory.provider must be a name, not empty",
        ),
        ("runtime: {memory: {config: [pw]}}", "runtime.memory.config must be a mapping, not list"),
    ],
)
def test_a_malformed_charm_yaml(project: Path, text: str, reason: str) -> None:
    (project / "charm.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        configured()
    assert str(project / "charm.yaml") in str(caught.value)
    assert "pw" not in f"{caught.value} {caught.value.__cause__}"


def test_a_charm_yaml_that_is_not_utf8(project: Path) -> None:
    (project / "charm.yaml").write_bytes(b"a: \xff\xfe\xfa")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        configured()


@pytest.mark.skipif(
    not Path("/proc/self/mem").exists(), reason="needs a file that nobody can read, root included"
)
def test_a_charm_yaml_that_cannot_be_read(project: Path) -> None:
    (project / "charm.yaml").symlink_to("/proc/self/mem")
    with pytest.raises(ConfigError, match="cannot be read: Input/output error"):
        configured()
