"""Deltas between values: whatever the two values are, the later one comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from charm_checkpoint import delta

pieces = st.binary(max_size=30) | st.binary(max_size=6).map(lambda part: part * 40_000)


@given(st.lists(pieces, min_size=1, max_size=6), st.lists(pieces, max_size=3), st.integers(0, 6))
def test_a_delta_rebuilds_the_later_value(base: list[bytes], put_in: list[bytes], at: int) -> None:
    before, after = b"".join(base), b"".join([*base[:at], *put_in, *base[at + 1 :]])
    change = delta.diff(before, after)
    if change is not None:
        assert delta.apply(before, change) == after
        assert len(change) <= len(after)


@pytest.mark.parametrize("count", [10, 15, 16, 300, 65_535, 65_536])
def test_a_list_that_grows_by_one_costs_one_element(count: int) -> None:
    dumps = JsonPlusSerializer().dumps_typed
    elements = [f"element {i}" for i in range(count)]
    before, after = dumps(elements)[1], dumps([*elements, "one more"])[1]
    change = delta.diff(before, after)
    assert change is not None
    assert delta.apply(before, change) == after
    assert len(change) < 60


@pytest.mark.parametrize("edit", [0, 7, 199])
def test_an_element_replaced_costs_that_element(edit: int) -> None:
    dumps = JsonPlusSerializer().dumps_typed
    elements = [f"element {i} " * 20 for i in range(200)]
    changed = [*elements[:edit], "new words " * 30, *elements[edit + 1 :]]
    before, after = dumps(elements)[1], dumps(changed)[1]
    change = delta.diff(before, after)
    assert change is not None
    assert delta.apply(before, change) == after
    assert len(change) < 600


def test_values_with_nothing_in_common_have_no_delta() -> None:
    assert delta.diff(b"a" * 5000, b"b" * 5000) is None
    assert delta.diff(b"", b"b" * 5000) is None


@pytest.mark.parametrize("broken", [b"", b"short", None])
def test_a_damaged_delta_or_another_base_is_an_error(broken: bytes | None) -> None:
    base = bytes(range(256)) * 20
    change = delta.diff(base, base + b"more")
    assert change is not None
    with pytest.raises(ValueError, match="delta"):
        delta.apply(base[:-1] if broken is None else base, change if broken is None else broken)
