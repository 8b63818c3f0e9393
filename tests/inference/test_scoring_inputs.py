"""The list of images of ``udc score``: tables of untrusted origin."""

import pytest

from udc_model.errors import UdcError
from udc_model.inference.inputs import BadInput, ImageInput
from udc_model.inference.scoring_inputs import list_scoring_inputs


def test_a_name_that_no_file_can_have_is_one_bad_input(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "t.csv").write_text(f"image\n{'x' * 300}.png\na.png\n")
    first, second = list_scoring_inputs([str(tmp_path / "t.csv")], None, None)
    assert isinstance(first, BadInput)
    assert isinstance(second, ImageInput)


@pytest.mark.parametrize("before", [0, 5000])  # in the first block that is decoded, and in a later one
def test_another_encoding_gets_advice_that_score_can_follow(tmp_path, before):
    (tmp_path / "t.csv").write_bytes(b"image\n" + b"a.png\n" * before + "grün.png\n".encode("latin-1"))
    with pytest.raises(UdcError, match=r"t\.csv: is not UTF-8 text; convert the table to UTF-8$"):
        list(list_scoring_inputs([str(tmp_path / "t.csv")], None, None))
