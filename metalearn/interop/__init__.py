"""Other people's meta-learning in this house, and this house's in theirs: learn2learn and higher.

Importing this room imports neither package: each is imported by the first call that needs it, and a
missing one is a ConfigError that says how to get it.
"""

from metalearn.interop.engines import ENGINES, METHODS, through
from metalearn.interop.packages import higher, learn2learn
from metalearn.interop.tasksets import SourceTaskset, TasksetSource
from metalearn.interop.weights import from_learn2learn

__all__ = [
    "ENGINES",
    "METHODS",
    "SourceTaskset",
    "TasksetSource",
    "from_learn2learn",
    "higher",
    "learn2learn",
    "through",
]
