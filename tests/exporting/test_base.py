"""Options of a format: all faults at once, and words for options of other formats."""

import pytest

from reparam.errors import ExportError, OptionError
from reparam.exporting.base import FORMATS, parse_export_options
from reparam.exporting.packed import PackedFormat


def test_faults_are_told_together() -> None:
    with pytest.raises(OptionError) as error:
        parse_export_options(PackedFormat, {"floats": "float8", "expert": "int8"})
    assert str(error.value).splitlines() == [
        "format packed, option floats: Input should be 'float16', 'bf16' or 'float32', got 'float8'",
        'format packed has no option "expert". Did you mean "experts"?',
    ]


def test_options_of_a_format_are_told_by_name_and_by_flag() -> None:
    with pytest.raises(
        OptionError, match=r'has no option "compile"\. Known: floats \(--floats\), experts \(--experts\)\.'
    ):
        parse_export_options(PackedFormat, {"compile": True})


def test_an_unknown_format_is_told_with_the_nearest_one() -> None:
    with pytest.raises(ExportError, match=r'unknown export format "packd"\. Did you mean "packed"\?'):
        FORMATS.get("packd")
