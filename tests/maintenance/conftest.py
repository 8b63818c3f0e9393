"""A project with DVC objects that are named in each of the possible ways, and one that nothing names."""

import hashlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest

from udc_model.maintenance.holdings import MIN_AGE
from udc_model.tracking.journal import Journal
from udc_model.tracking.store import default_uri, tracking_uri

_STAGES = "stages:\n  copy:\n    cmd: 'true'\n    deps: [data]\n    always_changed: true\n"


@dataclass(frozen=True)
class Project:
    """A git and DVC repository with a copy of an empty MLflow store."""

    root: Path

    def dvc(self, *arguments):
        """Run a command of DVC in this process, which saves a second each."""
        from dvc.cli import main

        here = Path.cwd()
        os.chdir(self.root)
        try:
            assert main(list(arguments)) == 0, arguments
        finally:
            os.chdir(here)

    def git(self, *arguments):
        """Run a command of git."""
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def add(self, text):
        """Make a version of the folder data/ and store it in DVC's cache."""
        (self.root / "data").mkdir(exist_ok=True)
        (self.root / "data/file").write_text(text)
        self.dvc("add", "-q", "data")

    def restore(self):
        """Restore the last commit; DVC's part is the caller's."""
        self.git("checkout", "-q", ".")
        self.git("clean", "-qf")  # DVC's lock file of an experiment

    def listing(self, text):
        """The object that lists the version of data/ with this text."""
        entry = json.dumps([{"md5": hashlib.md5(text.encode()).hexdigest(), "relpath": "file"}])
        return self.object(f"{hashlib.md5(entry.encode()).hexdigest()}.dir")

    def object(self, name):
        """The path of an object in DVC's cache."""
        return self.root / ".dvc/cache/files/md5" / name[:2] / name[2:]

    def has(self, text):
        """Whether a version of data/ is in DVC's cache completely."""
        return self.listing(text).is_file() and self.object(hashlib.md5(text.encode()).hexdigest()).is_file()

    @staticmethod
    def age(path):
        """Make a file or folder older than what is left alone because of its age."""
        past = time.time() - 2 * MIN_AGE
        os.utime(path, (past, past))
        return path

    @property
    def client(self):
        """A client of the project's MLflow store."""
        return mlflow.MlflowClient(default_uri(self.root))

    def run(self, tags=None, artifact=True, **experiment):
        """A run in the store with one artifact; returns its id."""
        client = self.client
        name = experiment.get("name", "udc-model")
        found = client.get_experiment_by_name(name)
        place = (self.root / "mlartifacts" / name).as_uri()
        identifier = found.experiment_id if found else client.create_experiment(name, place)
        run = client.create_run(identifier, tags=tags or {})
        if artifact:
            client.log_text(run.info.run_id, "text" * 100, "file.txt")
        return run.info.run_id

    def artifacts(self, run_id):
        """The files of a run."""
        return list(self.root.glob(f"mlartifacts/*/{run_id}/artifacts/*"))

    def journal(self, *, is_ended=True, position=None, **header):
        """A journal of a stage that does not run; ``position``: delivered up to there, -1 for all of it."""
        values = {"uri": tracking_uri(), "experiment": "udc-model", "outer": None, "tags": {}} | header
        journal = Journal.create(self.root, "train", values)
        if is_ended:
            journal.append("end", status="FINISHED")
        journal.close()
        size = (journal.folder / "journal.jsonl").stat().st_size
        if position is not None:
            sent = {"run_id": None, "name": "", "is_new": True, "position": size if position == -1 else position}
            (journal.folder / "sent.json").write_text(json.dumps(sent))
        return journal.folder


@pytest.fixture(scope="session")
def _template(tmp_path_factory, empty_store):
    root = tmp_path_factory.mktemp("template")
    project = Project(root)
    project.git("init", "-q")
    os.environ["DVC_SITE_CACHE_DIR"] = str(tmp_path_factory.mktemp("dvc"))  # its lock is not that of other workers
    for key, value in (("user.name", "Test"), ("user.email", "test@example.org")):
        project.git("config", key, value)
    project.dvc("init", "-q")
    (root / "dvc.yaml").write_text(_STAGES)
    (root / ".gitignore").write_text("/mlflow.db*\n/mlartifacts\n/.udc\n/data\n")
    for text in ("history", "committed"):
        project.add(text)
        project.git("add", ".")
        project.git("commit", "-qm", text)
    project.add("experiment")
    project.dvc("exp", "save", "-q", "--name", "three")
    project.restore()
    project.add("queued")
    project.dvc("exp", "run", "--queue", "--name", "later")
    project.restore()
    project.add("stashed")
    project.git("stash", "-q")
    for text in ("of a run", "unnamed", "committed"):
        project.add(text)
    assert project.git("status", "--porcelain") == ""
    shutil.copy(empty_store, root / "mlflow.db")
    return root


@pytest.fixture
def project(_template, tmp_path, monkeypatch):
    root = tmp_path / "project"
    shutil.copytree(_template, root, symlinks=True)
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(root)
    yield Project(root)
    mlflow.set_tracking_uri(None)
