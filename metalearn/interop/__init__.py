"""Exchange with learn2learn and higher: their inner loops, task sets and weights.

Importing this package imports neither of them: each is imported by the first call that needs it.
If it is missing, that call raises a ConfigError with the command that installs it."""

from metalearn.interop.engines import MOVES, with_engine
from metalearn.interop.inner_loops import INNER_LOOPS, PACKAGES
from metalearn.interop.packages import higher, learn2learn
from metalearn.interop.tasksets import SourceTaskset, TasksetSource
from metalearn.interop.weights import from_learn2learn

__all__ = [
    "INNER_LOOPS",
    "MOVES",
    "PACKAGES",
    "SourceTaskset",
    "TasksetSource",
    "from_learn2learn",
    "higher",
    "learn2learn",
    "with_engine",
]
