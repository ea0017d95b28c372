"""Two devices that write to one thread: one is the thread, the other a branch that is listed and can be promoted."""

from __future__ import annotations

import logging
import operator
from typing import Annotated, Any

import pytest
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from charm_checkpoint.errors import BackendUnavailable, ThreadConflictError
from charm_checkpoint.saver import CheckpointSaver
from tests.core.support import id_of, place
from tests.replica.conftest import MakeDevice
from tests.replica.support import Device


def said_at(device: Device, checkpoint_id: str, thread: str = "t") -> list[str]:
    """What the user had said at a checkpoint."""
    turns = device.graph.get_state(place(thread, checkpoint_id)).values["turns"]
    return [text for text in turns if not text.startswith("re ")]


def head_of(device: Device, thread: str = "t") -> str:
    found = device.saver.get_tuple(place(thread))
    assert found is not None
    return id_of(found.config)


def apart(laptop: Device, phone: Device) -> None:
    """Both have a turn, and go on from it while they cannot see each other: the phone is first to come back."""
    laptop.turn("both")
    laptop.sync()
    assert phone.said() == ["both"]
    laptop.away()
    phone.away()
    for n in range(2):
        laptop.turn(f"laptop {n}")
        phone.turn(f"phone {n}")
    phone.back()
    laptop.back()


def test_the_losers_turns_are_a_branch(laptop: Device, phone: Device, device: MakeDevice) -> None:
    apart(laptop, phone)
    found = laptop.conflict()
    assert said_at(laptop, found.tip_id) == ["both", "laptop 0", "laptop 1"]
    assert said_at(laptop, found.head_id)[:2] == ["both", "phone 0"]
    assert found.head_device == "phone"
    assert found.noticed_at >= found.head_moved_at
    assert (found.thread_id, found.namespace) == ("t", "")
    assert laptop.conflicts() == laptop.conflicts("t") == [found]
    assert laptop.conflicts("another") == []
    assert laptop.sync_status().conflicts == 1
    assert phone.conflicts() == []

    assert laptop.said() == phone.said() == ["both", "phone 0", "phone 1"]
    tablet = device("tablet")
    assert tablet.said() == ["both", "phone 0", "phone 1"]
    assert said_at(tablet, found.tip_id) == ["both", "laptop 0", "laptop 1"]
    ids = [id_of(t.config) for t in tablet.history("t")]
    assert len(ids) == len(set(ids)) == 4 * 5
    assert ids == [id_of(t.config) for t in laptop.history("t")]
    assert {found.first_id, found.tip_id, found.head_id} <= set(ids)


def test_both_go_on_after_a_conflict(laptop: Device, phone: Device) -> None:
    apart(laptop, phone)
    laptop.turn("laptop 2")
    laptop.sync()
    phone.turn("phone 2")
    phone.sync()
    assert laptop.said() == ["both", "phone 0", "phone 1", "laptop 2", "phone 2"]
    assert len(laptop.conflicts()) == 1
    assert phone.conflicts() == []


def test_a_conflict_is_told_of_once(
    laptop: Device, phone: Device, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "charm_checkpoint.replica"):
        apart(laptop, phone)
    told = [r.getMessage() for r in caplog.records if "conflicts()" in r.getMessage()]
    assert len(told) == 1
    assert "'t'" in told[0]
    assert "'phone'" in told[0]


def test_two_begin_one_thread(laptop: Device, phone: Device) -> None:
    for each in (laptop, phone):
        each.away()
        each.turn(each.saver.device)
    phone.back()
    laptop.back()
    assert laptop.said() == phone.said() == ["phone"]
    assert said_at(phone, laptop.conflict().tip_id) == ["laptop"]


def test_a_conflict_in_the_middle_of_a_run(laptop: Device, phone: Device) -> None:
    """The run ends as it began; the next one goes on from where the other is."""
    laptop.turn("both")
    laptop.sync()

    def meddle(verb: str, _: object) -> None:
        if verb == "write":
            laptop.line.before = None
            phone.turn("phone")
            phone.sync()

    laptop.line.before = meddle
    assert laptop.turn("laptop")[-2:] == ["laptop", "re laptop"]
    laptop.sync()
    assert said_at(laptop, laptop.conflict().tip_id) == ["both", "laptop"]
    assert laptop.said() == ["both", "phone"]


def test_the_winner_is_taken_back(laptop: Device, phone: Device) -> None:
    """The thread is again where the loser saw it last, and that is where it goes on."""
    laptop.turn("both")
    laptop.sync()
    before = {id_of(t.config) for t in phone.history("t")}
    laptop.away()
    laptop.turn("laptop")
    phone.turn("phone")
    phone.sync()
    laptop.back()
    taken = [("", id_of(t.config)) for t in phone.history("t") if "phone" in str(t.checkpoint)]
    phone.saver.engine.backend.prune("t", [place for place in taken if place[1] not in before])
    assert phone.said() == ["both"]
    assert laptop.said() == ["both"]
    laptop.turn("laptop 2")
    laptop.sync()
    assert phone.said() == ["both", "laptop 2"]
    assert len(laptop.conflicts()) == 1


def test_each_time_is_a_conflict_of_its_own(laptop: Device, phone: Device) -> None:
    apart(laptop, phone)
    laptop.said()
    laptop.away()
    laptop.turn("again")
    phone.turn("phone 2")
    phone.sync()
    laptop.back()
    tips = [said_at(laptop, c.tip_id)[-1] for c in laptop.conflicts()]
    assert tips == ["laptop 1", "again"]


@pytest.mark.parametrize("crash", ["before", "after"])
def test_a_lost_answer_hides_no_conflict(
    laptop: Device, phone: Device, device: MakeDevice, crash: str
) -> None:
    """The remote took the branch, and its answer never came."""
    laptop.turn("both")
    laptop.sync()
    phone.said()
    laptop.away()
    laptop.turn("laptop")
    phone.turn("phone")
    phone.sync()

    def lose(verb: str, answer: Any) -> Any:
        if verb == "write":
            laptop.line.after = None
            raise BackendUnavailable("the answer was lost")
        return answer

    laptop.line.after = lose
    laptop.back()
    assert laptop.said() == ["both", "phone"]
    assert said_at(laptop, laptop.conflict().tip_id) == ["both", "laptop"]


# -- promote and dismiss -----------------------------------------------------------------------------------------------


def test_promote(laptop: Device, phone: Device) -> None:
    apart(laptop, phone)
    found = laptop.conflict()
    laptop.said()
    laptop.promote(found)
    assert laptop.conflicts() == []
    assert laptop.said() == ["both", "laptop 0", "laptop 1"]
    assert phone.said() == ["both", "laptop 0", "laptop 1"]
    phone.turn("phone 2")
    phone.sync()
    assert phone.conflicts() == []
    assert laptop.turn("laptop 2")[::2] == ["both", "laptop 0", "laptop 1", "phone 2", "laptop 2"]
    laptop.sync()
    assert laptop.conflicts() == []
    assert said_at(phone, found.head_id)[:2] == ["both", "phone 0"], "it stays"


def test_promote_before_anything_was_read(laptop: Device, phone: Device) -> None:
    apart(laptop, phone)
    laptop.promote(laptop.conflict())
    assert laptop.said() == phone.said() == ["both", "laptop 0", "laptop 1"]


def test_promote_after_both_went_on(laptop: Device, phone: Device) -> None:
    apart(laptop, phone)
    laptop.turn("laptop 2")
    phone.turn("phone 2")
    phone.sync()
    laptop.promote(laptop.conflict())
    assert laptop.said() == phone.said() == ["both", "laptop 0", "laptop 1"]


def test_promote_while_the_other_has_something_unsent(laptop: Device, phone: Device) -> None:
    apart(laptop, phone)
    phone.away()
    phone.turn("phone 2")
    laptop.promote(laptop.conflict())
    phone.back()
    assert phone.said() == ["both", "laptop 0", "laptop 1"]
    assert said_at(laptop, phone.conflict().tip_id) == ["both", "phone 0", "phone 1", "phone 2"]


def test_promote_offline(laptop: Device, phone: Device) -> None:
    apart(laptop, phone)
    laptop.away()
    with pytest.raises(BackendUnavailable):
        laptop.promote(laptop.conflict())
    laptop.line.cut = False
    laptop.promote(laptop.conflict())
    assert phone.said() == ["both", "laptop 0", "laptop 1"]


def test_promote_while_another_moves_it(laptop: Device, phone: Device) -> None:
    apart(laptop, phone)

    def meddle(verb: str, args: Any) -> None:
        if verb == "write":
            laptop.line.before = None
            phone.turn("phone 2")
            phone.sync()

    laptop.line.before = meddle
    with pytest.raises(ThreadConflictError) as caught:
        laptop.promote(laptop.conflict())
    assert caught.value.device == "phone"
    assert laptop.said() == ["both", "phone 0", "phone 1", "phone 2"]
    laptop.promote(laptop.conflict())
    assert phone.said() == ["both", "laptop 0", "laptop 1"]


def test_promote_whose_answer_is_lost(laptop: Device, phone: Device) -> None:
    apart(laptop, phone)

    def lose(verb: str, answer: Any) -> Any:
        if verb == "write":
            laptop.line.after = None
            raise BackendUnavailable("the answer was lost")
        return answer

    laptop.line.after = lose
    with pytest.raises(BackendUnavailable):
        laptop.promote(laptop.conflict())
    laptop.promote(laptop.conflict())
    assert laptop.conflicts() == []
    assert laptop.said() == phone.said() == ["both", "laptop 0", "laptop 1"]


def test_dismiss(laptop: Device, phone: Device) -> None:
    apart(laptop, phone)
    found = laptop.conflict()
    laptop.dismiss(found)
    laptop.dismiss(found)
    assert laptop.conflicts() == []
    assert laptop.sync_status().conflicts == 0
    assert laptop.said() == ["both", "phone 0", "phone 1"]
    assert said_at(phone, found.tip_id) == ["both", "laptop 0", "laptop 1"]


def test_conflicts_are_kept(laptop: Device, phone: Device, device: MakeDevice) -> None:
    """Until somebody decides, also for the next process of the device."""
    apart(laptop, phone)
    found = laptop.conflict()
    laptop.close()
    again = device("laptop")
    assert again.conflicts() == [found]
    again.promote(found)
    assert device("laptop").conflicts() == []
    assert phone.said() == ["both", "laptop 0", "laptop 1"]


# -- subgraphs with a checkpointer of their own ------------------------------------------------------------------------


class Notes(TypedDict):
    topic: str
    notes: Annotated[list[str], operator.add]


class Talk(TypedDict):
    topic: str
    talk: Annotated[list[str], operator.add]


def noting(saver: CheckpointSaver) -> Any:
    """A graph whose subgraph keeps notes from turn to turn, in a state that only it has; quiet topics skip it."""
    sub = StateGraph(Notes)
    sub.add_node("note", lambda state: {"notes": [state["topic"]]})
    sub.add_edge(START, "note")
    builder: Any = StateGraph(Talk)
    builder.add_node("hear", lambda state: {"talk": [state["topic"]]})
    builder.add_node("sub", sub.compile(checkpointer=True))
    builder.add_edge(START, "hear")
    builder.add_conditional_edges(
        "hear", lambda state: [] if state["topic"].startswith("quiet") else ["sub"], ["sub"]
    )
    return builder.compile(checkpointer=saver)


def talk(device: Device, topic: str) -> None:
    noting(device.saver).invoke({"topic": topic}, place("t"))


def noted(device: Device) -> tuple[list[str], list[str]]:
    """What the graph and what its subgraph remember."""
    device.said()  # a root is read before its subgraph
    root, sub = (device.saver.get_tuple(place("t", namespace=n)) for n in ("", "sub"))
    assert root is not None
    assert sub is not None
    return root.checkpoint["channel_values"]["talk"], sub.checkpoint["channel_values"]["notes"]


def test_promote_with_a_subgraph_that_remembers(laptop: Device, phone: Device) -> None:
    talk(laptop, "both")
    laptop.sync()
    assert noted(phone) == (["both"], ["both"])
    laptop.away()
    for n in range(2):
        talk(laptop, f"laptop {n}")
    talk(phone, "phone")
    phone.sync()
    laptop.back()
    assert noted(laptop) == noted(phone) == (["both", "phone"], ["both", "phone"])
    assert {c.namespace for c in laptop.conflicts()} == {"", "sub"}
    laptop.promote(laptop.conflict())
    assert laptop.conflicts() == []
    all_of_it = ["both", "laptop 0", "laptop 1"]
    assert noted(laptop) == noted(phone) == (all_of_it, all_of_it)
    talk(phone, "phone 2")
    phone.sync()
    assert noted(laptop) == ([*all_of_it, "phone 2"],) * 2


def test_a_subgraph_goes_the_way_of_its_root(laptop: Device, phone: Device) -> None:
    """The winner did not use the subgraph: the loser's use of it is on the branch all the same."""
    talk(laptop, "both")
    laptop.sync()
    noted(phone)
    laptop.away()
    talk(laptop, "laptop")
    talk(phone, "quiet phone")
    phone.sync()
    laptop.back()
    assert noted(phone) == (["both", "quiet phone"], ["both"])
    assert noted(laptop) == (["both", "quiet phone"], ["both"])
    laptop.promote(laptop.conflict())
    assert noted(laptop) == noted(phone) == (["both", "laptop"], ["both", "laptop"])


def test_a_subgraph_goes_the_way_of_its_root_also_with_the_loser_quiet(
    laptop: Device, phone: Device
) -> None:
    talk(laptop, "both")
    laptop.sync()
    noted(phone)
    laptop.away()
    talk(laptop, "quiet laptop")
    talk(phone, "phone")
    phone.sync()
    laptop.back()
    assert noted(laptop) == (["both", "phone"], ["both", "phone"])
    laptop.promote(laptop.conflict())
    assert noted(laptop) == noted(phone) == (["both", "quiet laptop"], ["both"])


# -- forks and overwriting ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["update_state", "replay"])
def test_a_fork_while_another_goes_on(laptop: Device, phone: Device, how: str) -> None:
    """A fork takes the place of what its device saw, and of nothing else."""
    for text in ("one", "two"):
        laptop.turn(text)
    laptop.sync()
    phone.said()
    past = next(
        s.config
        for s in laptop.graph.get_state_history(place("t"))
        if s.values["turns"] == ["one", "re one"]
    )
    laptop.away()
    if how == "update_state":
        laptop.graph.update_state(past, {"turns": ["fork"]}, as_node="answer")
    else:
        laptop.graph.invoke({"turns": ["fork"]}, past)
    laptop.turn("after the fork")
    phone.turn("three")
    phone.sync()
    laptop.back()
    assert laptop.said() == phone.said() == ["one", "two", "three"]
    assert said_at(phone, laptop.conflict().tip_id) == ["one", "fork", "after the fork"]
    laptop.promote(laptop.conflict())
    assert laptop.said() == phone.said() == ["one", "fork", "after the fork"]


@pytest.mark.parametrize("offline", [False, True])
def test_a_fork_that_nobody_disturbs(laptop: Device, phone: Device, offline: bool) -> None:
    for text in ("one", "two"):
        laptop.turn(text)
    laptop.sync()
    past = next(
        s.config
        for s in phone.graph.get_state_history(place("t"))
        if s.values["turns"] == ["one", "re one"]
    )
    phone.said()
    phone.graph.get_state(past)
    if offline:
        phone.away()
    phone.graph.update_state(past, {"turns": ["fork"]}, as_node="answer")
    phone.turn("after the fork")
    phone.back()
    assert phone.conflicts() == []
    assert laptop.said() == phone.said() == ["one", "fork", "after the fork"]


def test_overwriting(device: MakeDevice, phone: Device) -> None:
    laptop = device("laptop", on_conflict="overwrite")
    apart(laptop, phone)
    assert laptop.conflicts() == []
    assert laptop.said() == phone.said() == ["both", "laptop 0", "laptop 1"]
    phone.turn("phone 2")
    phone.sync()
    assert laptop.said() == ["both", "laptop 0", "laptop 1", "phone 2"]


@pytest.mark.parametrize("on_conflict", ["raise", "branch"])
def test_processes_of_one_device_that_write_at_once(
    laptop: Device, device: MakeDevice, phone: Device, on_conflict: Any
) -> None:
    """They share a file, so it is the file that refuses, at once."""
    other = device("laptop", on_conflict=on_conflict)
    laptop.turn("both")
    before = other.saver.get_tuple(place("t"))
    assert before is not None
    laptop.turn("laptop")
    if on_conflict == "raise":
        with pytest.raises(ThreadConflictError):
            other.saver.put(before.config, {**before.checkpoint, "id": "2"}, {}, {})
        laptop.sync()
        assert laptop.conflicts() == []
    else:
        other.saver.put(before.config, {**before.checkpoint, "id": "2"}, {}, {})
        laptop.sync()
        assert laptop.conflict().tip_id == "2"
    assert laptop.said() == other.said() == phone.said() == ["both", "laptop"]
