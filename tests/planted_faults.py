"""The faults that CUDA support once had, each as edits that put it back, and the tests that see it.

`make plant-faults` plants them one after another in a copy of the package (plant_faults.py)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Edit(NamedTuple):
    """A change of one file that puts a fault, or a part of it, back."""

    file: str  # below metalearn/
    mended: str  # text that stands there once
    fault: str  # what replaces it


class Fault(NamedTuple):
    """A fault of the first version, in the terms of today's code."""

    number: int
    text: str
    edits: tuple[Edit, ...]
    emulated: tuple[str, ...] = ()  # tests that must fail, of those that need a CUDA device
    plain: tuple[str, ...] = ()  # and of those that need none


class Misplaced(AssertionError):
    """The text that an edit replaces does not stand in its file exactly once."""


def plant(fault: Fault, package: Path) -> dict[Path, str]:
    """The files of a package that a fault changes, with their new text."""
    texts: dict[Path, str] = {}
    for file, mended, replacement in fault.edits:
        path = package / file
        text = texts.get(path) or path.read_text("utf-8")
        if text.count(mended) != 1:
            found = f"stands {text.count(mended)} times in {file}"
            raise Misplaced(f"fault {fault.number}: this text {found}:\n{mended}")
        texts[path] = text.replace(mended, replacement)
    return texts


LEARNS = "tests/test_cuda.py::test_a_device_learns_as_the_cpu_does"
NEVER_WAITS = "tests/test_cuda.py::test_executors_give_the_numbers_of_the_cpu_and_never_wait"
RUNS = "tests/test_cuda_runs.py::test_"
PARTS = "tests/test_cuda_parts.py::test_"
SHARED_SEARCH = "tests/test_cuda_shared_search.py::test_"

FAULTS = (
    Fault(
        1,
        "The parameters of a learned rule lie where the key lies, on the CPU, and not on the "
        "device of the tasks.",
        (
            Edit(
                "learned_optimizers/learn_to_optimize.py",
                "learned.init(fold_in(key.to(spec.device), THETA))",
                "learned.init(fold_in(key, THETA))",
            ),
            Edit(
                "learned_optimizers/learn_optimizer.py",
                "learned.init(key.to(spec.device)), outer",
                "learned.init(key), outer",
            ),
            Edit(
                "learned_optimizers/learn_optimizer.py",
                "            key = key.to(spec.device)\n            zero =",
                "            zero =",
            ),
        ),
        emulated=(f"{LEARNS}[learned-meta]", f"{LEARNS}[learn-lstm]"),
    ),
    Fault(
        2,
        "A trial of `auto` captures the graph that the run replays outside of the block that "
        "sets TF32.",
        (
            Edit(
                "executors/auto.py",
                "with_run_options(train_step, self.precision, self.on_nan)",
                'with_run_options(train_step, "float32", self.on_nan)',
            ),
        ),
        emulated=(f"{RUNS}a_trial_of_auto_captures_in_the_precision_of_the_run[tf32-tf32]",),
    ),
    Fault(
        3,
        "Nothing makes float32 IEEE on CUDA: torch's default for convolutions is TF32.",
        (
            Edit(
                "machine.py",
                "    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False\n",
                "",
            ),
            Edit("machine.py", 'part.fp32_precision = "none"', "pass"),
            Edit("machine.py", '    backends.fp32_precision = "ieee"\n', ""),
        ),
        emulated=(f"{RUNS}a_trial_of_auto_captures_in_the_precision_of_the_run[float32-ieee]",),
        plain=(f"{PARTS}a_numbered_device_becomes_the_current_one",),
    ),
    Fault(
        4,
        "On cuda:1 graphs are captured and replayed on the current device, 0, where they record "
        "nothing, and the ledger waits for device 0.",
        (
            Edit(
                "machine.py",
                '    if ":" in device:\n        torch.cuda.set_device(device)\n',
                "",
            ),
            Edit(
                "evaluate/ledger.py",
                "torch.cuda.synchronize(self.device)",
                "torch.cuda.synchronize()",
            ),
            Edit("executors/cuda_graphs.py", "with torch.cuda.device(device), torch", "with torch"),
            Edit(
                "executors/cuda_graphs.py",
                "        with torch.cuda.device(device):\n            _copy(inputs, new_inputs)",
                "        if True:\n            _copy(inputs, new_inputs)",
            ),
            Edit(
                "executors/cuda_graphs.py",
                "        _check_replay(graph, outputs, expected, repeated)\n",
                "",
            ),
        ),
        emulated=(
            f"{RUNS}a_capture_that_records_nothing_is_refused",
            f"{RUNS}a_graph_is_captured_and_replayed_on_the_device_of_its_tensors",
        ),
        plain=(
            f"{PARTS}a_numbered_device_becomes_the_current_one",
            f"{PARTS}the_ledger_waits_for_its_own_device",
        ),
    ),
    Fault(
        5,
        "Methods whose inner steps are alike get `compiled_steps` alone from `auto`, on CUDA, "
        "too: learned optimizers are never captured.",
        (
            Edit(
                "executors/auto.py",
                '    if work.device.startswith("cuda") and fits:\n',
                "    if long:\n"
                '        choices = [ExecutorChoice("compiled_steps")] if fits else []\n'
                '    elif work.device.startswith("cuda") and fits:\n',
            ),
        ),
        plain=(f"{PARTS}steps_of_a_long_loop_are_captured",),
    ),
    Fault(
        6,
        "`auto` expects the same gain of a graph and of a compiled graph, so that it never tries "
        "the second after the first.",
        (
            Edit("executors/auto.py", "return 3.0 + 5 * step, 5.0", "return 3.0 + 5 * step, 2.0"),
            Edit("executors/auto.py", "return 60.0, 15.0", "return 60.0, 2.0"),
        ),
        plain=(f"{PARTS}a_compiled_graph_is_tried_after_a_graph_in_long_runs[60000-True]",),
    ),
    Fault(
        7,
        "`tree_map` calls its function with the None of a state without lanes: the copy of the "
        "state in the test of CUDA executors raises TypeError.",
        (
            Edit(
                "tree.py",
                "lambda leaf, *others: None if leaf is None else function(leaf, *others)",
                "lambda leaf, *others: function(leaf, *others)",
            ),
        ),
        emulated=("tests/test_executors.py::test_cuda_executors_are_equal_and_never_wait[vmap]",),
    ),
    Fault(
        8,
        "`sized_mlp` draws its weights where the key lies, on the CPU, and its masks on the "
        "device.",
        (
            Edit(
                "models/sized_mlp.py",
                "            key = key.to(spec.device)\n",
                "",
            ),
        ),
        emulated=(f"{LEARNS}[sized_mlp]",),
    ),
    Fault(
        9,
        "Each draw of a landscape copies an identity matrix from the host, which a capture does "
        "not allow.",
        (
            Edit(
                "tasks/landscapes.py",
                "torch.eye(size, dtype=spec.dtype, device=spec.device)",
                "torch.eye(size, dtype=spec.dtype).to(spec.device)",
            ),
        ),
        emulated=(f"{NEVER_WAITS}[rosenbrock]",),
    ),
    Fault(
        10,
        "Too few cards are found while the processes join, outside of the block that writes a "
        "sentence, and cards are demanded of runs on the CPU, too.",
        (
            Edit(
                "distributed/launch.py",
                "with exit_codes(), _joined(here) as ranks:\n",
                "with _joined(here) as ranks, exit_codes():\n",
            ),
            Edit(
                "distributed/launch.py",
                "with exit_codes(), _joined(here) as ranks, ranks.listening():\n",
                "with _joined(here) as ranks, exit_codes(), ranks.listening():\n",
            ),
            Edit(
                "distributed/ranks.py",
                "    if cards:\n        torch.cuda.set_device(world.local_rank)\n",
                "    if cards:\n        torch.cuda.set_device(world.local_rank)\n"
                "    elif torch.cuda.is_available():\n"
                '        raise ConfigError(("--devices", "more processes than CUDA devices"))\n',
            ),
        ),
        plain=(
            f"{PARTS}processes_join_by_their_cpus_where_cards_are_too_few",
            f"{PARTS}an_error_of_joining_is_a_sentence",
        ),
    ),
    Fault(
        11,
        "A process whose sum never ends, as another one has died, waits for it without a limit: "
        "in the step, at the end of a span, before it saves, and when Python exits.",
        (
            Edit(
                "distributed/ranks.py",
                "        self._await(self._flags)\n",
                "",
            ),
            Edit("evaluate/ledger.py", "            self._lost = True\n", ""),
            Edit(
                "run/loop.py",
                "job.ranks.is_first and ended:",
                "job.ranks.is_first:",
            ),
            Edit(
                "distributed/launch.py",
                "            _end_at_once(1)\n",
                "            pass\n",
            ),
            Edit(
                "machine.py",
                "    while not event.query():\n"
                "        if time.monotonic() - begin > seconds():\n"
                "            return False\n"
                "        time.sleep(PAUSE)\n",
                "    event.synchronize()\n",
            ),
        ),
        plain=(
            f"{PARTS}a_sum_is_awaited_for_a_limited_time",
            f"{PARTS}the_end_of_a_span_does_not_wait_where_a_process_is_gone",
            f"{PARTS}a_process_that_has_lost_another_ends_at_once",
            f"{PARTS}a_state_that_waits_for_a_dead_process_is_not_saved[False]",
            f"{PARTS}the_work_of_a_device_is_awaited_for_a_limited_time",
        ),
    ),
    Fault(
        12,
        "After a capture that cannot end, the stream of the capture stays the current one.",
        (
            Edit(
                "executors/cuda_graphs.py",
                "with torch.cuda.device(device), torch.cuda.stream("
                "torch.cuda.current_stream(device)):",
                "with torch.cuda.device(device):",
            ),
        ),
        emulated=(f"{RUNS}a_capture_that_cannot_end_leaves_the_stream_as_it_was",),
    ),
    Fault(
        13,
        "On CUDA the bias of a convolution is added before the batch's mean removes it, and Adam "
        "turns its gradient, rounding noise, into steps.",
        (
            Edit(
                "models/conv4.py",
                "shift = norm.bias if conv.bias is None else _beside(norm.bias, conv.bias)\n"
                "                z = conv2d(z, conv.weight, None, stride)\n",
                "shift = norm.bias\n"
                "                z = conv2d(z, conv.weight, conv.bias, stride)\n",
            ),
        ),
        emulated=("tests/test_cuda.py::test_a_bias_that_the_mean_removes_is_never_moved",),
    ),
    Fault(
        14,
        "A fingerprint hashes rounded numbers that a device has computed, whose sines differ from "
        "those of the CPU in the last bit.",
        (
            Edit(
                "evaluate/curves.py",
                '    if source.spec.device != "cpu":\n'
                '        source = getattr(source, "on_cpu", lambda: source)()\n',
                "",
            ),
        ),
        emulated=(f"{RUNS}episodes_of_a_device_have_the_fingerprint_of_the_cpu",),
        plain=(f"{PARTS}episodes_of_another_device_have_the_same_fingerprint",),
    ),
    Fault(
        15,
        "Every initial state of a learned rule copies its horizon from the host, which waits, and "
        "a learned optimizer makes an initial state in each step.",
        (
            Edit(
                "learned_optimizers/rules/learned_rule.py",
                "horizon.to(count) if isinstance(horizon, Tensor) "
                "else torch.full_like(count, horizon)",
                "torch.as_tensor(horizon, dtype=like.dtype, device=like.device)",
            ),
            Edit(
                "learned_optimizers/torch_optimizer.py",
                "if stored is None or like is None:",
                "if True:",
            ),
        ),
        emulated=(
            f"{NEVER_WAITS}[learned-lstm]",
            f"{RUNS}a_learned_optimizer_steps_without_a_wait",
        ),
        plain=("tests/test_learned_optimizer_torch.py::test_the_state_is_initialized_once",),
    ),
    Fault(
        16,
        "Every pass of a supernet copies the widths of its layers from the host, which waits.",
        (
            Edit(
                "nas/spaces/ops.py",
                "torch.stack([units < width for width in widths])",
                "units < torch.tensor(widths, device=like.device).unsqueeze(-1)",
            ),
        ),
        emulated=("tests/test_cuda.py::test_a_pass_of_a_supernet_never_waits",),
    ),
    Fault(
        17,
        "Each meta-step of a shared search is an eager call in a span of its own, whose ends wait "
        "for the device.",
        (
            Edit(
                "nas/shared.py",
                '        with self.searching.span("search", **remaining):\n'
                "            for number in range(1, steps):\n"
                "                state, _ = step(state, number)\n",
                "        for number in range(1, steps):\n"
                '            data = sample(fold_in(self.key, "train", number), size)\n'
                '            state, _ = self.searching.run("search", method.step, state, data, '
                "**counts)\n",
            ),
        ),
        emulated=(f"{SHARED_SEARCH}captured_candidates_get_the_scores_of_eager_ones[False]",),
        plain=(f"{PARTS}a_shared_search_waits_as_often_for_many_steps_as_for_few",),
    ),
    Fault(
        18,
        "environment.json has neither the versions of CUDA, cuDNN and driver nor the flags of "
        "precision.",
        (
            Edit(
                "storage/environment.py",
                '        **({"cuda": cuda_facts(device)} if cuda else {}),\n',
                "",
            ),
        ),
        emulated=(f"{RUNS}a_run_records_card_versions_and_flags",),
    ),
    Fault(
        19,
        "cuDNN may choose kernels that add by atomic operations, whose results differ from run to "
        "run.",
        (Edit("machine.py", "    torch.backends.cudnn.deterministic = True\n", ""),),
        emulated=(f"{RUNS}a_run_records_card_versions_and_flags",),
    ),
    Fault(
        20,
        "The hash of the code under which speeds are stored leaves the executors out, so that "
        "speeds outlive changes of captured graphs.",
        (Edit("config/signature.py", '        "executors",\n', ""),),
        plain=(f"{PARTS}speeds_are_stored_for_the_code_of_every_executor",),
    ),
)
