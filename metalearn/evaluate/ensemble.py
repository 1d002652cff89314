"""Ensembles: the averaged predictions of several meta-parameters of one method (Antoniou et al.
2019, MAML++).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from metalearn.types import Learned, Meta, Method


def ensemble(method: Method, metas: Sequence[Meta]) -> Method:
    """A method whose `learn` ignores its meta and averages over `metas`.

    Classes: the log of the mean of the softmax outputs; regression: the mean output. [T, P, M, C]
    as ever."""

    def learn(meta: Meta, *args: Any, **kwargs: Any) -> Learned:
        del meta
        outputs = torch.stack([method.learn(one, *args, **kwargs).predictions for one in metas])
        if method.spec.classification:
            return Learned(torch.log_softmax(outputs, -1).logsumexp(0) - math.log(len(metas)), {})
        return Learned(outputs.mean(0), {})

    return method._replace(learn=learn)
