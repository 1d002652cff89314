"""Bad input: exit code 2, every error at once with its place, no traceback, and nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Commands, console, files_of, refused, sinusoid, write
from PIL import Image

from metalearn.storage import checkpoint

GLYPHS: dict[str, Any] = {
    "task": {"source": "glyphs", "ways": 2, "shots": 1, "queries": 2},
    "model": {"name": "conv4", "filters": 4},
}


@pytest.fixture(scope="module")
def images(metalearn: Commands) -> Path:
    """Ten classes of six small drawings, in a folder of their own."""
    root = metalearn.folder / "animals"
    for number in range(10):
        (root / f"c{number}").mkdir(parents=True)
        for image in range(6):
            Image.new("L", (8, 8), 20 * number + image).save(root / f"c{number}" / f"{image}.png")
    return root


def own(images: Path, **task: Any) -> dict[str, Any]:
    values = {
        "source": "image_folder",
        "path": str(images),
        "channels": 1,
        "size": 8,
        "ways": 2,
        "queries": 1,
        **task,
    }
    run = {
        "meta_steps": 2,
        "tasks_per_step": 2,
        "executor": "vmap",
        "threads": 1,
        "validate": {"episodes": 2},
    }
    evaluate = {"episodes": 4, "steps": [0, 1]}
    model = {"name": "conv4", "filters": 4}
    sections = {"task": values, "model": model, "run": run, "evaluate": evaluate}
    return {**sections, "method": {"name": "maml"}}


@pytest.fixture(scope="module")
def run(metalearn: Commands, images: Path) -> Path:
    """A finished MAML run of two ways on the drawings."""
    done = metalearn("train", write(metalearn.folder, "animals", own(images)), "--out", "trained")
    assert done.code == 0, done.err
    return metalearn.folder / "trained"


def bad(
    metalearn: Commands,
    data: Any,
    *words: str,
    overrides: tuple[str, ...] = (),
    command: str = "train",
) -> str:
    """Refused with all the words; the folder is as it was. Returns the message. Its data folder
    is `data`."""
    file = write(metalearn.folder, "bad", data)
    before = files_of(metalearn.folder)
    away = dict.fromkeys(("HOME", "XDG_CACHE_HOME"), str(metalearn.folder / "home"))
    away["METALEARN_DATA"] = str(metalearn.folder / "data")
    env = {} if "glyphs" in str(data) else away
    ended = metalearn(command, file, *overrides, "--out", "never", env=env)
    refused(ended, *words)
    assert not (metalearn.folder / "never").exists() and not ended.out
    after = files_of(metalearn.folder)
    assert {name: content for name, content in after.items() if name in before} == before
    return ended.err


def test_in_a_fresh_process_all_errors_at_once_and_nothing_written(tmp_path: Path) -> None:
    wrong = sinusoid(
        task={"shots": -1}, method={"inner_lr": "fast", "inner_step": 1}, run={"seeds": []}
    )
    file = write(tmp_path, "bad", wrong)
    before = files_of(tmp_path)
    ended = console(tmp_path, "train", file)
    refused(
        ended,
        "task.shots",
        "method.inner_lr",
        "method.inner_step",
        "run.seeds",
        "did you mean",
        "bad.yaml",
    )
    assert files_of(tmp_path) == before
    assert ended.err.count("error: ") == len(ended.err.splitlines()) == 4


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("task.shotz=1", "did you mean 'shots'"),
        ("run.meta_steps=many", "integer"),
        ("run.meta_steps=1.5", "integer"),
        ("run.meta_steps=-1", "greater than or equal to 0"),
        ("evaluate.episodes=0", "greater than or equal to 1"),
        ("run.device=nonsense", "run.device"),
        ("run.executor=quantum", "compiled_loop"),
        ("run.dtype=float16", "float64"),
        ("model.sizes=wide", "model.sizes"),
        ("method.inner_lr", "must have the form"),
        ("=1", "must have the form"),
        ("method.inner_lr=[", "YAML"),
        ("task.queries=0", "query"),
        ("evaluate.task.queries=0", "evaluate.task.queries"),
        ("method.name=proto_net", "classification"),
        ("model.name=conv4", "model"),
        ("method.label=a/b", "slashes"),
        ("method.start=nowhere", "method.start"),
        ("budget.trials=-1", "budget.trials"),
        ("methods.maml.inner_lr=1", "no `methods`"),
    ],
)
def test_one_wrong_value(metalearn: Commands, override: str, word: str) -> None:
    place = override.partition("=")[0]
    errors = bad(metalearn, sinusoid(), word, overrides=(override,))
    assert place.split(".")[0] in errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(metalearn: Commands) -> None:
    bad(metalearn, sinusoid(), "run.device", "cpu", overrides=("run.device=cuda:0",))


def test_files_that_are_no_experiment(metalearn: Commands, tmp_path: Path) -> None:
    for content in ("a: [1", "- 1", "", "task: *nowhere", "\t: 3", "d: 2001-99-99"):
        bad(metalearn, content, "bad.yaml")
    refused(metalearn("train", tmp_path), str(tmp_path), "is a directory")
    refused(metalearn("train", tmp_path / "none.yaml"), "none.yaml", "valid:")
    refused(metalearn("compare", "none", "--out", tmp_path / "x"), "none")
    refused(metalearn("train", "x" * 300), "x" * 300)
    (tmp_path / "pickle.yaml").write_text("task: !!python/object/apply:os.system ['touch harm']")
    refused(metalearn("train", tmp_path / "pickle.yaml"), "pickle.yaml")
    assert not (metalearn.folder / "harm").exists()


def test_a_comparison_names_the_method_of_each_error(metalearn: Commands) -> None:
    items = [
        {"name": "maml", "inner_lr": -1},
        {"name": "proto_net"},
        {"name": "reptle"},
        {"name": "maml"},
    ]
    words = ("methods.maml.inner_lr", "methods.reptle", "label")
    bad(metalearn, {**GLYPHS, "methods": items}, *words, command="compare")
    two = [{"name": "maml"}, {"name": "proto_net"}]
    data = sinusoid(method=None)
    words = ("methods.proto_net", "classification")
    bad(metalearn, {**data, "methods": two}, *words, command="compare")
    bad(metalearn, {**data, "methods": []}, "methods", command="compare")
    options: Any = {"overrides": ("method.inner_lr=1",), "command": "compare"}
    bad(metalearn, {**data, "methods": 3}, "methods", **options)


def test_more_ways_and_images_than_there_are(metalearn: Commands, images: Path) -> None:
    errors = bad(metalearn, own(images, ways=9), "task.ways", "at most")
    assert "evaluate.task.ways" in errors  # the test split has fewer classes again
    bad(
        metalearn, own(images, shots=4, queries=3), "task.shots", "4 shots + 3 queries", "at most 6"
    )
    both = own(images)
    both["evaluate"]["task"] = {"ways": 5, "shots": 9}
    bad(metalearn, both, "evaluate.task.ways", "evaluate.task.shots")
    glyphs = {**GLYPHS, "method": {"name": "maml"}}
    bad(metalearn, glyphs, "task.ways", "task.shots", overrides=("task.ways=5000", "task.shots=50"))


def test_data_that_are_not_there(metalearn: Commands, images: Path) -> None:
    omniglot = {"task": {"source": "omniglot", "ways": 2}, "method": {"name": "maml"}}
    data = str(metalearn.folder / "data")
    bad(metalearn, omniglot, "omniglot28.npz", data, "metalearn data prepare omniglot")
    folder = metalearn.folder / "data"
    folder.mkdir(exist_ok=True)
    (folder / "omniglot28.npz").write_bytes(b"PK\x03\x04 not really")
    bad(metalearn, omniglot, "omniglot28.npz")
    (folder / "omniglot28.npz").unlink()
    bad(metalearn, own(images / "nowhere"), "nowhere")


def test_folders_of_images_that_cannot_be_used(metalearn: Commands, images: Path) -> None:
    root = metalearn.folder / "harmed"
    shutil.copytree(images, root)
    (root / "c1" / "0.png").write_bytes(b"no image")
    (root / "c2" / "0.png").write_bytes((root / "c2" / "0.png").read_bytes()[:30])
    bad(metalearn, own(root), "c1/0.png", "c2/0.png")
    for number in range(1, 10):
        shutil.rmtree(root / f"c{number}")
    bad(metalearn, own(root), "1 class")


def test_a_method_built_for_other_ways(metalearn: Commands, images: Path, run: Path) -> None:
    data = own(images, fractions=[0.4, 0.3, 0.3])
    bad(
        metalearn, data, "evaluate.task.ways", "3", "proto_net", overrides=("evaluate.task.ways=3",)
    )
    before, others = files_of(run), metalearn.folder / "other_animals"
    fractions = "task.fractions=[0.4, 0.3, 0.3]"
    refused(metalearn("evaluate", run, "task.ways=3", fractions), "classes or rows of the training")
    shutil.copytree(images, others)
    ended = metalearn("evaluate", run, "task.ways=3", fractions, f"task.path={others}")
    refused(ended, "evaluate.task.ways")
    refusal = metalearn("evaluate", run, "evaluate.episodes=-1", "task.shots=x")
    refused(refusal, "evaluate.episodes", "task.shots")
    refused(
        metalearn("evaluate", run, "task.channels=3"), "evaluate.task", "(3, 8, 8)", "(1, 8, 8)"
    )
    assert files_of(run) == before


@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "sum"])
def test_a_run_whose_checkpoint_is_damaged(metalearn: Commands, run: Path, harm: str) -> None:
    folder = metalearn.folder / f"harmed-{harm}"
    shutil.copytree(run, folder)
    for step in checkpoint.steps_in(folder / "checkpoints"):
        path = checkpoint.path_of(folder / "checkpoints", step)
        content = bytearray(path.read_bytes())
        if harm == "cut":
            path.write_bytes(content[:-7])
        elif harm == "flip":
            content[99] ^= 1
            path.write_bytes(content)
        else:
            (path if harm == "gone" else checkpoint.checksum_of(path)).unlink()
    before = files_of(folder)
    refused(metalearn("evaluate", folder), f"harmed-{harm}")
    assert files_of(folder) == before


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "environment.json"])
def test_a_run_directory_with_a_damaged_file(metalearn: Commands, run: Path, name: str) -> None:
    folder = metalearn.folder / f"damaged-{name}"
    shutil.copytree(run, folder)
    if name == "environment.json":
        (folder / "result.json").unlink()
    (folder / name).write_bytes(b"{ torn \xff")
    before = files_of(folder)
    words = {
        "config.yaml": ("evaluate", "resume"),
        "result.json": ("evaluate",),
        "environment.json": ("resume",),
    }
    for command in words[name]:
        refused(metalearn(command, folder), name)
    if name != "config.yaml":  # what was asked for is read from the other two
        refused(metalearn("train", metalearn.folder / "animals.yaml", "--out", folder), name)
    assert files_of(folder) == before


def test_folders_that_are_no_run(metalearn: Commands, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for command in ("resume", "evaluate"):
        for place in ("empty", "file", "nowhere"):
            refused(metalearn(command, tmp_path / place), place, "is not a run directory")
    refused(metalearn("report", tmp_path / "empty", "--out", tmp_path / "page.html"), "empty")
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "file"}


def test_places_that_cannot_be_written(metalearn: Commands, run: Path) -> None:
    file = write(metalearn.folder, "fine", sinusoid(run={"meta_steps": 1}))
    pair = write(
        metalearn.folder, "pair", {**sinusoid(method=None), "methods": [{"name": "scratch"}]}
    )
    blocked = metalearn.folder / "fine.yaml" / "below"
    refused(metalearn("train", file, "--out", blocked), "fine.yaml")
    refused(metalearn("train", file, "--out", "/proc/nothing"), "/proc/nothing")
    ended = metalearn("train", file, "run.seeds=[0, 1]", "--out", metalearn.folder / "fine.yaml")
    refused(ended, "fine.yaml")
    refused(metalearn("compare", pair, "--out", "/proc/nothing"), "/proc/nothing")
    refused(metalearn("compare", pair, "--out", blocked), "fine.yaml")
    refused(metalearn("evaluate", run, "--out", blocked), "fine.yaml")
    refused(metalearn("report", run, "--out", blocked), "fine.yaml")
    before = file.read_bytes()
    refused(metalearn("report", run, "--out", file), "is not a report")
    refused(metalearn("report", run, "--out", run), "is a directory")
    assert file.read_bytes() == before


def test_words_that_the_command_line_does_not_know(metalearn: Commands) -> None:
    for words in (
        ["tarin", "x"],
        ["train"],
        ["train", "x", "--outt", "y"],
        ["train", "x", "--devices", "0"],
        ["data"],
    ):
        ended = metalearn(*words)
        assert ended.code == 2 and "Traceback" not in ended.err, ended
