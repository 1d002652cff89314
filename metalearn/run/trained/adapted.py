"""A new task learned by a trained method: labelled examples in, answers and weights out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metalearn.errors import ConfigError
from metalearn.inner.statistics import params_of
from metalearn.labels import check_example_targets
from metalearn.logger import log, warn_once
from metalearn.losses import PROBABILITIES
from metalearn.rng import fold_in
from metalearn.run.trained.export import export
from metalearn.run.trained.module import ordinary
from metalearn.storage.columns import alike, dense, has_no_label, of_text, refuse_rounded
from metalearn.tasks.tables.standardise import Moments, restore, standardise
from metalearn.tree import tree_map
from metalearn.types import Batch, EpisodeSpec, Learner, Meta, Method

Transform = Callable[[Tensor], Tensor]
MISSING = "contains examples without a label (None, NaN or an empty string): remove them"


@dataclass(frozen=True, repr=False)
class AdaptedTask:
    """A task that a trained method has adapted to."""

    method: Method
    learner: Learner
    meta: Meta
    support: Batch
    steps: int
    item: Any  # of `Method.adapt`
    classes: Any  # [N] labels as they were given; None in regression
    # from inputs as they are given to those that the method learned; None: the same
    transform: Transform | None = None
    flat: bool = False  # values were given as [B], without an axis of outputs
    moments: Moments | None = None  # of the values, where the method learned standardised ones
    pixels: bool = False  # inputs are images in 0..1
    names: tuple[str, ...] | None = None  # of the inputs, where they are columns of a table

    def __repr__(self) -> str:
        """What was learned from, without tensors."""
        spec, rows = self.method.spec, len(self.support.x)
        what = f"{spec.outputs} values" if self.classes is None else f"{len(self.classes)} classes"
        return f"AdaptedTask({rows} examples, {what}, {self.steps} steps)"

    def outputs(self, x: Any) -> Tensor:
        """Logits [M, *Y, N] or values [M, *Y] of inputs [M, *X], numpy or torch."""
        integers, change = self.learner.integers, self.transform
        check_columns(getattr(x, "columns", None), self.names)
        query_x = inputs(x, self.method.spec, integers, change, self.pixels)
        if self.method.adapt is None or self.method.predict is None:
            batch = tree_map(lambda leaf: leaf.unsqueeze(0), self.support)
            learned = self.method.learn(self.meta, batch, query_x.unsqueeze(0), (self.steps,))
            found = learned.predictions[0, 0].detach()
        else:
            found = self.method.predict(self.meta, self.item, self.support, query_x).detach()
        found = found if self.moments is None else restore(found, self.moments)
        _warn_if_diverged(found, self.classes is not None)
        return found

    def predict(self, x: Any) -> Any:
        """Return labels [M, *Y] as in the support set, or values [M, *Y]; numpy in, numpy out.

        Values are [M] if those of the support set were [B], so that both can be compared. For the
        loss `bce` they are probabilities in [0, 1]. If the method normalises with the query batch,
        predictions depend on the inputs that are predicted together."""
        found = self.outputs(x)
        if self.classes is None:
            found = found.sigmoid() if self.method.spec.loss in PROBABILITIES else found
            return _like(found.squeeze(-1) if self.flat else found, x)
        place = found.argmax(-1).cpu()  # [M, *Y]
        return self.classes[place if isinstance(self.classes, Tensor) else place.numpy()]

    def predict_proba(self, x: Any) -> Any:
        """Probability of each class of `classes`: [M, *Y, N]."""
        if self.classes is None:
            raise ConfigError(
                ("predict_proba", "is only for classification, but this task is a regression")
            )
        return _like(self.outputs(x).softmax(-1), x)

    def module(self) -> nn.Module:
        """Return the adapted network as a plain `torch.nn.Module`.

        Raises ConfigError if the predictions are not those of one network with adapted weights."""
        if self.transform is not None or self.moments is not None:
            what = "inputs" if self.transform is not None else "targets"
            text = f"the {what} of this run are standardised before its network sees them"
            raise ConfigError(("module", f"{text}: use predict or export"))
        names = self.learner.init(fold_in(0))
        known = {**params_of(self.meta), **self.item} if isinstance(self.item, dict) else {}
        whole = {name: known[name] for name in names if name in known}
        if len(whole) < len(names):
            text = "this method does not adapt weights of the network: use predict or export"
            raise ConfigError(("module", text))
        found = ordinary(self.learner, whole, self.support.x, self.outputs(self.support.x))
        if found is None:
            text = "this method computes more than its network, such as normalised features"
            raise ConfigError(("module", f"{text}: use predict or export"))
        return found

    def export(self, path: str | Path) -> Path:
        """Export the prediction for inputs [M, *X] as a standalone PyTorch or ONNX program.

        `.pt2` by torch.export, `.pt` as TorchScript, `.onnx`. Outputs are those of `outputs`."""
        if self.method.predict is None:
            raise ConfigError(("export", "this method predicts only on the CPU: use predict"))
        given, change, moments = self.method.predict, self.transform, self.moments

        def predict(meta: Meta, item: Any, support: Batch, x: Tensor) -> Tensor:
            x = x if change is None else change(x.double()).to(x.dtype)
            found = given(meta, item, support, x)
            return found if moments is None else restore(found, moments)

        return export(predict, self.meta, self.item, self.support, Path(path))


def _warn_if_diverged(outputs: Tensor, logits: bool) -> None:
    """A warning for answers [M, ...] that are no numbers; a logit may be minus infinity."""
    bad = outputs.isnan() | outputs.isposinf() if logits else ~outputs.isfinite()
    if count := int(bad.flatten(1).any(1).sum()):
        text = "adaptation diverged, or inputs are far from those in training"
        log.warning(f"{count} of {len(outputs)} predictions are not finite: {text}")


def adapt_task(
    build: Callable[[EpisodeSpec], tuple[Learner, Method]],
    meta: Meta,
    spec: EpisodeSpec,
    x: Any,
    y: Any,
    steps: int,
    seed: int = 0,
    transform: Transform | None = None,
    moments: Moments | None = None,
    pixels: bool = False,
) -> AdaptedTask:
    """Learn one task of labelled examples: x [B, *X], y [B, *Y] labels of any kind, or values.

    `build` makes learner and method for the task's spec; `spec` is that of the run's test tasks,
    whose component has `transform` and standardises its values by `moments`; `pixels`: inputs
    are images in 0..1.
    Raises ConfigError for inputs of another shape, for labels that do not fit, and where the
    method's head was learned for another number of classes."""
    steps = _whole(steps)
    support_x = inputs(x, spec, True, transform, pixels)
    _check_length(y, len(support_x))
    classes, support_y = (
        _labels(y, spec) if spec.classification else (None, _values(y, spec, moments))
    )
    learner, method = build(_spec_of(spec, classes, support_y))
    support_x = support_x if learner.integers else support_x.to(spec.dtype)
    given = support_y.dim()
    support_y = _fitting(support_y, learner, support_x, classes is not None)
    flat = given < support_y.dim()
    if method.traits.fixed_ways and classes is not None and len(classes) != spec.outputs:
        text = f"{len(classes)} classes, but the head of the method was learned for {spec.outputs}"
        raise ConfigError(("y", f"{text}: use {spec.outputs} classes"))
    support, key = Batch(support_x, support_y), fold_in(seed, "new task")
    if classes is None:
        check_example_targets(support, spec)
    item = None if method.adapt is None else method.adapt(meta, support, steps, key)
    return AdaptedTask(
        method, learner, meta, support, steps, item, classes, transform, flat, moments, pixels
    )


def _spec_of(spec: EpisodeSpec, classes: Any, y: Tensor) -> EpisodeSpec:
    """The spec with the classes and shots of one task."""
    if classes is None:
        return replace(spec, shots=len(y))
    shots = int(y.bincount().max()) if y.dim() == 1 else len(y)
    return replace(spec, ways=len(classes), outputs=len(classes), shots=shots)


def check_columns(given: Any, names: tuple[str, ...] | None) -> None:
    """ConfigError for a DataFrame whose columns are not those of training, in their order.

    Columns that are numbered are not named."""
    if given is None or names is None or list(given) == list(names):
        return
    if not all(isinstance(name, str) for name in given):
        return
    listed = ", ".join(given)
    text = f"has the columns {listed}, but the run was trained on {', '.join(names)}: use "
    raise ConfigError(("x", f"{text}x[{list(names)}]"))


def inputs(
    x: Any,
    spec: EpisodeSpec,
    integers: bool = False,
    transform: Transform | None = None,
    pixels: bool = False,
) -> Tensor:
    """Inputs [B, *X] as a tensor of the spec's dtype, or int64, on its device; else ConfigError."""
    values = _numbers(x, "x")
    if tuple(values.shape[1:]) != tuple(spec.x_shape) or not len(values):
        text = f"must have shape [B, {', '.join(map(str, spec.x_shape))}], B >= 1"
        raise ConfigError(("x", f"{text} (got {list(values.shape)})"))
    if values.dtype == torch.uint8 and len(spec.x_shape) > 1:
        raise ConfigError(("x", "images must be floats in 0..1, ink bright; got bytes"))
    if integers and not pixels and transform is None and not values.is_floating_point():
        return values.to(spec.device, torch.int64)
    values = values.to(spec.device)
    values = values if transform is None else transform(values.double())
    values = values.to(dtype=spec.dtype)
    if not values.isfinite().all():
        raise ConfigError(("x", "must be finite"))
    if pixels:
        _check_pixels(values)
    return values


def _check_pixels(values: Tensor) -> None:
    """ConfigError for images of another scale than 0..1; a warning where some lie outside, as after
    interpolation or with noise."""
    low, high = float(values.min()), float(values.max())
    if low < -0.5 or high > 2:
        text = f"must be images in 0..1, as in training (got {low:.3g} .. {high:.3g})"
        raise ConfigError(("x", f"{text}: divide bytes by 255, and do not rescale otherwise"))
    if low < -0.01 or high > 1.01:
        warn_once(
            "x: some images are outside 0..1, the range in training: clip them if that is not "
            "intended"
        )


def _values(y: Any, spec: EpisodeSpec, moments: Moments | None) -> Tensor:
    values = _numbers(y, "y").to(spec.device)
    outputs = values.shape[1:] if values.dim() > 1 else (1,)
    if moments is not None and tuple(outputs) == (len(moments[0]),):  # else it is refused below
        values = standardise(values.double(), moments)
    values = values.to(spec.dtype)
    if not values.isfinite().all():
        raise ConfigError(("y", "must be finite"))
    return values


def _whole(steps: Any) -> int:
    if not isinstance(steps, int | np.integer) or steps < 0:
        raise ConfigError(("steps", f"must be an integer >= 0 (got {steps!r})"))
    return int(steps)


def _check_length(y: Any, examples: int) -> None:
    if not hasattr(y, "__len__"):
        raise ConfigError(("y", f"must be a list or an array (got a {type(y).__name__})"))
    if len(dense(y, "y")) != examples:
        raise ConfigError(("y", f"has {len(y)} entries for {examples} inputs"))


def _numbers(values: Any, place: str) -> Tensor:
    """Real numbers as a tensor; ConfigError for anything else."""
    given = dense(values, place)
    if not isinstance(given, Tensor):
        given = np.asarray(given)
        if given.dtype == object:
            try:
                given = given.astype(np.float64)
            except (ValueError, TypeError) as error:
                raise ConfigError((place, f"must contain numbers ({error})")) from error
        if given.dtype.kind not in "fiubc":
            raise ConfigError((place, f"must contain numbers (got {given.dtype})"))
        given = torch.as_tensor(given)
    if given.is_complex():
        raise ConfigError((place, "must be real (got complex numbers)"))
    return given


def _labels(y: Any, spec: EpisodeSpec) -> tuple[Any, Tensor]:
    """(classes, labels): labels become 0 .. N-1 in sorted order."""
    classes: Any
    if isinstance(y, Tensor):
        if y.is_floating_point() and y.isnan().any():
            raise ConfigError(("y", MISSING))
        refuse_rounded(y.detach().cpu().double().numpy() if y.is_floating_point() else (), "y")
        classes, place = torch.unique(y.cpu(), return_inverse=True)
    else:
        given = np.asarray(y)
        if (gone := has_no_label(given)).any():
            raise ConfigError(("y", MISSING + of_text(given[gone][0])))
        entries = list(_entries(given if given.dtype == object else y))
        texts = sum(isinstance(one, str) for one in entries)
        if given.dtype.kind in "UO" and entries and 0 < texts < len(entries):
            raise ConfigError(("y", "mixes strings with other labels: use labels of one type"))
        refuse_rounded(given, "y")
        classes, found = np.unique(given, return_inverse=True)
        refuse_alike(classes)
        place = torch.as_tensor(found).reshape(given.shape)
    if len(classes) < 2:
        raise ConfigError(("y", f"must be labels of at least 2 classes (got {len(classes)})"))
    return classes, place.to(spec.device)


def refuse_alike(classes: Any) -> None:
    """ConfigError for two labels that differ in spaces or in Unicode form alone."""
    texts = [name for name in classes if isinstance(name, str)]
    if pair := alike(texts):
        text = f"contains labels that differ only in spaces, Unicode form or .0, {pair}"
        text += ": use one spelling"
        raise ConfigError(("y", text))


def _entries(y: Any) -> Iterator[Any]:
    """Labels of a nested sequence, one by one; of an array they are of one kind."""
    for one in () if isinstance(y, np.ndarray) and y.dtype != object else y:
        yield from _entries(one) if isinstance(one, list | tuple) else (one,)


def _fitting(y: Tensor, learner: Learner, x: Tensor, labels: bool) -> Tensor:
    """The targets in the shape that the outputs ask for; ConfigError for another."""
    params = {name: value.to(x.device) for name, value in learner.init(fold_in(0)).items()}
    with torch.no_grad():
        outputs = list(learner.apply(params, x[:2]).shape[1:])
    wanted = outputs[:-1] if labels and learner.readout != "none" else outputs
    if labels and learner.readout == "none":
        wanted = []  # outputs are features
    if list(y.shape[1:]) == wanted:
        return y
    if not labels and y.dim() == 1 and wanted == [1]:
        return y.unsqueeze(-1)
    shape = "".join(f", {size}" for size in wanted)
    hint = ""
    if labels and y.dim() == 2:
        hint = ": y[:, 0] has" if y.shape[1] == 1 else ": one-hot rows are labels by y.argmax(1)"
    raise ConfigError(("y", f"must have shape [B{shape}] (got {list(y.shape)}){hint}"))


def _like(values: Tensor, given: Any) -> Any:
    """Torch for torch, numpy for everything else."""
    return values if isinstance(given, Tensor) else values.cpu().numpy()
