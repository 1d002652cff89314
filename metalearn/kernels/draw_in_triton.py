"""Episodes of images in three Triton kernels (triton_source/draw.py): the bits of draw_in_torch.py.

In torch's operators the choices of an episode are more than a hundred kernels on numbers that fit
into one program."""

from __future__ import annotations

from torch import Tensor

from metalearn import rng
from metalearn.kernels.draw_in_torch import Rows, Sizes
from metalearn.kernels.launch import launch, power_of_two

LARGEST = 1 << 15  # pairs of numbers that a program compares to rank them
BYTES = 1024  # of an image that a program reads


def fits(of: Sizes) -> bool:
    """Whether a program can rank what an episode of these sizes ranks."""
    each = of.shots + of.queries
    ranked = [of.ways * of.shots, of.ways * of.queries, each]
    ranked += [
        size for size, count in ((of.classes, of.ways), (of.same, each)) if _sorted(size, count)
    ]
    return all(power_of_two(size) ** 2 <= LARGEST for size in ranked)


def _sorted(size: int, count: int) -> bool:
    return size > 0 and rng.sorts_all(size, count)


def episode_rows(
    key: Tensor, counts: Tensor, starts: Tensor, first: int, tasks: int, *sizes: int
) -> Rows:
    """As in draw_in_torch.py."""
    of = Sizes(*sizes)
    each, support, query = of.shots + of.queries, of.ways * of.shots, of.ways * of.queries
    shapes = (tasks,), (tasks, of.ways), (tasks, support), (tasks, support), *[(tasks, query)] * 2
    found = Rows(*(key.new_empty(shape) for shape in shapes))
    sorted_classes, sorted_examples = _sorted(of.classes, of.ways), _sorted(of.same, each)
    launch(
        "draw.episode_rows",
        tasks,
        [key, counts, starts, *found],
        first,
        *of,
        rng.signed(rng.number("order") + 1),
        CLASSES_SORTED=sorted_classes,
        EXAMPLES_SORTED=sorted_examples,
        CLASSES=power_of_two(of.classes if sorted_classes else 1),
        EXAMPLES=power_of_two(of.same if sorted_examples else 1),
        WAYS=power_of_two(of.ways),
        EACH=power_of_two(each),
        SUPPORT=power_of_two(support),
        QUERY=power_of_two(max(query, 1)),
        QUERIES=of.queries > 0,
        TURNED=of.turned > 0,
    )
    return found


def scaled_rows(pool: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """As in draw_in_torch.py."""
    count, width = rows.shape[0], pool.shape[1]
    out = scale.new_empty(count, width)
    places = min(power_of_two(width), BYTES)
    arrays = [pool, rows, scale, out]
    launch("draw.scaled_rows", count * -(-width // places), arrays, width, PLACES=places)
    return out


def fold_in(key: Tensor, number: Tensor) -> Tensor:
    """As in draw_in_torch.py."""
    found = key.new_empty(())
    launch("draw.fold_in", 1, [key, number, found])
    return found
