"""CLINC150 (Larson et al. 2019): 150 intents of short requests, as sentence vectors."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch

from metalearn.component import option
from metalearn.errors import ConfigError
from metalearn.tasks.images import SPLITS, SplitTask, episode_problems
from metalearn.tasks.prepared.file import PreparedFile
from metalearn.tasks.tables.rows import RowSource

FILE = PreparedFile(
    source="clinc150",
    file="clinc150_embeddings.npz",
    sha256="70ade8f65c85984fde1b1e0bd5813df32710ea8c51715d929bfd4d45d0e7bc2c",
    arrays={
        "embedding": ((22500, 384), "float16"),
        "label": ((22500,), "int16"),
        "split": ((150,), "int8"),
    },
    origin="it is made of clinc/oos-eval (CC BY 3.0) by the encoder all-MiniLM-L6-v2",
)
EACH = 150  # requests per intent


class Clinc150(SplitTask):
    """Intents of short English requests ("book a flight"), as 384-d sentence embeddings.

    90 / 30 / 30 intents, whole domains; 150 requests each. x [384] has length 1. Near the ceiling
    with 5 shots: 20 ways and 1 shot tell methods apart. Raises ConfigError, DataError.

    >>> source = ml.tasks.Clinc150(ways=5, shots=1).build()
    >>> source.sample(ml.fold_in(0), num_tasks=4).support.x.shape
    torch.Size([4, 5, 384])
    """

    default_model: ClassVar[str] = "mlp"
    source: Literal["clinc150"] = option("clinc150", "The task source.")
    ways: int = option(20, "N, intents per task.", ge=2)
    shots: int = option(1, "K, support requests per intent.", ge=1)
    queries: int = option(5, "Q, query requests per intent.", ge=0)

    def source_of(self, **where: Any) -> RowSource:
        data, split = FILE.load(), where["split"]
        classes = np.flatnonzero(data["split"] == SPLITS.index(split))
        problems = episode_problems(self.ways, self.shots, self.queries, len(classes), EACH, split)
        if problems:
            raise ConfigError(*problems)
        spec = self.spec_of((data["embedding"].shape[1],), len(classes), **where)
        rows = [np.flatnonzero(data["label"] == number) for number in classes]
        x = torch.as_tensor(data["embedding"][np.concatenate(rows)])
        return RowSource(
            x, None, [len(class_rows) for class_rows in rows], spec, FILE.data_sha256()
        )
