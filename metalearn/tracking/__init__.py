"""Loggers of a run: each copies metrics.jsonl, which is complete, elsewhere. One file, one line."""

from metalearn.tracking.by_tensorboard import TensorBoard
from metalearn.tracking.by_terminal import Terminal
from metalearn.tracking.by_wandb import WandB
from metalearn.tracking.sink import SinkOptions

SINKS: dict[str, type[SinkOptions]] = {
    "wandb": WandB,
    "tensorboard": TensorBoard,
    "terminal": Terminal,
}
