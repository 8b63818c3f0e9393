"""A project moves to another version: files nobody has changed are replaced, and what changed is reported."""

import json
from pathlib import Path

import pytest

from udc_model.cli import main
from udc_model.config import Params, load_params
from udc_model.config.reference import params_yaml
from udc_model.installed import check_pin, installed
from udc_model.project.creation import digest_of, write_pin
from udc_model.project.templates import project_files

_OF_THE_USER = (".gitignore", "data/corrections.csv")  # lines of the user remain


@pytest.fixture
def old_project(tmp_path, monkeypatch):
    """A project of version 0.1.0 in the current folder, all of whose files are of other contents than now."""
    monkeypatch.chdir(tmp_path)
    old = {name: f"# old\n{text}" for name, text in project_files(tmp_path.name).items()}
    for name, text in old.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    write_pin(tmp_path, old, list(old))
    pin = json.loads(Path("udc.json").read_text()) | {"version": "0.1.0", "code": "0" * 16}
    Path("udc.json").write_text(json.dumps(pin))
    Path("params.yaml").write_text(params_yaml(Params()))
    return tmp_path


def test_unchanged_files_are_replaced_and_changes_reported(old_project, capsys):
    files = project_files(old_project.name)
    assert main(["upgrade"]) == 0
    output = capsys.readouterr().out
    assert output.startswith(
        f"udc-model 0.1.0 (code 0000000000000000) -> {installed()}, installed as udc-model @ file://"
    )
    assert {line.strip() for line in output.splitlines() if line.endswith(": replaced")} == {
        f"{name}: replaced" for name in files if name not in _OF_THE_USER}  # fmt: skip
    assert "DVC runs all stages again" in output
    assert all(Path(name).read_text() == text for name, text in files.items() if name not in _OF_THE_USER)
    check_pin()
    assert main(["upgrade"]) == 0
    assert capsys.readouterr().out == f"this project uses {installed()} already; nothing changed\n"


def test_files_of_the_user_stay(old_project, capsys):
    old = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(old + "# mine\n")
    Path(".gitignore").write_text("/mine\n")
    Path("README.md").unlink()
    Path("MLproject").unlink()  # needed
    pin = json.loads(Path("udc.json").read_text())
    del pin["files"]["Makefile"]  # was there before udc init
    Path("udc.json").write_text(json.dumps(pin))
    makefile = Path("Makefile").read_text()
    assert main(["upgrade"]) == 0
    output = capsys.readouterr().out
    assert "  dvc.yaml: you have changed it, so it stays; the new one is .udc/upgrade/dvc.yaml\n" in output
    assert "  MLproject: new\n" in output
    files = project_files(old_project.name)
    assert Path("dvc.yaml").read_text() == old + "# mine\n"
    assert Path(".udc/upgrade/dvc.yaml").read_text() == files["dvc.yaml"]
    assert (Path("Makefile").read_text(), Path("README.md").exists()) == (makefile, False)
    assert Path(".gitignore").read_text().startswith("/mine\n\n/data/prepared\n")
    recorded = json.loads(Path("udc.json").read_text())["files"]
    assert recorded["dvc.yaml"] == digest_of(files["dvc.yaml"])
    assert "Makefile" not in recorded
    assert main(["upgrade"]) == 0  # there is no newer one than that of the last time
    assert "dvc.yaml" not in capsys.readouterr().out


def test_files_that_are_not_utf8_are_changed_ones(old_project, capsys):
    contents = {"README.md": b"caf\xe9\n", ".gitignore": b"/caf\xe9\n"}
    for name, text in contents.items():
        Path(name).write_bytes(text)
    assert main(["upgrade"]) == 0
    assert "  README.md: you have changed it, so it stays; the new one is .udc/upgrade/README.md\n" \
        in capsys.readouterr().out  # fmt: skip
    assert Path("README.md").read_bytes() == contents["README.md"]
    assert Path(".gitignore").read_bytes().startswith(b"/caf\xe9\n\n/data/prepared\n")


def test_corrections_are_added_and_stay(old_project, capsys):
    path = Path("data/corrections.csv")
    path.unlink()
    assert main(["upgrade"]) == 0
    assert "  data/corrections.csv: new\n" in capsys.readouterr().out
    assert path.read_text() == "path,sha256,action,value,author,date,reason\n"
    path.write_text(path.read_text() + "a.png,,drop,,,,\n")
    pin = json.loads(Path("udc.json").read_text()) | {"version": "0.1.0"}
    Path("udc.json").write_text(json.dumps(pin))
    assert main(["upgrade"]) == 0
    assert "corrections.csv" not in capsys.readouterr().out
    assert path.read_text().endswith("\na.png,,drop,,,,\n")


def test_new_parameters_are_added_with_their_defaults(old_project, capsys):
    text = Path("params.yaml").read_text().replace("  quarter_turns: false\n", "").replace("seed: 42", "seed: 7")
    text = text[: text.index("evaluate:")]
    Path("params.yaml").write_text(text + "# mine\n")
    assert main(["upgrade"]) == 0
    output = capsys.readouterr().out
    assert "  params.yaml: new train.quarter_turns: false\n" in output
    assert "  params.yaml: new evaluate.resamples: 2000\n" in output
    assert "udc params --write" in output
    new = Path("params.yaml").read_text()
    assert "  quarter_turns: false\n" in new
    assert "# mine\n" in new
    assert load_params() == Params(seed=7)


def test_unknown_parameters_stop_it_before_anything_is_written(old_project, caplog):
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("  epochs:", "  passes:"))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert main(["upgrade"]) == 1
    assert "params.yaml is not valid:\n  train.passes" in caplog.text
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_a_folder_without_a_project_is_refused(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(["upgrade"]) == 1
    assert f"{tmp_path / 'udc.json'}: no such file; run udc upgrade in the folder of a project" in caplog.text
    assert list(tmp_path.iterdir()) == []
