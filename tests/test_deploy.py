"""The files in deploy/ for clusters: job scripts run with stubs of the cluster's commands, YAML against its schema."""

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from udc_model import __version__

DEPLOY = Path(__file__).parents[1] / "deploy"
BATCH = DEPLOY / "slurm/train.sbatch"

STUBS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node-a\\nnode-b\\n"; else echo "scontrol $*"; fi',
    "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || exit $?; done',  # first: an option
    "torchrun": 'echo "torchrun $* with $OMP_NUM_THREADS threads"; exit "$STATUS"',
    "dvc": 'echo "dvc $*"',
}


@pytest.fixture
def submit(tmp_path):
    """A function that runs the batch script with stubs; the job has two nodes of 4 GPUs and 16 cores."""
    for name, script in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    def run(**variables):
        slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4",
                 "SLURM_CPUS_PER_TASK": "16", "SLURM_JOB_ID": "12345", "STATUS": "0"}  # fmt: skip
        environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"} | slurm | variables
        return subprocess.run(["bash", BATCH], cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_slurm_starts_torchrun_on_each_node_and_gives_dvc_the_result(submit):
    done = submit()
    options = "--nproc-per-node 4 --master-addr node-a --master-port 22345 -m udc_model.stages.train with 4 threads"
    assert done.stdout.splitlines() == [
        f"torchrun --nnodes 2 --node-rank 0 {options}",
        f"torchrun --nnodes 2 --node-rank 1 {options}",
        "dvc commit --force train",
        "dvc repro",
    ]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("restarts", "is_requeued"), [("0", True), ("4", True), ("5", False)])
def test_slurm_starts_a_failed_job_again_a_few_times(submit, restarts, is_requeued):
    done = submit(STATUS="7", SLURM_RESTART_COUNT=restarts)
    assert ("scontrol requeue 12345" in done.stdout) == is_requeued
    assert "dvc" not in done.stdout
    assert done.returncode == 7


def test_the_batch_script_has_no_syntax_error_and_names_its_options_first():
    assert subprocess.run(["bash", "-n", BATCH], check=False).returncode == 0
    lines = BATCH.read_text().splitlines()
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(n for n, line in enumerate(lines) if line.startswith("#SBATCH")) < first_command  # SLURM ignores others


def _documents():
    return {each["kind"]: each for each in yaml.safe_load_all((DEPLOY / "kubernetes/train.yaml").read_text())}


def test_kubernetes_gives_each_pod_its_rank_and_the_address_of_the_first():
    documents = _documents()
    job, service = documents["Job"]["spec"], documents["Service"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert job["completionMode"] == "Indexed"
    assert int(environment["NODES"]) == job["completions"] == job["parallelism"]
    name, domain = documents["Job"]["metadata"]["name"], service["metadata"]["name"]
    assert pod["subdomain"] == domain
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    port = service["spec"]["ports"][0]["port"]
    assert container["args"] == [
        "--nnodes=$(NODES)", "--node-rank=$(JOB_COMPLETION_INDEX)", "--nproc-per-node=$(PROCESSES)",
        f"--master-addr={name}-0.{domain}", f"--master-port={port}", "-m", "udc_model.stages.train",
    ]  # fmt: skip
    claims = {each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if "persistentVolumeClaim" in each}
    assert claims == {documents["PersistentVolumeClaim"]["metadata"]["name"]}
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert container["image"].endswith(f":{__version__}")


@pytest.mark.skipif(importlib.util.find_spec("kubernetes_validate") is None,
                    reason="kubernetes-validate is not installed")  # fmt: skip
def test_kubernetes_files_follow_the_schema():
    import kubernetes_validate

    for document in _documents().values():
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    broken = _documents()["Job"]
    broken["spec"]["completionsMode"] = broken["spec"].pop("completionMode")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_ray_cluster_has_the_keys_of_a_local_cluster():
    cluster = yaml.safe_load((DEPLOY / "ray/cluster.yaml").read_text())
    assert cluster["provider"]["type"] == "local"
    assert cluster["provider"]["head_ip"] not in cluster["provider"]["worker_ips"]
    assert "--head" in cluster["head_start_ray_commands"][-1]
    assert "$RAY_HEAD_IP" in cluster["worker_start_ray_commands"][-1]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra [ray])")
def test_ray_cluster_follows_the_schema():
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema comes with ray")
    package = Path(importlib.util.find_spec("ray").origin).parent
    schema = json.loads((package / "autoscaler/ray-schema.json").read_text())
    cluster = yaml.safe_load((DEPLOY / "ray/cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"worker_count": 2}, schema)
