"""How a job is done and kept: configuration, executors, checkpoints, the loop, reports, commands."""
