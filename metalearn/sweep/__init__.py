"""Sweeps: a W&B sweep file, run by any number of workers that share one folder."""

from metalearn.callable_module import make_callable

CALLS = "metalearn.sweep.python:sweep"
make_callable(__name__)
