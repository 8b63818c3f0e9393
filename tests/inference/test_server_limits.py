"""What `udc serve` refuses while others wait, and what cannot end or block it."""

import asyncio
import io
import json
import logging
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from udc_model.config import ModelParams, ResNetParams
from udc_model.data.transforms import Preprocessing
from udc_model.decisions.policy import Policy
from udc_model.files import Workspace
from udc_model.inference.server import app as server
from udc_model.inference.server.admission import Admission
from udc_model.inference.server.batching import Batcher, BusyError
from udc_model.models import build_model

CLASSES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project with a small model."""
    workspace = Workspace(tmp_path_factory.mktemp("limited"))
    workspace.model.mkdir()
    workspace.evaluation.mkdir()
    resnet = ResNetParams(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    build_model(ModelParams(resnet=resnet), CLASSES, 0).save_pretrained(workspace.model)
    Preprocessing(16).save(workspace.model)
    (workspace.evaluation / "policy.json").write_text(Policy(CLASSES, (1 - np.eye(3)).tolist(), refer=0.1).to_json())
    return workspace.root


@pytest.fixture(scope="module")
def client(root):
    limits = server.Limits(mebibytes=1, json_mebibytes=1, images=3, waiting=3, waiting_mebibytes=10)
    with TestClient(server.create_app(root, limits)) as client:
        yield client


@pytest.fixture(scope="module")
def png():
    file = io.BytesIO()
    Image.new("RGB", (20, 20)).save(file, "PNG")
    return file.getvalue()


class Gate:
    """Makes each call of a function wait until it is opened."""

    def __init__(self, function):
        self._function, self.started, self._opened = function, threading.Semaphore(0), threading.Event()

    def __call__(self, *args):
        self.started.release()
        self._opened.wait()
        return self._function(*args)

    def open(self):
        self._opened.set()


def _post(client, png, **params):
    return client.post("/predict", content=png, headers={"Content-Type": "image/png"}, params=params)


def test_images_that_wait_for_a_decoder_count(client, png, monkeypatch):
    gate = Gate(server._prepared)
    monkeypatch.setattr(server, "_prepared", gate)
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(client.post, "/predict", files=[(str(i), png) for i in range(3)])
        gate.started.acquire()
        refused, ready, health = _post(client, png), client.get("/ready"), client.get("/health")
        gate.open()
        assert accepted.result().status_code == 200
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert (ready.status_code, ready.json()["status"]) == (503, "busy")
    assert (health.status_code, health.json()["status"]) == (200, "busy")
    assert _post(client, png).status_code == client.get("/ready").status_code == 200


def test_costs_are_computed_beside_the_event_loop(client, png, monkeypatch):
    gate = Gate(server.changed_costs)
    monkeypatch.setattr(server, "changed_costs", gate)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_post, client, png, costs='{"refer": 0.25}')
        gate.started.acquire()
        assert client.get("/health").status_code == 200
        gate.open()
        assert answer.result().status_code == 200


@pytest.mark.parametrize(("numbers", "policies"), [(10**9, 64), (24, 2), (1, 1)])
def test_few_policies_with_many_costs_are_stored(root, monkeypatch, numbers, policies):
    monkeypatch.setattr(server, "_STORED_COSTS", numbers)
    service = server.Service(root, server.Limits())
    for k in range(3):
        asyncio.run(service.policy_under(json.dumps({"refer": k / 10})))
    info = service._changed_policy.cache_info()
    assert (info.maxsize, info.currsize) == (policies, min(3, policies))
    service.close()


@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/form-data; boundary=b"])
def test_an_upload_that_ends_early_is_no_error_of_the_server(client, png, caplog, kind):
    messages = [{"type": "http.request", "body": b"--b\r\n", "more_body": True}, {"type": "http.disconnect"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
             "root_path": "", "scheme": "http", "http_version": "1.1", "headers": [(b"content-type", kind.encode())],
             "client": None, "server": None, "asgi": {"version": "3.0"}}  # fmt: skip
    with caplog.at_level(logging.ERROR):
        asyncio.run(client.app(scope, receive, send))
    assert not caplog.records
    assert sent[0]["status"] == 499
    assert client.get("/ready").status_code == 200  # it holds nothing more


def test_requests_hold_at_most_the_limits_until_they_are_answered():
    admission = Admission(3, 100)
    with admission.request() as first:
        admission.add(first, images=1, n_bytes=60)
        with admission.request() as second:
            with pytest.raises(BusyError):
                admission.add(second, images=1)
            with pytest.raises(BusyError):
                admission.add(second, n_bytes=41)
            assert admission.is_full
            with pytest.raises(BusyError), admission.request():
                pass
        assert not admission.is_full
        admission.add(first, n_bytes=40)
        assert admission.is_full  # by its bytes
    with admission.request() as third:
        admission.add(third, images=2, n_bytes=100)


def _values(*numbers):
    return np.array(numbers, np.uint8).reshape(-1, 1, 1, 1)


def test_a_cancelled_request_ends_no_other():
    gate = Gate(lambda images: images.reshape(-1, 1))
    batcher = Batcher(gate, largest_batch=1)
    computing = batcher.submit(_values(1))
    gate.started.acquire()
    waiting, last = batcher.submit(_values(2)), batcher.submit(_values(3))
    computing.cancel()
    waiting.cancel()
    gate.open()
    assert last.result(timeout=60).tolist() == [[3]]
    assert computing.result().tolist() == [[1]]
    with pytest.raises(CancelledError):
        waiting.result()
    batcher.close()


def test_an_error_beside_the_network_reaches_its_requests_only():
    sizes = iter([0])
    batcher = Batcher(lambda images: images.reshape(-1, 1), on_batch=lambda size: 1 // next(sizes, 1))
    with pytest.raises(ZeroDivisionError):
        batcher.submit(_values(1)).result(timeout=60)
    assert batcher.submit(_values(2)).result(timeout=60).tolist() == [[2]]
    batcher.close()
