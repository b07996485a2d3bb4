"""The wheel as a user gets it: everything travels in it, and it runs from a folder that holds nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import copy_checkout

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(300)]


def said(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command that has to succeed prints, with nothing of the checkout in its environment."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean | environment,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("check out"))


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the locked setuptools, without a network."""
    folder = tmp_path_factory.mktemp("dist")
    said(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
        "-w",
        folder,
        checkout,
        cwd=folder,
    )
    return next(folder.glob("slackwater-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a fresh environment with the wheel in it; the locked dependencies are borrowed from this one."""
    folder = tmp_path_factory.mktemp("fresh environment") / "env"
    venv.create(folder)
    python = folder / "bin" / "python"
    said(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    site = said(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # A path from a .pth file does not have its own .pth files read: this environment's slackwater stays unseen.
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_every_file_of_the_package_and_of_its_menus_is_in_the_wheel(checkout: Path, wheel: Path) -> None:
    wanted = {path.relative_to(checkout).as_posix() for path in (checkout / "pipeline").rglob("*") if path.is_file()}
    for menu in ("conf", "experiments"):
        wanted |= {
            f"pipeline/{path.relative_to(checkout).as_posix()}"
            for path in (checkout / menu).rglob("*")
            if path.is_file()
        }
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert "pipeline/conf/config.yaml" in carried
    assert "pipeline/experiments/mode_gap.yaml" in carried
    assert {name for name in wanted if "__pycache__" not in name} == carried


def test_the_console_command_is_the_installed_package(installed: Path, tmp_path: Path) -> None:
    assert "slackwater run" in said(installed / "slackwater", "--help", cwd=tmp_path)
    home = said(
        installed / "python",
        "-c",
        "import pipeline.config as c; print(c.CONF_DIR, c.EXPERIMENTS_DIR, sep='\\n')",
        cwd=tmp_path,
    )
    assert all(Path(line).is_relative_to(installed.parent) for line in home.splitlines()), home


def test_shipped_experiments_are_found_from_an_empty_folder(installed: Path, tmp_path: Path, model_file: Path) -> None:
    planned = said(
        installed / "slackwater",
        "run",
        "experiment=mode_gap",
        "--dry-run",
        cwd=tmp_path,
        SLACKWATER_HOME=str(tmp_path / "home"),
    )
    assert "oneshot-off" in planned
    assert "interactive-on" in planned


def test_a_run_from_an_empty_folder_is_measured_and_kept_in_the_home(
    installed: Path, tmp_path: Path, model_file: Path
) -> None:
    empty, home = tmp_path / "empty", tmp_path / "home"
    empty.mkdir()
    said(
        installed / "slackwater",
        "run",
        "mode=oneshot",
        "repetitions=1",
        "max_tokens=8",
        "settle.window_s=0.5",
        "meter.rate_hz=20",  # a machine full of other tests loses no slot then
        cwd=empty,
        SLACKWATER_HOME=str(home),
    )
    assert (home / "mlflow.db").is_file()
    document = json.loads(said(installed / "slackwater", "show", "--json", cwd=empty, SLACKWATER_HOME=str(home)))
    [trial] = document["trials"]
    assert all("the sampler" in reason for reason in trial["reasons"]), "only a starved machine is an excuse"
    assert trial["metrics"]["stabilized/tree_rss_mib"] > 90
    assert list(empty.iterdir()) == []
