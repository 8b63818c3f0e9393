"""Numbers that would only be tried until memory is exhausted are refused in one line."""

import pytest

from udc_model.config import Params, limits, validate_params
from udc_model.config.limits import check_processes, check_sizes, loader_workers
from udc_model.config.train import TrainParams
from udc_model.errors import UdcError
from udc_model.stages.resolve import resolve

COUNTS = {"a": 700, "b": 500}


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(limits, "available_cores", lambda: 2)


@pytest.mark.parametrize(("values", "message"), [
    ({"batch_size": 10**6}, r"train\.batch_size: got 1,000,000, but there are 1,200 training images; at most 1,200"),
    ({"batch_size": 1201}, r"at most 1,200 are allowed$"),
    ({"batch_size": 16, "processes": 17}, r"train\.processes: 17 processes cannot share a batch of 16 images"),
])  # fmt: skip
def test_sizes_that_the_images_do_not_allow(values, message):
    with pytest.raises(UdcError, match=message):
        check_sizes(TrainParams(**values), COUNTS)


@pytest.mark.parametrize("values", [{"batch_size": 1200}, {"batch_size": "auto", "processes": 8}, {"processes": 8}])
def test_sizes_that_the_images_allow(values):
    check_sizes(TrainParams(**values), COUNTS)


def test_a_small_data_set_needs_no_other_batch_size():
    check_sizes(TrainParams(batch_size=1024), {"a": 3, "b": 4})
    with pytest.raises(UdcError, match=r"there are 7 training images; at most 1,024 are allowed"):
        check_sizes(TrainParams(batch_size=1025), {"a": 3, "b": 4})


def test_stage_resolve_checks_them():
    info = {"classes": ["a", "b"], "counts": {"train": COUNTS, "calibration": {"a": 9, "b": 9}}}
    with pytest.raises(UdcError, match=r"train\.batch_size: got 1,000,000"):
        resolve(Params(train=TrainParams(batch_size=10**6)), info)


def test_more_parts_than_images_of_a_batch_are_refused():
    validate_params({"train": {"accumulation": 64}}, "params.yaml")
    with pytest.raises(UdcError, match=r"train: accumulation: got 1,000,000 parts of a batch, but batch_size is 64"):
        validate_params({"train": {"accumulation": 10**6}}, "params.yaml")


def test_processes_are_at_most_four_per_core(two_cores):
    check_processes(TrainParams(processes=8))
    with pytest.raises(
        UdcError, match=r"train\.processes: got 100, but this machine has 2 cores; at most 8 are allowed"
    ):
        check_processes(TrainParams(processes=100))


def test_loader_workers_are_lowered_because_they_change_no_result(two_cores):
    assert loader_workers(TrainParams(loader_workers=3)) == 3
    assert loader_workers(TrainParams(loader_workers=500)) == 8
    assert loader_workers(TrainParams(loader_workers=500, processes=4)) == 2


@pytest.mark.parametrize("value", [10**6, 0])
def test_evaluation_batch_size_is_bounded(value):
    message = rf"evaluate\.batch_size: got {value}; allowed: integer above 0 and at most 65536"
    with pytest.raises(UdcError, match=message):
        validate_params({"evaluate": {"batch_size": value}}, "params.yaml")


def test_several_processes_are_refused_on_an_apple_gpu_before_they_start():
    check_processes(TrainParams(device="mps"))
    with pytest.raises(UdcError, match=r"^train\.device: is mps, but PyTorch averages no gradients of 2 processes on"):
        check_processes(TrainParams(device="mps", processes=2))
