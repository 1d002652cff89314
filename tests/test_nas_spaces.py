"""Search spaces: their neighbours, refusals, and their convolution."""

from __future__ import annotations

import pytest
import torch
from nas_tasks import F64, image_spec
from test_nas import IMAGES, REGRESSION, inputs

from metalearn.errors import ConfigError
from metalearn.executors.simplify import interpret_simplified
from metalearn.executors.trace import specialize_by_shape, trace
from metalearn.kernels import native
from metalearn.nas import SPACES, Architecture, Conv4Micro, Conv4Size, MLPReg, NB201Conv4
from metalearn.nas.spaces.ops import conv2d
from metalearn.nas.spaces.space import classes, genotype_at, genotypes, mutate, shuffled
from metalearn.rng import fold_in, normal

# walking about, and refusals


def test_shuffled_gives_every_class_once_in_an_order_of_its_key() -> None:
    space = Conv4Micro().build(IMAGES, "none")
    first, second = (list(shuffled(space, fold_in(seed))) for seed in (0, 1))
    assert first == list(shuffled(space, fold_in(0))) and first != second
    assert sorted(first) == sorted(second) == classes(space)
    assert [genotype_at(space, index) for index in range(125)] == list(genotypes(space))


def test_mutations_change_one_place_and_reach_all_neighbours() -> None:
    space = MLPReg().build(REGRESSION, "none")
    parent = (2, 1, 3, 1, 0, 1)
    found = {mutate(space, fold_in(0, number), parent) for number in range(400)}
    assert all(
        sum(a != b for a, b in zip(child, parent)) in (1, 2) and child != parent for child in found
    )
    assert all(child == space.canonical(child) for child in found)
    assert len(found) == 3 + 3 + 4 + 1 + 1 + 1


def test_spaces_refuse_tasks_that_they_cannot_learn() -> None:
    for component in (Conv4Micro(), NB201Conv4(), Conv4Size()):
        with pytest.raises(ConfigError, match="mlp-reg"):
            component.build(REGRESSION, "query_batch")
    for small in (Conv4Micro(downsample="pool"), Conv4Size(downsample="pool")):
        with pytest.raises(ConfigError, match="16 x 16"):
            small.build(image_spec(side=15), "query_batch")
    with pytest.raises(ConfigError, match="query_batch"):
        Conv4Size().build(IMAGES, "none")


@pytest.mark.parametrize("name", SPACES)
def test_spaces_are_components(name: str) -> None:
    made = SPACES[name]()
    assert made.name == name and SPACES[name].model_validate_json(made.model_dump_json()) == made  # type: ignore[attr-defined]
    assert all(info.description for info in SPACES[name].model_fields.values())


def test_an_architecture_is_a_model() -> None:
    genotype = (3, 1, 2)
    learner = Architecture(space=Conv4Micro(filters=2), genotype=genotype, norm="none").build(
        IMAGES
    )
    space = Conv4Micro(filters=2).build(IMAGES, "none")
    params, x = learner.init(fold_in(1)), inputs(IMAGES, 3)
    assert torch.equal(learner.apply(params, x), space.learner(genotype).apply(params, x))
    assert learner.normalisation == "none" and learner.outputs == 3
    with pytest.raises(ConfigError, match=r"model\.genotype"):
        Architecture(genotype=(9, 9, 9)).build(IMAGES)


@pytest.mark.skipif(native.kernel() is None, reason=f"no native convolution: {native.why_not()}")
@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_a_recorded_convolution_is_the_kernels_and_the_same(size: int, stride: int) -> None:
    shapes = ((2, 7, 7, 3), (4, 3, size, size), (4,))
    x, weight, bias = (normal(fold_in(0, place), shape, F64) for place, shape in enumerate(shapes))
    step = trace(conv2d, x, weight, bias, stride)
    names = {str(node.target) for node in step.graph.graph.nodes}
    assert "metalearn.conv.default" in names
    assert not any("aten.convolution" in name for name in names)
    got = step.graph(x, weight, bias, *step.constants)[0]
    torch.testing.assert_close(got, conv2d(x, weight, bias, stride), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("wrong", ["dtype", "channels"])
def test_a_recorded_convolution_refuses_what_does_not_fit(wrong: str) -> None:
    x, bias = torch.ones(2, 7, 7, 3), torch.ones(4)
    weight = torch.ones(4, 3, 3, 3, dtype=F64) if wrong == "dtype" else torch.ones(4, 2, 3, 3)
    with pytest.raises(RuntimeError):
        specialize_by_shape(conv2d, interpret_simplified)(x, weight, bias)


def test_a_compiled_cell_and_one_in_fewer_bits_take_torchs_convolution() -> None:
    x, weight, bias = torch.ones(2, 7, 7, 3), torch.ones(4, 3, 3, 3), torch.ones(4)
    expected = conv2d(x, weight, bias)
    found = torch.compile(conv2d, backend="eager", fullgraph=True)(x, weight, bias)
    torch.testing.assert_close(found, expected)

    def half(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return conv2d(x, weight, bias)

    recorded = specialize_by_shape(half, interpret_simplified)(x, weight, bias)
    assert recorded.dtype == half(x, weight, bias).dtype == torch.bfloat16
