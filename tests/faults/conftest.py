"""The projects and the server of the fault tests."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    from bench import Bench

    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    bench = Bench(tmp_path_factory.mktemp("faults"))
    yield bench
    bench.close()
