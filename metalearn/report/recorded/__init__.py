"""Tables of the measurements that are recorded in `experiments/results/`."""
