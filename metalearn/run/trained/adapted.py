"""A new task learned by a trained method: labelled examples in, predictions and weights out."""

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
from metalearn.run.trained.module import as_module
from metalearn.storage.columns import (
    check_exact_labels,
    has_no_label,
    missing_label_hint,
    require_dense,
    similar_names,
)
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
    classes: Any  # [N] labels as passed; None in regression
    # from inputs as passed to those that the method was trained on; None: the same
    transform: Transform | None = None
    flat: bool = False  # values were passed as [B], without an axis of outputs
    moments: Moments | None = None  # of the values, if the method learned standardised ones
    pixels: bool = False  # inputs are images in 0..1
    names: tuple[str, ...] | None = None  # of the inputs, if they are columns of a table

    def __repr__(self) -> str:
        """Summarise the support set, without tensors."""
        spec, rows = self.method.spec, len(self.support.x)
        targets = (
            f"{spec.outputs} values" if self.classes is None else f"{len(self.classes)} classes"
        )
        return f"AdaptedTask({rows} examples, {targets}, {self.steps} steps)"

    def outputs(self, x: Any) -> Tensor:
        """Return logits [M, *Y, N] or values [M, *Y] of inputs [M, *X], numpy or torch."""
        integers, transform = self.learner.integers, self.transform
        check_columns(getattr(x, "columns", None), self.names)
        query_x = inputs(x, self.method.spec, integers, transform, self.pixels)
        if self.method.adapt is None or self.method.predict is None:
            batch = tree_map(lambda leaf: leaf.unsqueeze(0), self.support)
            learned = self.method.learn(self.meta, batch, query_x.unsqueeze(0), (self.steps,))
            outputs = learned.predictions[0, 0].detach()
        else:
            outputs = self.method.predict(self.meta, self.item, self.support, query_x).detach()
        outputs = outputs if self.moments is None else restore(outputs, self.moments)
        _warn_if_diverged(outputs, self.classes is not None)
        return outputs

    def predict(self, x: Any) -> Any:
        """Return labels [M, *Y] as in the support set, or values [M, *Y]; numpy in, numpy out.

        Values are [M] if those of the support set were [B], so that both can be compared. For the
        loss `bce` they are probabilities in [0, 1]. If the method normalises with the query batch,
        predictions depend on the inputs that are predicted together."""
        outputs = self.outputs(x)
        if self.classes is None:
            outputs = outputs.sigmoid() if self.method.spec.loss in PROBABILITIES else outputs
            return _to_type_of(outputs.squeeze(-1) if self.flat else outputs, x)
        class_indices = outputs.argmax(-1).cpu()  # [M, *Y]
        return self.classes[
            class_indices if isinstance(self.classes, Tensor) else class_indices.numpy()
        ]

    def predict_proba(self, x: Any) -> Any:
        """Return the probability of each class of `classes`: [M, *Y, N]."""
        if self.classes is None:
            raise ConfigError(
                ("predict_proba", "is only for classification, but this task is a regression")
            )
        return _to_type_of(self.outputs(x).softmax(-1), x)

    def module(self) -> nn.Module:
        """Return the adapted network as a plain `torch.nn.Module`.

        Raises ConfigError if the predictions are not those of one network with adapted weights."""
        if self.transform is not None or self.moments is not None:
            standardised = "inputs" if self.transform is not None else "targets"
            text = f"the {standardised} of this run are standardised before its network sees them"
            raise ConfigError(("module", f"{text}: use predict or export"))
        names = self.learner.init(fold_in(0))
        adapted = {**params_of(self.meta), **self.item} if isinstance(self.item, dict) else {}
        weights = {name: adapted[name] for name in names if name in adapted}
        if len(weights) < len(names):
            text = "this method does not adapt weights of the network: use predict or export"
            raise ConfigError(("module", text))
        module = as_module(self.learner, weights, self.support.x, self.outputs(self.support.x))
        if module is None:
            text = "this method computes more than its network, such as normalised features"
            raise ConfigError(("module", f"{text}: use predict or export"))
        return module

    def export(self, path: str | Path) -> Path:
        """Export the prediction for inputs [M, *X] as a standalone PyTorch or ONNX program.

        `.pt2` by torch.export, `.pt` as TorchScript, `.onnx`. Outputs are those of `outputs`."""
        if self.method.predict is None:
            raise ConfigError(("export", "this method predicts only on the CPU: use predict"))
        predict_outputs, transform, moments = self.method.predict, self.transform, self.moments

        def predict(meta: Meta, item: Any, support: Batch, x: Tensor) -> Tensor:
            x = x if transform is None else transform(x.double()).to(x.dtype)
            outputs = predict_outputs(meta, item, support, x)
            return outputs if moments is None else restore(outputs, moments)

        return export(predict, self.meta, self.item, self.support, Path(path))


def _warn_if_diverged(outputs: Tensor, logits: bool) -> None:
    """Warn about predictions [M, ...] that are not finite; a logit may be minus infinity."""
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

    `build` builds learner and method for the task's spec; `spec` is that of the run's test tasks,
    whose component has `transform` and standardises its values with `moments`; `pixels`: inputs
    are images in 0..1.
    Raises ConfigError for inputs of another shape, for labels that do not fit, and if the head of
    the method was learned for another number of classes."""
    steps = _check_steps(steps)
    support_x = inputs(x, spec, True, transform, pixels)
    _check_length(y, len(support_x))
    classes, support_y = (
        _labels(y, spec) if spec.classification else (None, _values(y, spec, moments))
    )
    learner, method = build(_task_spec(spec, classes, support_y))
    support_x = support_x if learner.integers else support_x.to(spec.dtype)
    given_dims = support_y.dim()
    support_y = _reshape_targets(support_y, learner, support_x, classes is not None)
    flat = given_dims < support_y.dim()
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


def _task_spec(spec: EpisodeSpec, classes: Any, y: Tensor) -> EpisodeSpec:
    """Return the spec with the classes and shots of one task."""
    if classes is None:
        return replace(spec, shots=len(y))
    shots = int(y.bincount().max()) if y.dim() == 1 else len(y)
    return replace(spec, ways=len(classes), outputs=len(classes), shots=shots)


def check_columns(columns: Any, names: tuple[str, ...] | None) -> None:
    """Raise ConfigError for a DataFrame whose columns are not those of training, in their order.

    Columns with integer names are not compared."""
    if columns is None or names is None or list(columns) == list(names):
        return
    if not all(isinstance(name, str) for name in columns):
        return
    column_list = ", ".join(columns)
    text = f"has the columns {column_list}, but the run was trained on {', '.join(names)}: use "
    raise ConfigError(("x", f"{text}x[{list(names)}]"))


def inputs(
    x: Any,
    spec: EpisodeSpec,
    integers: bool = False,
    transform: Transform | None = None,
    pixels: bool = False,
) -> Tensor:
    """Return inputs [B, *X] as a tensor of the spec's dtype, or int64, on its device.

    Raises ConfigError for inputs of another shape or kind."""
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
    """Raise ConfigError for images of another scale than 0..1; warn if some values are slightly
    outside, as after interpolation or with noise."""
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
    if moments is not None and tuple(outputs) == (len(moments[0]),):  # other shapes raise below
        values = standardise(values.double(), moments)
    values = values.to(spec.dtype)
    if not values.isfinite().all():
        raise ConfigError(("y", "must be finite"))
    return values


def _check_steps(steps: Any) -> int:
    if not isinstance(steps, int | np.integer) or steps < 0:
        raise ConfigError(("steps", f"must be an integer >= 0 (got {steps!r})"))
    return int(steps)


def _check_length(y: Any, examples: int) -> None:
    if not hasattr(y, "__len__"):
        raise ConfigError(("y", f"must be a list or an array (got a {type(y).__name__})"))
    if len(require_dense(y, "y")) != examples:
        raise ConfigError(("y", f"has {len(y)} entries for {examples} inputs"))


def _numbers(values: Any, field: str) -> Tensor:
    """Return real numbers as a tensor. Raises ConfigError for anything else."""
    array = require_dense(values, field)
    if not isinstance(array, Tensor):
        array = np.asarray(array)
        if array.dtype == object:
            try:
                array = array.astype(np.float64)
            except (ValueError, TypeError) as error:
                raise ConfigError((field, f"must contain numbers ({error})")) from error
        if array.dtype.kind not in "fiubc":
            raise ConfigError((field, f"must contain numbers (got {array.dtype})"))
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:  # torch has no longer floats
            array = array.astype(np.float64)
        # torch takes neither another order of bytes nor negative strides
        array = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
        array = torch.as_tensor(array)
    if array.is_complex():
        raise ConfigError((field, "must be real (got complex numbers)"))
    return array


def _labels(y: Any, spec: EpisodeSpec) -> tuple[Any, Tensor]:
    """Return (classes, labels): labels become 0 .. N-1 in sorted order."""
    classes: Any
    if isinstance(y, Tensor):
        if y.is_floating_point() and y.isnan().any():
            raise ConfigError(("y", MISSING))
        check_exact_labels(y.detach().cpu().double().numpy() if y.is_floating_point() else (), "y")
        classes, indices = torch.unique(y.cpu(), return_inverse=True)
    else:
        labels = np.asarray(y)
        if (missing := has_no_label(labels)).any():
            raise ConfigError(("y", MISSING + missing_label_hint(labels[missing][0])))
        entries = list(_entries(labels if labels.dtype == object else y))
        texts = sum(isinstance(label, str) for label in entries)
        if labels.dtype.kind in "UO" and entries and 0 < texts < len(entries):
            raise ConfigError(("y", "mixes strings with other labels: use labels of one type"))
        check_exact_labels(labels, "y")
        classes, inverse = np.unique(labels, return_inverse=True)
        check_distinct_labels(classes)
        indices = torch.as_tensor(inverse).reshape(labels.shape)
    if len(classes) < 2:
        raise ConfigError(("y", f"must be labels of at least 2 classes (got {len(classes)})"))
    return classes, indices.to(spec.device)


def check_distinct_labels(classes: Any) -> None:
    """Raise ConfigError for two labels that differ only in spaces or in Unicode form."""
    texts = [name for name in classes if isinstance(name, str)]
    if pair := similar_names(texts):
        text = f"contains labels that differ only in spaces, Unicode form or .0, {pair}"
        text += ": use one spelling"
        raise ConfigError(("y", text))


def _entries(y: Any) -> Iterator[Any]:
    """Yield the labels of a nested sequence; nothing for an array, whose labels have one type."""
    for entry in () if isinstance(y, np.ndarray) and y.dtype != object else y:
        yield from _entries(entry) if isinstance(entry, list | tuple) else (entry,)


def _reshape_targets(y: Tensor, learner: Learner, x: Tensor, labels: bool) -> Tensor:
    """Return the targets in the shape of the outputs. Raises ConfigError for another shape."""
    params = {name: value.to(x.device) for name, value in learner.init(fold_in(0)).items()}
    with torch.no_grad():
        outputs = list(learner.apply(params, x[:2]).shape[1:])
    expected = outputs[:-1] if labels and learner.readout != "none" else outputs
    if labels and learner.readout == "none":
        expected = []  # outputs are features
    if list(y.shape[1:]) == expected:
        return y
    if not labels and y.dim() == 1 and expected == [1]:
        return y.unsqueeze(-1)
    shape = "".join(f", {size}" for size in expected)
    hint = ""
    if labels and y.dim() == 2:
        hint = ": y[:, 0] has" if y.shape[1] == 1 else ": one-hot rows are labels by y.argmax(1)"
    raise ConfigError(("y", f"must have shape [B{shape}] (got {list(y.shape)}){hint}"))


def _to_type_of(values: Tensor, like: Any) -> Any:
    """Return a tensor if `like` is one, else a numpy array."""
    return values if isinstance(like, Tensor) else values.cpu().numpy()
