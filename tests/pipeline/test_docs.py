"""The documentation: the commands of its pages are run, its links exist, and its tables are complete."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from udc_model.evaluation.tables import read_metrics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TUTORIAL = "tutorials/images-to-decision.md"
IN_ORDER = ("how-to/experiments.md", "how-to/sharing.md", "how-to/reproduce.md")  # they continue each other

# Commands that take long, need a server or are run with other values elsewhere, with the test that runs them.
RUN_BY = {
    "make ui": "test_make_ui_answers",
    "make package": "the script .ci/run",
    "dvc queue start": "test_queued_experiments_on_two_workers_and_sweep_report",
    "udc cross-validate": "test_a_killed_cross_validation_is_resumed_below_one_run",
    "udc tune": "test_a_killed_study_is_resumed",
    "mlflow run .": "test_mlflow_run_gives_one_run",
    "udc run --name venom": "test_costs_rerun_train_only_if_the_loss_uses_them",
    "udc predict --estimate-prior": "test_estimated_frequencies_are_printed_and_decide",
    "udc score": "test_rows_are_those_of_predict_and_bad_images_are_listed",
    "udc decide": "test_decide_and_compare_as_in_the_readme",
    "udc compare": "test_decide_and_compare_as_in_the_readme",
    "udc find-lr": "test_profile_and_range_test_record_nothing",
    "udc train --profile": "test_profile_and_range_test_record_nothing",
    "udc train --dry-run": "test_dry_run_checks_and_estimates_and_writes_nothing",
    "udc evaluate --checkpoint": "test_interrupted_training_run_resumes",
    "udc run --name five": "test_an_ensemble_is_one_run_and_one_model_that_decides_equally_everywhere",
    "udc run --name focal": "test_every_loss_of_the_pages_can_be_chosen",
    "udc init": "test_images_to_a_recorded_model_in_an_empty_folder",
    "cd ~/spider-project && dvc repro": "test_images_to_a_recorded_model_in_an_empty_folder",
    "udc inspect": "test_inspect_recommends",
    "udc recipe": "test_the_command_lists_shows_and_writes",
    "udc doctor": "test_the_command_is_a_process_of_its_own",
    "udc gc": "test_the_command_deletes_and_releases_the_lock",
    "udc explain": "test_udc_explain_explains_files",
    "udc labels review": "test_each_key_writes_its_correction",
    "udc app": "test_the_command_prints_its_address_and_ends_with_ctrl_c",
    "udc upgrade": "test_unchanged_files_are_replaced_and_changes_reported",
    "udc fetch torchvision": "test_fetched_set_is_tracked_trained_on_and_recorded",
    "udc fetch huggingface": "test_download_is_pinned_to_the_commit_and_works_offline_later",
    "udc fetch s3": "test_import_from_s3_is_tracked_and_can_be_updated",
    "udc weights fetch": "test_weights_fetch_writes_a_file_that_training_accepts",
    "dvc update": "test_import_from_s3_is_tracked_and_can_be_updated",
    "torchrun": "test_two_killed_processes_resume",
    "udc export --to torch-export": "test_a_torch_file_has_no_pickle_and_decides_equally",
    "udc export --to safetensors-hf": "test_a_hugging_face_folder_is_loaded_by_transformers",
    "udc export --to openvino": "test_an_openvino_folder_decides_equally",
    "udc export --precision int8": "test_lower_precisions_are_judged_by_their_costs",
    "udc --print-completion": "test_completion_scripts_are_printed",
    "mlflow models serve": "test_served_model_decides_as_predict",
    "udc serve": "test_a_killed_process_is_replaced_and_sigterm_loses_no_accepted_request",
    "http://127.0.0.1:8080/predict": "test_all_forms_of_a_request_give_the_same_decisions",
    "curl": "test_served_model_decides_as_predict",
}


def _text(page):
    return (DOCS / page).read_text(encoding="utf-8")


def _blocks(text):
    return [block.strip() for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)]


def _run_by(command):
    return next((name for prefix, name in RUN_BY.items() if prefix in command), None)


def test_commands_of_other_pages_are_run_by_a_test():
    readme = _blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    readme_commands = {line for block in readme for line in block.splitlines()}
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md") if "_build" not in path.parts]
    for page in sorted(set(pages) - {TUTORIAL, *IN_ORDER}):
        text = re.sub(r"^ {3}", "", _text(page), flags=re.MULTILINE)  # blocks of numbered lists are indented
        for command in (line for block in _blocks(text) for line in block.splitlines()):
            assert command in readme_commands or _run_by(command), f"{page}: no test runs {command}"
    for command, name in RUN_BY.items():
        if name == "the script .ci/run":
            assert command in script
        else:
            assert f"def {name}(" in tests, f"{command}: no test is named {name}"


@pytest.mark.pipeline
def test_tutorial_from_a_folder_of_images_to_a_decision(new_project):
    project = new_project()
    (project.root / ".venv").symlink_to(sys.prefix)
    (project.root / ".venv/.ready").touch()
    commands = [line for block in _blocks(_text(TUTORIAL)) for line in block.splitlines()]
    script = "set -e\n" + "\n".join(f"echo '$ {command}'\n{command}" for command in commands)
    output = project.run("bash", "-c", script, PIP_NO_INDEX="1").stdout
    steps = output.split("$ udc run ")[1:]
    assert ["Running stage 'train'" in step for step in steps] == [True, False, False]
    least, argmax = (float(re.search(rf"^{name} +(\S+)", steps[1], re.MULTILINE)[1])
                     for name in ("min_expected_cost", "argmax"))  # fmt: skip
    assert least < argmax  # by how much depends on the last bits of training, which differ between processors
    policy = json.loads((project.root / "evaluation/policy.json").read_text())
    assert (policy["classes"], policy["class_costs"][0]) == (["crack", "ok", "scratch"], [0, 20, 20])
    (sentence,) = re.findall(r"^No difference in cost is shown: B costs .*$", steps[1], re.MULTILINE)
    assert re.sub(r"[\d.]+", "#", sentence) in re.sub(r"[\d.]+", "#", _text(TUTORIAL))
    assert json.loads((project.root / "metrics.json").read_text())["test"]["mean_cost"] < least
    files = _text("reference/files.md")
    for folder in ("data/prepared", "resolved", "model", "training", "evaluation"):
        for path in (path for path in (project.root / folder).rglob("*") if path.is_file()):
            assert f"`{path.name}`" in files, f"{path.relative_to(project.root)} is missing in reference/files.md"
    metrics = _text("reference/metrics.md")
    for name in read_metrics(project.root / "evaluation/test/metrics.csv"):
        assert f"`{name}`" in metrics, f"{name} is missing in reference/metrics.md"


@pytest.mark.pipeline
def test_experiments_are_run_shared_and_promoted_in_order(by_hand, tmp_path, free_port):
    project = by_hand
    home = {"HOME": str(tmp_path)}
    subprocess.run(["git", "init", "-q", "--bare", str(tmp_path / "udc-model.git")], check=True)
    project.run("git", "remote", "add", "origin", str(tmp_path / "udc-model.git"))
    server = project.root.parent / "server"
    server.mkdir(exist_ok=True)
    outputs = []
    for block in (block for page in IN_ORDER for block in _blocks(_text(page))):
        if _run_by(block) not in (None, RUN_BY["udc compare"]):
            continue
        project.deliver()
        if "MLFLOW_TRACKING_URI" in block:
            project.has_senders = True  # that deliver to the server
            command = ["mlflow", "server", "--port", str(free_port), "--workers", "1", "--backend-store-uri",
                       f"sqlite:///{server / 'server.db'}", "--artifacts-destination", str(server)]  # fmt: skip
            with project.server(*command, ready=f"http://127.0.0.1:{free_port}/health"):
                outputs.append(project.run("bash", "-ec", block.replace("5050", str(free_port)), **home).stdout)
                _check_server(free_port)
            project.has_senders = False
            continue
        outputs.append(project.run("bash", "-ec", block, **home).stdout)
    output = "\n".join(outputs)
    assert output.count("Data and pipelines are up to date") == 2  # the second repro, and that of the clone
    assert "again: run " in output
    assert "identical: run " in output
    assert "version 1 is champion" in output
    project.run("udc", "sync")
    runs = project.runs()
    names = [run.info.run_name for run in runs]
    assert {"double", "wide"} <= set(names)
    assert "again" not in names  # it is a second name of the run of `wide`
    assert all(run.info.status == "FINISHED" for run in runs)
    assert not (tmp_path / "elsewhere/mlflow.db").exists()  # no stage ran there


def _check_server(port):
    import mlflow

    client = mlflow.MlflowClient(f"http://127.0.0.1:{port}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments)
    assert "test/mean_cost" in run.data.metrics
    mlflow.set_tracking_uri(None)


def test_every_loss_of_the_pages_can_be_chosen():
    from udc_model.config import validate_params
    from udc_model.config.loss import LOSS_OPTIONS

    names = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", _text("how-to/losses.md"), flags=re.MULTILINE)
    losses = re.findall(r"`(\w+)`", " ".join(names))
    assert sorted(losses) == sorted(LOSS_OPTIONS)
    for name in losses:
        assert validate_params({"loss": {"name": name}}, "test").loss.name == name


def test_completion_scripts_are_printed(capsys):
    from udc_model.cli import main

    page = _text("reference/command-line.md")
    for shell in ("bash", "zsh", "tcsh", "fish"):
        assert f"`{shell}`" in page or f"--print-completion {shell}" in page
        with pytest.raises(SystemExit) as ended:
            main(["--print-completion", shell])
        assert ended.value.code == 0
        assert "promote" in capsys.readouterr().out


def test_reference_names_every_json_key_and_parameter():
    from udc_model.config.json_config import _KEYS
    from udc_model.config.reference import parameters, parameters_markdown

    page, tables = _text("reference/json.md"), parameters_markdown()
    for key in _KEYS:
        assert f"`{key}`" in page, f"the JSON key {key} is missing in reference/json.md"
    for parameter in parameters():
        assert f"| `{parameter.name}` |" in tables


def test_links_lead_to_files():
    pages = [*ROOT.glob("*.md"), *(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]
    for page in pages:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_contributing_names_files_that_exist():
    paths = re.findall(r"`((?:src|tests|docs)/[\w/.-]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists(), f"CONTRIBUTING.md: {path}"


def test_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == version
    assert re.search(r"^## \[(\d\S+)\]", changelog, re.MULTILINE)[1] == version
