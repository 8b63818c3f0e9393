"""Where images come from: class folders, split folders, tables, archives, or scikit-learn's digits.

`opening.open_source` lists the images of a source without decoding one.
"""

from udc_model.data.sources.description import describe_source
from udc_model.data.sources.opening import open_source
from udc_model.data.sources.records import (
    ImageRecord,
    ImageSource,
    LeftOut,
    Rejection,
    count_by_reason,
    join_for_message,
    printable,
)

__all__ = [
    "ImageRecord",
    "ImageSource",
    "LeftOut",
    "Rejection",
    "count_by_reason",
    "describe_source",
    "join_for_message",
    "open_source",
    "printable",
]
