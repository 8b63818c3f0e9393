"""train.engine: ray. A replica of Ray Train's loop runs real processes; tests/pipeline has one with the real Ray."""

import os
import signal
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from udc_model.errors import INTERRUPTED, TRY_AGAIN, Interrupted, UdcError
from udc_model.ray_cluster import RETRIES
from udc_model.training import distribution_on_ray
from udc_model.training.distribution_on_ray import launch_on_ray

PROBE = """
import os, signal, sys, time
rank, attempt = int(os.environ["RANK"]), 0
while os.path.exists(f"{rank}.{attempt}"):
    attempt += 1
open(f"{rank}.{attempt}", "w").close()
print(f"process {rank} of {os.environ['WORLD_SIZE']}: {' '.join(sys.argv[1:])}")
print(f"attempt {attempt}", file=sys.stderr)
"""


class _Worker(threading.local):
    rank = 0


class _RayTrain:
    """As Ray Train with two workers: threads of this process, all of them again after an error in one."""

    def __init__(self):
        self.worker, self.barrier, self.port = _Worker(), threading.Barrier(2), None

    def modules(self):
        """What `launch_on_ray` imports, by name."""
        ray, train, torch, collective = (ModuleType(name) for name in
                                         ("ray", "ray.train", "ray.train.torch", "ray.train.collective"))  # fmt: skip
        ray.train, train.torch = train, torch
        ray.nodes = lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}]
        ray.init = ray.shutdown = lambda *arguments, **options: None
        train.get_context = self.context
        train.FailureConfig = train.RunConfig = train.ScalingConfig = SimpleNamespace
        torch.TorchConfig, torch.TorchTrainer = SimpleNamespace, self.trainer
        collective.broadcast_from_rank_zero = self.broadcast
        return {module.__name__: module for module in (ray, train, torch, collective)}

    def context(self):
        sizes = {"world_rank": self.worker.rank, "world_size": 2, "local_rank": self.worker.rank, "local_world_size": 2}
        return SimpleNamespace(**{f"get_{name}": lambda value=value: value for name, value in sizes.items()})

    def broadcast(self, value):
        if self.worker.rank == 0:
            self.port = value
        self.barrier.wait(60)
        return self.port

    def trainer(self, function, *, train_loop_config, torch_config, scaling_config, run_config):
        assert scaling_config.num_workers == 2

        def fit():
            for _ in range(run_config.failure_config.max_failures + 1):
                errors = []
                threads = [threading.Thread(target=self.work, args=(k, function, train_loop_config, errors))
                           for k in range(2)]  # fmt: skip
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                if not errors:
                    return
            raise RuntimeError(f"worker group failed: {errors[0]}")

        return SimpleNamespace(fit=fit)

    def work(self, rank, function, config, errors):
        self.worker.rank = rank
        try:
            function(config)
        except RuntimeError as error:
            errors.append(error)


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """A function that launches two processes which end with the given code, and returns how many were started."""
    for name, module in _RayTrain().modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()

    def launch(code, **options):
        (tmp_path / "probe.py").write_text(PROBE + code)
        try:
            launch_on_ray("probe", ["--root", "."], 2, tmp_path / "scratch", **options)
        finally:
            launch.started = sorted(path.name for path in tmp_path.glob("[01].*"))
        return launch.started

    return launch


def test_processes_get_their_ranks_and_what_they_print_is_printed(launched, capsys):
    assert launched("assert os.environ['TORCHELASTIC_RUN_ID'] and int(os.environ['MASTER_PORT'])") == ["0.0", "1.0"]
    printed = capsys.readouterr()
    assert sorted(printed.out.splitlines()) == [f"process {k} of 2: --root ." for k in range(2)]
    assert printed.err.splitlines() == ["attempt 0"] * 2


def test_after_a_kill_all_processes_are_started_again(launched):
    killed = f"""
if attempt == 0:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit({TRY_AGAIN})
"""
    assert launched(killed) == ["0.0", "0.1", "1.0", "1.1"]


def test_a_failure_of_a_process_is_reported_and_not_repeated(launched):
    with pytest.raises(UdcError, match=r"^process 1 of 2 failed, .* its error is above$"):
        launched(f"sys.exit({{0: {TRY_AGAIN}, 1: 1}}[rank])")
    assert launched.started == ["0.0", "1.0"]


def test_processes_that_are_killed_again_and_again_end_the_training_run(launched):
    with pytest.raises(UdcError, match=r"^Ray: the training run was stopped after 6 attempts .*status -9.; start it"):
        launched("os.kill(os.getpid(), signal.SIGKILL)")
    assert len(launched.started) == 2 * (RETRIES + 1)


def test_ctrl_c_reaches_the_processes(launched):
    """The first process sends it to this one, as a person would, and waits for the file that tells it."""
    code = f"""
if rank == 0:
    os.kill(os.getppid(), signal.SIGINT)
    deadline = time.monotonic() + 60
    while not os.path.exists(os.environ["UDC_STOP_FILE"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sys.exit({INTERRUPTED})
"""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    try:
        with pytest.raises(Interrupted):
            launched(code)
    finally:
        signal.signal(signal.SIGINT, before)
    assert launched.started == ["0.0", "1.0"]


def test_a_cluster_that_is_too_small_is_refused(launched, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with pytest.raises(UdcError, match=r"^train.processes: got 2, but the cluster has room for 1, of 3 threads each$"):
        launched("")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with pytest.raises(UdcError, match=r"^Ray: a process uses 5 threads, .* set OMP_NUM_THREADS to a smaller number$"):
        launched("")
    assert launched.started == []


def test_each_process_has_a_gpu_of_the_cluster_unless_the_device_is_the_cpu(launched, monkeypatch):
    monkeypatch.setattr(sys.modules["ray"], "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}}])
    with pytest.raises(UdcError, match=r"got 2, but the cluster has room for 1, of 1 threads and a GPU each$"):
        launched("")
    assert launched("", device="cpu") == ["0.0", "1.0"]


def test_ray_without_ray_train_is_no_success(launched, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.train.torch", None)
    with pytest.raises(UdcError, match=r"^Ray Train is not installed .* pip install 'udc-model\[ray\]'$"):
        launched("")


def test_an_error_before_the_first_attempt_is_no_success(launched, monkeypatch):
    monkeypatch.delattr(sys.modules["ray.train"], "ScalingConfig")
    with pytest.raises(UdcError, match=r"cannot import name 'ScalingConfig'"):
        launched("")


def test_secrets_in_the_environment_are_in_a_file_for_this_user_only(launched, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SecretWord")
    monkeypatch.setattr(distribution_on_ray, "run_process", lambda config: configs.append(config))
    configs = []
    launched("")
    assert "SecretWord" not in str(configs)
    assert (tmp_path / "scratch/environment.json").stat().st_mode & 0o077 == 0
    assert os.environ["AWS_SECRET_ACCESS_KEY"] in (tmp_path / "scratch/environment.json").read_text()
