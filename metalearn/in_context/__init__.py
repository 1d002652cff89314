"""In-context learners: networks that read the support set and answer queries from it."""

from __future__ import annotations

from metalearn.in_context.attentive_neural_process import AttentiveNeuralProcess
from metalearn.in_context.caml import CAML
from metalearn.in_context.component import InContext
from metalearn.in_context.conditional_neural_process import ConditionalNeuralProcess
from metalearn.in_context.gpicl import GPICL
from metalearn.in_context.prior_fitted import PriorFitted
from metalearn.in_context.snail import SNAIL
from metalearn.in_context.transformer_neural_process import TransformerNeuralProcess

IN_CONTEXT: dict[str, type[InContext]] = {
    "conditional_neural_process": ConditionalNeuralProcess,
    "attentive_neural_process": AttentiveNeuralProcess,
    "transformer_neural_process": TransformerNeuralProcess,
    "gpicl": GPICL,
    "snail": SNAIL,
    "caml": CAML,
    "prior_fitted": PriorFitted,
}

__all__ = [
    "CAML",
    "GPICL",
    "IN_CONTEXT",
    "SNAIL",
    "AttentiveNeuralProcess",
    "ConditionalNeuralProcess",
    "InContext",
    "PriorFitted",
    "TransformerNeuralProcess",
]
