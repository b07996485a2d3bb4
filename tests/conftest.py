"""What several tests need: the model's file, a copy of the checkout, a user without root's rights.

No test lives here, and nothing that only one file of tests needs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling  # type: ignore[import-untyped]

from pipeline import lock

ROOT = Path(__file__).resolve().parent.parent
NOBODY = 65534
_DAC_READ_SEARCH = 2
"""capability(7): read and search past permission bits, but not write."""


_OF_A_TERMINAL = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES")
_OF_A_PERSON = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "SLACKWATER_HOME", "SLACKWATER_LANG",
                "OLLAMA_HOST")
"""No test, and no program that one starts, sends results where this user's environment says."""


def pytest_configure() -> None:
    """What the tests rely on, wherever they are started: a background job of a script, cron and nohup hand down an
    ignored SIGINT, which programs that tests start would inherit, and a terminal may be dumb."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["TERM"] = "xterm-256color"
    os.environ[lock.VARIABLE] = f"-test-{os.getpid()}"  # whoever sweeps here meanwhile is no test's business
    for name in (*_OF_A_TERMINAL, *_OF_A_PERSON):
        os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long runs in CI or where it is asked for."""
    if os.environ.get("CI") or os.environ.get("SLACKWATER_TEST_ALL"):
        return
    for item in items:
        if item.get_closest_marker("thorough"):
            item.add_marker(pytest.mark.skip(reason="takes longer than `make test` has: set SLACKWATER_TEST_ALL=1"))


class OneSweepAtATime(LoadScopeScheduling):  # type: ignore[misc]
    """Two workers: files that run sweeps go to one of them (two would disturb each other); a file stays whole."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith("tests/browser/"):
            return "browser"  # they share a store, and a sweep of their own machine
        apart = ("bad_input", "resume", "experiments", "conduct", "signals")  # these measure nothing
        return "sweeps" if file.startswith("tests/end_to_end/") and not any(name in file for name in apart) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneSweepAtATime:
    """What goes to which worker (pytest-xdist's hook)."""
    return OneSweepAtATime(config, log)


@pytest.fixture(scope="session")
def model_file() -> Path:
    """The default model's GGUF in this user's cache; fetched if it is not there yet."""
    from omegaconf import OmegaConf

    from pipeline.config import CONF_DIR, Model
    from pipeline.model.weights import resolve

    chosen: Any = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "model" / "smollm2-135m.yaml"))
    return resolve(Model(**{key: value for key, value in chosen.items() if key != "defaults"}))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without a sweep: a folder to copy, since MLflow takes seconds to make one."""
    from pipeline.config import Tracking
    from pipeline.track.client import make_client
    from pipeline.track.location import locate

    folder = tmp_path_factory.mktemp("empty")
    make_client(locate(Tracking(uri=f"sqlite:///{folder}/mlflow.db")))
    return folder


@pytest.fixture
def store_of_3c8a73e(tmp_path: Path) -> Path:
    """A folder with a store that an earlier version made (tests/data/3c8a73e/README.md): mlflow.db and artifacts/."""
    with zipfile.ZipFile(ROOT / "tests" / "data" / "3c8a73e" / "store.zip") as packed:
        packed.extractall(tmp_path / "mlruns")
    return tmp_path / "mlruns"


def copy_checkout(target: Path) -> Path:
    """The files of this checkout that git has or would take, as they are now, without their history."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def spaced_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout at a path with a space in it, its store empty."""
    return copy_checkout(tmp_path_factory.mktemp("slack water"))


def run_as_nobody(command: Sequence[str], *, cwd: Path, model_file: Path | None = None,
                  **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user to whom permissions apply: as it is, or as nobody where the tests run as root.

    Nobody may still read everything (the interpreter may lie in root's home) and has a home and a temporary folder
    of its own. With `model_file`, its cache is this user's."""
    home = Path(tempfile.mkdtemp(prefix="slackwater-nobody-"))
    allowed = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "COLUMNS": "200", **environment}
    if model_file is not None:
        allowed["SLACKWATER_CACHE"] = str(model_file.parents[2])
    prefix: list[str] = []
    if os.geteuid() == 0:
        os.chown(home, NOBODY, NOBODY)
        prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
        if _may_pass_on(_DAC_READ_SEARCH):
            prefix[-1] += ",+dac_read_search"
            prefix.append("--ambient-caps=+dac_read_search")
        prefix.append("--")
    try:
        return subprocess.run([*prefix, *command], cwd=cwd, env=allowed, capture_output=True, text=True, timeout=240,
                              stdin=subprocess.DEVNULL, check=False)
    finally:
        shutil.rmtree(home)


def _may_pass_on(capability: int) -> bool:
    status = Path("/proc/self/status").read_text()
    permitted = next(line.split()[1] for line in status.splitlines() if line.startswith("CapPrm:"))
    return bool(int(permitted, 16) >> capability & 1)
