"""udc score --engine ray: the bytes of the local engine, also when processes of Ray are killed in the middle."""

import importlib.util
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from udc_model.cli import main
from udc_model.errors import UdcError
from udc_model.inference import scored_parts

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra [ray])")


@pytest.fixture
def project(scoring_folder, rng):
    """The current folder: a model, images/ with 20 images and two bad ones, and a shard; parts have 6 inputs."""
    folder = scoring_folder(6)
    Path("images").mkdir()
    for k in range(20):
        Image.fromarray(rng.integers(0, 256, (12, 9, 3), dtype=np.uint8)).save(f"images/{k:02d}.png")
    Path("images/05a.jpg").write_bytes(b"\xff\xd8\xff none")
    Path("images/lost.png").symlink_to("nowhere.png")
    with tarfile.open("shard.tar", "w") as tar:
        tar.add("images/00.png", "a.png")
        tar.add("images/01.png", "b.png")
    main(["score", "images", "shard.tar", "--out", "local"])
    return folder


def _contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def _score(*arguments):
    return main(["score", "images", "shard.tar", "--out", "out", "--engine", "ray", *arguments])


@needs_ray
@pytest.mark.slow
def test_bytes_are_those_of_the_local_engine_although_processes_are_killed(project, monkeypatch, capsys):
    """When the first part arrives, every process that computes another one is killed."""
    killed = []
    store = scored_parts.ScoredParts.store

    def store_and_kill(parts, number, contents):
        assert not parts.path(number).exists()
        store(parts, number, contents)
        if len(list(parts.folder.glob("part-*"))) == 1:
            for process in psutil.Process().children(recursive=True):
                try:
                    if process.cmdline()[:1] == ["ray::score_part"]:
                        process.kill()
                        killed.append(number)
                except psutil.Error:  # it has ended meanwhile
                    continue

    monkeypatch.setattr(scored_parts.ScoredParts, "store", store_and_kill)
    assert _score() == 1  # of the bad images
    assert killed
    assert "22 rows and 2 bad image(s) in out, " in capsys.readouterr().out
    assert _contents("out") == _contents("local")


def test_without_ray_the_command_names_the_extra(project, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert _score() == 1
    assert "error: Ray is not installed; pip install 'udc-model[ray]'" in caplog.text


def test_an_address_needs_the_engine(project, caplog):
    assert main(["score", "images", "--out", "out", "--ray-address", "auto"]) == 1
    assert "error: --ray-address: is of --engine ray only; add it" in caplog.text
    assert not Path("out").exists()


class _FakeRay:
    """Runs each task at once in this process, as a machine with these CPUs and versions."""

    exceptions = SimpleNamespace(RayTaskError=ZeroDivisionError, RayError=ZeroDivisionError)

    def __init__(self, cpus=4, versions=None):
        self.cpus, self.versions = cpus, versions or {}

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": self.cpus}}, {"Alive": False, "Resources": {"CPU": 999.0}}]

    def remote(self, function):
        def options(**values):
            def remote(*arguments, **keywords):
                contents, counts, _, machine = function(*arguments, **keywords)
                return contents, counts, "node-7", machine | self.versions

            return SimpleNamespace(remote=lambda *a, **k: _Reference(remote(*a, **k)))

        return SimpleNamespace(options=options)

    def put(self, value):
        return value

    def wait(self, waiting):
        return waiting[-1:], waiting[:-1]

    def get(self, reference):
        return reference.value

    def init(self, *arguments, **options):
        pass

    def shutdown(self):
        pass


class _Reference:
    def __init__(self, value):
        self.value = value


def test_parts_that_arrive_in_another_order_give_the_same_output(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", _FakeRay())
    _score("--processes", "1")
    assert _contents("out") == _contents("local")
    Path("out/part-00001.parquet").unlink()
    Path("out/part-00003.parquet").write_bytes(b"damaged")
    _score("--processes", "1")
    assert _contents("out") == _contents("local")


@pytest.mark.parametrize(("cluster", "message"), [
    (_FakeRay(versions={"torch": "1.0"}), "Ray: node-7 has torch 1.0 (here "),
    (_FakeRay(cpus=0.5), "no machine of the cluster has room for one; set OMP_NUM_THREADS to a smaller number"),
])  # fmt: skip
def test_machines_that_would_give_other_bytes_are_refused(cluster, message, project, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "ray", cluster)
    assert _score("--processes", "1") == 1
    assert message in caplog.text
    assert not list(Path("out").glob("part-*"))


def test_a_task_that_is_lost_again_and_again_ends_the_command(project, monkeypatch, caplog):
    class Lossy(_FakeRay):
        exceptions = SimpleNamespace(RayTaskError=KeyError, RayError=ZeroDivisionError)

        def get(self, reference):
            raise ZeroDivisionError("the worker\ndied")

    monkeypatch.setitem(sys.modules, "ray", Lossy())
    assert _score("--processes", "1") == 1
    assert "was lost 6 times (the worker died); run the same command again to continue" in caplog.text


def test_an_error_of_a_task_is_that_of_the_command(project, monkeypatch, caplog):
    class TaskError(Exception):
        cause = UdcError("a.png: reason")

    class Failing(_FakeRay):
        exceptions = SimpleNamespace(RayTaskError=TaskError, RayError=TaskError)

        def get(self, reference):
            raise TaskError

    monkeypatch.setitem(sys.modules, "ray", Failing())
    assert _score("--processes", "1") == 1
    assert "error: a.png: reason" in caplog.text
