"""The device that a training run uses."""

import pytest
import torch

from udc_model.config import TrainParams
from udc_model.errors import UdcError
from udc_model.training.hardware import pick_hardware


@pytest.fixture
def _apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@pytest.mark.usefixtures("_apple_gpu")
@pytest.mark.parametrize(("processes", "world", "device"), [(1, 1, "mps"), (2, 1, "cpu"), (1, 2, "cpu")])
def test_several_processes_do_not_choose_an_apple_gpu(processes, world, device):
    """``world`` is the number of processes that torchrun has started."""
    assert pick_hardware(TrainParams(processes=processes), world=world).device.type == device


@pytest.mark.usefixtures("_apple_gpu")
def test_several_processes_refuse_an_apple_gpu():
    assert pick_hardware(TrainParams(device="mps")).device.type == "mps"
    with pytest.raises(
        UdcError, match=r"^train\.device: is mps, but .* 2 processes on Apple GPUs; set train\.processes"
    ):
        pick_hardware(TrainParams(device="mps"), world=2)
