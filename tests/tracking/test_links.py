"""Outputs of git revisions."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

from udc_model.errors import UdcError
from udc_model.tracking import links
from udc_model.tracking.journal import JOURNALS
from udc_model.tracking.links import locked_outs

LOCK = "schema: '2.0'\nstages:\n  train:\n    cmd: c\n    outs:\n    - {path: model, md5: a.dir}\n    - {path: notes}\n"


def test_a_damaged_record_of_links_is_replaced(tmp_path, monkeypatch):
    record = tmp_path / JOURNALS / "linked.json"
    record.parent.mkdir(parents=True)
    record.write_text("")
    run = SimpleNamespace(info=SimpleNamespace(run_id="r"), data=SimpleNamespace(tags={}))
    monkeypatch.setattr(links, "dvc_experiments", lambda: {"a": "commit"})
    monkeypatch.setattr(links, "locked_outs", lambda commit: {})
    monkeypatch.setattr(links, "runs_with_outputs", lambda client, experiments, outs: [run])
    client = SimpleNamespace(set_tag=lambda *tag: None)
    assert links.link_experiments(client, ["0"], tmp_path) == {"a": "r"}
    assert json.loads(record.read_text()) == {"a commit": "r"}


def _git(*arguments):
    subprocess.run(["git", "-c", "user.name=T", "-c", "user.email=t@example.org", *arguments], check=True)


def test_outputs_of_a_project_in_a_folder_of_a_repository(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    for project in (Path(), Path("studies/spiders")):
        (project / ".dvc").mkdir(parents=True)
        (project / "data").mkdir()
    Path("studies/spiders/dvc.lock").write_text(LOCK)
    _git("init", "-q")
    _git("add", ".")
    _git("commit", "-qm", "result")
    assert locked_outs("HEAD") == {}  # the project at the top has no result
    for folder in ("studies/spiders", "data"):
        monkeypatch.chdir(folder)
        assert locked_outs("HEAD") == {"model": "a.dir"}


def test_an_experiment_with_a_damaged_lock_does_not_prevent_the_links_of_others(tmp_path, monkeypatch):
    def outputs(commit):
        if commit == "damaged":
            raise UdcError("dvc.lock of damaged: has a merge conflict")
        return {}

    asked = []
    monkeypatch.setattr(links, "dvc_experiments", lambda: {"a": "damaged", "b": "good"})
    monkeypatch.setattr(links, "locked_outs", outputs)
    monkeypatch.setattr(links, "runs_with_outputs", lambda client, experiments, outs: asked.append(outs) or [])
    assert links.link_experiments(None, ["0"], tmp_path) == {}
    assert asked == [{}]
