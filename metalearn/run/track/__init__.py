"""Where a run is watched from: sinks of what metrics.jsonl holds."""
