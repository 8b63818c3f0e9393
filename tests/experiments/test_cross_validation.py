"""`udc cross-validate` in this process: killed and resumed, extended, and what it refuses."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from udc_model.cli import main
from udc_model.config import load_params, validate_params
from udc_model.config.yaml12 import as_yaml
from udc_model.errors import UdcError
from udc_model.experiments.cross_validation import Procedure, cross_validate
from udc_model.files import Workspace, only_writer
from udc_model.stages import evaluate as evaluate_stage
from udc_model.stages import train as train_stage
from udc_model.stages.prepare import prepare
from udc_model.stages.procedure import procedure_inputs

pytestmark = pytest.mark.slow
SECTIONS = {
    "model": {"resnet": {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}},
    "train": {"epochs": 2, "augment": "none", "learning_rate": 0.01},
    "costs": {"preset": "uniform"},
    "evaluate": {"resamples": 200},
}


class NoFigures(nullcontext):
    """Draws nothing: a process that draws takes longer than the rest of a small fold."""

    def draw(self, folder, kind):
        """Do nothing."""

    def finish(self):
        """Do nothing."""


@pytest.fixture
def project(tmp_path, monkeypatch, shapes_folder):
    """A folder with parameters and prepared data; stages start no process for MLflow and draw no figures."""
    monkeypatch.setenv("UDC_SENDER", "off")
    monkeypatch.setattr(evaluate_stage, "FigureProcess", lambda *paths: NoFigures(NoFigures()))
    return _project(tmp_path / "one", monkeypatch, shapes_folder)


def _project(folder, monkeypatch, images, **data):
    (folder / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(folder)
    values = {"source": "auto", "path": str(images), "image_size": 16} | data
    params = validate_params(SECTIONS | {"data": values}, "test")
    (folder / "params.yaml").write_text(as_yaml(params.model_dump()))
    prepare(params, Workspace())
    return folder


def _studies(folder):
    return sorted((folder / ".udc/cross-validation").iterdir())


def _decisions(folder):
    (study,) = _studies(folder)
    return {path.parts[-4]: path.read_bytes() for path in sorted(study.glob("*/evaluation/test/predictions.csv"))}


def test_a_killed_cross_validation_resumes_with_the_same_numbers(project, tmp_path, monkeypatch, shapes_folder, capsys):
    """Killed in the second epoch of the third fold: two folds are not run again, the third resumes after an epoch."""
    before = {path: path.stat().st_mtime_ns for path in (project / "data/prepared").iterdir()}
    trained, epochs, log_epoch, kill_at = [], [], train_stage._log_epoch, [6]
    monkeypatch.setattr(train_stage, "check_disk", lambda session, root: trained.append(root.name))

    def log(run, record, system):
        epochs.append(record.epoch)
        if len(epochs) == kill_at[0]:
            raise KeyboardInterrupt
        log_epoch(run, record, system)

    monkeypatch.setattr(train_stage, "_log_epoch", log)
    assert main(["cross-validate", "--folds", "3", "--repeats", "1"]) == 130
    assert epochs == [1, 2, 1, 2, 1, 2]
    assert main(["cross-validate", "--folds", "3", "--repeats", "1"]) == 0
    text = capsys.readouterr().out
    assert trained == [f"repeat-1-fold-{k}" for k in (1, 2, 3, 3)]
    assert epochs == [1, 2, 1, 2, 1, 2, 2]
    assert main(["cross-validate", "--folds", "3", "--repeats", "1"]) == 0  # nothing is left to run
    assert capsys.readouterr().out == text
    assert len(epochs) == 7
    assert {path: path.stat().st_mtime_ns for path in (project / "data/prepared").iterdir()} == before
    assert not (project / "model").exists()
    assert not (project / "evaluation").exists()
    (study,) = _studies(project)
    assert {path.name for path in study.iterdir()} == {"study.json", *(f"repeat-1-fold-{k}" for k in (1, 2, 3))}

    kill_at[0] = 0
    undisturbed = _project(tmp_path / "two", monkeypatch, shapes_folder)
    assert main(["cross-validate", "--folds", "3", "--repeats", "1"]) == 0
    assert capsys.readouterr().out == text
    assert _decisions(undisturbed) == _decisions(project)
    assert len(_decisions(project)) == 3


def test_more_repeats_extend_a_study(project, capsys, caplog):
    caplog.set_level(logging.INFO)
    environment = dict(os.environ)
    assert main(["cross-validate", "--folds", "2", "--repeats", "1"]) == 0
    caplog.clear()
    assert main(["cross-validate", "--folds", "2", "--repeats", "2"]) == 0
    assert [line.split(":")[0] for line in caplog.messages if line.startswith("repeat")] == [
        "repeat 2, fold 1", "repeat 2, fold 2",
    ]  # fmt: skip
    assert len(_studies(project)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if line.lstrip()[0].isdigit()] == [
        [str(repeat), str(fold), "30"] for repeats in ((1,), (1, 2)) for repeat in repeats for fold in (1, 2)
    ]
    assert {name: os.environ.get(name) for name in environment} == environment
    assert "UDC_STUDY_PART" not in os.environ


@pytest.mark.parametrize(("arguments", "message"), [
    (["--folds", "1"], "--folds: must be from 2 to 1,000, not 1"),
    (["--repeats", "0"], "--repeats: must be from 1 to 1,000, not 0"),
    (["--folds", "30"], "--folds: too few images for 30 folds"),
])  # fmt: skip
def test_what_cannot_be_run_is_refused_first(project, caplog, arguments, message):
    assert main(["cross-validate", *arguments]) == 1
    assert message in caplog.text
    assert not (project / ".udc/cross-validation").exists()


def test_a_parameter_that_does_not_fit_a_fold_is_refused_first(project):
    floor = ["evaluate.decision=recall_floor", "evaluate.recall_floor={class: bar, floor: 0.95}"]
    params = load_params(Path("params.yaml"), floor)
    with pytest.raises(UdcError, match=r"^fold 1 of repeat 1: .*at least 59 of its images"):
        cross_validate(params, Workspace(), 2, 1, Procedure(_stop, {}))
    assert not (project / ".udc/cross-validation").exists()


def test_a_second_writer_is_refused(project, caplog):
    with only_writer(Workspace()):
        assert main(["cross-validate"]) == 1
    assert "is writing to" in caplog.text


def test_without_prepared_data_the_message_says_what_to_run(project, tmp_path, monkeypatch, caplog):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/params.yaml").write_text((project / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["cross-validate"]) == 1
    assert "run `dvc repro prepare` first" in caplog.text


def _stop(params, workspace):
    raise UdcError(f"stopped: {workspace.root.name}, seed {params.seed}")


def _first_study(params, **inputs):
    """The folder of the study with these inputs, stopped at its first fold."""
    with pytest.raises(UdcError, match=r"^stopped: repeat-1-fold-1, seed \d+$"):
        cross_validate(params, Workspace(), 2, 1, Procedure(_stop, inputs))
    return {path.name for path in _studies(Path())}


def test_other_inputs_begin_another_study(project):
    params = load_params(project / "params.yaml")
    first = _first_study(params, learning_rate=0.1)
    assert _first_study(params, learning_rate=0.1) == first
    assert len(_first_study(params, learning_rate=0.2)) == 2
    changed = params.model_copy(update={"train": params.train.model_copy(update={"learning_rate": 0.5})})
    assert procedure_inputs(params) == procedure_inputs(load_params(project / "params.yaml"))
    assert procedure_inputs(changed) != procedure_inputs(params)


def test_an_own_test_split_is_kept_out(project, tmp_path, monkeypatch, shapes_folder, caplog):
    caplog.set_level(logging.INFO)
    for i, path in enumerate(sorted(shapes_folder.rglob("*.png"))):
        target = tmp_path / "split" / ("test" if i % 5 == 0 else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    _project(tmp_path / "other", monkeypatch, tmp_path / "split")
    _first_study(load_params(Path("params.yaml")))
    line = "cross-validating 48 images in 2 folds, 1 time(s); the 12 images of the test split that the data prescribes"
    assert f"{line} are in no fold" in caplog.text
