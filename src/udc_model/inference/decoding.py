"""Decodes inputs to prepared images, with the settings that are stored with a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from udc_model.data.decode import decode_frames, to_channels
from udc_model.data.formats import BadImageError
from udc_model.data.sources.shards import ShardMember
from udc_model.data.transforms import Preprocessing
from udc_model.inference.inputs import BadInput, ImageInput, Input

NamedImage = tuple[str, NDArray[np.uint8]]  # the prepared image is (S, S, C)

_MAX_FRAMES = 64  # of a file that a worker process decodes: they are in memory together
_KILLED = "decoding it ended the process (crash, no memory) or took longer than 5 minutes"


def prepared_frames(
    each: Input, preprocessing: Preprocessing, report: Callable[[BadInput], None]
) -> Iterator[NamedImage]:
    """Yield name and prepared image of each frame of an input.

    Parameters
    ----------
    report : is called with the input and the reason if it, or one of its frames, cannot be used.
    """
    if isinstance(each, BadInput):
        report(each)
        return
    decoding = preprocessing.decoding
    try:
        source = each.source.read() if isinstance(each.source, ShardMember) else each.source
        for number, frame in enumerate(decode_frames(source, decoding), 1):
            image = to_channels(frame.to_image(decoding.intensity), decoding.channels)
            has_several = decoding.frames == "each" and frame.total > 1
            yield f"{each.name}#{number}" if has_several else each.name, preprocessing.to_stored(image)
    except BadImageError as error:
        report(BadInput(each.name, str(error)))
    except MemoryError:
        report(BadInput(each.name, "the image does not fit into memory"))


@dataclass(frozen=True)
class Decoded:
    """What decoding an input has given.

    Attributes
    ----------
    frames : name and prepared image of each frame.
    bad : the input and the reason if it, or a frame after ``frames``, cannot be used.
    unread : the input, if it has further frames.
    """

    frames: list[NamedImage]
    bad: BadInput | None = None
    unread: ImageInput | None = None


@dataclass(frozen=True)
class Decoder:
    """Decodes inputs in a worker process."""

    preprocessing: Preprocessing

    def __call__(self, inputs: Iterable[Input]) -> list[Decoded]:
        """Decode the first frames of each input, as many as may be in memory together."""
        return [self._decoded(each) for each in inputs]

    def _decoded(self, each: Input) -> Decoded:
        bad: list[BadInput] = []
        frames = list(islice(prepared_frames(each, self.preprocessing, bad.append), _MAX_FRAMES))
        if bad or len(frames) < _MAX_FRAMES or not isinstance(each, ImageInput):
            return Decoded(frames, bad[0] if bad else None)
        return Decoded(frames, unread=each)

    def frames_of(
        self, decoded: Decoded, report: Callable[[BadInput], None]
    ) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """All frames of an input; those that no worker has decoded are decoded here, one after the other."""
        yield from decoded.frames
        if decoded.bad is not None:
            report(decoded.bad)
        if decoded.unread is not None:
            frames = prepared_frames(decoded.unread, self.preprocessing, report)
            yield from islice(frames, len(decoded.frames), None)


def killed(each: Input) -> list[Decoded]:
    """The result for an input that ended its worker process."""
    return [Decoded([], BadInput(each.name, _KILLED))]
