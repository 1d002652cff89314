"""`adapt` and `predict` of one task in the scope of the weights of its examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from metalearn.padding import cleaned, padded, present_in, without_absent
from metalearn.types import Batch, Key, Meta


def weighted_adapt(adapt: Callable[..., Any]) -> Callable[..., Any]:
    """`adapt` in the scope of the weights of its support set, where it has any."""

    def adapt_one(meta: Meta, support: Batch, points: tuple[int, ...], key: Key) -> Any:
        if support.weight is None:
            return adapt(meta, support, points, key)
        support = cleaned(support)
        with padded(support.weight):
            return adapt(meta, support, points, key)

    return adapt_one


def weighted_predict(
    predict: Callable[..., Tensor], features: Callable[..., Tensor] | None
) -> Callable[..., list[Tensor]]:
    """(meta, items, support, query_x, query_weight) -> P x [M, C] in the scope of the weights.

    Classes without support examples get no probability."""

    def predict_all(
        meta: Meta,
        items: list[Any],
        support: Batch,
        query_x: Tensor,
        query_weight: Tensor | None = None,
    ) -> list[Tensor]:
        def predict_items() -> list[Tensor]:
            x = query_x if features is None else features(meta, support, query_x)
            return [predict(meta, item, support, x) for item in items]

        if support.weight is None and query_weight is None:
            return predict_items()
        support = cleaned(support)
        with padded(query_weight, context=support.weight):
            predictions = predict_items()
        present = present_in(support, predictions[0].shape[-1])
        return [without_absent(outputs, present) for outputs in predictions]

    return predict_all
