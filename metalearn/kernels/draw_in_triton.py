"""Episodes of images in three Triton kernels (triton_source/draw.py), bitwise as draw_in_torch.py.

In torch's operators the choices of an episode are more than a hundred kernels on numbers that fit
into one program."""

from __future__ import annotations

from torch import Tensor

from metalearn import rng
from metalearn.kernels.draw_in_torch import Rows, Sizes
from metalearn.kernels.launch import launch, power_of_two

LARGEST = 1 << 15  # pairs of numbers that a program compares to rank them
BYTES = 1024  # of an image that a program reads


def fits(sizes: Sizes) -> bool:
    """Return whether a program can rank what an episode of these sizes ranks."""
    examples = sizes.shots + sizes.queries
    ranked = [sizes.ways * sizes.shots, sizes.ways * sizes.queries, examples]
    choices = (sizes.classes, sizes.ways), (sizes.same, examples)
    ranked += [size for size, count in choices if _sorted(size, count)]
    return all(power_of_two(size) ** 2 <= LARGEST for size in ranked)


def _sorted(size: int, count: int) -> bool:
    return size > 0 and rng.sorts_all(size, count)


def episode_rows(
    key: Tensor, counts: Tensor, starts: Tensor, first: int, tasks: int, *numbers: int
) -> Rows:
    """As in draw_in_torch.py."""
    sizes = Sizes(*numbers)
    examples, ways = sizes.shots + sizes.queries, sizes.ways
    support, query = ways * sizes.shots, ways * sizes.queries
    shapes = (tasks,), (tasks, ways), (tasks, support), (tasks, support), *[(tasks, query)] * 2
    rows = Rows(*(key.new_empty(shape) for shape in shapes))
    sorted_classes, sorted_examples = _sorted(sizes.classes, ways), _sorted(sizes.same, examples)
    launch(
        "draw.episode_rows",
        tasks,
        [key, counts, starts, *rows],
        first,
        *sizes,
        rng.signed(rng.number("order") + 1),
        CLASSES_SORTED=sorted_classes,
        EXAMPLES_SORTED=sorted_examples,
        CLASSES=power_of_two(sizes.classes if sorted_classes else 1),
        EXAMPLES=power_of_two(sizes.same if sorted_examples else 1),
        WAYS=power_of_two(ways),
        EACH=power_of_two(examples),
        SUPPORT=power_of_two(support),
        QUERY=power_of_two(max(query, 1)),
        QUERIES=sizes.queries > 0,
        TURNED=sizes.turned > 0,
    )
    return rows


def scaled_rows(pool: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """As in draw_in_torch.py."""
    count, width = rows.shape[0], pool.shape[1]
    out = scale.new_empty(count, width)
    block = min(power_of_two(width), BYTES)
    arrays = [pool, rows, scale, out]
    launch("draw.scaled_rows", count * -(-width // block), arrays, width, PLACES=block)
    return out


def fold_in(key: Tensor, number: Tensor) -> Tensor:
    """As in draw_in_torch.py."""
    folded = key.new_empty(())
    launch("draw.fold_in", 1, [key, number, folded])
    return folded
