"""Benchmarks: this project's checkpointer beside others, in one run, on real compiled graphs."""
