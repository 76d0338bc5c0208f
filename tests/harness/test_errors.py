"""harness/errors.py: errors in one line, also those that say nothing."""

import pytest

from harness.errors import describe_error, first_line


@pytest.mark.parametrize(
    ("error", "line", "described"),
    [
        (OSError("no such file.\nTry again"), "no such file", "OSError: no such file."),
        (ValueError("\n shape: \n"), "shape", "ValueError: "),
        (TimeoutError(), "TimeoutError", "TimeoutError: "),
    ],
)
def test_an_error_is_told_in_one_line(error: Exception, line: str, described: str):
    assert first_line(error) == line
    assert describe_error(error) == described
