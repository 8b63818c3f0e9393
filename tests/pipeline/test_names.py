"""Unusual class names, data of `dvc add` in a queue, and refusals that leave results alone, with real commands."""

import csv
import json
import subprocess
import sys

import pytest

from udc_model.evaluation.tables import read_metrics

pytestmark = pytest.mark.pipeline

CLASSES = {"bar": "3", "dot": "7", "stripe": "a/b,="}
ENTRY = "costs.entries=[{actual: 3, predicted: 7, cost: 50}]"


@pytest.fixture(scope="module")
def project(new_project):
    """A queued experiment on images that were added by `dvc add` only, applied to the folder."""
    import numpy as np
    from PIL import Image

    project = new_project(
        data={"source": "csv", "path": "data/raw/shapes", "image_size": 16}, train={"epochs": 1, "batch_size": 12},
        costs={"preset": "uniform"}, evaluate={"resamples": 100, "recall_of": list(CLASSES.values())},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    root = project.root / "data/raw/shapes"
    root.mkdir()
    with (root / "labels.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["image_path", "label"])
        for k, label in enumerate(CLASSES.values()):
            for i in range(20):
                pixels = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
                pixels[4 + 5 * k : 9 + 5 * k, 4:20] += 150
                Image.fromarray(pixels).save(root / f"{k}_{i:02d}.png")
                writer.writerow([f"{k}_{i:02d}.png", label])
    project.run("dvc", "add", "-q", "data/raw/shapes")
    assert "A  data/raw/shapes.dvc" in project.run("git", "status", "--short").stdout
    project.run("dvc", "exp", "run", "--queue", "--name", "first", "-S", ENTRY)
    project.run("dvc", "exp", "run", "--run-all")
    project.run("dvc", "exp", "apply", "first")
    return project


def test_metrics_and_costs_of_unusual_class_names(project):
    metrics = read_metrics(project.root / "evaluation/test/metrics.csv")
    names = {"recall/3", "recall/7", "recall/a:2Fb:2C:3D", "miss_rate/a:2Fb:2C:3D"}
    assert names <= metrics.keys()
    (run,) = project.runs()
    assert {f"test/{name}" for name in names if name.startswith("recall")} <= run.data.metrics.keys()
    assert run.data.metrics["test/recall/a:2Fb:2C:3D"] == metrics["recall/a:2Fb:2C:3D"]
    policy = json.loads((project.root / "evaluation/policy.json").read_text())
    assert policy["classes"] == ["3", "7", "a/b,="]
    assert policy["class_costs"][0] == [0, 50, 1]
    decided = project.run("udc", "decide", "-S", "evaluate.recall_of=[3]", "-S", "costs.refer=0.1").stdout
    assert "a/b,=: recall " in decided


@pytest.mark.parametrize(("command", "settings", "message"), [
    (("dvc", "exp", "run"), {}, "recall_of.0: 1.0 is not read as a text; write the name of the class in quotes: '1.0'"),
    (("dvc", "repro"), {"costs": {"prior": {"3": 0.5, "8": 0.5}}, "evaluate": {"recall_of": ["9"]}},
     "2 parameters or class names do not fit the data"),
])  # fmt: skip
def test_a_refusal_leaves_the_results_alone(project, command, settings, message):
    results = ("metrics.json", "evaluation/report.html")
    before = {path: (project.root / path).read_bytes() for path in (*results, "params.yaml")}
    project.set_params(**settings)
    flags = ("-S", "evaluate.recall_of=[1.0]") if "exp" in command else ()
    done = project.run(*command, *flags, check=False)
    assert done.returncode
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    for path in results:
        assert (project.root / path).read_bytes() == before[path]
    (project.root / "params.yaml").write_bytes(before["params.yaml"])


def test_predict_reads_standard_input_and_lists_and_ends_with_its_reader(project):
    udc = [sys.executable, "-m", "udc_model.cli", "predict"]
    image = project.root / "data/raw/shapes/0_00.png"

    def rows(*flags, given=None):
        done = subprocess.run([*udc, "--csv", *flags], cwd=project.root, env=project.env(), capture_output=True,
                              input=given, check=True)  # fmt: skip
        return [list(row.values())[1:] for row in csv.DictReader(done.stdout.decode().splitlines())]

    by_name = rows(str(image))
    data = image.read_bytes()
    for flags, given in ((("-",), data), (("/dev/stdin",), data), (("--from-list", "-"), f"{image}\n".encode())):
        assert rows(*flags, given=given) == by_name
    process = subprocess.Popen([*udc, "data/raw/shapes"], cwd=project.root, env=project.env(), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()
    bad = project.run(*udc, "https://example.org/a.png", "missing.png", str(image), check=False)
    assert bad.returncode == 1
    assert bad.stdout.count("\n") == 2
    assert bad.stderr.splitlines() == [
        "https://example.org/a.png: is a URL; download it first (curl -LO URL), then predict the file",
        "missing.png: cannot be opened: No such file or directory",
        "error: 2 image(s) could not be used",
    ]
