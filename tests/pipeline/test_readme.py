"""The README: each of its commands is run, here or by the test named for it; its length, links and make targets."""

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip() for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()
]

# Commands that take long or need a server, with the test that runs them.
RUN_BY = {
    "make test": "test_make_test_starts_this_suite",
    "make ui": "test_make_ui_answers",
    "cd ~/spider-project && dvc repro": "test_images_to_a_recorded_model_in_an_empty_folder",
    "udc decide": "test_decide_and_compare_as_in_the_readme",
    "udc decide -S costs.refer=0.2 --out cautious": "test_decide_and_compare_as_in_the_readme",
    "udc decide --sweep true=9,predicted=3,values=0:20:2": "test_decide_and_compare_as_in_the_readme",
    "udc compare . cautious": "test_decide_and_compare_as_in_the_readme",
    "udc run --name convnext": "test_convnext_by_one_parameter_is_shown_and_equal_in_another_clone",
    "dvc plots diff": "test_convnext_by_one_parameter_is_shown_and_equal_in_another_clone",
    "udc run --queue": "test_queued_experiments_on_two_workers_and_sweep_report",
    "OMP_NUM_THREADS=1 dvc queue start -j 2": "test_queued_experiments_on_two_workers_and_sweep_report",
    "udc sweep-report train.learning_rate": "test_queued_experiments_on_two_workers_and_sweep_report",
    "udc tune ": "test_a_killed_study_is_resumed",
    "udc show convnext": "test_a_restored_experiment_is_linked_to_the_run_with_its_content",
    "udc reproduce convnext": "test_reproduce_gives_bitwise_equal_results",
    "udc promote convnext --as digits": "test_promote_makes_a_model_champion_only_if_costs_are_significantly_lower",
    "mlflow run . ": "test_mlflow_run_gives_one_run",
    "mlflow models serve ": "test_served_model_decides_as_predict",
    "curl ": "test_served_model_decides_as_predict",
    "python train.py --config config/convnext_example.json": "test_train_py_with_a_json_config",
}


def _runs(prefix, command):
    return command == prefix or (command.startswith(prefix) and prefix.endswith((" ", "convnext", "--queue")))


@pytest.fixture(scope="module")
def project(new_project):
    """A project that is set up: .venv is the environment that runs this test."""
    project = new_project(train={"epochs": 1}, evaluate={"resamples": 100})
    (project.root / ".venv").symlink_to(sys.prefix)
    (project.root / ".venv" / ".ready").touch()
    return project


def test_readme_has_at_most_180_lines():
    assert len(README.splitlines()) <= 180


def test_commands_that_are_not_run_here_are_run_by_a_test():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for prefix, name in RUN_BY.items():
        assert f"def {name}(" in tests, f"{prefix}: no test is named {name}"
        assert any(_runs(prefix, command) for command in COMMANDS), f"{prefix} is not in the README"


@pytest.mark.pipeline
def test_commands_run_in_order(project, shapes_folder, tmp_path):
    commands = [command for command in COMMANDS if not any(_runs(prefix, command) for prefix in RUN_BY)]
    assert commands[0] == "make demo"
    shapes_folder.rename(tmp_path / "spiders")
    config = project.root / "config/resnet_example.json"
    config.write_text(config.read_text().replace('"num_train_epochs": 15', '"num_train_epochs": 1'))
    script = "set -e\n" + "\n".join(f"echo {shlex.quote(f'$ {command}')}\n{command}" for command in commands)
    output = project.run("bash", "-c", script, HOME=str(tmp_path), PIP_NO_INDEX="1").stdout
    assert "best epoch 1 of 1" in output
    assert "data/raw/spiders/bar/" in output
    differences = output.partition("$ dvc params diff")[2]
    assert "data.image_size" in differences, "the commit after `make demo` has nothing to compare with"
    assert "test.accuracy" in differences
    assert (project.root / "data/raw/spiders.dvc").is_file()
    assert (tmp_path / "spider-project/udc.json").is_file()
    assert (project.root / "model.onnx").is_file()
    assert (project.root / "results/resnet_example/metrics.json").is_file()


@pytest.mark.pipeline
def test_make_test_starts_this_suite(project):
    done = project.run("make", "test", PYTEST_ADDOPTS="--collect-only -q tests/pipeline/test_readme.py")
    assert "test_make_test_starts_this_suite" in done.stdout


@pytest.mark.pipeline
def test_make_ui_answers(project, free_port):
    experiment = "api/2.0/mlflow/experiments/get-by-name?experiment_name=udc-model"
    project.deliver()
    address = f"http://127.0.0.1:{free_port}/{experiment}"
    with project.server("make", "ui", f"PORT={free_port}", ready=address) as answer:
        assert "udc-model" in answer


def test_make_alone_prints_every_target(outside):
    printed = outside.run("make", "-C", str(ROOT)).stdout
    targets = re.findall(r"^([a-z]+):.*## (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(targets) >= 10
    for name, text in targets:
        assert re.search(rf"make {name} +{re.escape(text)}", printed)
