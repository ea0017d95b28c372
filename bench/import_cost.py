"""What `import charm_checkpoint` costs over `import langgraph.checkpoint.base`, in fresh interpreters.

    python bench/import_cost.py [--rounds 40] [--json]

Each round runs every statement once, each in an interpreter of its own, in an order that turns from round to round, so
that a slow moment of the machine hits all alike. The ratio is taken within a round; medians and quartiles are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

BASE = "import langgraph.checkpoint.base"
STATEMENTS = (
    BASE,
    "import charm_checkpoint",
    # The module above loads lazily; these load what a graph, or an agent without one, goes on to use.
    "from charm_checkpoint import CheckpointSaver",
    "from charm_checkpoint import open_store",
)
TIMER = "import time; start = time.perf_counter_ns(); {}; print(time.perf_counter_ns() - start)"


def milliseconds(statement: str) -> float:
    """Time one statement in a new interpreter, without the interpreter's own start."""
    command = [sys.executable, "-c", TIMER.format(statement)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6


def measure(rounds: int) -> dict[str, list[float]]:
    """Return each statement's times, one a round, after one round that warms the file cache."""
    for statement in STATEMENTS:
        milliseconds(statement)
    times: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for turn in range(rounds):
        shift = turn % len(STATEMENTS)
        for statement in STATEMENTS[shift:] + STATEMENTS[:shift]:
            times[statement].append(milliseconds(statement))
    return times


def summary(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"low": round(low, 4), "median": round(median, 4), "high": round(high, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=40, help="at least 2 (default: 40)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    times = measure(options.rounds)
    results = [
        {
            "statement": statement,
            "milliseconds": summary(values),
            "ratio": summary([ours / base for ours, base in zip(values, times[BASE], strict=True)]),
        }
        for statement, values in times.items()
    ]
    if options.json:
        print(json.dumps({"rounds": options.rounds, "base": BASE, "results": results}, indent=2))
        return
    print(f"{options.rounds} rounds; median (lower to upper quartile)")
    for result in results:
        ms, ratio = result["milliseconds"], result["ratio"]
        print(
            f"{result['statement']:<46} {ms['median']:6.0f} ms ({ms['low']:.0f} to {ms['high']:.0f})"
            f"   x {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        )


if __name__ == "__main__":
    main()
