"""Runs on a CUDA device: precision inside captured graphs, captures that fail or record nothing,
checkpoints that move between devices, what is recorded.

Run on a real card, or on an emulated one (test_cuda_emulated.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from commandline import sinusoid
from cuda_cases import METHODS, TASKS, draw_of, start_of
from test_cuda import check_equal, no_waits

from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.evaluate.curves import fingerprint
from metalearn.executors import cuda_graphs
from metalearn.executors.auto import Work
from metalearn.executors.timings import ExecutorChoice
from metalearn.learned_optimizers import LSTM
from metalearn.learned_optimizers.torch_optimizer import LearnedOptimizer
from metalearn.machine import finishes, prepare_device
from metalearn.rng import fold_in
from metalearn.run.run import run_one
from metalearn.storage import checkpoint
from metalearn.storage.environment import describe
from metalearn.tasks import Sinusoid
from metalearn.tasks.sinusoid import SinusoidSource

pytestmark = pytest.mark.gpu
GRAPH = ExecutorChoice("graph")


def work_of(precision: str = "float32") -> tuple[Work, Any]:
    source, method = METHODS["maml"].built("cuda", torch.float32)
    state, key = start_of(method), fold_in(0, "train")
    sizes = TASKS, "cuda", 100, TASKS
    return Work(method, draw_of(source, method), key, state, *sizes, precision=precision), state


def products() -> tuple[str, str]:
    """Formats of the products of matrices and of convolutions."""
    backends: Any = torch.backends
    return backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision


@pytest.mark.parametrize(("precision", "form"), [("float32", "ieee"), ("tf32", "tf32")])
def test_a_trial_of_auto_captures_in_the_precision_of_the_run(
    precision: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, capture = [], cuda_graphs._capture

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(products())
        return capture(*args, **options)

    monkeypatch.setattr(cuda_graphs, "_capture", watched)
    prepare_device("cuda")
    work, state = work_of(precision)
    made = work.make(GRAPH)
    made.step(state, made.step_input(0))
    assert seen == [(form, form)]
    assert products() == ("ieee", "ieee")


def test_a_capture_that_records_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card that is not the current one: every replay would give the first step's result."""
    work, state = work_of()
    made = work.make(GRAPH)
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: None)
    with pytest.raises(ConfigError, match="other results than the step itself"):
        made.step(state, made.step_input(0))


def test_a_graph_is_captured_and_replayed_on_the_device_of_its_tensors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which need not be the current one: what is captured elsewhere is empty."""
    current, found = list[Any](), list[Any]()
    graph, replay = torch.cuda.graph, torch.cuda.CUDAGraph.replay

    class Device(torch.cuda.device):
        def __init__(self, device: Any) -> None:
            super().__init__(device)
            self.chosen = torch.device(device)

        def __enter__(self) -> Any:
            current.append(self.chosen)
            return super().__enter__()

        def __exit__(self, *error: Any) -> Any:
            current.pop()
            return super().__exit__(*error)

    def captures(*args: Any, **options: Any) -> Any:
        found.append(("capture", *current[-1:]))
        return graph(*args, **options)

    def replays(one: Any) -> None:
        found.append(("replay", *current[-1:]))
        replay(one)

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "graph", captures)
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", replays)
    x = torch.ones(3, device="cuda")
    cuda_graphs.captured(lambda x: x + 1, compiling=False)(x)
    assert found == [("capture", x.device), *[("replay", x.device)] * 2]  # the check, and the call


def test_after_a_capture_that_fails_the_stream_is_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the next capture works."""

    def failing(traced: Any, tensors: Any) -> Any:
        def flat(*inputs: torch.Tensor) -> list[torch.Tensor]:
            return [inputs[0] * float(inputs[0].sum())]

        return flat

    before, x = torch.cuda.current_stream(), torch.ones(3, device="cuda")
    with monkeypatch.context() as patch, pytest.raises(Exception):  # noqa: B017  # torch's own
        patch.setattr(cuda_graphs, "interpret_shortened", failing)
        cuda_graphs.captured(lambda x: x + 1, compiling=False)(x)
    after = torch.cuda.current_stream()
    assert getattr(before, "cuda_stream", 0) == getattr(after, "cuda_stream", 0)
    run = cuda_graphs.captured(lambda x: x + 1, compiling=False)
    assert [run(x * n).tolist() for n in (1, 2)] == [[2.0] * 3, [3.0] * 3]


def test_a_capture_that_cannot_end_leaves_the_stream_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch.cuda.graph does not leave its stream where the end of the capture raises."""
    before = SimpleNamespace(wait_stream=lambda other: None)
    current: list[Any] = [before]

    @contextmanager
    def stream(wanted: Any) -> Iterator[None]:
        outer, current[0] = current[0], wanted
        try:
            yield
        finally:
            current[0] = outer

    class Broken:
        def __init__(self, graph: Any, stream: Any = None, **options: Any) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            current[0] = self.stream

        def __exit__(self, *error: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph", Broken)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: current[0])
    x = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="not permitted"):
        cuda_graphs.captured(lambda x: x + 1, compiling=False)(x)
    assert current == [before]


def test_a_graph_returns_inputs_constants_and_repeated_numbers_as_they_are() -> None:
    """What the check overwrites is the graph's own memory."""
    table = torch.arange(3.0, device="cuda")

    def function(x: torch.Tensor, n: torch.Tensor) -> Any:
        return x, table * 1, (x.sum()).expand(4), n > 1, n, x * torch.nan

    run = cuda_graphs.captured(function, compiling=False)
    for number in (1, 2):
        x, n = torch.full((3,), float(number), device="cuda"), torch.tensor(number, device="cuda")
        found, expected = run(x, n), function(x, n)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def test_a_graph_refuses_tensors_of_the_host() -> None:
    run = cuda_graphs.captured(lambda x, y: x + y, compiling=False)
    with pytest.raises(ConfigError, match="one CUDA device"):
        run(torch.ones((), device="cuda"), torch.ones(()))


def experiment(**run: Any) -> Any:
    settings = {"meta_steps": 6, "checkpoint_every": 3, "log_every": 2, "dtype": "float64", **run}
    return parse(sinusoid(run=settings)).experiments[0]


def with_run(folder: Path, **changes: Any) -> None:
    """Edit the section `run` of a run's config.yaml, as a user may."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["run"] |= changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("devices", [("cpu", "cuda", "cpu"), ("cuda", "cpu", "cuda")])
def test_a_run_goes_on_on_another_device(devices: tuple[str, ...], tmp_path: Path) -> None:
    """Three steps on each device in turn, under vmap on the CPU and as a graph on CUDA: the end of
    a run on the CPU alone, within rounding."""
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    run_one(experiment(device="cpu", executor="vmap", meta_steps=9), straight)
    for number, device in enumerate(devices, 1):
        executor = {"cpu": "vmap", "cuda": "graph"}[device]
        run = {"device": device, "executor": executor, "meta_steps": 3 * number}
        if number > 1:
            (moved / "result.json").unlink()
            with_run(moved, **run)
        run_one(experiment(**run), moved)
    one, other = (
        checkpoint.read(sorted(folder.glob("checkpoints/step-*.pt"))[-1])
        for folder in (straight, moved)
    )
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name].cpu(), value.cpu(), rtol=1e-7, atol=1e-9)


def test_episodes_of_a_device_have_the_fingerprint_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where its sines differ in the last bit, which moves some numbers over an edge of rounding."""
    points = SinusoidSource._points

    def drawn(self: SinusoidSource, keys: torch.Tensor, count: int) -> Any:
        x, y, rest = points(self, keys, count)
        return x, torch.nextafter(y, torch.full_like(y, 9.0)) if y.is_cuda else y, rest

    monkeypatch.setattr(SinusoidSource, "_points", drawn)
    task = Sinusoid(shots=500, queries=4)
    assert fingerprint(task.build(device="cuda"), 1) == fingerprint(task.build(), 1)


def test_a_run_records_card_versions_and_flags(tmp_path: Path) -> None:
    run_one(experiment(device="cuda", executor="graph", deterministic=True), tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())["cuda"]
    assert facts["card"] and facts["memory_bytes"] > 0
    assert {"driver", "cuda", "cudnn", "capability"} <= facts.keys()
    assert facts["float32_products"] == facts["float32_convolutions"] == "ieee"
    assert (
        facts["own_kernels"] and facts["cudnn_deterministic"] and facts["deterministic_algorithms"]
    )
    prepare_device("cuda")
    assert not describe("cuda")["cuda"]["deterministic_algorithms"]


def test_a_learned_optimizer_steps_without_a_wait() -> None:
    """A learned rule as torch's optimizer, on the device of the parameters: as on the CPU."""
    found = {}
    for device in ("cpu", "cuda"):
        rule, param = LSTM(hidden=4), torch.linspace(-1, 1, 6, dtype=torch.float64, device=device)
        theta = rule.build(torch.float64).init(fold_in(0, "theta"))
        param.requires_grad_()
        optimizer = LearnedOptimizer([param], rule, theta, num_steps=4)

        def step(param: Any = param, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            loss = param.square().sum()
            loss.backward()
            optimizer.step(loss=loss)

        step()
        if device == "cpu":
            step()
        else:
            with no_waits():
                step()
        found[device] = {"param": param.detach()}
    check_equal(found["cuda"], found["cpu"])


def test_a_device_that_works_is_told_from_one_that_hangs() -> None:
    if not hasattr(torch.cuda.Stream(), "cuda_stream"):
        pytest.skip("an emulated device has no events")
    torch.ones(8, device="cuda").sum()
    assert finishes("cuda", lambda: 10.0)
