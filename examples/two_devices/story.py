"""What happens on the two devices, told as it goes along, and what is claimed of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from examples.two_devices.device import Device
from examples.two_devices.process import THREAD, Agent, tell, title


class Claim(NamedTuple):
    text: str
    holds: bool
    evidence: str


def play(laptop: Device, phone: Device) -> Iterator[Claim]:
    title(1, "laptop: an agent is asked to book, and asks back; its process ends")
    with Agent(laptop) as agent:
        question = agent.asked("Book the 09:40 to Lisbon.")

    title(2, "phone: finds the question in the database, and answers it")
    with Agent(phone) as agent:
        found = tell("finds", agent.found)
        agent.asked("yes")
    yield Claim("the phone found what the laptop had asked", found == question, found)

    title(3, "laptop: takes the thread along, loses its network, works on, and is killed")
    laptop.command("sync", "pull", THREAD)
    laptop.network.cut()
    with Agent(laptop) as agent:
        began = time.monotonic()
        answers = [agent.asked(text) for text in ("Pack a coat.", "Feed the cat.", "Call Ana.")]
        each = (time.monotonic() - began) / len(answers)
        exit_code = agent.kill()
    left = laptop.command("sync", "status")
    tell("waiting", f"{left['entries']} entries, offline since {left['offline_since']}")
    worked = bool(left["offline_since"]) and [answer[:7] for answer in answers] == ["Noted: "] * 3
    evidence = f"three turns of {each * 1000:.0f} ms; then killed: exit code {exit_code}"
    yield Claim("the laptop worked on without a network", worked and exit_code < 0, evidence)

    title(4, "laptop: has its network back; what was left is sent")
    laptop.network.restore()
    sent = laptop.command("sync", "push")
    tell("sent", f"{sent['sent']} entries")
    with Agent(phone) as agent:
        found = tell("phone", agent.found)
    everything = sent["ok"] and left["entries"] == sent["sent"] and found == answers[-1]
    evidence = f"{sent['sent']} entries sent by a new process; the phone: {found}"
    yield Claim("nothing of it was lost", everything, evidence)

    title(5, "both at once: the laptop, offline again, and the phone go on with the thread")
    laptop.network.cut()
    with Agent(laptop) as agent:
        coast = agent.asked("Take the coast road.")
    with Agent(phone) as agent:
        motorway = agent.asked("Take the motorway.", who="phone")
    laptop.network.restore()
    laptop.command("sync", "push")
    (conflict,) = laptop.command("conflicts")["conflicts"]
    tell("conflict", f"{conflict['head_device']} was first; the laptop's turn is a branch")
    evidence = f"branch {conflict['branch']}, beside {conflict['head']}"
    first = conflict["head_device"] == "phone"
    yield Claim("of two ways on one was first, and the other was kept", first, evidence)

    title(6, "laptop: its branch is promoted; the phone goes on from there")
    decided = laptop.command("promote", THREAD, "--yes")
    with Agent(phone) as agent:
        found = tell("phone", agent.found)
    steps = phone.command("history", THREAD)["checkpoints"]
    branches = {step["checkpoint_id"] for step in steps if step["is_branch"]}
    chosen = found == coast and decided["head"]["message"] == motorway
    kept = decided["head"]["checkpoint_id"] in branches
    evidence = f"{len(steps)} checkpoints, {len(branches)} of them on a branch: {motorway}"
    yield Claim("a person decided, and the other way is a branch now", chosen and kept, evidence)
