"""Tests of training with grey images: prepared with one channel, augmented, trained, and drawn."""

import numpy as np
import pytest
from PIL import Image

from udc_model.config import DataParams, ModelParams, Params, ResNetParams, TrainParams
from udc_model.data.packed import PackedDataset
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.models import build_model
from udc_model.stages.prepare import prepare
from udc_model.training.contact_sheet import contact_sheet
from udc_model.training.loop import train_model
from udc_model.training.setup import load_initial_weights, set_up


def _params(channels, **model):
    resnet = ResNetParams(
        num_channels=channels, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    train = TrainParams(epochs=1, batch_size=64, device="cpu", precision="fp32", augment="strong", color_jitter=0.2,
                        mixup=0.2, cutmix=1.0)  # fmt: skip
    return Params(data=DataParams(image_size=8), train=train, model=ModelParams(resnet=resnet, **model))


@pytest.fixture(scope="module")
def grey_digits(tmp_path_factory):
    workspace = Workspace(tmp_path_factory.mktemp("grey"))
    prepare(_params(1), workspace)
    return PackedDataset.open(workspace.prepared)


@pytest.mark.slow
def test_grey_model_trains_on_augmented_images(grey_digits, tmp_path):
    session = set_up(_params(1), grey_digits)
    contact_sheet(tmp_path / "sheet.png", session)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "L"
        assert np.ptp(np.asarray(sheet)) > 100
    result = train_model(session)
    assert np.isfinite([row["train_loss"] for row in result.curves]).all()


def test_data_of_another_number_of_channels_is_refused(grey_digits):
    with pytest.raises(
        UdcError, match=r"model\.resnet\.num_channels: is 3, but the prepared images have 1; give num_channels"
    ):
        set_up(_params(3), grey_digits)


def test_normalisation_of_rgb_weights_is_averaged(grey_digits, tmp_path):
    from dataclasses import replace

    from udc_model.data.transforms import Preprocessing

    build_model(_params(3).model, grey_digits.classes, 0).save_pretrained(tmp_path)
    Preprocessing(8, mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3)).save(tmp_path)
    params = _params(1, weights=str(tmp_path)).model
    model = build_model(params, grey_digits.classes, 0)
    report, preprocessing = load_initial_weights(model, params, grey_digits.preprocessing)
    assert report.summed_channels == "resnet.embedder.embedder.convolution.weight"
    expected = replace(grey_digits.preprocessing, mean=preprocessing.mean, std=preprocessing.std)
    assert preprocessing == expected
    assert preprocessing.mean == pytest.approx((0.4,))
    assert preprocessing.std == pytest.approx((0.2,))
