"""A user's torch module as a component."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PrivateAttr, model_validator
from torch import nn

from metalearn.component import ModelComponent, option
from metalearn.errors import ConfigError
from metalearn.in_memory import Held, hash_of, hashes_of, held, hold, name_of
from metalearn.models.external.batch_norm import LayerPolicy
from metalearn.models.external.from_module import AUTO, NEW, from_module
from metalearn.models.init import Scheme
from metalearn.types import EpisodeSpec, Learner

FIT = "fit"
# What from_module reads of a spec: training, test and new tasks usually share one learner.
READ = ("kind", "outputs", "x_shape", "dtype", "device")


class Module(ModelComponent):
    """A user-supplied torch module, `Module(net)`, with the options of from_module.

    `net` is a module, a class or function that creates one, or the result of from_module. A run
    directory stores its name and hash: to use the run in another process, pass the same `net`.

    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> spec = ml.tasks.Sinusoid().build().spec
    >>> learner = ml.models.Module(net).build(spec)
    >>> learner.apply(learner.init(ml.fold_in(0)), torch.rand(2, *spec.x_shape)).shape
    torch.Size([2, 1])
    """

    name: Literal["torch_module"] = option("torch_module", "The model.")
    object: str = option("", "Name of the module, class or function.")
    sha256: str = option("", "SHA-256 of its content; set by Module(net).")
    head: str | None = option(
        FIT,
        "Which layer is the head: fit (detect the last linear layer, and replace it if its "
        "output size does not match the task), auto, new, a name, or null for none.",
    )
    policy: LayerPolicy | None = option(None, "Policy of the batch normalisation layers of torch.")
    init: Scheme | Literal["module"] = option("module", "Initialization of the parameters.")
    keep: bool = option(
        False, "Use the values of one call of net as the initialization of every seed."
    )
    output: str | int | None = option(None, "Entry of the output of forward that is used.")
    _held: Held | None = PrivateAttr(default=None)

    def __init__(self, net: Any = None, *, inputs: Any = None, **fields: Any) -> None:
        entry: Held | None = None
        if net is not None:
            sha256, earlier = hashes_of(_content(net, inputs))
            entry = hold((net, inputs), sha256, earlier=earlier)
            fields |= {"object": name_of(net), "sha256": sha256}
        super().__init__(**fields)
        if entry is not None:
            self._held = entry

    @model_validator(mode="after")
    def _find(self) -> Module:
        self._held = self._held or held(self.sha256 or None)
        return self

    def build(self, spec: EpisodeSpec) -> Learner:
        """Return the learner for tasks of `spec`; raises ConfigError if the module is missing."""
        if self._held is None:
            text = (
                f"is {self.object or 'a module'}, passed from Python (SHA-256 {self.sha256[:12]})"
            )
            again = "pass the same one again, as metalearn.models.Module(net)"
            raise ConfigError(("model", f"{text}: {again}"))
        net, inputs = self._held.value
        if isinstance(net, Learner):
            return net
        made, fields = self._held.made, self.model_dump_json()
        if (spec, fields) not in made:
            if isinstance(net, nn.Module) and hash_of(_content(net, inputs)) != self._held.sha256:
                text = "was changed after it was passed, such as by training, net.eval() or a hook"
                raise ConfigError(("model", f"{text}: undo that, or pass a copy.deepcopy of it"))
            form = (*(getattr(spec, name) for name in READ), fields)
            if form not in made:  # its checks take seconds for a large network
                made[form] = self._learner(net, inputs, spec)
            made[spec, fields] = made[form]
        learner: Learner = made[spec, fields]
        return learner

    def _learner(self, net: Any, inputs: Any, spec: EpisodeSpec) -> Learner:
        options: dict[str, Any] = {
            "policy": self.policy,
            "init": self.init,
            "keep": self.keep,
            "output": self.output,
            "inputs": inputs,
        }
        if self.head != FIT:
            return from_module(net, spec, head=self.head, **options)
        try:
            return from_module(net, spec, head=AUTO, **options)
        except ConfigError as error:
            if not any("head='new'" in text for _, text in error.problems):
                raise
        return from_module(net, spec, head=NEW, **options)


def _content(net: Any, inputs: Any) -> Any:
    return (net, inputs) if inputs is not None else net


def as_model(net: Any) -> ModelComponent:
    """Return a component for a component, a module, a class, a function or a learner."""
    if isinstance(net, ModelComponent):
        return net
    if isinstance(net, nn.Module | Learner) or callable(net):
        return Module(net)
    text = (
        f"{type(net).__name__} is not a model: pass a component, a torch module, or a class of one"
    )
    raise ConfigError(("model", text))
