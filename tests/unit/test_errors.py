"""The tree of exceptions that errors.py begins with is the tree that it defines."""

from __future__ import annotations

import re

from pipeline import errors
from pipeline.errors import SlackwaterError

LINE = re.compile(r"^    ((?:[│├└─ ]{4})*)(\w+Error) +(\d)   \S", re.MULTILINE)


def tree(kind: type[SlackwaterError], depth: int = 0) -> list[tuple[int, str, int]]:
    """Depth, name and exit code, the base first, as far as errors.py defines them."""
    below = [each for each in vars(errors).values() if isinstance(each, type) and each.__bases__ == (kind,)]
    return [(depth, kind.__name__, kind.exit_code), *(line for each in below for line in tree(each, depth + 1))]


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = [(len(branch) // 4, name, int(code)) for branch, name, code in LINE.findall(errors.__doc__ or "")]
    assert drawn == tree(SlackwaterError)
    assert len(drawn) == sum(isinstance(each, type) and issubclass(each, Exception) for each in vars(errors).values())
