"""Tests of `udc serve`: its forms of requests, errors, batches, and its processes."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udc_model.config import ModelParams, ResNetParams
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.inference.server import app as server
from udc_model.inference.server import metrics
from udc_model.inference.server.batching import Batcher, BusyError
from udc_model.inference.server.bodies import images_in_json
from udc_model.models import build_model

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project with a small model."""
    workspace = Workspace(tmp_path_factory.mktemp("served"))
    workspace.model.mkdir()
    workspace.evaluation.mkdir()
    resnet = ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    build_model(ModelParams(resnet=resnet), CLASSES, 0).save_pretrained(workspace.model)
    Preprocessing(16, decoding=Decoding(max_pixels=10_000)).save(workspace.model)
    policy = Policy(CLASSES, (1 - np.eye(3)).tolist(), refer=0.1)
    (workspace.evaluation / "policy.json").write_text(policy.to_json())
    return workspace.root


@pytest.fixture(scope="module")
def client(root):
    from starlette.testclient import TestClient

    from udc_model.inference.server.app import Limits, create_app

    with TestClient(create_app(root, Limits(mebibytes=1, json_mebibytes=1, images=5))) as client:
        yield client


def _png(seed=0, side=20):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), pixels


def _text(png):
    return base64.b64encode(png).decode()


def _costs(answer):
    assert answer.status_code == 200, answer.text
    return [each["expected_cost"] for each in answer.json()["predictions"]]


def test_all_forms_of_a_request_give_the_same_decisions(client, root):
    (first, pixels), (second, _) = _png(1), _png(2)
    expected = _costs(client.post("/predict", json={"images": [_text(first), _text(second)]}))
    assert expected[0] != expected[1]
    for data, kind in ((first, "image/png"), (first, "application/octet-stream")):
        assert _costs(client.post("/predict", content=data, headers={"Content-Type": kind})) == expected[:1]
    assert _costs(client.post("/predict", files={"x": first, "y": second})) == pytest.approx(expected, abs=1e-6)
    several = [_text(first), _text(second)]
    for values in (
        {"inputs": several}, {"instances": [{"image": each} for each in several]},
        {"dataframe_records": [{"image": each} for each in several]},
        {"dataframe_split": {"columns": ["id", "image"], "data": [[0, several[0]], [1, several[1]]]}},
        {"images": [pixels.tolist(), several[1]]},
    ):  # fmt: skip
        assert _costs(client.post("/invocations", json=values)) == pytest.approx(expected, abs=1e-6), values
    assert _costs(client.post("/predict", json={"image": pixels.tolist()})) == pytest.approx(expected[:1], abs=1e-6)
    done = subprocess.run(["udc", "predict", "--json", "--root", root, "-"], input=first, capture_output=True,
                          check=True)  # fmt: skip
    (row,) = json.loads(done.stdout)
    (prediction,) = client.post("/predict", json={"image": several[0]}).json()["predictions"]
    assert (row["class"], row["probabilities"]) == (prediction["class"], pytest.approx(prediction["probabilities"]))


def test_an_answer_names_model_policy_and_version(client, root):
    answer = client.post("/predict", json={"image": _text(_png()[0])}).json()
    policy = Policy.load(root / "evaluation")
    assert answer["costs_digest"] == policy.costs_digest
    assert len(answer["model_sha256"]) == 64
    assert answer.keys() == {"predictions", "udc_model", "model_sha256", "costs_digest"}


def test_costs_of_a_request_decide_it_and_no_other(client, root):
    policy, body = Policy.load(root / "evaluation"), {"image": _text(_png()[0])}
    costs = {"cells": [{"true": "b", "decided": "a", "cost": 30}], "refer": 2.5}
    before, changed, after = (
        client.post("/predict", json=body, params=params).json()
        for params in ({}, {"costs": json.dumps(costs)}, {"costs": '{"cells": []}'})
    )
    matrix = np.array(policy.class_costs)
    matrix[1, 0] = 30
    expected = replace(policy, class_costs=matrix.tolist(), refer=2.5)
    (row,) = changed["predictions"]
    outcomes = np.array(list(row["probabilities"].values())) @ expected.outcome_costs
    assert row["class"] == expected.outcomes[outcomes.argmin()] != "refer"
    assert row["expected_cost"] == pytest.approx(outcomes.min())
    assert changed["costs_digest"] == expected.costs_digest != policy.costs_digest
    assert before == after
    assert before["predictions"][0]["class"] == "refer"  # at a cost of 0.1


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ("{", "costs is not valid JSON"),
        ("[" * 5_000, "costs is not valid JSON: lists are nested too deeply"),
        ("7", "costs: .* send costs="),
        ('{"entries": []}', "costs: .*entries"),
        ('{"refer": -1}', "costs: refer"),
        ('{"cells": [{"true": "x", "decided": "a", "cost": 1}]}', "costs: .*'x'"),
        ('{"cells": [{"true": "a", "decided": "refer", "cost": 1}]}', "costs: 'refer' is no decision"),
        ('{"cells": [{"true": "a", "decided": "a", "cost": 5}]}', "cost"),
    ],
)
def test_costs_that_are_not_allowed_are_said_in_one_sentence(client, costs, message):
    answer = client.post("/predict", json={"image": _text(_png()[0])}, params={"costs": costs})
    assert answer.status_code == 400
    assert re.search(message, answer.json()["error"])


def test_one_bad_image_of_several_is_an_error_for_that_one(client):
    good = _text(_png()[0])
    predictions = client.post("/predict", json={"images": [good, "no image", good]}).json()["predictions"]
    assert predictions[0] == predictions[2]
    assert predictions[0]["class"] in (*CLASSES, "refer")
    assert predictions[1].keys() == {"error"}


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"text", "image/png", 400, "not an image"),
        (b"", "image/png", 400, "the image is empty"),
        (_png(side=101)[0], "image/png", 400, "pixels"),
        (b"x" * (2**20 + 1), "image/png", 413, "the body has more than 1 MiB"),
        (b"x" * (2**20 + 1), "application/json", 413, "the body has more than 1 MiB"),
        (b"{", "application/json", 400, "the body is not valid JSON"),
        (b"\xff", "application/json", 400, "the body is not valid JSON"),
        (b"[" * 200_000, "application/json", 400, "lists are nested too deeply"),
        (b"[]", "application/json", 400, "the JSON must be an object"),
        (b'{"pictures": []}', "application/json", 400, "the JSON has no images"),
        (b'{"images": 7}', "application/json", 400, "the images must be a list"),
        (b'{"images": []}', "application/json", 400, "the request has no images"),
        (b'{"images": [1, 2, 3, 4, 5, 6]}', "application/json", 400, "6 images; at most 5 are allowed"),
        (b'{"images": [1, ""]}', "application/json", 400, "image 0: an array must be .* image 1: the image is empty"),
        (b'{"dataframe_split": {"columns": ["x"], "data": [[1]]}}', "application/json", 400, "has no images"),
        (b'{"inputs": [[[1, 2, 3]]]}', "application/json", 400, r"shape \(1, 3\) may be a row of pixels"),
        (b"x", "text/plain", 400, "content type text/plain: send an image file"),
        (b"x", "", 400, "content type missing"),
        (b"x", "multipart/form-data", 400, "the form cannot be read"),
        (b"x", "multipart/form-data; boundary=b", 400, "the (form cannot be read|request has no images)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(client, content, kind, status, message):
    answer = client.post("/predict", content=content, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert "\n" not in answer.json()["error"]
    assert re.search(message, answer.json()["error"])


def test_health_counts_and_description(client):
    assert client.get("/health").json()["status"] == client.get("/ready").json()["status"] == "ready"
    before = _count(client, 'udc_requests_total{status="200"}')
    client.post("/predict", content=_png()[0], headers={"Content-Type": "image/png"})
    assert _count(client, 'udc_requests_total{status="200"}') == before + 1
    schema = client.get("/openapi.json").json()
    assert {"/predict", "/invocations", "/ready"} <= schema["paths"].keys()
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    assert client.post("/predict", json=body["example"]).status_code == 200
    page = client.get("/docs").text
    for address in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert not address.startswith(("http", "//"))  # nothing is loaded from another server
        assert client.get("/" + address.removeprefix("/")).status_code == 200


@pytest.mark.parametrize(
    ("failure", "status", "message", "logged"),
    [
        (RuntimeError("of the network"), 500, "internal error; the log", "RuntimeError: of the network"),
        (MemoryError(), 503, "the memory of the server ran out", "memory ran out"),
    ],
)
def test_a_failure_of_the_server_is_answered_and_counts(client, monkeypatch, caplog, failure, status, message, logged):
    def fail(outputs, policy):
        raise failure

    names = (f'udc_requests_total{{status="{status}"}}', "udc_request_seconds_count")
    before = [_count(client, name) for name in names]
    monkeypatch.setattr(server, "decided_rows", fail)
    answer = client.post("/predict", json={"image": _text(_png()[0])})
    assert answer.status_code == status
    assert answer.json()["error"].startswith(message)
    assert logged in caplog.text
    assert [_count(client, name) for name in names] == [count + 1 for count in before]


def _count(client, name):
    lines = (line.rpartition(" ") for line in client.get("/metrics").text.splitlines())
    return next((float(value) for key, _, value in lines if key == name), 0.0)


def test_images_of_killed_processes_do_not_wait(monkeypatch, tmp_path):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    count_and_die = ("import os, signal; from udc_model.inference.server import metrics; metrics.WAITING.set(37); "
                     "metrics.BATCH.observe(2); os.kill(os.getpid(), signal.SIGKILL)")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", count_and_die]).returncode == -signal.SIGKILL
    (gauge,) = tmp_path.glob("gauge_livesum_*.db")
    shutil.copy(gauge, tmp_path / f"gauge_livesum_{os.getpid()}.db")  # as of a process that runs
    lines = metrics.exposition().decode().splitlines()
    assert "udc_waiting_images 37.0" in lines
    assert "udc_batch_images_sum 2.0" in lines  # what it has done still counts
    assert not gauge.exists()


def test_images_in_json_of_a_single_image_is_no_list():
    assert images_in_json(b'{"image": "x"}', 1) == (["x"], False)
    assert images_in_json(b'{"images": ["x"]}', 1) == (["x"], True)
    with pytest.raises(UdcError, match="2 images; at most 1"):
        images_in_json(b'{"images": ["x", "y"]}', 1)


def _values(*numbers):
    return np.array(numbers, np.uint8).reshape(-1, 1, 1, 1)


class Network:
    """Returns each image's value as its logit; waits for permission before each batch."""

    def __init__(self):
        self.batches, self.started, self.allowed = [], threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, images):
        self.batches.append(images.ravel().tolist())
        self.started.release()
        self.allowed.acquire()
        if 99 in images:
            raise ValueError("99")
        return images.reshape(-1, 1).astype(np.float32)


def test_a_batch_is_what_came_while_the_one_before_was_computed():
    network, sizes = Network(), []
    batcher = Batcher(network, largest_batch=3, most_waiting=5, on_batch=sizes.append)
    first = batcher.submit(_values(1))
    network.started.acquire()
    futures = [batcher.submit(_values(2, 3)), batcher.submit(_values(4)), batcher.submit(_values(5, 6))]
    assert batcher.waiting == 5
    with pytest.raises(BusyError):
        batcher.submit(_values(7))
    for _ in range(3):
        network.allowed.release()
    batcher.close()  # computes what waits
    assert network.batches == [[1], [2, 3, 4], [5, 6]]
    assert sizes == [1, 3, 2]
    assert [each.result().ravel().tolist() for each in (first, *futures)] == [[1], [2, 3], [4], [5, 6]]
    with pytest.raises(BusyError):
        batcher.submit(_values(8))


def test_an_error_of_the_network_reaches_its_requests_only():
    network = Network()
    network.allowed = threading.Semaphore(10)
    batcher = Batcher(network, largest_batch=1)
    futures = [batcher.submit(_values(number)) for number in (1, 99, 2)]
    assert futures[0].result().tolist() == [[1]]
    with pytest.raises(ValueError, match="99"):
        futures[1].result()
    assert futures[2].result().tolist() == [[2]]
    batcher.close()


@contextlib.contextmanager
def _server(root):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "udc_model.cli", "serve", "--root", root, "--port", str(port)],
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        _wait_until_ready(port, process)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait_until_ready(port, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
            return
    raise AssertionError("the server does not answer")


@pytest.mark.slow
def test_a_killed_process_is_replaced_and_sigterm_loses_no_accepted_request(root):
    image = _png()[0]

    def send(_=0):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", image, {"Content-Type": "image/png"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status

    with _server(root) as (port, process):
        assert send() == 200
        (worker,) = _workers(process.pid)
        os.kill(worker, signal.SIGKILL)
        while worker in _workers(process.pid):
            pass
        _wait_until_ready(port, process)
        assert _workers(process.pid) != [worker]
        # a request whose headers have arrived is accepted: it is answered although its body comes after SIGTERM
        connection = socket.create_connection(("127.0.0.1", port))
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
        connection.sendall(head.encode() + image[:10])
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(send, range(20))) == [200] * 20
            process.send_signal(signal.SIGTERM)
            connection.sendall(image[10:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)


def _workers(pid):
    """Processes of the server that serve: children other than Python's resource tracker."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def test_a_port_in_use_and_a_missing_model_are_one_line(root, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for folder, message in ((root, f"--port {port}: cannot be used on 127.0.0.1"), (tmp_path, "config.json")):
            done = subprocess.run(["udc", "serve", "--root", folder, "--port", port], capture_output=True, text=True)
            assert done.returncode == 1
            assert message in done.stderr.splitlines()[-1]
