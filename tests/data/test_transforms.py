"""Tests of the preprocessing against transformers' image processors."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ConvNextImageProcessorPil, ViTImageProcessorPil

from udc_model.data.formats import BadImageError
from udc_model.data.stored_preprocessing import PreprocessingRecord
from udc_model.data.transforms import Decoding, Preprocessing
from udc_model.errors import UdcError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _images(rng):
    for width, height in ((64, 64), (100, 71), (53, 90), (640, 427)):
        yield Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "resize", "crop_pct"), [(32, "crop", 1.0), (48, "crop", 0.875), (384, "crop", 0.95), (40, "squash", 1.0)]
)
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_input_equals_that_of_transformers(size, resize, crop_pct, resample, rng, tmp_path):
    ours = Preprocessing(size, resize, crop_pct, resample, MEAN, STD)
    ours.save(tmp_path)
    kind = ConvNextImageProcessorPil if resize == "crop" else ViTImageProcessorPil
    theirs = kind.from_pretrained(tmp_path)
    for image in _images(rng):
        stored = torch.from_numpy(ours.to_stored(image)[None].copy())
        assert stored.shape == (1, ours.stored_size, ours.stored_size, 3)
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(ours.to_input(stored), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (3, 30_000)])
def test_an_image_that_scaling_would_make_huge_is_refused_before_it_is_scaled(size, monkeypatch):
    monkeypatch.setattr(Image.Image, "resize", lambda *args, **kwargs: pytest.fail("is scaled"))
    with pytest.raises(BadImageError, match=r"\d+ x \d+ pixels is too elongated: .* set data\.resize: squash"):
        Preprocessing(224, "crop", 0.875).to_stored(Image.new("L", size))


def test_elongated_images_are_scaled_where_that_is_possible(rng):
    preprocessing = Preprocessing(32, "crop", 0.875)
    image = Image.fromarray(rng.integers(0, 256, (2, 3000), dtype=np.uint8))
    scaled = np.asarray(image.resize((54_000, 36), Image.Resampling.BICUBIC))
    assert np.array_equal(preprocessing.to_stored(image)[..., 0], scaled[:, 26_982:27_018])
    assert Preprocessing(224, "squash").to_stored(Image.new("L", (20_000, 1))).shape == (224, 224, 1)
    large = Image.new("L", (25_600, 4_000))  # scaling makes it smaller
    assert Preprocessing(32, "crop").to_stored(large).shape == (32, 32, 1)


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_load_inverts_save(resize, tmp_path):
    ours = Preprocessing(48, resize, 0.875 if resize == "crop" else 1.0, "bilinear", MEAN, STD)
    ours.save(tmp_path)
    assert Preprocessing.load(tmp_path) == ours
    assert Preprocessing.of(PreprocessingRecord.model_validate(ours.to_dict())) == ours


def test_load_raises_for_a_missing_or_unsupported_file(tmp_path):
    with pytest.raises(UdcError, match="no such file"):
        Preprocessing.load(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 3, "width": 4}}')
    with pytest.raises(UdcError, match=r"preprocessor_config\.json: size: must be \{shortest_edge: S\}, or"):
        Preprocessing.load(tmp_path)


@pytest.mark.parametrize(
    "decoding", [Decoding(1, "each", (-1000.0, 400.0), False, 17), Decoding(3, "first", None, True, 10**9)]
)
def test_decoding_is_stored_and_other_libraries_ignore_it(decoding, tmp_path, rng):
    values = (0.5,) * decoding.channels
    ours = Preprocessing(32, "squash", mean=values, std=values, decoding=decoding)
    ours.save(tmp_path)
    assert Preprocessing.load(tmp_path) == ours
    assert Preprocessing.of(PreprocessingRecord.model_validate(ours.to_dict())) == ours
    theirs = ViTImageProcessorPil.from_pretrained(tmp_path)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 3)[: 2 + (decoding.channels == 3)], dtype=np.uint8))
    stored = torch.from_numpy(ours.to_stored(image)[None].copy())
    assert stored.shape == (1, 32, 32, decoding.channels)
    if decoding.channels == 3:
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(ours.to_input(stored), expected, rtol=1e-5, atol=1e-5)


def test_damaged_decoding_is_refused(tmp_path):
    Preprocessing(32).save(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"frames"', '"frame"'))
    with pytest.raises(UdcError, match=r"udc_decoding\.frame: no such parameter; did you mean udc_decoding\.frames"):
        Preprocessing.load(tmp_path)
