"""One module per scenario; each has `run(run, …)`, which yields figures as it goes. `bench.groups` lists them."""
