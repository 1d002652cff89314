"""Task sources of the user: a component, and checks of their form and of what they sample."""

from metalearn.tasks.given.component import Given, as_tasks

__all__ = ["Given", "as_tasks"]
