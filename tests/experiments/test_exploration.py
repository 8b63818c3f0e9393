"""Commands that look at a training run before it is started."""

import pytest

from udc_model.config import DataParams, ModelParams, Params, ResNetParams, TrainParams
from udc_model.experiments.exploration import find_learning_rate, profile_training
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare


@pytest.mark.slow
def test_one_process_explores_a_training_run_that_shards_its_model(tmp_path):
    resnet = ResNetParams(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    train = TrainParams(batch_size=256, device="cpu", precision="fp32", processes=2, sharded=True)
    params = Params(data=DataParams(image_size=8), model=ModelParams(resnet=resnet), train=train)
    workspace = Workspace(tmp_path)
    prepare(params, workspace)
    assert "the loss falls fastest" in find_learning_rate(params, workspace, tmp_path / "sweeps", 1e-6, 1.0, 10)
    assert "images/s" in profile_training(params, workspace)
