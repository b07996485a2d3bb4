"""No log falls silent: of each load it is counted how many of the lines that are read were recognised."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engine import llamacpp_log
from pipeline.engine.ollama import log

LOGS = Path(__file__).parents[1] / "data/ollama/0.33.0/log"
LOADED = [path for path in sorted(LOGS.iterdir()) if path.name != "kv-bogus.stderr.log" and "fa0" not in path.name]
# Before 0.30, as 0.24.0 words it.
OLD_START = (
    'time=x level=INFO source=routes.go:1554 msg="server config" env="map[OLLAMA_DEBUG:INFO]"\n'
    'time=x level=INFO source=routes.go:1607 msg="Listening on 127.0.0.1:11555 (version 0.24.0)"\n'
    'time=x level=INFO source=types.go:60 msg="inference compute" id=cpu library=cpu\n')
OLD_LOAD = (
    'time=x level=INFO source=runner.go:1278 msg=load request="{Operation:commit Parallel:1 KvSize:2048}"\n'
    'time=x level=INFO source=device.go:240 msg="model weights" device=CPU size="92.1 MiB"\n'
    'time=x level=INFO source=server.go:1384 msg="llama runner started in 0.45 seconds"\n')
NEW_WORDS = (  # made up: what a version that words its log anew would write
    (": n_ctx   ", ": context  "), ("(load_mode = ", "(mode = "), ("prompt cache is enabled", "prompts are cached"),
    ("KV buffer size", "KV memory"), ('msg="llama-server started in', 'msg="engine is up after'),
    ("warming up the model with an empty run", "first run"), ('msg="inference compute"', 'msg="compute device"'))


def reworded(text: str) -> str:
    for old, new in NEW_WORDS:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("path", LOADED, ids=lambda path: path.name.partition(".")[0])
def test_every_line_that_is_relied_on_is_recognised_in_what_a_real_server_wrote(path: Path) -> None:
    text = path.read_text()
    check = log.check("0.33.0", False, text, text)
    assert (check.version, check.expected, list(check.missing)) == ("Ollama 0.33.0", 20, [])


def test_before_030_other_lines_are_relied_on() -> None:
    assert list(log.check("0.24.0", True, OLD_START + OLD_LOAD, OLD_LOAD).missing) == []
    check = log.check("0.24.0", True, OLD_START + OLD_LOAD, OLD_LOAD.replace("msg=load ", "msg=loading "))
    assert (check.expected, list(check.missing)) == (5, ["load request"])


def test_a_version_that_words_its_log_anew_is_noticed_line_by_line() -> None:
    text = reworded((LOGS / "as-published.stderr.log").read_text())
    check = log.check("0.34.0", False, text, text)
    assert list(check.missing) == ["inference compute", "load finished", "load_mode", "n_ctx", "cache_ram_mib",
                                   "kv buffer"]
    assert log.check("0.34.0", False, text.partition("discovering")[2], text).expected == 18, "begun after the start"


def test_a_missing_line_proves_nothing_in_a_log_that_is_not_all_recognised() -> None:
    text = (LOGS / "as-published.stderr.log").read_text()
    silent = text.replace("warming up the model with an empty run", "first run")
    assert llamacpp_log.parse(silent).settings["warmup"].value == "false"  # that line is not said
    assert "warmup" not in llamacpp_log.parse(reworded(text)).settings
