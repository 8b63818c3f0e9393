"""A selection of the cases of ``make faults``, and rows of which the message is checked."""

import errno
import random
import shutil

import pytest

pytestmark = pytest.mark.slow


def _cases(bench, kind):
    from kinds import KINDS

    return list(KINDS[kind](bench, random.Random(0)))


@pytest.mark.parametrize(
    ("kind", "count"), [("writes", 10), ("kills", 8), ("pairs", 8), ("damage", 12), ("generated", 12)]
)
def test_a_selection(bench, kind, count):
    chosen = random.Random(1).sample(_cases(bench, kind), count)
    assert {name: fault for name, run in chosen if (fault := run())} == {}


def test_a_fault_is_found(bench, monkeypatch):
    """The checks themselves: a command that leaves another result, and one that prints a traceback."""
    import kinds

    with bench.project("train") as project:
        monkeypatch.setitem(bench.new, "train", {"model": "another", "training": "another"})
        assert "neither the old nor the new" in kinds._check_after(bench, project, "train", is_complete=True)
    with bench.project("evaluate") as project:
        (project / "model/model.safetensors").unlink()
        ended = bench.run(project, "evaluate")
        assert ended.fault() is None
        ended.output += "Traceback (most recent call last)"
        assert "printed a traceback" in ended.fault()


def test_a_store_that_cannot_be_written_is_one_line_with_its_details_in_a_log(bench):
    with bench.project("summary") as project:
        shutil.rmtree(project / ".udc/tracking")  # journals of another project, of which this one is a copy
        bench.check(bench.run(project, "sync"))  # creates the store
        bench.check(bench.run(project, "train"))
        fault = ["open mlflow.db", -errno.EACCES, str(project.parent / "log")]
        ended = bench.run(project, "sync", fault=fault)
        (journal,) = (project / ".udc/tracking").glob("*-train-*")
        assert ended.status == 1
        assert [line for line in ended.output.splitlines() if "readonly" in line] == [
            f"  {journal}: attempt to write a readonly database"
        ]
        assert len(ended.output.splitlines()) <= 4, ended.output
        assert "Traceback" in (journal / "sender.log").read_text()
        bench.check(bench.run(project, "sync"))
