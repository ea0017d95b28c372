"""An agent without a graph: it loads a thread's messages, answers, and adds the turn.

    python plain_agent.py trip "Which train was it?"

It reads what a graph wrote on the same thread, and a graph goes on from what it adds: see graph_agent.py.
"""

from __future__ import annotations

import sys
from typing import Any

from charm_checkpoint import open_store


def reply(history: list[dict[str, Any]], text: str) -> str:
    """Stands in for a model."""
    return f"I have read {len(history)} messages. You say: {text}"


def main(thread: str, text: str) -> None:
    with open_store() as store:
        answer = reply(store.load_messages(thread), text)
        # Of several agents that add to one thread at once, each keeps its turn.
        turn = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        store.append_messages(thread, turn)
    print(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
