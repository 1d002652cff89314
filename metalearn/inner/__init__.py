"""How one task is learned: the inner loop, update rules, heads, and the batching over tasks."""
