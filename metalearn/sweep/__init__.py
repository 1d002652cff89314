"""Sweeps: a W&B sweep file, run by any number of workers that share one folder."""
