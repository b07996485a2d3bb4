"""An engine that cannot run on this machine says so in one line; a library that the system lacks is taken from a copy.

The bindings are made up: a module that loads a shared library of a name that no system has, as the real one does with
libgomp. The loader, the copy and the link are real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pipeline.config import Config, Engine, InferOs, Model
from pipeline.engine import llamacpp, llamacpp_available, llamacpp_server
from pipeline.errors import ConfigError, EngineUnusableError
from pipeline.testing import config_of

BINDINGS = """
import ctypes, os
try:
    ctypes.CDLL("libtide.so.3")
except OSError as error:
    raise ImportError(str(error)) from None
__version__ = os.environ["LD_LIBRARY_PATH"]

def get_device_info():
    return []
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages: bindings that need libtide.so.3."""
    (tmp_path / "site" / "xllamacpp").mkdir(parents=True)
    (tmp_path / "site" / "xllamacpp" / "__init__.py").write_text(BINDINGS)
    return tmp_path / "site"


@pytest.fixture
def config(model_file: Path) -> Config:
    """The default model on the embedded engine."""
    engine: Engine = config_of("engine=llamacpp").engine
    model: Model = config_of("model=smollm2-135m").model
    return Config(model=model, engine=engine, infer_os=InferOs(), max_tokens=8)


def carry(site: Path, name: str = "libtide-0a1b2c3d.so.3.0.0") -> Path:
    """A copy of some library as auditwheel leaves it beside a package of another name."""
    some = min(Path(sysconfig.get_path("purelib")).glob("numpy.libs/*.so*"), key=lambda path: path.stat().st_size)
    (site / "harbour.libs").mkdir()
    shutil.copy(some, site / "harbour.libs" / name)
    return site / "harbour.libs" / name


def ask(site: Path, links: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", llamacpp_server.__file__, str(links), "devices"], text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(site), **environment}, timeout=60)


def test_a_library_that_the_system_lacks_is_taken_from_a_copy_in_the_environment(site: Path, tmp_path: Path) -> None:
    copy, links = carry(site), tmp_path / "cache" / "libraries"
    done = ask(site, links, LD_LIBRARY_PATH="/given/by/the/user")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == f"{links}:/given/by/the/user"
    assert (links / "libtide.so.3").resolve() == copy.resolve()
    assert [path.name for path in links.iterdir()] == ["libtide.so.3"]
    # an environment that was made anew: the old link leads nowhere
    copy.rename(site / "harbour.libs" / "libtide-ffff.so.3.1.0")
    assert ask(site, links).returncode == 0


def test_what_is_there_is_not_linked_and_the_environment_is_left_alone(site: Path, tmp_path: Path) -> None:
    folder = carry(site).parent
    (folder / "libtide.so.3").symlink_to(folder / "libtide-0a1b2c3d.so.3.0.0")
    done = ask(site, tmp_path / "links", LD_LIBRARY_PATH=str(folder))
    assert json.loads(done.stdout)["version"] == str(folder)
    assert not (tmp_path / "links").exists()


@pytest.mark.parametrize(("copy", "said"), [
    (None, "needs libtide.so.3, which this system does not have. Install it (with the package of your system that has"),
    ("libtide-0a1b.so.30.0.0", "which this system does not have. Install it"),      # another version
    ("damaged", "cannot be loaded"),
])
def test_without_a_copy_that_loads_it_ends_with_one_line(
        site: Path, tmp_path: Path, copy: str | None, said: str) -> None:
    if copy is not None:
        carried = carry(site, "libtide-0a1b.so.3" if copy == "damaged" else copy)
        if copy == "damaged":
            carried.write_bytes(b"no library")
    done = ask(site, tmp_path / "links")
    assert done.returncode == llamacpp_server.UNUSABLE
    line = llamacpp_available.lacking(done.returncode, done.stderr)
    assert line is not None
    assert said in line
    assert "\n" not in line


def test_a_folder_that_takes_no_link_is_named_with_the_variable_that_moves_it(site: Path, tmp_path: Path) -> None:
    carry(site)
    (tmp_path / "links").write_text("a file where the folder would be")
    done = ask(site, tmp_path / "links")
    line = llamacpp_available.lacking(done.returncode, done.stderr) or ""
    assert "this environment has a copy" in line
    assert "SLACKWATER_CACHE=FOLDER" in line
    assert str(tmp_path / "links") in line


@pytest.mark.parametrize(("error", "said"), [
    ("libgomp.so.1: cannot open shared object file: No such file or directory", "apt install libgomp1"),
    ("Error loading shared library libgomp.so.1: No such file or directory (needed by /x.so)", "needs libgomp.so.1"),
    ("libstdc++.so.6: cannot open shared object file: No such file or directory", "apt install libstdc++6"),
    ("/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by /x.so)", "GLIBC_2.38, and /lib/x86"),
    ("/env/x.so: failed to map segment from shared object: Operation not permitted", "mounted noexec"),
    ("/env/x.so: failed to map segment from shared object", "mounted noexec"),
    ("/env/x.so: failed to map segment from shared object: Cannot allocate memory", "Reinstall it"),
    ("/env/x.so: wrong ELF class: ELFCLASS32", "Reinstall it"),
    ("/env/x.so: undefined symbol: llama_tide", "Reinstall it"),
])
def test_what_a_loader_says_becomes_what_is_missing_and_how_to_get_it(error: str, said: str) -> None:
    line = llamacpp_available.lacking(llamacpp_server.UNUSABLE, f"Traceback…\ncannot load xllamacpp: {error}\n") or ""
    assert said in line
    assert line.startswith("engine=llamacpp cannot run on this machine: ")
    assert "\n" not in line


def test_an_end_for_another_reason_says_nothing_about_the_machine() -> None:
    assert llamacpp_available.lacking(None, "") is None
    assert llamacpp_available.lacking(1, "cannot load the model") is None
    assert llamacpp_available.lacking(-signal.SIGKILL, "") is None
    assert "SIGILL" in (llamacpp_available.lacking(-signal.SIGILL, "") or "")


@pytest.mark.parametrize(("cpuinfo", "said"), [
    ("flags\t\t: fpu pni ssse3 avx f16c\n", "and AVX2, FMA, BMI2 are not here"),
    ("flags\t\t: fpu pni ssse3 avx avx2 fma f16c bmi2\n", "does not have (SIGILL). Build"),
    ("Features\t: fp asimd\n", "does not have (SIGILL). Build"),
    (None, "does not have (SIGILL). Build"),
])
def test_a_processor_that_lacks_an_instruction_is_told_which(tmp_path: Path, cpuinfo: str | None, said: str) -> None:
    if cpuinfo is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(cpuinfo)
    line = llamacpp_available.lacking(-signal.SIGILL, "", tmp_path) or ""
    assert said in line
    assert "engine=ollama" in line


def test_this_machine_has_what_the_engine_needs() -> None:
    llamacpp_available.require()


def ending(tmp_path: Path, code: str) -> list[str]:
    """A program of the engine's that ends like that."""
    program = tmp_path / "program.py"
    program.write_text(code)
    return [sys.executable, str(program)]


@pytest.mark.parametrize(("code", "said"), [
    ("print('cannot load xllamacpp: libgomp.so.1: cannot open shared object file: No such file'); raise SystemExit(78)",
     "needs libgomp.so.1"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
])
def test_a_server_that_cannot_run_here_is_told_from_one_that_failed(
        config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str) -> None:
    monkeypatch.setattr(llamacpp_available, "program", lambda: ending(tmp_path, code))
    with pytest.raises(EngineUnusableError, match=said):
        llamacpp.Engine(config).start(tmp_path / "server.log")
    monkeypatch.setattr(llamacpp_available, "program", lambda: ending(tmp_path, "raise SystemExit('a bad day')"))
    with pytest.raises(Exception, match="exit status 1") as caught:
        llamacpp.Engine(config).start(tmp_path / "server.log")
    assert not isinstance(caught.value, EngineUnusableError)


def test_no_model_is_fetched_for_an_engine_that_cannot_run(
        config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACKWATER_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(llamacpp_available, "program", lambda: ending(tmp_path, "import os; os.kill(os.getpid(), 4)"))
    llamacpp_available.devices.cache_clear()
    with pytest.raises(ConfigError, match=r"SIGILL.*Nothing was started"):
        llamacpp.Engine(config).fetch(lambda *words: pytest.fail("it was fetched"))
    llamacpp_available.devices.cache_clear()
    assert llamacpp.Engine.here()[0] is False
    llamacpp_available.devices.cache_clear()
