"""From any torch module to a Learner."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.errors import ConfigError
from metalearn.models.external import checks
from metalearn.models.external.batch_norm import (
    OF_BATCH,
    LayerPolicy,
    followed_policies,
    layer_policies,
    module_policy,
)
from metalearn.models.external.class_axis import check_class_axis
from metalearn.models.external.generators import restored
from metalearn.models.external.gradients import check_gradients
from metalearn.models.external.head import Head, find_head, replace_layer, stop_at_head, unchanged
from metalearn.models.external.leaves import Leaves, leaves_of, named_tensors
from metalearn.models.external.module import (
    Inputs,
    Output,
    build_module,
    call_module,
    cast,
    copy_module,
    entry,
    example,
    initialise_lazy_layers,
    refuse_unsupported,
    require_integers,
    takes_numbers,
)
from metalearn.models.external.pure_module import PureModule
from metalearn.models.external.start import (
    Constructor,
    Draw,
    Init,
    of_names,
    of_values,
    with_new_head,
)
from metalearn.models.external.substitutes import substitute
from metalearn.models.forward_pass import layers_run
from metalearn.models.functional import Run, batch_gains, by_policy
from metalearn.models.init import Scheme
from metalearn.types import EpisodeSpec, Learner, Params

AUTO, NEW = "auto", "new"


@restored()
def from_module(
    net: nn.Module | Callable[[], nn.Module],
    spec: EpisodeSpec,
    *,
    head: str | None = AUTO,
    policy: LayerPolicy | None = None,
    init: Scheme | Literal["module"] | Draw = "module",
    keep: bool = False,
    output: Output = None,
    inputs: Inputs = None,
) -> Learner:
    """Return a Learner whose `apply(params, x)` is the forward of `net` with these parameters.

    `net` is a module, which is not changed, or a class or function that builds one. It runs in
    evaluation mode; only a training step with noise (dropout) uses the modes it was passed in.

    head: the last linear layer: detected ("auto"), a name in the module, or None (no head, for
        metric methods); "new" replaces it with a linear layer of the task's outputs, or appends
        one to a module that has none. Its leaves are head.weight and head.bias.
    policy: of torch's batch normalisation: query_batch, support, support_plus_one, running or
        frozen; None: query_batch if the layer is in training mode or keeps no statistics, frozen
        if it is in evaluation mode.
    init: "module": the values of a module, for every seed; what a class or function samples for
        key. Else a scheme for torch's layers, or a function (key, name, shape, dtype) -> values.
    keep: initialize every seed with the values of `net` (of one call of it): pretrained weights.
    output: the entry of what forward returns, if that is a dict, a tuple or an object.
    inputs: a function from x [B, *X] to the arguments of forward: a tensor, tuple or dict.

    Labels [B, *Y] need outputs [B, *Y, C], the classes on the last axis (a convolution's are on
    axis 1), and values [B, *Y] outputs of the same shape, axis by axis.
    Tied weights are one leaf; buffers and parameters with requires_grad=False have names with the
    prefix "stats." and are never updated. Raises ConfigError, with the layer and the reason, for a
    module that cannot be converted exactly."""
    if keep and init != "module":
        raise ConfigError(("keep", "keeps the values of the module, so init must be omitted"))
    source = _Source(net, spec, head, output, inputs, init == "module")
    learner, module = _learner(source, policy)
    is_random = init != "module" or not (keep or source.is_instance)
    learner = learner._replace(init=_start(source, module, init, keep), random_start=is_random)
    return _check_learner(learner, source, leaves_of(module, source.head).values(module))


def _start(source: _Source, module: nn.Module, init: Any, keep: bool) -> Init:
    """Return the initialization of the parameters, as documented in `from_module`."""
    leaves = leaves_of(module, source.head)
    if init != "module":
        return of_names(module, leaves, init, source.spec)
    start: Init
    if keep or source.is_instance:
        start = of_values(leaves.values(module))
    else:
        start = Constructor(source.make, leaves, module)
    return start if source.new_head is None else with_new_head(start, module, source.new_head)


def _check_learner(learner: Learner, source: _Source, values: Params) -> Learner:
    """Compare the learner with the module, and return it with the policy that the examples show."""
    x, inputs, output = source.x, source.inputs, source.output
    checks.check_equal(
        learner, values, x, lambda net, x: entry(call_module(net, x, inputs), output)
    )
    checks.check_sizes(learner, values, x, type(source.net).__name__)
    if learner.normalisation not in OF_BATCH and checks.examples_interact(learner, values, x):
        if learner.normalisation == "running":
            text = "uses batch statistics in addition to running ones: pass net.eval()"
            raise ConfigError((type(source.net).__name__, text))
        learner = learner._replace(normalisation="query_batch")
    checks.check_batched(learner, values, x)
    return learner


class _Source:
    """The arguments of the caller: builds the module, with a new head if one is needed."""

    def __init__(
        self,
        net: Any,
        spec: EpisodeSpec,
        head: str | None,
        output: Output,
        inputs: Inputs,
        draws: bool,
    ) -> None:
        self.net, self.spec, self.output = net, spec, output
        self.is_instance = isinstance(net, nn.Module)
        self.new_head: str | None = None
        self.replaced: Head | None = None
        self.width = 0
        module = net if self.is_instance else build_module(net, 0)
        refuse_unsupported(module)
        first = cast(copy_module(module), spec)
        # until it is built again, if its constructor draws the initialization
        self.first = first if draws and not self.is_instance else None
        self.x = example(first, spec, inputs)
        checks.refuse_computed_tensors(module, first, self.x, inputs)
        self.integers = not takes_numbers(first, self.x, spec, inputs)
        self.inputs = inputs = require_integers(inputs) if self.integers else inputs
        self.head: Head | None = None
        self.must_fit = head is not None
        if head is not None:
            name = None if head in (AUTO, NEW) else head
            self.head = self._find(first, name)
        if head == NEW:
            self._plan_new_head(first)

    def make(self, seed: int) -> nn.Module:
        """Return a separate module for the learner, in the modes in which it was passed."""
        module = cast(
            copy_module(self.net) if self.is_instance else build_module(self.net, seed), self.spec
        )
        if self.first is not None and seed == 0:
            checks.refuse_other_values(self.first, module)
            self.first = None
        initialise_lazy_layers(module, self.x, self.inputs, seed)
        if self.new_head is None:
            return module
        new = nn.Linear(self.width, self.spec.outputs, device=self.spec.device)
        if self.replaced is not None:
            return replace_layer(module, self.replaced.name, new.to(self.spec.dtype))
        parts = OrderedDict(module=module, flatten=nn.Flatten(), head=new.to(self.spec.dtype))
        return nn.Sequential(parts).train(module.training)

    def _find(self, module: nn.Module, name: str | None) -> Head | None:
        clone = copy_module(module)
        initialise_lazy_layers(clone, self.x, self.inputs, 0)
        in_training = copy_module(clone) if any(part.training for part in clone.modules()) else None
        head = find_head(clone.eval(), self.x, self.inputs, self.output, name)
        if head is None or in_training is None or not head.last:
            return head
        # noise or a factor after the head may act in training mode only
        with torch.random.fork_rng(devices=[]):
            training_head = find_head(in_training, self.x, self.inputs, self.output, head.name)
        return head if training_head is None else training_head

    def _plan_new_head(self, module: nn.Module) -> None:
        clone = copy_module(module)
        initialise_lazy_layers(clone, self.x, self.inputs, 0)
        if self.head is not None and self.head.replaceable:
            self.replaced, self.new_head = self.head, self.head.name
            self.head = self.head._replace(last=True)
            self.width = int(clone.get_submodule(self.head.name).in_features)  # type: ignore[arg-type]
            return
        if self.output is not None:
            raise ConfigError(
                ("head", "'new' cannot be used with an entry of the outputs: wrap the module")
            )
        with torch.no_grad():
            out = entry(call_module(clone.eval(), self.x, self.inputs), self.output)
        self.width, self.new_head, self.head = out[0].numel(), "head", Head("head", True, True)


def _learner(source: _Source, policy: str | None) -> tuple[Learner, nn.Module]:
    """Return the learner without its initialization, and the prepared module."""
    spec, inputs, output, x = source.spec, source.inputs, source.output, source.x
    original = source.make(0)
    policies = layer_policies(original, policy)
    noisy = substitute(copy_module(original), policies)
    quiet = copy_module(noisy, share=True).eval()
    nets = [original, source.net] if source.is_instance else [original]
    checks.refuse_foreign_tensors(quiet, nets, x, inputs, lambda: source.make(1))
    behaviour, run = _watch(quiet, noisy, source)
    policies = followed_policies((quiet, noisy), policies, run, policy)
    leaves = leaves_of(noisy, source.head)
    pure = PureModule(quiet, noisy, leaves, inputs, output, behaviour.attends)
    body = _body(pure, source.head)
    found = module_policy(policies)
    whole, inner = by_policy(found, pure), by_policy(found, body)
    apply, features = _functions(whole, inner, source.head)
    with torch.no_grad():
        out = apply(leaves.values(noisy), x)
    if source.must_fit:
        checks.check_outputs(spec, out, source.head.name if source.head else "net")
        if spec.classification:
            check_class_axis(quiet, x, inputs, output, spec.outputs)
    learner = Learner(
        init=of_values({}),
        features=features,
        apply=apply,
        stats=pure.refreshed if found == "running" else lambda params, x: params,
        normalisation=found,
        outputs=out.shape[-1] if source.head is None and out.dim() == 2 else spec.outputs,
        x_shape=spec.x_shape,
        fixed=leaves.fixed,
        readout="none" if source.head is None else "linear" if source.head.last else "module",
        draws_noise=behaviour.draws,
        aliases=leaves.aliases(noisy),
        integers=source.integers,
        module=lambda params: _loaded(original, policies, leaves, params),
        gains=tuple(leaves.names[name] for name in batch_gains(noisy)),
    )
    return learner, noisy


def _watch(
    quiet: nn.Module, noisy: nn.Module, source: _Source
) -> tuple[checks.Behaviour, set[str]]:
    """Return what forward does besides its output, and the batch norms that it runs."""
    with layers_run() as run:
        behaviour = checks.watch_forward(quiet, noisy, source.x, source.inputs, source.output)
    check_gradients(quiet, noisy, source.x, source.inputs, source.output, checks.KEY)
    return behaviour, run


def _body(pure: PureModule, head: Head | None) -> PureModule:
    """Return the module up to the head, which needs no leaves of the head."""
    if head is None:
        return pure
    quiet, noisy = (copy_module(module, share=True) for module in (pure.quiet, pure.noisy))
    for module in (quiet, noisy):
        # the layer itself, as a list of the module may also hold it
        module.get_submodule(head.name).forward = unchanged if head.last else stop_at_head
    leaves = pure.leaves.body()
    return PureModule(quiet, noisy, leaves, pure.inputs, pure.output, pure.attends)


def _functions(whole: Run, inner: Run, head: Head | None) -> tuple[Any, Any]:
    """Return (apply, features) of the learner."""

    def apply(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        if head is None or not head.last:
            return whole(params, x, context)
        z = inner(params, x, context)
        return F.linear(z, params["head.weight"], params.get("head.bias"))

    def features(params: Params, x: Tensor, context: Tensor | None = None) -> Tensor:
        z = inner(params, x, context)
        return z.flatten(1) if head is None else z

    return apply, features


def _loaded(
    original: nn.Module, policies: dict[str, str], leaves: Leaves, params: Params
) -> nn.Module:
    """An ordinary copy of the module with these parameters; batch norms that normalise by the batch
    are in training mode, all else is in evaluation mode.
    """
    net = copy_module(original)
    modes = {name: part.training for name, part in net.named_modules()}
    tensors = named_tensors(net)
    with torch.no_grad():
        for name, leaf in leaves.names.items():
            tensors[name].copy_(params[leaf])
    net.eval()
    for name, policy in policies.items():
        part = net.get_submodule(name)
        part.training = policy in OF_BATCH or (policy == "none" and modes[name])
    return net
