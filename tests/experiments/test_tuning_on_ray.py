"""udc tune --engine ray: which workers are started. tests/team has a study with the real Ray and PostgreSQL."""

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from udc_model.cli import main
from udc_model.errors import UdcError
from udc_model.experiments import tuning_on_ray
from udc_model.experiments.search_range import SearchRange
from udc_model.experiments.tuning_on_ray import tune_on_ray
from udc_model.experiments.tuning_plan import TuningPlan

STORAGE = "postgresql+psycopg://me@host/studies"


class _Ray:
    """Runs each task at once in this process; two machines have 8 and 3 CPUs."""

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ZeroDivisionError)

    def __init__(self):
        self.started, self.options, self.gpus = [], {}, {}

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": cpus} | self.gpus} for cpus in (8.0, 3.0)]

    def remote(self, function):
        def start(*arguments):
            self.started.append(arguments)
            own = os.environ.pop("MLFLOW_TRACKING_URI")  # on another machine, Ray has another environment
            function(*arguments)
            assert os.environ["MLFLOW_TRACKING_URI"] == own
            return len(self.started)

        def options(**values):
            self.options = values
            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=options)

    def wait(self, waiting, timeout):
        return waiting[-1:], waiting[:-1]

    def get(self, reference):
        return None

    def init(self, address, **options):
        self.address = address

    def shutdown(self):
        pass


@pytest.fixture
def ray(monkeypatch, tmp_path):
    """The replica; `udc tune` only logs that it was called."""
    ray = _Ray()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(TuningPlan, "check", lambda plan: None)
    monkeypatch.setattr(tuning_on_ray, "repository_root", Path.cwd)

    def tune(plan):
        logging.getLogger("udc_model").info("a worker of %s, %s", plan.study, os.environ["MLFLOW_TRACKING_URI"])
        return "the table"

    monkeypatch.setattr(tuning_on_ray, "tune", tune)
    root, ours = logging.getLogger(), logging.getLogger("udc_model")
    handlers, level = root.handlers[:], ours.level
    yield ray
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers, ours.level = handlers, level


def plan(trials):
    return TuningPlan("s", [SearchRange.parse("train.learning_rate=log(1e-4,1e-1)")], trials, storage=STORAGE)


@pytest.mark.parametrize(("trials", "workers"), [(20, 5), (3, 3)])
def test_as_many_workers_as_the_cluster_has_room_for_and_trials_need(ray, trials, workers, capsys):
    assert tune_on_ray(plan(trials), "auto") == "the table"
    assert ray.address == "auto"
    assert [(started[0].trials, started[1]) for started in ray.started] == [(trials, str(Path.cwd()))] * workers
    assert capsys.readouterr().err == "a worker of s, sqlite:///own.db\n" * workers
    assert list(Path(".udc").iterdir()) == []  # no scratch folder


def test_the_gpus_are_those_of_the_cluster_not_of_the_command(ray):
    ray.gpus = {"GPU": 2.0}
    tune_on_ray(plan(20), "auto")
    assert (len(ray.started), ray.options["num_gpus"]) == (3, 1)  # two on the first machine, one on the other
    assert not torch.cuda.is_available()


def test_an_error_of_a_worker_is_that_of_the_command(ray, monkeypatch):
    class TaskError(Exception):
        cause = UdcError("3 trials failed")

    def fail(reference):
        raise TaskError

    ray.exceptions.RayTaskError = TaskError
    monkeypatch.setattr(ray, "get", fail)
    with pytest.raises(UdcError, match=r"^3 trials failed$"):
        tune_on_ray(plan(2))


@pytest.mark.parametrize(("options", "message"), [
    (["--engine", "ray"], "error: --engine ray: needs --storage, a database"),
    (["--ray-address", "auto"], "error: --ray-address: is of --engine ray only; add it"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(options, message, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert main(["tune", "-S", "train.learning_rate=log(1e-4,1e-1)", *options]) == 1
    assert message in caplog.text
