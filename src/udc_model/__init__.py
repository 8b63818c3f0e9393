"""UDC-Model: reproducible image classification where mistakes have unequal costs."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("udc-model")
except PackageNotFoundError:  # run from a source tree that was never installed, or shipped inside a logged model
    __version__ = "0+unknown"
