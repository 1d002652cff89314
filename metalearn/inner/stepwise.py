"""The inner loop with one compiled step and a loop in Python, for long inner runs.

A compiler that unrolls a hundred steps needs many minutes; one step, forward and backward, needs
seconds, and is the same code every time. Forward stores the inputs of every step, and backward
computes the step again before it differentiates it (as in recompute.py): a third more arithmetic
than storing all intermediate activations. The whole loop is one operation to torch.func, whose own
work is then done once per loop and not once per step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch

from metalearn.tree import flatten, unflatten
from metalearn.types import Batch, Params, State

Flat = Callable[..., Sequence[Tensor]]
Make = Callable[[Callable[..., Any]], Callable[..., Any]]
Move = Callable[[Params, State, Params, Batch], tuple[Params, State, Tensor]]
_makers: list[Make] = []  # of the blocks that we are in
_made: dict[Any, Step] = {}
MANY = 64  # steps that are remembered


@contextmanager
def stepwise(make: Make) -> Iterator[None]:
    """Inside, `adapt` runs step-invariant steps through `make(step)`; `make` may compile."""
    _makers.append(make)
    try:
        yield
    finally:
        _makers.pop()


def is_active() -> bool:
    return bool(_makers)


class LoopLayout(NamedTuple):
    """How the flat list of a loop's inputs is made up."""

    moving: int  # leaves of the parameters
    carry: int  # leaves that a step changes, those of the parameters first
    # leaves that it reads: of the state what it hands back as it is (theta), fixed parameters
    shared: int
    data: int  # leaves of the data of one step
    steps: int
    same: bool  # the same data for every step
    points: tuple[int, ...]  # steps after which the parameters are handed out, besides the last


def loop(
    name: tuple[Any, ...],
    move: Move,
    moving: Params,
    state: State,
    fixed: Params,
    data: Sequence[Batch],
    steps: int,
    keep: Collection[int],
) -> tuple[list[Params], Params, State, Tensor]:
    """`steps` times `move`.

    (parameters after the steps of `keep`, the last ones, the state, losses [S]).

    The same `name` must mean the same `move`. `data` is one batch for every step, or a list of
    them, one a step. A gradient flows through the parameters, the state and `fixed`."""
    args = (moving, state, fixed, data[0])
    step, (leaves, _) = _step_of(name, move, args), flatten(args)
    count = len(flatten(moving)[0])
    parts = [flatten(part)[0] for part in data]
    layout = LoopLayout(
        moving=count,
        carry=len(step.carried),
        shared=len(step.shared),
        data=len(parts[0]),
        steps=steps,
        same=len(data) == 1,
        points=tuple(place for place in sorted(keep) if 0 < place < steps),
    )
    read = [leaves[place] for place in (*step.carried, *step.shared)]
    saved = SavedSteps(step, layout, any(map(_tracked, leaves[: len(leaves) - layout.data])))
    results = list(_Forward.apply(saved, *read, *(leaf for part in parts for leaf in part)))  # type: ignore[no-untyped-call]
    last, losses, rest = results[: layout.carry], results[layout.carry], results[layout.carry + 1 :]
    (whole, structure), parameters = flatten((moving, state)), flatten(moving)[1]
    for place, value in zip(step.carried, last, strict=True):
        whole[place] = value
    points = [unflatten(rest[at : at + count], parameters) for at in range(0, len(rest), count)]
    return points, *unflatten(whole, structure), losses


def _step_of(name: tuple[Any, ...], move: Move, args: Any) -> Step:
    """The compiled step of a name, made at its first use."""
    key = (_makers[-1], *name, flatten(args)[1])
    if key not in _made:
        while len(_made) >= MANY:
            _made.pop(next(iter(_made)))
        _made[key] = Step(move, args, _makers[-1])
    return _made[key]


def _tracked(leaf: Tensor) -> bool:
    """Whether a gradient may be asked for with respect to it, at whatever level of torch.func."""
    while _functorch.is_functorch_wrapped_tensor(leaf):
        if _functorch.is_gradtrackingtensor(leaf):
            return True
        leaf = _functorch.get_unwrapped(leaf)
    return leaf.requires_grad


class Step:
    """One step as functions of flat lists: (carry, shared, data) -> (carry, loss), and backward."""

    def __init__(self, move: Move, args: Any, make: Make) -> None:
        leaves, structure = flatten(args)
        held = len(flatten(args[:2])[0])
        found = flatten(move(*args)[:2])[0]
        through = [place for place in range(held) if found[place] is leaves[place]]
        self.carried = [place for place in range(held) if place not in through]
        rest = range(held, held + len(flatten(args[2])[0]))
        self.shared = [*through, *rest]
        places = [*self.carried, *self.shared, *range(rest.stop, len(leaves))]

        def one(*flat: Tensor) -> tuple[Tensor, ...]:
            whole = list(flat)
            for place, value in zip(places, flat, strict=True):
                whole[place] = value
            moving, state, loss = move(*unflatten(whole, structure))
            after = flatten((moving, state))[0]
            return (*(after[place] for place in self.carried), loss)

        self.make, self.moves = make, len(self.carried) + len(self.shared)
        self._one, self._wider = one, dict[Any, Step]()
        self._set(one, self._pulled(one))

    def _pulled(self, one: Flat) -> Flat:
        """(carry, shared, data, gradients of carry and loss, sums so far of shared) -> gradients of
        carry, new sums.
        """
        carry, moves = len(self.carried), self.moves

        def backward(*given: Tensor) -> tuple[Tensor, ...]:
            inputs, sums = (
                given[: len(given) - (moves - carry)],
                given[len(given) - (moves - carry) :],
            )
            flat, pulls = inputs[: -(carry + 1)], inputs[-(carry + 1) :]
            at = torch.func.vjp(lambda *moved: one(*moved, *flat[moves:]), *flat[:moves])
            pull = at[1]
            found = pull(tuple(pulls))
            return (*found[:carry], *(a + b for a, b in zip(sums, found[carry:], strict=True)))

        return backward

    def _set(self, forward: Flat, backward: Flat) -> None:
        self.plain = forward
        self.forward, self.backward = self.make(forward), self.make(backward)

    def over_tasks(self, in_dims: tuple[int | None, ...], each: bool) -> Step:
        """The step of all tasks of a vmap, its carry [T, ...].

        Backward gives a gradient for `each` task, or sums."""
        found = self._wider.get((in_dims, each))
        if found is None:
            found = self._wider[in_dims, each] = object.__new__(Step)
            found.__dict__.update(self.__dict__, _wider={})
            wide: Flat = torch.func.vmap(self.plain, in_dims=in_dims)
            pulls = (0,) * (len(self.carried) + 1 + self.moves - len(self.carried))
            alone = torch.func.vmap(self._pulled(self.plain), in_dims=(*in_dims, *pulls))
            found._set(wide, alone if each else self._pulled(wide))
        return found


def specialize(function: Callable[..., Any], given: Sequence[Tensor]) -> Callable[..., Any]:
    """A function for contiguous tensors like these, which looks nothing up if compiled."""
    find = getattr(function, "at", None)
    found: Callable[..., Any] = function if find is None else find(*given)
    return found


class SavedSteps:
    """Saved for backward: the step that ran, the inputs of every step, how they were batched."""

    def __init__(self, step: Step, layout: LoopLayout, keeps: bool) -> None:
        self.step, self.layout, self.keeps = step, layout, keeps
        self.inputs: list[list[Tensor]] = []
        self.batched: list[
            tuple[Step, tuple[int | None, ...], int]
        ] = []  # a vmap: narrower step, in_dims, tasks

    def data(self, flat: Sequence[Tensor], step: int) -> Sequence[Tensor]:
        layout = self.layout
        begin = layout.carry + layout.shared + (0 if layout.same else step * layout.data)
        return flat[begin : begin + layout.data]


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(saved: SavedSteps, *flat: Tensor) -> Any:
        layout, step = saved.layout, saved.step
        flat = tuple(leaf.contiguous() for leaf in flat)
        carry, shared = (
            list(flat[: layout.carry]),
            flat[layout.carry : layout.carry + layout.shared],
        )
        losses, points = [], []
        forward = specialize(step.forward, [*carry, *shared, *saved.data(flat, 0)])
        for number in range(layout.steps):
            given = [*carry, *shared, *saved.data(flat, number)]
            if saved.keeps:
                saved.inputs.append(given)
            *carry, loss = forward(*given)
            carry = [leaf.contiguous() for leaf in carry]
            losses.append(loss)
            if number + 1 in layout.points:
                points += carry[: layout.moving]
        return (*carry, torch.stack(losses, losses[0].dim()), *(point.clone() for point in points))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        del output
        ctx.saved, ctx.count = inputs[0], len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved: SavedSteps = ctx.saved
        found = _Backward.apply(saved, False, *grads)  # type: ignore[no-untyped-call]
        return (None, *found, *[None] * (ctx.count - len(found)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], saved: SavedSteps, *flat: Tensor) -> Any:
        layout, dims = saved.layout, list(in_dims[1:])
        given = [
            leaf if dim is None else leaf.movedim(dim, 0)
            for leaf, dim in zip(flat, dims, strict=True)
        ]
        for place in range(layout.carry):  # from the first step on they differ from task to task
            if dims[place] is None:
                given[place] = given[place].expand(info.batch_size, *given[place].shape)
        data = dims[layout.carry + layout.shared : layout.carry + layout.shared + layout.data]
        of_step = (
            *[0] * layout.carry,
            *(None if dim is None else 0 for dim in dims[layout.carry :][: layout.shared]),
        )
        of_step = (*of_step, *(None if dim is None else 0 for dim in data))
        saved.batched.append((saved.step, of_step, info.batch_size))
        saved.step = saved.step.over_tasks(of_step, False)
        found = _Forward.apply(saved, *given)  # type: ignore[no-untyped-call]
        return found, (0,) * len(found)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(saved: SavedSteps, each: bool, *grads: Tensor) -> Any:
        layout, step = saved.layout, saved.step
        shared = saved.inputs[0][layout.carry : layout.carry + layout.shared]
        if each:
            narrow, of_step, tasks = saved.batched[-1]
            step = narrow.over_tasks(of_step, True)
            wide = of_step[layout.carry : layout.carry + layout.shared]
            sums = [
                torch.zeros_like(leaf) if dim == 0 else leaf.new_zeros(tasks, *leaf.shape)
                for leaf, dim in zip(shared, wide, strict=True)
            ]
        else:
            sums = [torch.zeros_like(leaf) for leaf in shared]
        pull = [grad.contiguous() for grad in grads[: layout.carry]]
        of_loss = grads[layout.carry].movedim(-1, 0).contiguous().unbind(0)
        backward = specialize(step.backward, [*saved.inputs[-1], *pull, of_loss[-1], *sums])
        of_points = {
            at: grads[layout.carry + 1 :][n * layout.moving :] for n, at in enumerate(layout.points)
        }
        for number in reversed(range(layout.steps)):
            if number + 1 in of_points:
                extra = of_points[number + 1]
                pull = [
                    value + extra[n] if n < layout.moving else value for n, value in enumerate(pull)
                ]
            found = backward(*saved.inputs[number], *pull, of_loss[number], *sums)
            pull, sums = (
                [leaf.contiguous() for leaf in part]
                for part in (found[: layout.carry], found[layout.carry :])
            )
        return (*pull, *sums)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        del ctx, inputs, output

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], saved: SavedSteps, each: bool, *grads: Tensor
    ) -> Any:
        given = [
            grad.expand(info.batch_size, *grad.shape) if dim is None else grad.movedim(dim, 0)
            for grad, dim in zip(grads, in_dims[2:], strict=True)
        ]
        found = _Backward.apply(saved, True, *given)  # type: ignore[no-untyped-call]
        return found, (0,) * len(found)
