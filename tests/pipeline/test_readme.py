"""Every command of the README is run: here, or by the test that is named for it."""

import re
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.pipeline

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.strip().splitlines()
]  # fmt: skip

# Commands that take long, or a server, with the test that runs them.
ELSEWHERE = {
    "make test": "this suite, which `make test` starts; test_make_test_starts_this_suite",
    "make ui": "test_make_ui_answers",
    "dvc exp run --queue -S train.learning_rate=0.001,0.01": "test_queued_experiments_on_two_workers_and_sweep_report",
    "OMP_NUM_THREADS=1 dvc queue start -j 2": "test_queued_experiments_on_two_workers_and_sweep_report",
    "dvc queue status": "test_queued_experiments_on_two_workers_and_sweep_report",
    "udc sweep-report train.learning_rate": "test_queued_experiments_on_two_workers_and_sweep_report",
    "udc decide": "test_prices_of_the_readme",
    "udc decide -S costs.refer=0.2 --out cautious": "test_prices_of_the_readme",
    "udc decide --sweep true=9,predicted=3,values=0:20:2": "test_prices_of_the_readme",
    "udc compare . cautious": "test_prices_of_the_readme",
    "dvc exp run -S model.model_type=convnext": "test_convnext_by_one_parameter_with_equal_results_in_another_clone",
    "dvc exp show": "test_a_training_parameter_does_not_rerun_prepare_and_is_shown",
    "dvc params diff": "test_a_training_parameter_does_not_rerun_prepare_and_is_shown",
    "dvc metrics diff": "test_a_training_parameter_does_not_rerun_prepare_and_is_shown",
    "dvc plots diff": "test_a_training_parameter_does_not_rerun_prepare_and_is_shown",
    "udc find-lr": "test_a_profile_and_a_range_test_record_nothing_and_refusals_are_plain",
    "udc train --profile": "test_a_profile_and_a_range_test_record_nothing_and_refusals_are_plain",
    "torchrun --standalone --nproc-per-node 2 -m udc_model.stages.train": "test_two_processes_killed_and_gone_on_with",
    "udc sync": "test_a_restored_experiment_is_linked_to_the_run_with_its_content",
    "udc show slow": "test_a_restored_experiment_is_linked_to_the_run_with_its_content",
    "udc reproduce slow": "test_reproduce_gives_bitwise_equal_results",
    "udc promote slow --as digits": "test_promote_makes_a_model_champion_only_if_costs_are_significantly_lower",
    "udc tune -S 'train.learning_rate=log(1e-4,1e-1)' --trials 10": "test_a_killed_study_is_resumed",
    "mlflow run . --env-manager local -P model_type=convnext -P train.epochs=1": "test_mlflow_run_gives_one_run",
    "python train.py --config config/convnext_example.json": "test_one_file_way_in_gives_the_same_kind_of_result",
}
SERVED = "test_served_model_answers_like_predict"


def _tests():
    return "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))


@pytest.fixture(scope="module")
def project(new_project):
    """A project whose set-up is done: .venv is the environment that runs this test."""
    project = new_project(train={"epochs": 1})
    (project.root / ".venv").symlink_to(sys.prefix)
    (project.root / ".venv" / ".ready").touch()
    return project


def test_every_command_is_run_somewhere(project, shapes_folder, tmp_path):
    here = []
    for command in COMMANDS:
        if command in ELSEWHERE:
            for name in re.findall(r"test_\w+", ELSEWHERE[command]):
                assert f"def {name}(" in _tests(), f"{command}: no test is called {name}"
        elif command.startswith(("mlflow models serve", "curl ")):
            assert f"def {SERVED}(" in _tests()
        else:
            here.append(command)
    assert here[0] == "make demo"
    shapes_folder.rename(tmp_path / "spiders")
    script = "set -e\n" + "\n".join(f"echo '$ {command}'\n{command}" for command in here)
    config = project.root / "config/resnet_example.json"
    config.write_text(config.read_text().replace('"num_train_epochs": 15', '"num_train_epochs": 1'))
    done = project.run("bash", "-c", script, HOME=str(tmp_path), PIP_NO_INDEX="1")
    assert "trained     resnet, best epoch 1 of 1" in done.stdout
    assert "data/raw/spiders/bar/" in done.stdout
    assert (project.root / "data/raw/spiders.dvc").is_file()
    assert (project.root / "results/resnet_example/metrics.json").is_file()


def test_make_test_starts_this_suite(project):
    done = project.run("make", "test", PYTEST_ADDOPTS="--collect-only -q tests/pipeline/test_readme.py")
    assert "test_make_test_starts_this_suite" in done.stdout


def test_make_ui_answers(project, free_port):
    experiment = "api/2.0/mlflow/experiments/get-by-name?experiment_name=udc-model"
    address = f"http://127.0.0.1:{free_port}/{experiment}"
    with project.server("make", "ui", f"PORT={free_port}", ready=address) as answer:
        assert "udc-model" in answer


def test_tables_name_every_parameter_and_json_key():
    from udc_model.config.json_config import _KEYS

    shipped = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for section, values in shipped.items():
        for name in values if isinstance(values, dict) else [section]:
            assert f"`{name}`" in README, f"{section}.{name} is missing in the README"
    for key in _KEYS:
        assert f"`{key}`" in README, f"the JSON key {key} is missing in the README"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
