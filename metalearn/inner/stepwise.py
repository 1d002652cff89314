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

FlatFn = Callable[..., Sequence[Tensor]]
Make = Callable[[Callable[..., Any]], Callable[..., Any]]
StepFn = Callable[[Params, State, Params, Batch], tuple[Params, State, Tensor]]
_makers: list[Make] = []  # of the open `stepwise` contexts
_cache: dict[Any, CompiledStep] = {}
MANY = 64  # steps in the cache


@contextmanager
def stepwise(make: Make) -> Iterator[None]:
    """Context manager in which `adapt` runs step-invariant steps as `make(step)`, compiled, say."""
    _makers.append(make)
    try:
        yield
    finally:
        _makers.pop()


def is_active() -> bool:
    return bool(_makers)


class LoopLayout(NamedTuple):
    """How the flat list of a loop's inputs is made up."""

    params: int  # leaves of the parameters
    carry: int  # leaves that a step changes, those of the parameters first
    # leaves that it reads: of the state what it hands back as it is (theta), fixed parameters
    shared: int
    data: int  # leaves of the data of one step
    steps: int
    same: bool  # the same data for every step
    points: tuple[int, ...]  # steps after which the parameters are handed out, besides the last


def loop(
    cache_key: tuple[Any, ...],
    inner_step: StepFn,
    params: Params,
    state: State,
    fixed: Params,
    data: Sequence[Batch],
    steps: int,
    keep: Collection[int],
) -> tuple[list[Params], Params, State, Tensor]:
    """Call `inner_step` `steps` times.

    Returns (parameters after the steps of `keep`, the last ones, the state, losses [S]).

    The same `cache_key` must mean the same `inner_step`. `data` is one batch for every step, or a
    list with one per step. A gradient flows through the parameters, the state and `fixed`."""
    args = (params, state, fixed, data[0])
    step, (leaves, _) = _compiled_step(cache_key, inner_step, args), flatten(args)
    count, parts = len(flatten(params)[0]), [flatten(part)[0] for part in data]
    layout = LoopLayout(
        params=count,
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
    last, losses, kept = results[: layout.carry], results[layout.carry], results[layout.carry + 1 :]
    (whole, structure), parameters = flatten((params, state)), flatten(params)[1]
    for place, value in zip(step.carried, last, strict=True):
        whole[place] = value
    points = [unflatten(kept[at : at + count], parameters) for at in range(0, len(kept), count)]
    return points, *unflatten(whole, structure), losses


def _compiled_step(cache_key: tuple[Any, ...], inner_step: StepFn, args: Any) -> CompiledStep:
    """The compiled step of a cache key, built at its first use."""
    key = (_makers[-1], *cache_key, flatten(args)[1])
    if key not in _cache:
        while len(_cache) >= MANY:
            _cache.pop(next(iter(_cache)))
        _cache[key] = CompiledStep(inner_step, args, _makers[-1])
    return _cache[key]


def _tracked(leaf: Tensor) -> bool:
    """Whether a gradient may be asked for with respect to it, at whatever level of torch.func."""
    while _functorch.is_functorch_wrapped_tensor(leaf):
        if _functorch.is_gradtrackingtensor(leaf):
            return True
        leaf = _functorch.get_unwrapped(leaf)
    return leaf.requires_grad


class CompiledStep:
    """One step as functions of flat lists: (carry, shared, data) -> (carry, loss), and backward."""

    def __init__(self, inner_step: StepFn, args: Any, make: Make) -> None:
        leaves, structure = flatten(args)
        state_count = len(flatten(args[:2])[0])
        leaves_after = flatten(inner_step(*args)[:2])[0]
        unchanged = [place for place in range(state_count) if leaves_after[place] is leaves[place]]
        self.carried = [place for place in range(state_count) if place not in unchanged]
        fixed = range(state_count, state_count + len(flatten(args[2])[0]))
        self.shared = [*unchanged, *fixed]
        order = [*self.carried, *self.shared, *range(fixed.stop, len(leaves))]

        def one(*flat: Tensor) -> tuple[Tensor, ...]:
            whole = list(flat)
            for place, value in zip(order, flat, strict=True):
                whole[place] = value
            params, state, loss = inner_step(*unflatten(whole, structure))
            after = flatten((params, state))[0]
            return (*(after[place] for place in self.carried), loss)

        self.make, self.differentiated = make, len(self.carried) + len(self.shared)
        self._one, self._wider = one, dict[Any, CompiledStep]()
        self._set(one, self._pulled(one))

    def _pulled(self, one: FlatFn) -> FlatFn:
        """(carry, shared, data, gradients of carry and loss, sums so far of shared) -> gradients of
        carry, new sums.
        """
        carry, differentiated = len(self.carried), self.differentiated

        def backward(*args: Tensor) -> tuple[Tensor, ...]:
            inputs, sums = (
                args[: len(args) - (differentiated - carry)],
                args[len(args) - (differentiated - carry) :],
            )
            flat, pulls = inputs[: -(carry + 1)], inputs[-(carry + 1) :]
            vjp = torch.func.vjp(
                lambda *leaves: one(*leaves, *flat[differentiated:]), *flat[:differentiated]
            )
            vjp_fn = vjp[1]
            grads = vjp_fn(tuple(pulls))
            return (*grads[:carry], *(a + b for a, b in zip(sums, grads[carry:], strict=True)))

        return backward

    def _set(self, forward: FlatFn, backward: FlatFn) -> None:
        self.plain = forward
        self.forward, self.backward = self.make(forward), self.make(backward)

    def over_tasks(self, in_dims: tuple[int | None, ...], each: bool) -> CompiledStep:
        """The step of all tasks of a vmap, its carry [T, ...].

        Backward gives a gradient for `each` task, or sums."""
        wider = self._wider.get((in_dims, each))
        if wider is None:
            wider = self._wider[in_dims, each] = object.__new__(CompiledStep)
            wider.__dict__.update(self.__dict__, _wider={})
            wide: FlatFn = torch.func.vmap(self.plain, in_dims=in_dims)
            pulls = (0,) * (len(self.carried) + 1 + self.differentiated - len(self.carried))
            alone = torch.func.vmap(self._pulled(self.plain), in_dims=(*in_dims, *pulls))
            wider._set(wide, alone if each else self._pulled(wide))
        return wider


def specialize(function: Callable[..., Any], tensors: Sequence[Tensor]) -> Callable[..., Any]:
    """A function for contiguous tensors like these, which looks nothing up if compiled."""
    find = getattr(function, "at", None)
    specialized: Callable[..., Any] = function if find is None else find(*tensors)
    return specialized


class SavedSteps:
    """Saved for backward: the step that ran, the inputs of every step, how they were batched."""

    def __init__(self, step: CompiledStep, layout: LoopLayout, keeps: bool) -> None:
        self.step, self.layout, self.keeps = step, layout, keeps
        self.inputs: list[list[Tensor]] = []
        self.batched: list[
            tuple[CompiledStep, tuple[int | None, ...], int]
        ] = []  # a vmap: narrower step, in_dims, tasks

    def data(self, flat: Sequence[Tensor], step: int) -> Sequence[Tensor]:
        layout = self.layout
        begin = layout.carry + layout.shared + (0 if layout.same else step * layout.data)
        return flat[begin : begin + layout.data]


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(saved: SavedSteps, *flat: Tensor) -> Any:
        layout, compiled_step = saved.layout, saved.step
        flat = tuple(leaf.contiguous() for leaf in flat)
        carry, shared = (
            list(flat[: layout.carry]),
            flat[layout.carry : layout.carry + layout.shared],
        )
        losses, points = [], []
        forward = specialize(compiled_step.forward, [*carry, *shared, *saved.data(flat, 0)])
        for step_index in range(layout.steps):
            inputs = [*carry, *shared, *saved.data(flat, step_index)]
            if saved.keeps:
                saved.inputs.append(inputs)
            *carry, loss = forward(*inputs)
            carry = [leaf.contiguous() for leaf in carry]
            losses.append(loss)
            if step_index + 1 in layout.points:
                points += carry[: layout.params]
        return (*carry, torch.stack(losses, losses[0].dim()), *(point.clone() for point in points))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        del output
        ctx.saved, ctx.count = inputs[0], len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved: SavedSteps = ctx.saved
        input_grads = _Backward.apply(saved, False, *grads)  # type: ignore[no-untyped-call]
        return (None, *input_grads, *[None] * (ctx.count - len(input_grads)))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], saved: SavedSteps, *flat: Tensor) -> Any:
        layout, dims = saved.layout, list(in_dims[1:])
        batched_inputs = [
            leaf if dim is None else leaf.movedim(dim, 0)
            for leaf, dim in zip(flat, dims, strict=True)
        ]
        for index in range(layout.carry):  # from the first step on they differ from task to task
            if dims[index] is None:
                batched_inputs[index] = batched_inputs[index].expand(
                    info.batch_size, *batched_inputs[index].shape
                )
        data = dims[layout.carry + layout.shared : layout.carry + layout.shared + layout.data]
        of_step = (
            *[0] * layout.carry,
            *(None if dim is None else 0 for dim in dims[layout.carry :][: layout.shared]),
        )
        of_step = (*of_step, *(None if dim is None else 0 for dim in data))
        saved.batched.append((saved.step, of_step, info.batch_size))
        saved.step = saved.step.over_tasks(of_step, False)
        outputs = _Forward.apply(saved, *batched_inputs)  # type: ignore[no-untyped-call]
        return outputs, (0,) * len(outputs)


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
            at: grads[layout.carry + 1 :][n * layout.params :] for n, at in enumerate(layout.points)
        }
        for step_index in reversed(range(layout.steps)):
            if step_index + 1 in of_points:
                extra = of_points[step_index + 1]
                pull = [
                    value + extra[n] if n < layout.params else value for n, value in enumerate(pull)
                ]
            results = backward(*saved.inputs[step_index], *pull, of_loss[step_index], *sums)
            pull, sums = (
                [leaf.contiguous() for leaf in part]
                for part in (results[: layout.carry], results[layout.carry :])
            )
        return (*pull, *sums)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        del ctx, inputs, output

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], saved: SavedSteps, each: bool, *grads: Tensor
    ) -> Any:
        batched_grads = [
            grad.expand(info.batch_size, *grad.shape) if dim is None else grad.movedim(dim, 0)
            for grad, dim in zip(grads, in_dims[2:], strict=True)
        ]
        outputs = _Backward.apply(saved, True, *batched_grads)  # type: ignore[no-untyped-call]
        return outputs, (0,) * len(outputs)
