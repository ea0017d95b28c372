"""The demo: a thread stops on one device, killed while it waits, and goes on at another.

`agent` is the graph, `device` what runs in each of the three processes, `play` starts them and checks what they claim.
"""

from __future__ import annotations
