"""Random changes of examples that keep their class."""

from metalearn.augment.images import Change, augment, require_square

__all__ = ["Change", "augment", "require_square"]
