"""Outputs of git revisions."""

import subprocess
from pathlib import Path

from udc_model.tracking.links import locked_outs

LOCK = "schema: '2.0'\nstages:\n  train:\n    cmd: c\n    outs:\n    - {path: model, md5: a.dir}\n    - {path: notes}\n"


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
