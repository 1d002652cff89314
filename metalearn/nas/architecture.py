"""One architecture of a space as a model, so that any method can train it."""

from __future__ import annotations

from typing import Literal

from metalearn.component import ModelComponent, option
from metalearn.errors import ConfigError
from metalearn.models.norm import Policy
from metalearn.nas.spaces import SpaceChoice
from metalearn.nas.spaces.conv4_micro import Conv4Micro
from metalearn.types import EpisodeSpec, Learner


class Architecture(ModelComponent):
    """One network of a search space, given by its genotype.

    >>> spec = ml.tasks.Sinusoid().build().spec
    >>> learner = ml.nas.Architecture(space=ml.nas.MLPReg()).build(spec)
    >>> learner.apply(learner.init(ml.fold_in(0)), torch.rand(2, *spec.x_shape)).shape
    torch.Size([2, 1])
    """

    name: Literal["architecture"] = option("architecture", "The model.")
    space: SpaceChoice = option(Conv4Micro(), "Search space of the genotype.")
    genotype: tuple[int, ...] | None = option(
        None, "One number per place; null: the hand-designed network of the literature."
    )
    norm: Policy = option("query_batch", "Normalisation policy.")

    def build(self, spec: EpisodeSpec) -> Learner:
        """Return a learner for tasks of `spec`; ConfigError for a genotype not of the space."""
        space = self.space.build(spec, self.norm)
        try:
            return space.learner(space.default if self.genotype is None else self.genotype)
        except ValueError as error:
            raise ConfigError(("model.genotype", str(error))) from error
