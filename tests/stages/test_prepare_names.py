"""Stage prepare refuses class names and parameters that do not fit, all at once."""

import pytest

from udc_model.config import validate_params
from udc_model.errors import UdcError
from udc_model.files import Workspace
from udc_model.stages.prepare import prepare


def test_class_names_and_parameters_that_do_not_fit_are_refused_at_once(tmp_path, shapes_folder):
    (shapes_folder / "dot").rename(shapes_folder / "refer")
    params = validate_params({"data": {"source": "folder", "path": str(shapes_folder)}, "model": {"num_labels": 2},
                              "costs": {"preset": "uniform"}}, "test")  # fmt: skip
    with pytest.raises(UdcError) as error:
        prepare(params, Workspace(tmp_path))
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == [
        "2 parameters or class names do not fit the data:", "  class 'refer'", "  model.num_labels",
        "the classes of the data are",
    ]  # fmt: skip
    assert "give it another name in data.merge_labels" in str(error.value)
    assert not (tmp_path / "data/prepared").exists()
