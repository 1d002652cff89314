"""General-purpose in-context learning (Kirsch et al. 2022, arXiv:2212.04458, section 3)."""

from __future__ import annotations

from typing import ClassVar, Literal

from metalearn.component import option
from metalearn.in_context.transformer_neural_process import TransformerNeuralProcess
from metalearn.inner.requirements import require_classes
from metalearn.types import EpisodeSpec, Learner, Method


class GPICL(TransformerNeuralProcess):
    """A transformer over the sequence of labelled examples, with a query as its last token.

    Token i is (f(x_i), y_i) and attends to the tokens 1 .. i; the outputs of the query's token,
    (f(x), no label), are the logits of its class (section 3). Each query is the end of a sequence
    of its own. The order of the support set, which is drawn for each episode, is part of the
    input: nothing is invariant by construction.

    >>> source = ml.tasks.Digits(ways=3, shots=5).build()
    >>> learner = ml.models.MLP(sizes=(16,)).build(source.spec)
    >>> method = ml.in_context.GPICL(width=16).build(learner, source.spec)
    >>> method.traits.phases
    ('adapt', 'predict')
    """

    # Departures: an example and its label are one token, where the paper shifts labels by one; the
    # loss is that of queries after the whole support set, not of every prefix. Tasks are the
    # source's, without the paper's random projections.
    causal: ClassVar[bool] = True
    name: Literal["gpicl"] = option("gpicl", "The method.")  # type: ignore[assignment]

    def build(self, learner: Learner, spec: EpisodeSpec, meta_steps: int | None = None) -> Method:
        require_classes(self.name, spec)
        return super().build(learner, spec, meta_steps)
