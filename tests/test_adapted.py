"""New tasks learned from labelled examples by a trained run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metalearn as ml
from metalearn.cli.predict import predict
from metalearn.config.experiment import parse
from metalearn.errors import ConfigError
from metalearn.rng import fold_in
from metalearn.run.run import run_one
from metalearn.run.trained.load import LoadedRun, load_run
from metalearn.tree import take

GLYPHS: dict[str, Any] = {
    "experiment": "tiny",
    "task": {"source": "glyphs", "ways": 3, "shots": 1, "queries": 2},
    "model": {"name": "conv4", "filters": 4, "downsample": "stride", "norm": "support"},
    "run": {"meta_steps": 2, "tasks_per_step": 2, "executor": "vmap"},
    "evaluate": {"episodes": 2, "steps": [0, 1]},
}


def trained(folder: Path, method: dict[str, Any], **sections: Any) -> LoadedRun:
    run_one(parse({**GLYPHS, "method": method, **sections}).experiments[0], folder)
    return load_run(folder)


@pytest.fixture(scope="module")
def maml(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return trained(tmp_path_factory.mktemp("maml") / "run", {"name": "maml", "inner_lr": 0.1})


@pytest.fixture(scope="module")
def proto_net(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return trained(tmp_path_factory.mktemp("proto_net") / "run", {"name": "proto_net"})


def test_a_task_is_learned_as_an_episode_is(maml: LoadedRun) -> None:
    episode = maml.source.sample(fold_in(5), 1)
    one = take(episode, 0)
    learned = maml.method.learn(maml.state.meta, episode.support, episode.query.x, (2,))
    task = maml.adapt(one.support.x, one.support.y, steps=2)
    torch.testing.assert_close(task.outputs(one.query.x), learned.predictions[0, 0])
    probabilities = task.predict_proba(one.query.x)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(6))
    assert torch.equal(task.predict(one.query.x), probabilities.argmax(-1))


def test_the_adapted_module_gives_the_same_answers(maml: LoadedRun) -> None:
    one = take(maml.source.sample(fold_in(6), 1), 0)
    task = maml.adapt(one.support.x, one.support.y, steps=1)
    module = task.module()
    torch.testing.assert_close(module(one.query.x).detach(), task.outputs(one.query.x))
    assert set(module.state_dict()) == set(maml.state.meta)
    module(one.query.x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_labels_are_of_any_kind_and_unequal_in_number(proto_net: LoadedRun) -> None:
    x = np.random.default_rng(0).random((7, 1, 28, 28), dtype=np.float32)
    y = ["cat", "dog", "cat", "emu", "emu", "emu", "fox"]
    task = proto_net.adapt(x, y)
    found = task.predict(x)
    assert isinstance(found, np.ndarray) and set(found) <= set(y)
    assert task.predict_proba(x).shape == (7, 4) and list(task.classes) == sorted(set(y))
    alone = proto_net.adapt(x[[6, 1, 0, 2, 3, 4, 5]], [y[i] for i in (6, 1, 0, 2, 3, 4, 5)])
    np.testing.assert_allclose(alone.predict_proba(x), task.predict_proba(x), atol=1e-5)


@pytest.fixture(scope="module")
def sinusoid(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    sections = {"task": {"source": "sinusoid", "shots": 5, "queries": 5}, "model": {"name": "mlp"}}
    return trained(tmp_path_factory.mktemp("sinusoid") / "run", {"name": "maml"}, **sections)


def test_values_are_learned_in_regression(sinusoid: LoadedRun) -> None:
    run = sinusoid
    x = np.linspace(-5, 5, 8)[:, None]
    flat = run.adapt(x, np.sin(x[:, 0]), steps=3).predict(x)
    assert flat.shape == (8,), "values have the axes of those that were given"
    task = run.adapt(x, np.sin(x), steps=3)
    assert task.predict(x).shape == (8, 1)
    np.testing.assert_array_equal(flat, task.predict(x)[:, 0])
    with pytest.raises(ConfigError, match="regression"):
        task.predict_proba(x)
    module = task.module()
    outputs = module(torch.as_tensor(x, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(outputs, task.predict(x), rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (np.zeros((3, 1, 20, 20)), [0, 1, 2], r"shape \[B, 1, 28, 28\]"),
        (np.zeros((3, 1, 28, 28), np.uint8), [0, 1, 2], "floats in 0..1"),
        (np.full((3, 1, 28, 28), np.nan), [0, 1, 2], "finite"),
        (np.zeros((3, 1, 28, 28)), [0, 1], "2 entries for 3 inputs"),
        (np.zeros((3, 1, 28, 28)), [1, 1, 1], "at least 2 classes"),
        (np.zeros((4, 1, 28, 28)), [0, 1, 2, 3], "learned for 3"),
        (np.zeros((0, 1, 28, 28)), [], "B >= 1"),
        (np.zeros((3, 1, 28, 28)), [0.0, 1.0, np.nan], "without a label"),
        (np.zeros((3, 1, 28, 28)), ["a", None, "b"], "without a label"),
        (np.zeros((3, 1, 28, 28), complex), [0, 1, 2], "must be real"),
        (np.zeros((3, 1, 28, 28)), ["a", 1, 2.5], "mixes strings with other labels"),
        (
            np.zeros((3, 1, 28, 28)),
            np.array(["a", 1, 2], object),
            "mixes strings with other labels",
        ),
        (np.zeros((3, 1, 28, 28)), np.array(["a", "b", np.nan]), "label.*'nan'; rename it"),
        (np.zeros((3, 1, 28, 28)), ["a", "b", ""], "without a label"),
        (
            np.zeros((3, 1, 28, 28)),
            ["a", "a ", "b"],
            r"differ only in spaces, Unicode form or \.0, 'a' and 'a ': use",
        ),
        (np.zeros((3, 1, 28, 28)), ["é", "e\u0301", "b"], "differ only in spaces, Unicode form"),
        (np.zeros((3, 1, 28, 28)), ["1", "1.0", "b"], "differ only in spaces, Unicode form or .0"),
        (np.zeros((3, 1, 28, 28)), [2.0**53, 1, 2], "contains 9007199254740992, a float of more"),
        (np.zeros((3, 1, 28, 28)), np.eye(3), r"one-hot rows are labels by y\.argmax\(1\)"),
        (np.zeros((3, 1, 28, 28)), iter([0, 1, 2]), "must be a list or an array"),
        (np.zeros((3, 1, 28, 28)), np.ma.masked_array([0, 1, 2], [0, 1, 0]), "y: has masked"),
        (np.full((3, 1, 28, 28), 255.0), [0, 1, 2], r"images in 0\.\.1.*divide bytes by 255"),
        (np.zeros((3, 1, 28, 28), "U1"), [0, 1, 2], r"x: must contain numbers \(got <U1\)"),
        (torch.zeros(3, 1, 28, 28).to_sparse(), [0, 1, 2], r"x: is sparse: pass \.to_dense"),
    ],
)
def test_examples_that_do_not_fit_are_refused(maml: LoadedRun, x: Any, y: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        maml.adapt(x, y)


def test_images_a_little_outside_of_their_range_are_taken(
    proto_net: LoadedRun, caplog: pytest.LogCaptureFixture
) -> None:
    x = np.random.default_rng(0).random((6, 1, 28, 28)) * 1.5 - 0.2
    task = proto_net.adapt(x, [0, 0, 1, 1, 2, 2])
    assert "some images are outside 0..1" in caplog.text
    assert task.predict(x).shape == (6,)
    with pytest.raises(ConfigError, match=r"must be images in 0\.\.1, .*\(got -1"):
        task.predict(2 * x.round() - 1)


@pytest.mark.parametrize(
    ("y", "why"),
    [
        ([*"abc"], r"y: must contain numbers \(got <U1\)"),
        ([1, 2, None], "y: must be finite"),
        ([1, 2, 3j], "y: must be real"),
    ],
)
def test_values_that_are_no_numbers_are_refused(sinusoid: LoadedRun, y: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        sinusoid.adapt(np.zeros((3, 1)), y)
    assert sinusoid.adapt(np.zeros((2, 1), object), np.array([1, 2.5], object)).steps >= 0


def test_labels_of_several_kinds_at_once_are_answered_by_probabilities(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(48, 3))
    task = ml.tasks.Arrays(x, 1.0 * (x[:, :2] > 0), group=np.arange(48) // 6, shots=3, queries=2)
    small = {"meta_steps": 1, "episodes": 2, "steps": (0, 1), "executor": "vmap"}
    method, model = ml.algorithms.MAML(), ml.models.MLP(sizes=(4,))
    run = ml.train(method, task=task, model=model, loss="bce", out=tmp_path / "run", **small)
    learned = run.adapt(x[:6], x[:6, :2] > 0)
    found = learned.predict(x[6:9])
    np.testing.assert_allclose(found, learned.outputs(x[6:9]).sigmoid().numpy())
    with pytest.raises(ConfigError, match=r"targets: .* must be in 0 \.\. 1"):
        run.adapt(x[:6], 2.0 * (x[:6, :2] > 0))


def test_arrays_of_any_layout_are_taken(maml: LoadedRun) -> None:
    one = take(maml.source.sample(fold_in(6), 1), 0)
    x, y, query = one.support.x.numpy(), ["a", "b", "c"], one.query.x.numpy()
    expected = maml.adapt(x, y, steps=1).predict_proba(query)
    layouts = (np.flip(np.flip(query).copy()), query.astype(">f4"), query.astype(np.longdouble))
    for layout in layouts:
        np.testing.assert_array_equal(maml.adapt(x, y, steps=1).predict_proba(layout), expected)
    turned = maml.adapt(x[::-1], y[::-1], steps=1).predict_proba(query)
    np.testing.assert_allclose(turned, expected, rtol=1e-4)
    in_bytes = maml.adapt(x, np.array([name.encode() for name in "äbc"]), steps=1)
    assert set(in_bytes.predict(query)) <= {"ä".encode(), b"b", b"c"}


def test_steps_are_whole_numbers(maml: LoadedRun) -> None:
    x = np.zeros((3, 1, 28, 28))
    assert maml.adapt(x, [0, 1, 2], steps=np.int64(2)).steps == 2
    with pytest.raises(ConfigError, match=r"steps: must be an integer >= 0 \(got 2.5\)"):
        maml.adapt(x, [0, 1, 2], steps=2.5)  # type: ignore[arg-type]


def test_a_metric_learner_has_no_weights_to_take_away(proto_net: LoadedRun) -> None:
    one = take(proto_net.source.sample(fold_in(6), 1), 0)
    with pytest.raises(ConfigError, match="does not adapt weights"):
        proto_net.adapt(one.support.x, one.support.y).module()


def write_images(folder: Path, pixels: np.ndarray[Any, Any]) -> None:
    folder.mkdir(parents=True)
    for n, image in enumerate(pixels):
        Image.fromarray((255 * image[0]).astype(np.uint8)).save(folder / f"{n}.png")


def test_the_command_answers_for_folders_of_images(
    proto_net: LoadedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = take(proto_net.source.sample(fold_in(6), 1), 0)
    for label, name in enumerate(("ox", "yak", "gnu")):
        write_images(tmp_path / "support" / name, one.support.x[one.support.y == label].numpy())
        write_images(tmp_path / "query" / str(label), one.query.x[one.query.y == label].numpy())
    file = tmp_path / "answers.csv"
    folders = tmp_path / "support", tmp_path / "query"
    predict(proto_net.folder, *folders, None, file, False)
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["query"] for row in rows][:2] == ["0/0.png", "0/1.png"] and len(rows) == 6
    task = proto_net.adapt(one.support.x, np.array(["ox", "yak", "gnu"])[one.support.y.numpy()])
    by_folder = one.query.y.argsort(stable=True)
    assert [row["prediction"] for row in rows] == task.predict(
        one.query.x[by_folder].numpy()
    ).tolist()
    assert set(rows[0]) == {"query", "prediction", "p(gnu)", "p(ox)", "p(yak)"}
    with pytest.raises(ConfigError, match="already exists"):
        predict(proto_net.folder, *folders, None, file, False)
    with pytest.raises(ConfigError, match="--support") as error:
        predict(proto_net.folder, tmp_path / "no", tmp_path / "no.csv", None, None, False)
    assert [place for place, _ in error.value.problems] == ["--support", "--query"]


def test_the_command_answers_for_rows(
    sinusoid: LoadedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "support.csv").write_text("\ufefft,y\n0,1\n1,2.5\n2,3\n", encoding="utf-8")
    (tmp_path / "query.csv").write_text("t\n0.5\n1.5\n")
    predict(sinusoid.folder, tmp_path / "support.csv", tmp_path / "query.csv", 2, None, False)
    lines = capsys.readouterr().out.splitlines()
    x = np.array([[0.0], [1.0], [2.0]])
    expected = sinusoid.adapt(x, [1, 2.5, 3], steps=2).predict(np.array([[0.5], [1.5]]))
    assert lines[0] == "query,prediction"
    np.testing.assert_allclose([float(line.split(",")[1]) for line in lines[1:]], expected)
    (tmp_path / "bad.csv").write_text("t,y\n0,1\n1\n")
    with pytest.raises(ConfigError, match=r"line 3.*not 2 fields"):
        predict(sinusoid.folder, tmp_path / "bad.csv", tmp_path / "query.csv", 2, None, False)
    (tmp_path / "words.csv").write_text("t,y\na,1\n")
    with pytest.raises(ConfigError, match="must contain numbers"):
        predict(sinusoid.folder, tmp_path / "words.csv", tmp_path / "query.csv", 2, None, False)
    np.savez(tmp_path / "support.npz", x=x.astype(np.float32), y=np.array([1, 2.5, 3]))
    predict(sinusoid.folder, tmp_path / "support.npz", tmp_path / "query.csv", 2, None, False)
    assert capsys.readouterr().out.splitlines() == lines


def test_the_command_knows_columns_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of the run, in any order, in support and query; other columns are passed over."""
    x = np.random.default_rng(0).normal(size=(60, 2)) + 3 * np.arange(60)[:, None] // 6
    lines = [f"{a},{b},k{n // 6}" for n, (a, b) in enumerate(x)]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,kind", *lines]))
    task = {"source": "arrays", "path": str(tmp_path / "rows.csv"), "target": "kind"}
    sizes = {"ways": 2, "shots": 2, "queries": 2}
    model: dict[str, Any] = {"name": "mlp", "sizes": [8]}
    run = trained(tmp_path / "run", {"name": "proto_net"}, task={**task, **sizes}, model=model)
    chosen = [0, 1, 6, 7]
    support = ["id,b,kind,a", *(f"{n},{x[n][1]},k{n // 6},{x[n][0]}" for n in chosen)]
    (tmp_path / "support.csv").write_text("\n".join(support))
    query = ["b,a,comment", *(f"{x[n][1]},{x[n][0]},none" for n in range(12))]
    (tmp_path / "query.csv").write_text("\n".join(query))
    predict(run.folder, tmp_path / "support.csv", tmp_path / "query.csv", None, None, False)
    found = [line.split(",") for line in capsys.readouterr().out.splitlines()[1:]]
    learned = run.adapt(x[chosen], [f"k{n // 6}" for n in chosen])
    assert [row[1] for row in found] == learned.predict(x[:12]).tolist()
    shares = np.array([row[2:] for row in found], float)
    np.testing.assert_allclose(shares, learned.predict_proba(x[:12]), atol=1e-5)
    (tmp_path / "query.csv").write_text("a,c\n1,2\n")
    with pytest.raises(ConfigError, match=r"query\.csv lacks the columns b; it has a, c"):
        predict(run.folder, tmp_path / "support.csv", tmp_path / "query.csv", None, None, False)


@pytest.fixture(scope="module")
def of_groups(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """A regression on groups of rows of a file."""
    folder = tmp_path_factory.mktemp("groups")
    rows = [f"s{n // 8},{n % 8 / 8},{n % 5 / 5},{n % 7 / 7}" for n in range(160)]
    (folder / "rows.csv").write_text("\n".join(["sensor,a,b,y", *rows]))
    data = {
        "experiment": "groups",
        "task": {"source": "arrays", "path": str(folder / "rows.csv"), "group": "sensor"},
        "model": {"name": "mlp", "sizes": [4]},
        "method": {"name": "maml", "inner_lr": 0.1},
        "run": {"meta_steps": 2, "tasks_per_step": 2, "executor": "vmap"},
        "evaluate": {"episodes": 2, "steps": [0, 1]},
    }
    result = run_one(parse(data).experiments[0], folder / "run")
    assert result["facts"]["test_pool"] == 4  # groups of the test split
    return load_run(folder / "run")


@pytest.mark.parametrize(
    ("support", "query", "why"),
    [
        ("AB", "AA", "--support: has rows of 2 tasks by column 'sensor'"),
        ("AA", "AB", "--query: has rows of 2 tasks by column 'sensor'"),
        ("AA", "BB", "--query: is of task 'B', but the support set is of task 'A'"),
    ],
)
def test_rows_of_several_tasks_are_not_learned_as_one(
    of_groups: LoadedRun, tmp_path: Path, support: str, query: str, why: str
) -> None:
    def write(name: str, groups: str) -> Path:
        rows = [f"{group},0.{n},0.5,1" for n, group in enumerate(groups)]
        (tmp_path / name).write_text("\n".join(["sensor,a,b,y", *rows]))
        return tmp_path / name

    files = write("support.csv", support), write("query.csv", query)
    with pytest.raises(ConfigError, match=why):
        predict(of_groups.folder, *files, None, tmp_path / "out.csv", False)
    assert not (tmp_path / "out.csv").exists()
    files = write("support.csv", "AA"), write("query.csv", "AA")
    predict(of_groups.folder, *files, None, tmp_path / "out.csv", False)


def test_answers_that_are_not_finite_have_a_warning(
    of_groups: LoadedRun, caplog: pytest.LogCaptureFixture
) -> None:
    x, y = np.full((4, 2), 0.5), np.arange(4.0)
    caplog.set_level("WARNING", "metalearn")
    of_groups.adapt(x, y, steps=1).predict(x)
    assert not caplog.messages
    of_groups.adapt(1e20 * x, 1e20 * y, steps=5).predict(x)
    assert "4 of 4 predictions are not finite: adaptation diverged" in caplog.text
