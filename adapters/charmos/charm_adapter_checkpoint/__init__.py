"""Charm's runtime on durable memory.

`runtime.adapter.type` in charm.yaml chooses how:

* `langgraph-checkpoint`: a graph agent; see `charm_adapter_checkpoint.graph`.
* `python-history`: a plain function with its history; see `charm_adapter_checkpoint.history`.
* a stock type with `import charm_adapter_checkpoint.patch` in the agent's code, or `charm-checkpoint` in
  `runtime.telemetry`; see `charm_adapter_checkpoint.patch`.
"""

from __future__ import annotations
