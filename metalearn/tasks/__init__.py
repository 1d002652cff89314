"""Where episodes come from."""

from metalearn.component import Component
from metalearn.tasks.glyphs import Glyphs
from metalearn.tasks.image_folder import ImageFolder
from metalearn.tasks.omniglot import Omniglot
from metalearn.tasks.sinusoid import Sinusoid

TASKS: dict[str, type[Component]] = {
    "sinusoid": Sinusoid,
    "glyphs": Glyphs,
    "omniglot": Omniglot,
    "image_folder": ImageFolder,
}

__all__ = ["TASKS", "Glyphs", "ImageFolder", "Omniglot", "Sinusoid"]
