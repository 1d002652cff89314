"""The tests of `make test-thorough`: long variants of what a shorter test of `make test` shows.

Each entry is a pattern of test ids, without the folder, and the shorter test that stays in
`make test`. `.ci/run` runs both."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# methods whose compiled step stays in `make test`
COMPILED = "maml|reptile|anil|proto_net|fine_tune|conditional_neural_process"
# checks that compile a step
COMPILES = "(compiled_equals_eager|the_second_call_compiles_nothing)"
# methods that take more than five seconds to learn
SLOW_TO_LEARN = "per_task_nas|shared_nas|imaml_hessian_free|logistic_regression|learned_optimizer"
SLOW_TO_LEARN += "|learn_optimizer|rfs|rfs_distill|snail"


class Entry(NamedTuple):
    tests: str  # a regular expression for the whole id, `file::test[parameters]`
    shorter: str  # what stays in `make test`


THOROUGH = (
    Entry(
        rf"test_methods\.py::test_every_method\[(?!({COMPILED})-)\w+-{COMPILES}\]",
        f"the same for {COMPILED}; every method eagerly",
    ),
    Entry(
        rf"test_methods\.py::test_every_method\[({SLOW_TO_LEARN})-it_learns\]",
        "the same for all other methods; all other checks of these",
    ),
    Entry(
        rf"test_reptile_slots\.py::test_the_common_suite\[reptile-{COMPILES}\]",
        "all other checks; both of Reptile with zero slots in test_methods.py",
    ),
    Entry(
        r"test_ledger\.py::test_every_method_is_counted.*"
        r"\[(rfs|rfs_distill|imaml_hessian_free|logistic_regression)\]",
        "the same for all other methods",
    ),
    Entry(
        r"test_curves\.py::test_step_0_knows_nothing\[(per_task_nas|meta_nas)\]",
        "the same for all other methods",
    ),
    Entry(
        r"test_running_statistics\.py::test_compiled_training_leaves.*",
        "the same for uncompiled executors; MAML compiled in test_methods.py",
    ),
    Entry(
        r"test_running_statistics\.py::test_pieces_move_the_averages.*\[traced-.*",
        "the same for the other executors",
    ),
    Entry(
        r"test_experiments\.py::test_three_steps_of_every_row_of_a_comparison\[(?!demo\]).*",
        "every row of the demonstration; three steps of every other file",
    ),
    Entry(
        r"test_experiments\.py::test_three_steps_and_two_new_tasks\["
        r"(mixture_drawings|imaml_hessian_free_omniglot_20w.s|lite0_cifar_fs)\]",
        "three steps of every other file",
    ),
    Entry(
        r"test_experiments\.py::test_three_steps_and_two_new_tasks\[(?!maml_).*"
        r"_(20w1s|20w5s|5w5s)(_cpu|_train_20w)?\]",
        "the file of the same method with 5 ways and 1 shot",
    ),
    Entry(r"test_wheel\.py::.*", "`make wheel`, which `.ci/run` runs by itself"),
    Entry(
        r"test_docs\.py::test_the_commands_run_in_order",
        "every block of Python; the commands one by one in test_cli*.py",
    ),
    Entry(r"test_docs\.py::test_the_notebooks_run\[(2|3|4)_.*", "the first notebook"),
    Entry(
        r"test_auto\.py::test_a_compiled_run_resumes_bit_for_bit",
        "uncompiled runs in test_resume.py; compiled steps in test_executors.py",
    ),
    Entry(
        r"test_fairness\.py::test_what_the_second_test_took.*",
        "the second test of ProtoNet in the same file",
    ),
    Entry(
        r"test_fairness\.py::test_a_transductive_row.*\[(maml|fine_tune)\]", "the same of ProtoNet"
    ),
    Entry(
        r"test_nas_runs\.py::test_(every_row|a_search_is|a_search_that|a_finished|the_found"
        r"|what_cand|the_second|seeds_draw).*",
        "searches in test_nas_methods.py; the other tests of that file",
    ),
    Entry(
        r"test_fine_tuning\.py::test_learning_is_one_graph_for_the_compiler.*",
        "compiled learning of other methods in test_methods.py",
    ),
    Entry(
        r"test_estimators\.py::test_ten_thousand_inner_steps.*",
        "the gradients of the same windows in that file",
    ),
    Entry(
        r"test_rng\.py::test_the_compiled_generator_equals_eager_at_odd_sizes",
        "compiled sampling in test_executors.py",
    ),
    Entry(
        r"test_zoo_gradients\.py::test_meta_gradients_of_compiled_steps.*",
        "the zoo under vmap, chunk and traced",
    ),
    Entry(
        r"test_sweep\.py::(test_workers_as_jobs_of_a_cluster|test_workers_of_one_command)",
        "killed workers of a sweep, which lose nothing",
    ),
    Entry(r"test_fuzz\.py::test_no_input_gives_a_traceback.*\[run directory\]", "the other inputs"),
    Entry(r"test_l2o\.py::test_the_command_from_end_to_end", "the other tests of that file"),
    Entry(
        r"test_timing\.py::test_(medians|compilation|a_finished|an_interrupted|another_row"
        r"|each_round).*",
        "the rules for seconds in test_comparison_cost.py",
    ),
    Entry(r"test_simplify\.py::test_a_list_goes_with_who_made_it", "the other tests of that file"),
    Entry(
        r"test_resume\.py::test_other_methods_and_tuning_survive_kills.*",
        "MAML killed at random moments",
    ),
    Entry(r"test_account_runs\.py::test_a_(kill|signal)_.*", "the other tests of that file"),
    Entry(
        r"test_rows\.py::test_two_processes_share_the_rows_and_come_to_the_same",
        "one of two processes is killed and the other runs all rows",
    ),
    Entry(
        r"test_report\.py::test_an_earlier_comparison_says.*\[(?!1-).*",
        "the page of one earlier rule",
    ),
    Entry(
        r"test_in_context\.py::test_(sinusoids|classes)_are_learned_in_context.*",
        "it_learns of these methods in test_methods.py",
    ),
    Entry(
        r"test_track\.py::test_(runs_of_a_comparison_share|a_key_and_no_server).*",
        "a run's tracker",
    ),
    Entry(
        r"test_plugins\.py::test_workers_of_a_sweep_know_the_plugins.*",
        "the other tests of that file",
    ),
    Entry(
        r"test_distributed_signals\.py::test_torchrun_starts_it_too", "the command's own launcher"
    ),
    Entry(
        r"test_report_cost\.py::test_searches_are_held_to_their_controls.*",
        "the other parts of the page",
    ),
    Entry(
        r"test_learned_optimizers\.py::test_(starts_come_from_other_rows|the_report_tells_start).*",
        "starts from other rows in test_account_runs.py",
    ),
    Entry(r"test_conv\.py::test_without_a_kernel_torch_gives.*", "convolutions with the kernel"),
    Entry(
        r"test_bench\.py::test_the_check_of_memory_and_the_curve", "the other tests of that file"
    ),
)


def is_thorough(test_id: str) -> bool:
    """Whether a test, as `tests/file.py::test[parameters]`, is one of `make test-thorough`."""
    return any(re.fullmatch(entry.tests, _name(test_id)) for entry in THOROUGH)


def stale(test_ids: Iterable[str]) -> list[str]:
    """The patterns that match no test, of the files that these tests are all tests of."""
    names = [_name(test_id) for test_id in test_ids]
    files = {name.partition("::")[0] for name in names}
    return [
        entry.tests
        for entry in THOROUGH
        if entry.tests.partition("::")[0].replace("\\", "") in files
        and not any(re.fullmatch(entry.tests, name) for name in names)
    ]


def _name(test_id: str) -> str:
    return test_id.removeprefix("tests/")
