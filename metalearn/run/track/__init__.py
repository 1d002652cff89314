"""Where a run is watched from. metrics.jsonl is the truth; a sink is a copy elsewhere: one file, one line here."""

from metalearn.run.track.by_tensorboard import TensorBoard
from metalearn.run.track.by_terminal import Terminal
from metalearn.run.track.by_wandb import WandB
from metalearn.run.track.sink import SinkOptions

SINKS: dict[str, type[SinkOptions]] = {
    "wandb": WandB,
    "tensorboard": TensorBoard,
    "terminal": Terminal,
}
