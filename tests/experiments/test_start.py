"""`udc run`: refusals before DVC starts, what differs from the last commit, and the command that runs."""

import json
import subprocess
from pathlib import Path

import pytest

from udc_model.cli import main
from udc_model.experiments import start

TEXT = ("seed: 1\ntrain: {epochs: 2, learning_rate: 0.1}\ndata: {source: digits, image_size: 32}\n"
        "costs: {entries: [], prior: null}\nevaluate: {recall_of: []}\n")  # fmt: skip


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The commands that replaced the process; the current folder has a parameter file."""
    commands = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(start, "_become", commands.append)
    monkeypatch.setattr(start, "_run_within", lambda run_id, command: commands.append(command))
    monkeypatch.setattr(start.shutil, "which", lambda name: f"/bin/{name}")
    Path("params.yaml").write_text(TEXT)
    return commands


def _commit():
    identity = ["-c", "user.name=T", "-c", "user.email=t@e"]
    for arguments in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "a"]):
        subprocess.run(["git", *arguments], check=True)


def test_the_command_has_the_same_arguments(started, monkeypatch):
    assert main(["run", "-S", "epochs=5", "--name", "five", "--temp", "--stage", "train"]) == 0
    monkeypatch.setenv("MLFLOW_RUN_ID", "1")
    assert main(["run", "--recall_of", "[3]", "--train.epochs=4", "--force"]) == 0
    run = ["/bin/dvc", "exp", "run"]
    assert started == [
        [*run, "-S", "train.epochs=5", "--name", "five", "--temp", "train"],
        [*run, "-S", "evaluate.recall_of=[3]", "-S", "train.epochs=4", "--force"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-S", "train.epochs=0"], "train.epochs: got 0; allowed: integer above 0"),
        (["--recall_of", "[1.0]"], "write the name of the class in quotes: '1.0'"),
        (["--queue", "-S", "train.epochs=3,0"], "train.epochs: got 0"),
        (["-S", "train.epochs=3,4"], "`udc run --queue -S train.epochs=3,4` queues an experiment for each"),
        (["-S", "train.eposch=3"], "train.eposch: DVC cannot set it in params.yaml"),
        (["-S", "train.eposch=3"], "; did you mean train.epochs?"),
        (["-S", "eposch=3"], "eposch: no such parameter; did you mean epochs?"),
        (["-S", "train.mixup=0.2"], "`udc params --write` writes all parameters into it"),
        (["--train.epochs"], "--train.epochs: parameters are given as -S name=value"),
    ],
)
def test_refusals_start_nothing_and_change_nothing(started, caplog, arguments, message):
    assert main(["run", *arguments]) == 1
    assert message in caplog.text
    assert not started
    assert Path("params.yaml").read_text() == TEXT


def test_parameters_that_differ_from_the_last_commit_are_printed(started, caplog):
    Path("code.py").touch()
    _commit()
    assert main(["run"]) == 0
    assert "no parameter differs from the last commit (" in caplog.text
    Path("params.yaml").write_text(TEXT.replace("epochs: 2", "epochs: 5"))
    Path("code.py").write_text("x = 1")
    caplog.clear()
    assert main(["run", "-S", "train.learning_rate=0.3", "-S", "costs.prior={a: 0.5, b: 0.5}"]) == 0
    lines = caplog.text.splitlines()
    assert "  train.epochs: 2 -> 5 (in params.yaml already)" in lines
    assert "  train.learning_rate: 0.1 -> 0.3" in lines
    assert '  costs.prior: null -> {"a": 0.5, "b": 0.5}' in lines
    assert "`git checkout params.yaml` restores those of the last commit" in lines
    assert "files that differ from the last commit: code.py" in caplog.text
    caplog.clear()
    assert main(["run", "--queue", "-S", "train.learning_rate=0.3,0.4"]) == 0
    assert "  train.learning_rate: 0.1 -> 0.3, 0.4" in caplog.text.splitlines()
    assert started[-1][-1] == "--queue"


@pytest.mark.parametrize("has_changed", [False, True])
def test_classes_are_checked_if_the_images_have_not_changed(started, caplog, monkeypatch, has_changed):
    from udc_model.config import DataParams

    Path("data/prepared").mkdir(parents=True)
    info = {"classes": ["a", "b"], "counts": {"calibration": {"a": 9, "b": 9}}}
    Path("data/prepared/dataset.json").write_text(json.dumps(info))
    stages = {"prepare": {"params": {"params.yaml": {"data": DataParams(source="digits", image_size=32).model_dump()}}}}
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    monkeypatch.setattr(start, "_is_up_to_date", lambda stage: not has_changed)
    assert main(["run", "-S", "evaluate.recall_of=[b]"]) == 0
    status = main(["run", "-S", "evaluate.recall_of=[nix]"])
    assert status == (0 if has_changed else 1)
    assert ("the data has no class 'nix'" in caplog.text) is not has_changed
    assert len(started) == (2 if has_changed else 1)
    assert main(["run", "-S", "data.image_size=16", "-S", "evaluate.recall_of=[nix]"]) == 0  # prepare runs again
