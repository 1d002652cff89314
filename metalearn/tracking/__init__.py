"""Where a run is watched from. metrics.jsonl is the truth; a sink is a copy elsewhere: one file,
one line here.
"""

from metalearn.tracking.by_tensorboard import TensorBoard
from metalearn.tracking.by_terminal import Terminal
from metalearn.tracking.by_wandb import WandB
from metalearn.tracking.sink import SinkOptions

SINKS: dict[str, type[SinkOptions]] = {
    "wandb": WandB,
    "tensorboard": TensorBoard,
    "terminal": Terminal,
}
