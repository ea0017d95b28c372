"""The kit can fail: each fault in the `faulty_….py` is noticed by the tests that are meant to notice it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.contract.mutants import CAUGHT_BY, UNBROKEN

_PATH = Path(__file__).with_name("mutants.py")
_FAULTS = [name for name, tests in CAUGHT_BY.items() if tests]


class _Recorder:
    """Keeps how each test ended, by `Class::test`."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("::")[2]
        if report.when == "call" or not report.passed:
            step = "" if report.when == "call" else f" at {report.when}"
            self.outcomes[name] = f"{report.outcome}{step}"


@pytest.fixture(scope="module")
def outcomes(pytestconfig: pytest.Config) -> dict[str, str]:
    """One run of pytest, within this one, over all that is expected to fail, and the control."""
    tests = {**CAUGHT_BY, **UNBROKEN}
    recorder = _Recorder()
    with warnings.catch_warnings():
        # That pytest and its plugins are imported already is no news here.
        warnings.simplefilter("ignore", pytest.PytestAssertRewriteWarning)
        ended = pytest.main(
            [
                *(
                    "-c",
                    str(pytestconfig.inipath),
                    "-o",
                    "addopts=",
                    "-o",
                    "python_files=mutants.py",
                ),
                *(
                    "--import-mode=importlib",
                    "-p",
                    "no:cacheprovider",
                    "-o",
                    "faulthandler_timeout=0",
                ),
                *("-q", "--tb=no", "--no-header", "--no-summary"),
                *(f"{_PATH}::{cls}::{test}" for cls, names in tests.items() for test in names),
            ],
            plugins=[recorder],
        )
    assert ended == pytest.ExitCode.TESTS_FAILED
    return recorder.outcomes


@pytest.mark.parametrize("name", _FAULTS)
def test_a_fault_is_noticed(outcomes: dict[str, str], name: str) -> None:
    found = {test: outcomes.get(f"{name}::{test}") for test in CAUGHT_BY[name]}
    assert found == dict.fromkeys(CAUGHT_BY[name], "failed")


@pytest.mark.parametrize("name", UNBROKEN)
def test_without_a_fault_they_pass(outcomes: dict[str, str], name: str) -> None:
    found = {test: outcomes.get(f"{name}::{test}") for test in UNBROKEN[name]}
    assert found == dict.fromkeys(UNBROKEN[name], "passed")
