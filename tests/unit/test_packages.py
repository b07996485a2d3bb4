"""The wheel holds every folder of the package; tests/end_to_end/test_wheel.py builds it, which takes longer."""

from __future__ import annotations

import tomllib

from pipeline.config import PACKAGE
from tests.conftest import ROOT


def test_every_folder_with_code_is_in_the_list_of_packages() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("*.py")}
    assert folders - set(listed) == set()
