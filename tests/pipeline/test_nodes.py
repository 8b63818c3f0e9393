"""A training run on two machines: torchrun as two nodes with folders of their own, which share the prepared data.

``UDC_NODE_KILLS=10`` kills one node after the other ten times in one training run, instead of one of them once.
"""

import os
import re
import shutil
import signal

import pandas as pd
import pytest

from udc_model.files import Workspace

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

KILLS = int(os.environ.get("UDC_NODE_KILLS", "1"))
CONVNEXT = {"model_type": "convnext"}  # no statistics over parts of a batch


@pytest.fixture
def nodes(small_project, project_at, tmp_path, free_port):
    """Two project folders with the same parameters, and a function that starts their torchrun commands."""
    first = small_project(model=CONVNEXT, train={"epochs": 5 + KILLS, "batch_size": 12})
    first.udc("prepare")
    (tmp_path / ".dvc").mkdir()  # the root of a project
    shutil.copy(first.root / "params.yaml", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(first.root / "data/prepared")
    second = project_at(tmp_path)

    def start():
        options = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1",
                   "--master-port", str(free_port)]  # fmt: skip
        return [node.start("torchrun", *options, "--node-rank", str(rank), "-m", "udc_model.stages.train",
                           OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
                for rank, node in enumerate((first, second))]  # fmt: skip

    return first, second, start


def _outputs(processes):
    """What the processes print until they end, which they must do before a collective operation times out."""
    return [process.communicate(timeout=300)[0] for process in processes]


def _files(node):
    return sorted(path.relative_to(node.root).as_posix() for path in node.root.rglob("*"))


def test_a_killed_node_ends_the_other_and_both_resume_to_the_result_of_one_process(nodes):
    first, second, start = nodes
    before = _files(second)
    for kill in range(KILLS):
        processes, victim = start(), (kill + 1) % 2
        first.wait_for(f".udc/checkpoints/*/{kill + 2:06d}-*", processes[0])
        os.kill(processes[victim].pid, signal.SIGKILL)  # torchrun, whose process of the stage must end with it
        output = _outputs(processes)[1 - victim]
        assert processes[1 - victim].returncode == 1
        assert "another process of this training run has ended; start it again" in output, (kill, output)
        assert not (first.root / "model").exists()
        assert _files(second) == before

    processes = start()
    output, _ = _outputs(processes)
    assert [process.returncode for process in processes] == [0, 0], output
    assert "resuming after epoch" in output
    assert _files(second) == before
    assert len(first.runs()) == 1
    curves = pd.read_csv(first.root / "training/curves.csv")
    shutil.rmtree(first.root / "training")
    first.udc("train")
    expected = pd.read_csv(first.root / "training/curves.csv")
    assert curves["epoch"].tolist() == list(range(1, 6 + KILLS))
    pd.testing.assert_frame_equal(curves, expected, rtol=1e-4)


def test_a_node_that_differs_is_named_by_all(nodes):
    first, second, start = nodes
    second.set_params(train={"learning_rate": 0.5})
    outputs = _outputs(start())
    place = rf"process 1 \([^ ]+:{second.root}\)"
    differs = rf"error: {place}: differs from process 0 \([^ ]+:{first.root}\): params.train.learning_rate is 0.5 there"
    for output in outputs:
        assert len(re.findall(differs, output)) == 1, output
    (second.root / "params.yaml").write_text("train: {epochs: -1}\n")
    for output in _outputs(start()):
        assert len(re.findall(rf"error: {place}: params.yaml", output)) == 1, output
    assert not Workspace(first.root).model.exists()


def test_checkpoints_on_another_node_are_not_ignored(nodes):
    """With the order of the nodes exchanged, the training run would begin again."""
    first, second, start = nodes
    processes = start()
    first.wait_for(".udc/checkpoints/*/000001-*", processes[0])
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    _outputs(processes)
    (second.root / ".udc").mkdir()
    (first.root / ".udc/checkpoints").rename(second.root / ".udc/checkpoints")
    for output in _outputs(start()):
        assert re.search(rf"error: process 1 \([^ ]+:{second.root}\): has the checkpoints of this training run, and "
                         "the first process has none; make it the first", output), output  # fmt: skip
    assert not (first.root / "model").exists()
