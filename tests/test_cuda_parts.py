"""What a CUDA device asks of the rest of the program, checked without one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small import tiny

from metalearn.algorithms import MAML
from metalearn.config import signature
from metalearn.distributed import launch, ranks
from metalearn.distributed.world import World
from metalearn.errors import ConfigError, Diverged, RankLost
from metalearn.evaluate.curves import fingerprint
from metalearn.evaluate.ledger import CostLedger
from metalearn.executors import auto
from metalearn.executors.timings import ExecutorChoice, Timing
from metalearn.learned_optimizers import LearnToOptimize
from metalearn.logger import log
from metalearn.machine import device_of, finishes, prepare_device
from metalearn.models import MLP
from metalearn.models.norm import Norm, batch_normalised
from metalearn.nas import MLPReg, SharedNAS
from metalearn.nas.shared import SharedSearch
from metalearn.rng import fold_in
from metalearn.run import loop
from metalearn.tasks import Sinusoid
from metalearn.tasks.mixture import MixtureSource
from metalearn.tasks.sinusoid import SinusoidSource
from metalearn.variable_tasks import VariableSource


def cards(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def work_on_cuda(method: Any, steps: int) -> auto.Work:
    key = fold_in(0)
    sizes = 32, "cuda", steps, 32
    return auto.Work(method, lambda key, count, first: None, key, method.init(key), *sizes)


def test_a_device_that_is_not_there_is_named_with_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards(monkeypatch, 2)
    assert device_of("cuda:1") == "cuda:1" and device_of("auto") == "cuda"
    with pytest.raises(ConfigError, match="the last of 2 CUDA devices is cuda:1"):
        device_of("cuda:2")


def test_speeds_are_stored_for_the_code_of_every_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step through a captured graph depends on all of it."""
    read, inner = set[str](), Path.read_bytes

    def watched(path: Path) -> bytes:
        read.add(f"{path.parent.name}/{path.name}")
        return inner(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    signature._code.__wrapped__()
    assert {"executors/cuda_graphs.py", "executors/simplify.py", "kernels/conv.py"} <= read


def test_a_numbered_device_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else graphs are captured on device 0, while the kernels go to this one."""
    chosen: list[str] = []
    before: Any = torch.backends
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(before, "fp32_precision", before.fp32_precision)
    monkeypatch.setattr(before.cudnn, "deterministic", before.cudnn.deterministic)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for part in (before.cuda.matmul, before.cudnn.conv):
        part.fp32_precision = "tf32"  # as other code may have left it
    prepare_device("cpu")
    prepare_device("cuda:1")
    prepare_device("cuda")
    assert chosen == ["cuda:1"]
    assert before.cudnn.conv.fp32_precision == before.cuda.matmul.fp32_precision == "ieee"
    assert before.cudnn.allow_tf32 is before.cuda.matmul.allow_tf32 is False  # can be read


def test_the_ledger_waits_for_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: waited.append(device))
    monkeypatch.setattr("metalearn.evaluate.ledger.peak_bytes", lambda device: None)
    monkeypatch.setattr("metalearn.evaluate.ledger.energy_joules", lambda device: None)
    with CostLedger("cuda:1").span("adapt"):
        pass
    assert set(waited) == {("cuda:1",)}


@pytest.mark.parametrize(("steps", "worth"), [(2_000, False), (60_000, True)])
def test_a_compiled_graph_is_tried_after_a_graph_in_long_runs(steps: int, worth: bool) -> None:
    """A step of 35 ms, 4 ms as a graph: what is expected of Conv4-64."""
    work, vmap, graph = work_on_cuda(tiny(), steps), *map(ExecutorChoice, ("vmap", "graph"))
    trials = auto.ExecutorTrials(vmap, stored={vmap: Timing(0.1, 0.035), graph: Timing(3.0, 0.004)})
    assert auto._worth_compiling(work, ExecutorChoice("compiled_graph"), trials) is worth


def test_steps_of_a_long_loop_are_captured() -> None:
    source = Sinusoid(shots=5, queries=4).build()
    method = LearnToOptimize().build(MLP(sizes=(6,)).build(source.spec), source.spec)
    assert method.traits.step_invariant
    names = [choice.executor for choice in auto._compiled(work_on_cuda(method, 1000), None)]
    assert names == ["graph", "compiled_steps"]


def test_processes_are_asked_for_cards_where_the_run_is_on_cuda_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cards(monkeypatch, 1)
    two = ranks.Ranks(World(0, 2, 0, 2))
    assert not ranks.has_card_each(2) and ranks.has_card_each(1)
    ranks.check_cards(two, "cpu")
    ranks.check_cards(ranks.ALONE, "cuda")
    with pytest.raises(ConfigError, match="2 processes on a machine with 1 CUDA devices"):
        ranks.check_cards(two, "cuda")
    monkeypatch.setenv(ranks.SHARE_CARD, "1")
    ranks.check_cards(two, "cuda")


def test_a_sum_is_awaited_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL raises nothing where another process dies in a sum: its kernel never ends."""
    allowed: list[float] = []

    def never(device: str, seconds: Callable[[], float]) -> bool:
        allowed.append(seconds())
        return False

    monkeypatch.setattr(ranks, "finishes", never)
    one = ranks.Ranks(World(0, 2, 0, 2))
    for one.signalled in (False, True):
        one._flags = torch.zeros(())
        with pytest.raises(RankLost, match="another process of this run has ended"):
            one.stopping()
    assert allowed == [ranks.ANSWER.total_seconds(), ranks.SIGNALLED]


@pytest.mark.parametrize("count", [1, 2])
def test_processes_join_by_their_cpus_where_cards_are_too_few(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run on the CPU needs no card; `check_cards` refuses one on CUDA."""
    found: list[Any] = []
    cards(monkeypatch, count)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **rest: found.append(backend))
    monkeypatch.setattr(dist, "new_group", lambda **rest: None)
    ranks.join(World(1, 2, 1, 2))
    assert found == (["gloo"] if count == 1 else [1, "cpu:gloo,cuda:nccl"])


@pytest.mark.parametrize("error", [None, Diverged("step 3"), RankLost("rank 1")])
def test_processes_disconnect_before_python_ends(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of gloo can abort Python's exit; if a rank was lost, disconnecting might wait."""
    monkeypatch.setenv("METALEARN_MEETING", str(tmp_path / "meeting"))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with (
        nullcontext() if error is None else pytest.raises(type(error)),
        ranks.joined(World(0, 1, 0, 1)),
    ):
        assert dist.is_initialized()
        if error is not None:
            raise error
    assert dist.is_initialized() is isinstance(error, RankLost)
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_joining_is_a_sentence(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(here: World) -> None:
        raise ConfigError(("--devices", "too few"))

    monkeypatch.setattr(launch, "_joined", refused)
    monkeypatch.setattr(log, "disabled", False)
    with pytest.raises(SystemExit) as end:
        launch._member(World(rank, 2, rank, 2), lambda joined: None)
    assert end.value.code == 2


@pytest.mark.parametrize("ends", [True, False])
def test_the_work_of_a_device_is_awaited_for_a_limited_time(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an event that is asked for, as waiting for it has no limit."""

    class Event:
        asked, recorded = 0, False

        def record(self) -> None:
            self.recorded = True

        def query(self) -> bool:
            self.asked += 1
            return ends and self.asked > 2

        def synchronize(self) -> None:
            pytest.fail("waits without a limit")

    event = Event()
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "synchronize", event.synchronize)
    assert finishes("cuda", lambda: 0.01 if not ends else 60.0) is ends
    assert event.recorded


def test_the_end_of_a_span_does_not_wait_where_a_process_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: waited.append(device))
    monkeypatch.setattr("metalearn.evaluate.ledger.peak_bytes", lambda device: None)
    monkeypatch.setattr("metalearn.evaluate.ledger.energy_joules", lambda device: None)
    ledger = CostLedger("cuda")
    with pytest.raises(RankLost), ledger.span("meta_train"), ledger.span("compile"):
        waited.clear()
        raise RankLost("rank 0: another process of this run has ended")
    assert not waited


def test_a_process_that_has_lost_another_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own end may wait for the sum that will never be complete."""

    def lost(joined: Any) -> None:
        raise RankLost("rank 0: another process of this run has ended")

    def end(code: int) -> None:
        raise KeyboardInterrupt(code)

    monkeypatch.setattr(launch, "_joined", lambda here: nullcontext())
    monkeypatch.setattr(launch.os, "_exit", end)
    with pytest.raises(KeyboardInterrupt, match="1"):
        launch._member(World(0, 2, 0, 2), lost)


@pytest.mark.parametrize("ends", [True, False])
def test_a_state_that_waits_for_a_dead_process_is_not_saved(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it would hang; the newest checkpoint is whole."""
    saved: list[int] = []
    monkeypatch.setattr(loop, "finishes", lambda device, seconds: ends)
    monkeypatch.setattr(loop, "write_checkpoint", lambda job, done, *rest: saved.append(done))
    job: Any = SimpleNamespace(
        parts=SimpleNamespace(device="cuda"),
        ranks=SimpleNamespace(is_first=True),
        folder=Path("runs/x"),
    )
    state: Any = SimpleNamespace(lanes=None)
    with (
        pytest.raises(RankLost, match="metalearn resume"),
        loop._save_if_rank_lost(job, 4, state, (), (0, {}, [])),
    ):
        raise RankLost("rank 0: another process of this run has ended")
    assert saved == ([4] if ends else [])


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "plain": lambda source: source,
    "variable": lambda source: VariableSource(source, {"shots": (3, 500)}),
    "mixture": lambda source: MixtureSource({"one": source, "two": source}),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_episodes_of_another_device_have_the_same_fingerprint(
    wrap: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sines differ in the last bit, which moves some numbers over an edge of rounding."""
    source = wrap(Sinusoid(shots=500, queries=4).build())
    points = SinusoidSource._points

    def drawn(self: SinusoidSource, keys: torch.Tensor, count: int) -> Any:
        x, y, rest = points(self, keys.cpu(), count)
        there = self.spec.device != "cpu"
        return x, torch.nextafter(y, torch.full_like(y, 9.0)) if there else y, rest

    expected = fingerprint(source, 1)
    monkeypatch.setattr(SinusoidSource, "_points", drawn)
    other = wrap(Sinusoid(shots=500, queries=4).build(device="meta"))
    assert fingerprint(other, 1) == fingerprint(source, 1) == expected


def test_statistics_of_bfloat16_activations_are_in_float32() -> None:
    x = (100 + torch.linspace(-1, 1, 4096).view(1024, 4)).to(torch.bfloat16)
    norm = Norm(4, "query_batch", channels_last=True)
    exact = norm(x.float())
    for found in (norm(x), batch_normalised(x, norm.weight, norm.bias)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, exact)


def test_a_shared_search_waits_as_often_for_many_steps_as_for_few() -> None:
    """The ends of a span wait for the device; the cost of a step is written for each of them."""
    source = Sinusoid(shots=5, queries=4).build()
    space, found = MLPReg().build(source.spec), []
    method = MAML().build(space.learner(space.default), source.spec)
    for steps in (2, 5):
        ledger, ticks = CostLedger(), list[None]()
        start = ledger._start
        ledger._start = lambda start=start, ticks=ticks: ticks.append(start())  # type: ignore[method-assign, misc]
        options = SharedNAS(space=MLPReg(), search_tasks=2)
        search = SharedSearch(options, space, MAML(), source, fold_in(0), ledger)
        search._meta_train(method, steps)
        found.append((len(ticks), ledger.totals()["search"]))
    (few, two), (many, five) = found
    assert few == many
    for name in ("gradient_steps", "examples", "labels", "flops", "flops_elementwise"):
        assert two[name] / 2 == five[name] / 5 > 0
