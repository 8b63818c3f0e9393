"""Projects for tests with real commands: a copy of the repository's files in a new git repository."""

import io
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import yaml

from udc_model.cli import main
from udc_model.tracking.journal import pending_journals, wait_for_senders
from udc_model.tracking.sender import sync

ROOT = Path(__file__).parents[2]
_READERS = (
    "show",
    "promote",
    "compare",
    "reproduce",
    "decide",
    "experiments",
    "sweep-report",
    "tune",
    "predict",
)  # of runs


@dataclass
class Project:
    """A project folder, and the commands of the environment.

    Stages start no sender unless ``has_senders`` is set: it takes as long as a small stage. What they recorded is
    delivered in this process before something reads it.
    """

    root: Path
    has_senders: bool = False

    def run(self, *command, check=True, **env):
        """Run a command in the project; returns the completed process with its output as text."""
        if command[0] == "udc" and command[1] in _READERS:
            self.deliver()
        done = subprocess.run(command, cwd=self.root, env=self.env(**env), capture_output=True, text=True)
        if check and done.returncode:
            raise AssertionError(f"{command} failed\n{done.stdout}\n{done.stderr}")
        return done

    def udc(self, *arguments, check=True, **env):
        """Run a ``udc`` command in this process, which has imported torch and MLflow already; returns what `run` does.

        The processes that the command starts (senders, figures, ``dvc``) are real. Each command also runs as a process
        of its own in one test at least.
        """
        if arguments[0] in _READERS:  # of runs
            self.deliver()
        with _environment(self.root, self.env(**env)), _output() as (stdout, stderr):
            try:
                status = main(arguments)
            except SystemExit as ended:  # of argparse
                status = ended.code
        done = subprocess.CompletedProcess(["udc", *arguments], status, stdout.getvalue(), stderr.getvalue())
        if check and done.returncode:
            raise AssertionError(f"{done.args} failed\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, *command, **env):
        """Start a command in a new process group, whose id is the process id; its output is in ``stdout``.

        It reacts to Ctrl-C, also if the tests run in the background and would pass on that SIGINT is ignored.
        """
        return subprocess.Popen(command, cwd=self.root, env=self.env(**env), text=True, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL))  # fmt: skip

    def wait_for(self, pattern, process):
        """Wait until a file of the project matches, while a process that `start` returned is running."""
        deadline = time.monotonic() + 200
        while not list(self.root.glob(pattern)):
            assert process.poll() is None, f"it ended before {pattern} existed:\n{process.stdout.read()}"
            assert time.monotonic() < deadline
            time.sleep(0.01)  # between two polls

    def env(self, **changes):
        """The environment of an activated .venv."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # mlflow.set_tracking_uri() writes MLFLOW_TRACKING_URI, and make passes its options to make commands below it
        foreign = ("PYTHONPATH", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
        inherited = {key: value for key, value in os.environ.items() if key not in foreign}
        # OMP_WAIT_POLICY: several tests share the cores; waiting threads must not occupy them
        settings = {"OMP_WAIT_POLICY": "PASSIVE", "MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "true",
                    "UDC_SENDER": "on" if self.has_senders else "off"}  # fmt: skip
        return inherited | {"PATH": path} | settings | changes

    @contextmanager
    def server(self, *command, ready, **env):
        """Run a server in the project during the block; ``ready`` is an address that answers once it has started."""
        process = subprocess.Popen(command, cwd=self.root, env=self.env(**env), stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None, f"{command} ended with status {process.returncode}"
                assert time.monotonic() < deadline, f"{ready} does not answer"
                try:
                    with urllib.request.urlopen(ready, timeout=5) as response:
                        answer = response.read().decode()
                    break
                except (urllib.error.URLError, ConnectionError, TimeoutError):
                    time.sleep(0.2)  # between two polls; the deadline decides
            yield answer
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def set_params(self, **sections):
        """Change values in params.yaml, section by section."""
        path = self.root / "params.yaml"
        params = yaml.safe_load(path.read_text(encoding="utf-8"))
        for section, values in sections.items():
            params[section] |= values
        path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")

    def commit_result(self):
        """Run the pipeline and commit its result."""
        self.run("dvc", "repro", "-q")
        self.run("git", "add", "dvc.lock", "metrics.json")
        self.run("git", "commit", "-qm", "first result")

    def reset(self):
        """Restore the last commit and its outputs."""
        self.run("git", "reset", "-q", "--hard")
        self.run("dvc", "checkout", "-q")

    def client(self):
        """An MLflow client of the project's default store, which has everything that ended stages have logged."""
        import mlflow

        self.wait_for_senders()
        mlflow.set_tracking_uri(f"sqlite:///{self.root / 'mlflow.db'}")
        return mlflow.MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")

    def wait_for_senders(self):
        """Wait until everything that ended stages have logged is in MLflow."""
        assert wait_for_senders(self.root, timeout=300)
        self.deliver()

    def deliver(self):
        """Log in this process what stages without a sender have recorded."""
        if not self.has_senders and pending_journals(self.root):
            with _environment(self.root, self.env()), _output():
                _, errors, _ = sync(self.root)
            assert errors == {}

    def runs(self):
        """All recorded runs, the oldest first."""
        client = self.client()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


@contextmanager
def _environment(folder, variables):
    """Work in a folder, with these environment variables only."""
    here, inherited = Path.cwd(), dict(os.environ)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(inherited)


@contextmanager
def _output():
    """Capture standard output and error as those of a new process, whose root logger has no handlers."""
    logger, ours = logging.getLogger(), logging.getLogger("udc_model")
    handlers, logger.handlers, level = logger.handlers, [], ours.level
    try:
        with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
            yield stdout, stderr
    finally:
        logger.handlers = handlers
        ours.setLevel(level)


def _copy_project(target, **sections):
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if name in ("dvc.lock", "metrics.json") or not (ROOT / name).is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    for compiled in (ROOT / "src").rglob("__pycache__"):  # valid, since copy2 keeps the times of the sources
        shutil.copytree(compiled, target / compiled.relative_to(ROOT))
    project = Project(target)
    if sections:  # set_params drops the comments of params.yaml
        project.set_params(**sections)
    project.run("git", "init", "-q")
    project.run("git", "config", "user.name", "Test")
    project.run("git", "config", "user.email", "test@example.org")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "start")
    return project


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def project_at():
    """A function that takes a folder which is a project already."""
    return Project


@pytest.fixture
def outside(tmp_path):
    """An empty folder, with the commands of the environment."""
    return Project(tmp_path)


@pytest.fixture(scope="session")
def new_project(tmp_path_factory):
    """A function that creates a project, with changed sections of params.yaml."""
    return lambda **sections: _copy_project(tmp_path_factory.mktemp("project"), **sections)


@pytest.fixture(scope="session")
def small_project(new_project, shapes_at, empty_store):
    """A function that creates a small project on image files, with changed sections of params.yaml, and its store."""

    def create(**sections):
        small = {
            "data": {"source": "folder", "path": "data/raw/shapes", "image_size": 16},
            "train": {"epochs": 1, "batch_size": 12}, "costs": {"preset": "uniform"}, "evaluate": {"resamples": 100},
        }  # fmt: skip
        project = new_project(**{name: small.get(name, {}) | sections.get(name, {}) for name in small | sections})
        shapes_at(project.root / "data/raw/shapes")
        project.run("git", "add", "-A")
        project.run("git", "commit", "-qm", "data")
        shutil.copy(empty_store, project.root)
        return project

    return create


@pytest.fixture
def by_hand(small_project):
    """A small project; no stage has run."""
    return small_project()
