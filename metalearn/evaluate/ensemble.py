"""Ensembles: the averaged predictions of several meta-parameters of one method (Antoniou et al.
2019, MAML++)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from metalearn.losses import mean_prediction
from metalearn.types import Learned, Meta, Method


def ensemble(method: Method, metas: Sequence[Meta]) -> Method:
    """Return a method whose `learn` ignores its meta and averages over `metas`.

    Classes: the log of the mean of the softmax outputs. Regression: the mean output; if every
    member predicts a standard deviation s_i, the mean m and standard deviation of their mixture
    (Lakshminarayanan et al. 2017, arXiv:1612.01474, section 2.4),
    s^2 = mean of s_i^2 + (m_i - m)^2. Predictions are [T, P, M, C]."""

    def learn(meta: Meta, *args: Any, **kwargs: Any) -> Learned:
        del meta
        members = [method.learn(member, *args, **kwargs) for member in metas]
        outputs = torch.stack([member.predictions for member in members])
        mean = mean_prediction(outputs, method.spec.classification)
        deviations = [
            member.log_deviation for member in members if member.log_deviation is not None
        ]
        if len(deviations) < len(members):
            return Learned(mean, {})
        variance = (2 * torch.stack(deviations)).exp().mean(0) + outputs.var(0, correction=0)
        return Learned(mean, {}, variance.log() / 2)

    return method._replace(learn=learn)
