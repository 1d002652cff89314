"""Random changes of examples that keep their class."""

from metalearn.augment.images import Change, augment

__all__ = ["Change", "augment"]
