"""Task sources: where episodes come from."""

from metalearn.component import TaskComponent
from metalearn.tasks import glyphs, omniglot, store
from metalearn.tasks.arrays import Arrays
from metalearn.tasks.digits import Digits
from metalearn.tasks.given import Given
from metalearn.tasks.glyphs import Glyphs
from metalearn.tasks.image_folder import ImageFolder
from metalearn.tasks.landscapes import Landscapes
from metalearn.tasks.logistic import Logistic
from metalearn.tasks.omniglot import Omniglot
from metalearn.tasks.quadratics import Quadratics
from metalearn.tasks.sinusoid import Sinusoid

TASKS: dict[str, type[TaskComponent]] = {
    "sinusoid": Sinusoid,
    "glyphs": Glyphs,
    "omniglot": Omniglot,
    "image_folder": ImageFolder,
    "digits": Digits,
    "quadratics": Quadratics,
    "landscapes": Landscapes,
    "logistic": Logistic,
    "arrays": Arrays,
}

DATA_SETS: dict[str, store.DataSet] = {"omniglot": omniglot.DATA_SET, "glyphs": glyphs.DATA_SET}

__all__ = [
    "DATA_SETS",
    "TASKS",
    "Arrays",
    "Digits",
    "Given",
    "Glyphs",
    "ImageFolder",
    "Landscapes",
    "Logistic",
    "Omniglot",
    "Quadratics",
    "Sinusoid",
]
