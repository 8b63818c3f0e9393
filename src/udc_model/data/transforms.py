"""Preprocessing from an image file to the network's input, shared by prepare, evaluate, predict and serving."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from udc_model.checksums import read_checksums
from udc_model.data.formats import BadImageError
from udc_model.data.resampling import RESAMPLE, Box, resized
from udc_model.data.stored_preprocessing import DecodingRecord, PreprocessingRecord, PreprocessorRecord
from udc_model.files import parse_json, read_bytes
from udc_model.records import validated

if TYPE_CHECKING:
    from torch import Tensor

PREPROCESSOR = "preprocessor_config.json"
ADVICE = "restore the model with `dvc checkout model`, or train it again (dvc repro)"
_MAX_BYTES = 2**20
_DECODING_KEY = "udc_decoding"  # in preprocessor_config.json; other libraries ignore it
_MOST_SCALED = 100_000_000  # pixels that scaling creates: 300 MB in RGB; a short side of 1 pixel becomes hundreds
_MIN_SIZE_WITHOUT_CROP = 384  # pixels; ConvNeXt's published evaluation and transformers do not crop from this size on


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """The pixels of an RGB or grey image, (H, W, C) uint8, read-only; half as long as with ``np.asarray``."""
    return np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, -1)


@dataclass(frozen=True)
class Decoding:
    """How an image file becomes 8-bit pixels; stored with the model, so that prediction decodes as prepare does.

    Parameters
    ----------
    channels : 3 for RGB, 1 for grey.
    frames : of a file with several frames or pages: ``error`` rejects it, ``first`` decodes the first one, ``each``
        makes every frame an image.
    intensity : values of images deeper than 8 bits that become 0 and 255; values outside are clipped. None: the full
        range of 16 bits, and images with other values are rejected.
    dicom_windows : use the window that a DICOM file contains instead of ``intensity``.
    max_pixels : largest width x height of a frame, pixels.
    """

    channels: int = 3
    frames: str = "error"
    intensity: tuple[float, float] | None = None
    dicom_windows: bool = True
    max_pixels: int = 100_000_000

    @classmethod
    def of(cls, record: DecodingRecord) -> Decoding:
        """The settings in a file."""
        low_and_high = record.intensity
        intensity = None if low_and_high is None else (float(low_and_high[0]), float(low_and_high[1]))
        return cls(**record.model_dump() | {"intensity": intensity})


@dataclass(frozen=True)
class Preprocessing:
    """Deterministic image preprocessing in two steps: to a prepared image, once, and then to an input tensor.

    Parameters
    ----------
    size : side of the network's input, pixels.
    resize : ``crop`` scales the short side to ``int(size / crop_pct)`` and crops the centre; from a size of 384 px on
        it behaves like ``squash``, as ConvNeXt's published evaluation does. ``squash`` scales both sides to ``size``.
    crop_pct : side of the centre crop as a share of the scaled image's short side, in (0, 1].
    resample : ``bilinear``, ``bicubic`` or ``lanczos``.
    mean, std : of each channel (R, G, B; or grey), for pixel values scaled to [0, 1].
    decoding : how an image file is decoded.
    """

    size: int
    resize: str = "crop"
    crop_pct: float = 1.0
    resample: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    decoding: Decoding = Decoding()

    @property
    def channels(self) -> int:
        """Number of channels C of images: 3 for RGB, 1 for grey."""
        return self.decoding.channels

    @property
    def crops(self) -> bool:
        """Whether the centre is cropped; otherwise the complete image is squashed to a square."""
        return self.resize == "crop" and self.size < _MIN_SIZE_WITHOUT_CROP

    @property
    def stored_size(self) -> int:
        """Side of the prepared image, pixels; at least ``size``."""
        return int(self.size / self.crop_pct) if self.crops else self.size

    def to_stored(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize an RGB or grey image to the prepared image, (stored_size, stored_size, C) uint8.

        Raises
        ------
        BadImageError
            The image is too elongated, see `scaled`.
        """
        return pixels_of(self.stored_image(image))

    def stored_image(self, image: Image.Image) -> Image.Image:
        """The prepared image of `to_stored`; it is ``image`` itself if that has its size already."""
        if not self.crops:
            return self.scaled(image)
        # With these offsets the centre crop of the prepared image is exactly the centre crop of the scaled image.
        side, size = self.stored_size, self.scaled_size(*image.size)
        left, top = ((extent - self.size) // 2 - (side - self.size) // 2 for extent in size)
        return self.scaled(image, None if size == (side, side) else (left, top, left + side, top + side))

    def scaled(self, image: Image.Image, box: Box | None = None) -> Image.Image:
        """Scale an image to `scaled_size`, unless it has this size; the prepared image is its centre.

        Parameters
        ----------
        box : the part of the scaled image that is returned; None: all of it.

        Raises
        ------
        BadImageError
            The image is so elongated that it would become far larger than its file.
        """
        size = self.scaled_size(*image.size)
        if size[0] * size[1] > max(_MOST_SCALED, image.width * image.height):
            raise BadImageError(
                f"{image.width} x {image.height} pixels is too elongated: scaled for its centre square, it would have "
                f"{size[0]:,} x {size[1]:,}; cut it, or set data.resize: squash"
            )
        return resized(image, size, self.resample, box)

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Size to which an image is scaled before its centre is cropped: the short side is `stored_size`.

        Without a crop, both sides are.
        """
        side = self.stored_size
        if not self.crops:
            return side, side
        short = min(width, height)
        scaled = [side if extent == short else int(side * extent / short) for extent in (width, height)]
        return scaled[0], scaled[1]

    def to_input(self, stored: Tensor) -> Tensor:
        """Crop the centre and normalise: (N, stored_size, stored_size, C) uint8 to (N, C, size, size) float32."""
        margin = (self.stored_size - self.size) // 2
        cropped = stored[:, margin : margin + self.size, margin : margin + self.size]
        return self.normalise(cropped.permute(0, 3, 1, 2).float() / 255)

    def normalise(self, images: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation; ``images`` is (N, C, H, W) with values in [0, 1]."""
        mean = images.new_tensor(self.mean).view(1, -1, 1, 1)
        std = images.new_tensor(self.std).view(1, -1, 1, 1)
        return (images - mean) / std

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return scale and shift (C,) float32 such that ``scale * x + shift`` normalises pixel values x in [0, 255]."""
        import torch

        std = torch.tensor(self.std, dtype=torch.float64)
        return (1 / (255 * std)).float(), (-torch.tensor(self.mean, dtype=torch.float64) / std).float()

    def denormalise(self, images: Tensor) -> Tensor:
        """The inverse of :meth:`normalise`."""
        return images * images.new_tensor(self.std).view(1, -1, 1, 1) + images.new_tensor(self.mean).view(1, -1, 1, 1)

    def save(self, folder: Path) -> None:
        """Write ``preprocessor_config.json`` in Hugging Face's format."""
        text = json.dumps(self.to_config(), indent=2, sort_keys=True) + "\n"
        (folder / PREPROCESSOR).write_text(text, encoding="utf-8")

    def to_config(self) -> dict[str, Any]:
        """Return the contents of a Hugging Face ``preprocessor_config.json`` with the same effect on an image."""
        common = {
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "rescale_factor": 1 / 255,
            "resample": int(RESAMPLE[self.resample]),
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            _DECODING_KEY: asdict(self.decoding),
        }
        if self.resize == "crop":
            return common | {
                "image_processor_type": "ConvNextImageProcessor",
                "size": {"shortest_edge": self.size},
                "crop_pct": self.crop_pct,
            }
        return common | {"image_processor_type": "ViTImageProcessor", "size": {"height": self.size, "width": self.size}}

    @classmethod
    def load(cls, folder: Path) -> Preprocessing:
        """Read ``preprocessor_config.json``.

        Raises
        ------
        UdcError
            The file is missing or damaged, or describes a preprocessing that this class does not support.
        """
        path = folder / PREPROCESSOR
        contents = read_bytes(path, ADVICE, _MAX_BYTES)
        read_checksums(folder, ADVICE).check(path, contents, ADVICE)
        return cls.from_config(parse_json(contents, str(path), ADVICE), str(path))

    @classmethod
    def from_config(cls, config: dict[str, Any], origin: str) -> Preprocessing:
        """The inverse of :meth:`to_config`; ``origin`` names the file in errors (:class:`UdcError`)."""
        record = validated(config, PreprocessorRecord, origin, ADVICE)
        if record.size.shortest_edge is not None:
            shape: dict[str, Any] = {"size": record.size.shortest_edge, "crop_pct": record.crop_pct or 1.0}
        else:
            shape = {"size": record.size.height, "resize": "squash"}
        names = {int(value): name for name, value in RESAMPLE.items()}
        return cls(
            resample=names[record.resample],
            mean=tuple(map(float, record.image_mean)),
            std=tuple(map(float, record.image_std)),
            decoding=Decoding.of(record.udc_decoding) if record.udc_decoding else Decoding(len(record.image_mean)),
            **shape,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return dict(json.loads(json.dumps(asdict(self))))

    @classmethod
    def of(cls, record: PreprocessingRecord) -> Preprocessing:
        """The inverse of :meth:`to_dict`, of values that were checked."""
        values = record.model_dump() | {"decoding": Decoding.of(record.decoding)}
        return cls(**values | {"mean": tuple(map(float, record.mean)), "std": tuple(map(float, record.std))})
