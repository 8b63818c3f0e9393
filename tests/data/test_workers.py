"""Tests of worker processes: results in order; an item that kills or blocks its process is reported alone."""

import signal
import subprocess
import sys
from itertools import count, islice

import psutil
import pytest

from udc_model.data import workers
from udc_model.data.workers import run_in_workers
from udc_model.errors import UdcError

# In a module of its own, because spawned processes import it.
MODULE = """
import os, time

def work(items):
    return [_one(item) for item in items]

def _one(item):
    if item == "crash" or item == 150:
        os._exit(11)
    if item == "hang":
        while True:
            pass
    return f"done {item}"
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    (tmp_path / "harmful.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import harmful

    return harmful.work


def _failed(item):
    return [f"failed {item}"]


def _run(work, items):
    return [result for part in run_in_workers(work, items, _failed, 2) for result in part]


_MAIN = """
import sys
from pathlib import Path
with Path("imported.txt").open("a") as file:
    file.write(__name__ + "\\n")
if __name__ == "__main__":
    sys.path.insert(0, ".")
    from harmful import work
    from udc_model.data.workers import run_in_workers
    assert len(list(run_in_workers(work, range(100), None, 2))) == 4
"""


def test_worker_processes_do_not_import_the_main_module(work, tmp_path):
    (tmp_path / "main.py").write_text(_MAIN)
    subprocess.run([sys.executable, "main.py"], cwd=tmp_path, check=True)
    assert (tmp_path / "imported.txt").read_text() == "__main__\n"


def test_one_process_is_this_one():
    assert list(run_in_workers(list, [1, 2, 3], _failed, 1)) == [[1, 2, 3]]
    assert list(run_in_workers(list, [1, 2, 3], _failed, 1, per_task=2)) == [[1, 2], [3]]
    assert list(run_in_workers(list, [], _failed, 1)) == []


def test_few_items_need_no_worker(monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 3)
    assert [workers.number_of_workers(n) for n in (0, 255, 256)] == [1, 1, 3]


def test_items_are_read_a_bounded_number_of_tasks_ahead(work):
    read = []
    results = run_in_workers(work, (read.append(k) or str(k) for k in count()), _failed, 2, per_task=3)
    assert list(islice(results, 5)) == [[f"done {k}" for k in range(3 * n, 3 * n + 3)] for n in range(5)]
    assert len(read) <= 3 * (5 + 16)
    results.close()


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""
import sys
from itertools import count
from udc_model.data.workers import run_in_workers

if __name__ == "__main__":
    for _ in run_in_workers(list, count(), list, 2):
        print(flush=True)
""")
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=30)
    for child in alive:
        child.kill()
    assert alive == []


@pytest.mark.slow
def test_results_are_in_order_and_culprits_are_named(work, monkeypatch):
    monkeypatch.setattr(workers, "SECONDS_PER_ITEM", 1.0)
    items = [*range(100), "hang", *range(100, 200)]
    expected = [f"failed {item}" if item in ("hang", 150) else f"done {item}" for item in items]
    assert _run(work, items) == expected


@pytest.mark.slow
def test_many_failures_end_with_an_error(work, monkeypatch):
    monkeypatch.setattr(workers, "_MAX_FAILURES", 1)
    with pytest.raises(UdcError, match="more than 1 images ended the process"):
        _run(work, ["crash", "crash", "a"])
