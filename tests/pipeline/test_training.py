"""Training runs that are killed, interrupted, pruned or fail: clear messages, and the same bits after a resume."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from udc_model.tracking.lookup import environment

pytestmark = pytest.mark.pipeline


def test_killed_repro_resumes_in_its_run_to_the_bits_of_a_temporary_experiment(by_hand):
    """SIGKILL for dvc and the stage; then the same command, and an uninterrupted experiment in a temporary folder."""
    project = by_hand
    project.has_senders = True
    epochs = 30
    project.set_params(train={"epochs": epochs})
    process = project.start("dvc", "repro", "train")
    project.wait_for(".udc/checkpoints/*/000003-*", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = project.run("dvc", "repro")
    assert "resuming " in done.stderr + done.stdout
    (run,) = project.runs()
    assert run.info.status == "FINISHED"
    assert "test/mean_cost" in run.data.metrics
    for name in ("training/validation_log_loss", "training/images_per_second"):
        points = project.client().get_metric_history(run.info.run_id, name)
        assert [point.step for point in sorted(points, key=lambda point: point.step)] == list(range(1, epochs + 1))
    assert not list(project.root.glob(".udc/checkpoints/*/*"))
    outputs = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]["train"]["outs"]

    project.run("dvc", "exp", "run", "--temp", "--force", "--name", "temporary")
    # DVC deletes the temporary copy as soon as the last stage has ended; its sender still runs
    assert not list((project.root / ".dvc/tmp/exps").glob("tmp*"))
    locked = project.run("git", "show", f"{_revision(project, 'temporary')}:dvc.lock").stdout
    assert yaml.safe_load(locked)["stages"]["train"]["outs"] == outputs
    first, second = project.runs()
    assert (second.info.status, second.info.run_name) == ("FINISHED", "temporary")
    assert not list((project.root / ".udc/tracking").glob("*/journal.jsonl"))
    assert second.data.tags["mlflow.udc.evaluated"] == "true"
    assert second.data.tags["mlflow.udc.model_sha256"] == first.data.tags["mlflow.udc.model_sha256"]
    assert "test/mean_cost" in second.data.metrics
    names = {item.path for item in project.client().list_artifacts(second.info.run_id)}
    assert {"evaluation", "model", "training", "images", "params.yaml", "report.html"} <= names
    report = project.client().download_artifacts(second.info.run_id, "report.html")
    assert second.info.run_id in Path(report).read_text(encoding="utf-8")
    models = project.client().search_logged_models([second.info.experiment_id])
    assert {model.source_run_id: str(model.status) for model in models} == {
        run.info.run_id: "READY" for run in (first, second)
    }
    assert second.info.artifact_uri.startswith((project.root / "mlartifacts").as_uri())


def _revision(project, name):
    (line,) = project.run("git", "for-each-ref", "--format=%(objectname)", f"refs/exps/**/{name}").stdout.split()
    return line


def _processes(project, variable):
    """Ids of the processes that were started with this ``NAME=value`` and run in the project's folder."""
    ids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            if variable.encode() in environment and (folder / "cwd").resolve() == project.root.resolve():
                ids.append(int(folder.name))
        except OSError:  # the process ended
            continue
    return ids


def test_two_killed_processes_resume(by_hand):
    """A killed process ends the other. The training run resumes in its MLflow run, to the bits of an unkilled one."""
    project = by_hand
    project.set_params(train={"epochs": 30, "processes": 2, "ema_decay": 0.9, "mixup": 0.2})
    project.udc("prepare")
    process = project.start("udc", "train")
    project.wait_for(".udc/checkpoints/*/000002-*", process)
    (second,) = _processes(project, "RANK=1")
    os.kill(second, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "error: process 1 of 2 ended by signal 9, and the others were terminated" in output
    assert "Traceback" not in output

    process = project.start("udc", "train")
    project.wait_for(".udc/checkpoints/*/000010-*", process)
    os.kill(process.pid, signal.SIGKILL)  # not its group: the processes that it started are in other sessions
    process.wait()
    deadline = time.monotonic() + 60
    while _processes(project, "RANK=0") + _processes(project, "RANK=1"):
        assert time.monotonic() < deadline, "the processes outlive the one that started them"
        time.sleep(0.05)  # between two polls
    done = project.run("udc", "train")
    assert "resuming " in done.stderr
    (run,) = project.runs()
    assert environment(run)["processes"] == "2"
    assert list(pd.read_csv(project.root / "training/curves.csv")["epoch"]) == list(range(1, 31))
    # without a kill, started by torchrun
    project.run("torchrun", "--standalone", "--nproc-per-node", "2", "-m", "udc_model.stages.train",
                OMP_NUM_THREADS="1")  # fmt: skip
    assert [environment(run)["processes"] for run in project.runs()] == ["2", "2"]
    assert {other.data.tags["mlflow.udc.model_sha256"] for other in project.runs()} == {
        run.data.tags["mlflow.udc.model_sha256"]
    }


def _interrupt_after(process, start):
    """Press Ctrl-C when the process prints a line that starts so; returns all of its output."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(start):
            os.killpg(process.pid, signal.SIGINT)
    process.wait()
    return "".join(lines)


def _files(project):
    """Time and size of each file and folder of the project."""
    paths = [path for path in project.root.rglob("*") if "__pycache__" not in path.parts]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


def test_interrupted_training_run_resumes(by_hand):
    """Ctrl-C ends it after the epoch. Meanwhile its best model is scored, which changes no file."""
    project = by_hand
    project.set_params(train={"epochs": 30})
    project.udc("prepare")
    done = project.udc("evaluate", "--checkpoint", check=False)
    assert done.returncode == 1
    assert re.search("^error: .*checkpoints: there is no checkpoint with a finished epoch", done.stderr, re.MULTILINE)
    process = project.start("udc", "train")
    output = _interrupt_after(process, "epoch 2:")
    assert process.returncode == 130, output
    epoch = len(re.findall("^epoch ", output, re.MULTILINE))
    assert output.rstrip().endswith(f"error: interrupted after epoch {epoch} of 30, whose checkpoint is stored; "
                                    "`udc train` resumes from it")  # fmt: skip
    assert epoch >= 2
    assert [run.info.status for run in project.runs()] == ["KILLED"]
    before = _files(project)
    shown = project.run("udc", "evaluate", "--checkpoint").stdout
    assert _files(project) == before
    best, finished = map(int, re.search(r"resnet: best epoch (\d+), of (\d+) finished of 30\n", shown).groups())
    assert finished == epoch
    accuracy = re.search(rf"^epoch {best}: .*log loss (\S+), accuracy (\S+) ", output, re.MULTILINE)
    assert f"accuracy {accuracy[2]}, log loss {accuracy[1]}, mean cost " in shown
    project.set_params(data={"split_seed": 7})
    project.udc("prepare")
    assert project.udc("evaluate", "--checkpoint", check=False).returncode == 1  # of other data
    project.set_params(data={"split_seed": None})
    project.udc("prepare")
    done = project.udc("train")
    assert "resuming " in done.stderr
    assert [run.info.status for run in project.runs()] == ["FINISHED"]


def test_repro_after_ctrl_c_gives_the_bits_of_an_undisturbed_one(by_hand):
    project = by_hand
    project.set_params(train={"epochs": 12})
    process = project.start("dvc", "repro", "train")
    output = _interrupt_after(process, "epoch 2:")
    assert process.returncode != 0
    message = (
        r"^error: interrupted after epoch \d+ of 12, whose checkpoint is stored; `dvc repro train` resumes from it$"
    )
    assert re.search(message, output, re.MULTILINE)
    assert "train" not in yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]
    assert not (project.root / "model").exists()
    assert "resuming after epoch" in project.run("dvc", "repro", "train").stderr
    outputs = yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]["train"]["outs"]
    process = project.start("dvc", "repro", "--force", "--single-item", "train")
    assert "resuming" not in process.communicate()[0]
    assert yaml.safe_load((project.root / "dvc.lock").read_text())["stages"]["train"]["outs"] == outputs


def test_ctrl_c_ends_two_processes_after_the_epoch(by_hand):
    project = by_hand
    project.set_params(train={"epochs": 8, "processes": 2})
    project.udc("prepare")
    process = project.start("udc", "train")
    output = _interrupt_after(process, "epoch 1:")
    assert process.returncode == 130, output
    assert output.count("error: ") == 1
    message = r"error: interrupted after epoch \d of 8, whose checkpoint is stored; `udc train` resumes from it$"
    assert re.search(message, output.rstrip())
    before = _files(project)
    done = project.run("udc", "train", "--dry-run")
    assert "steps of 12 images in 2 processes" in done.stdout
    assert _files(project) == before
    assert "resuming after epoch" in project.run("udc", "train").stderr


def test_dry_run_checks_and_estimates_and_writes_nothing(by_hand):
    project = by_hand
    project.set_params(train={"epochs": 4, "members": 2, "early_stopping_patience": 3})
    project.udc("prepare")
    before = _files(project)
    done = project.run("udc", "train", "--dry-run")
    assert _files(project) == before
    checked, measured, estimate, last = done.stdout.splitlines()
    assert checked == "checked: parameters, data, weights, memory, disk space, folders"
    assert re.fullmatch(r"measured: 10 steps of 12 images, [\d.]+ ms each; [\d.]+ s of each epoch for validation and "
                        "checkpoint", measured)  # fmt: skip
    assert re.fullmatch(
        r"estimate: 2 members × 4 epochs × \(3 steps × [\d.]+ ms \+ [\d.]+ s\) \+ \d+ s = \d+ \w+ "
        r"\(less if train.early_stopping_patience ends it\); begun now, it ends at [\d:]+",
        estimate,
    )
    assert last == "nothing was written"
    assert done.stderr == ""
    project.set_params(model={"weights": "none.pth"})
    done = project.udc("train", "--dry-run", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "none.pth" in done.stderr
    project.set_params(model={"weights": None}, train={"device": "cuda"})
    assert "error: train.device: cuda is not available" in project.udc("train", "--dry-run", check=False).stderr


def test_hopeless_training_run_is_reported_once(by_hand):
    project = by_hand
    project.set_params(train={"epochs": 5, "learning_rate": 2.0, "members": 2})
    project.udc("prepare")
    done = project.udc("train")
    warnings = [
        line for line in done.stderr.splitlines() if line.startswith("this training run will probably not succeed")
    ]
    assert len(warnings) == 1
    reason = warnings[0].partition(": ")[2]
    assert re.fullmatch(
        r"after epoch 3 the training loss, [\d.]+, is no better than that of the class frequencies, 1\.09\d+: either "
        "train.learning_rate, 2, is too high, or the labels do not .*",
        reason,
    )
    (run,) = project.runs()
    assert run.data.tags["warning"] == reason
    assert run.info.status == "FINISHED"


def test_pruned_training_run_is_killed_and_leaves_no_outputs(by_hand):
    project = by_hand
    project.set_params(train={"epochs": 5})
    project.udc("prepare")
    prune_file = project.root / "prune"
    prune_file.touch()
    done = project.udc("train", check=False, UDC_PRUNE_FILE=str(prune_file))
    assert done.returncode == 1
    message = "pruned after epoch 1: other trials of the study are better"
    assert done.stderr.rstrip().endswith(f"error: {message}")
    assert not (project.root / "model").exists()
    assert not (project.root / "training").exists()
    assert not list(project.root.glob(".udc/checkpoints/*"))
    (run,) = project.runs()
    assert run.info.status == "KILLED"
    assert run.data.tags["pruned"] == message
    assert not list(project.client().list_artifacts(run.info.run_id, "error"))


def test_checkpoint_of_other_code_is_reported(by_hand):
    """After a change of the package's code a training run starts from the beginning and logs why."""
    project = by_hand
    project.set_params(train={"epochs": 3})
    project.udc("prepare")
    package = project.root / "src/udc_model"
    code = package / "training/loop.py"
    code.write_text(code.read_text() + "# changed\n")
    env = {"PYTHONPATH": str(project.root / "src")}
    process = project.start("udc", "train", **env)
    project.wait_for(".udc/checkpoints/*/000001-*", process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    code.write_text(code.read_text() + "# changed again\n")
    done = project.run("udc", "train", **env)
    assert re.search(r"^checkpoints in \S+ are of the same parameters and data but of other code; this training run "
                     "starts from the beginning$", done.stderr, re.MULTILINE)  # fmt: skip
    assert "resuming" not in done.stderr
    assert sum(line.startswith("epoch ") for line in done.stderr.splitlines()) == 3


def _can_mount():
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not _can_mount(), reason="this user cannot mount a small disk")
def test_full_disk_and_read_only_folder_are_reported(by_hand):
    """In a separate mount namespace: first a disk with space for two checkpoints, then a read-only project."""
    project = by_hand
    project.set_params(train={"epochs": 4})
    project.udc("prepare")
    script = """
        mkdir -p .udc/checkpoints && mount -t tmpfs -o size=12m none .udc/checkpoints
        udc train; echo "status $?"; ls .udc/checkpoints/*/
        mount -o remount,size=100m .udc/checkpoints
        udc train; echo "status $?"
        mount --bind . . && mount -o remount,ro,bind . && cd "$PWD"
        udc train; echo "status $?"
    """
    done = project.run("unshare", "--map-root-user", "--mount", "sh", "-c", script)
    assert re.findall(r"status (\d+)", done.stdout) == ["1", "0", "1"]
    assert done.stdout.count(".safetensors") == 2
    assert ".partial" not in done.stdout
    full, read_only = re.findall("error: .*", done.stderr)
    assert re.search(r"checkpoints/\w+: the checkpoint of epoch \d, step 0, cannot be written: .*free disk space", full)
    assert re.search(r"error: \.udc: cannot be written: .*Read-only", read_only)
    assert "Traceback" not in done.stderr
    assert "resuming " in done.stderr


def test_damaged_data_and_a_loss_that_is_not_finite_are_reported(by_hand):
    project = by_hand
    project.udc("prepare")
    images = project.root / "data/prepared/train.npy"
    contents = images.read_bytes()
    images.write_bytes(contents[:1000])
    done = project.udc("train", check=False)
    assert done.returncode == 1
    assert re.search(
        r"^error: .*train\.npy: (cannot be read|contains) .*run `dvc repro prepare` first", done.stderr, re.MULTILINE
    )
    images.write_bytes(contents)
    project.set_params(train={"optimizer": "sgd", "learning_rate": 1e30, "epochs": 5, "warmup_ratio": 0.5})
    done = project.udc("train", check=False)
    assert done.returncode == 1
    assert re.search(r"error: the loss is (nan|inf) in epoch \d+, step \d+; lower train.learning_rate", done.stderr)
    assert "Images: " in done.stderr
    assert "Traceback" not in done.stderr
    assert {run.info.status for run in project.runs()} == {"FAILED"}


def test_profile_and_range_test_record_nothing(by_hand):
    project = by_hand
    (project.root / "mlflow.db").unlink()
    project.udc("prepare")
    done = project.run("udc", "train", "--profile")
    shares = dict(re.findall(r"^(.{2,33}?) +[\d.]+ +([\d.]+)%$", done.stdout, re.MULTILINE))
    assert {"load and augment", "forward", "loss", "backward", "optimiser", "the loop itself"} <= shares.keys()
    assert sum(map(float, shares.values())) == pytest.approx(100, abs=1)
    assert done.stderr == ""
    output = project.run("udc", "find-lr", "--steps", "40", "--from", "1e-5").stdout
    assert re.match(r"the loss falls fastest at a learning rate of [\d.e-]+", output)
    assert (project.root / "sweeps/learning_rates.png").is_file()
    assert not (project.root / "mlflow.db").exists()
    assert not (project.root / "model").exists()
    done = project.udc("find-lr", "--from", "1", "--to", "0.1", check=False)
    assert "error: the rates must rise" in done.stderr
