"""Several runs on the same episodes, controls, and reproduction."""

from metalearn.callable_module import make_callable

CALLS = "metalearn.compare.python:compare"
make_callable(__name__)
