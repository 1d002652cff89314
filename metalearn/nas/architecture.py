"""One architecture of a space as a model: what a search found can be trained by any method."""

from __future__ import annotations

from typing import Literal

from metalearn.component import ModelComponent, option
from metalearn.errors import ConfigError
from metalearn.models.norm import Policy
from metalearn.nas.conv4_micro import Conv4Micro
from metalearn.nas.tables import SpaceChoice
from metalearn.types import EpisodeSpec, Learner


class Architecture(ModelComponent):
    """One network of a search space, by its genotype."""

    name: Literal["architecture"] = option("architecture", "the model")
    space: SpaceChoice = option(Conv4Micro(), "the space")
    genotype: tuple[int, ...] | None = option(
        None, "one number a place; null: the field's hand-made network"
    )
    norm: Policy = option("query_batch", "whose statistics normalise")

    def build(self, spec: EpisodeSpec) -> Learner:
        """A learner for tasks of `spec`; ConfigError for a genotype that is not of the space."""
        space = self.space.build(spec, self.norm)
        try:
            return space.learner(space.default if self.genotype is None else self.genotype)
        except ValueError as error:
            raise ConfigError(("model.genotype", str(error))) from error
