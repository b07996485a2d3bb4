"""Wrong input: one clear error that names the key and says what to do, exit code 2, nothing started, no stack trace."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.cli import main
from pipeline.engine import llamacpp_available
from pipeline.sweep.plan import SweepPlan
from tests.conftest import ROOT, run_as_nobody


def slackwater(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
    )


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("slackwater: ")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mode=twoshot"], ["mode=twoshot is not known", "interactive, oneshot"]),
        (["repetitons=5"], ["repetitons is not a setting", "Did you mean repetitions?", "now 3"]),
        (["mode.trns=5"], ["mode.trns is not a setting", "mode.turns"]),
        (["repetitions=many"], ["repetitions=many", "a whole number"]),
        (["stabilization_delay_s=-1"], ["stabilization_delay_s=-1", "0 or more"]),
        (["repetitions=0"], ["repetitions=0", "from 1"]),
        (["mode=interactive", "mode.turns=0"], ["mode.turns=0", "from 1"]),
        (["prompt.text=''"], ["prompt.text", "not empty"]),
        (["-m", "colour=red,blue"], ["colour is not a setting"]),
        (["experiment=mode_gop"], ["experiment=mode_gop is not known", "Did you mean mode_gap", "infer_os_effect"]),
        (["infer_os.npu_optimization=true"], ["npu_optimization", "llamacpp"]),
        (["infer_os.gpu_acceleration=true"], ["gpu_acceleration", "llamacpp"]),
        (["num_ctx=9000"], ["num_ctx", "9000", "8192"]),
        (["num_ctx=256"], ["n_batch=512", "256 tokens", "num_ctx=512", "engine.knobs.n_batch=256"]),
        (["max_tokens=8,64"], ["different work", "max_tokens is 8 and 64", '"design.factor=[max_tokens]"']),
        (["design=paired", "infer_os=off,on,quantization"], ["two arms", "has 3", "design=blocked"]),
        (["stop=precision"], ["stop.target", '"1 %"', '"5 MiB"']),
        (["stop=precision", "infer_os=off,on", "stop.target=5 s"], ["stop.target=5 s", "MiB"]),
        (["question_metrics=stabilized/tree_rss_mib"], ["question_metrics=[stabilized/tree_rss_mib]"]),
        (["engine=ollamma"], ["engine=ollamma is not known", "llamacpp"]),
        (["model=gguf"], ["model.path"]),
        (["mode=oneshot", "mode.turns=3"], ["mode.turns=3", "oneshot"]),
        (["place.order=3"], ["place"]),
        (["prompt.text=Hello,world"], ["different work", "If it is one text, quote it: 'prompt.text=\"Hello,world\"'"]),
        (["tracking=server"], ["tracking.uri must be given", "tracking.uri=http://HOST:PORT"]),
        (["infer_os=null"], ["infer_os=null names none of its files", "quantization"]),
        (["prompt.text=${nope}"], ["${nope} refers to a setting", "\\${"]),
        (["settle.name=base"], ["settle.name=base is not a known settle rule", "adaptive, fixed"]),
        (["design.name=__init__"], ["design.name=__init__ is not a known design", "blocked"]),
        (["hydra/launcher=jolbib"], ["hydra/launcher=jolbib is not known here"]),
        (["hydra.launcher._target_=os.system"], ["hydra/launcher: os.system cannot be used"]),
        (["mode.turns=null"], ["mode.turns has no value"]),
        (["engine.knobs=5"], ["engine.knobs takes settings below it"]),
        (["--cfg", "jbo"], ["--cfg", "'job'"]),
        (["--dryrun"], ["--dryrun", "--dry-run"]),
        (["+nonsense=1"], ["nonsense is not a setting"]),
        (["+mode.speed=1"], ["mode.speed is not a setting"]),
        (["infer_os.memory_optimization=true,true"], ["twice"]),
    ],
)
def test_a_wrong_word_is_named_and_nothing_is_started(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # in this process: importing Hydra for each word would take a minute; the others below run the program itself
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["slackwater"])
    before = len(psutil.Process().children(recursive=True))
    code = main(["run", *arguments])
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.startswith("slackwater: ")
    assert "Traceback" not in said
    for word in words:
        assert word in said
    assert len(psutil.Process().children(recursive=True)) == before


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    refused(slackwater("run", "model=gguf", "model.path=nowhere.gguf", cwd=tmp_path), "nowhere.gguf")


def test_a_file_that_is_no_gguf_is_recognised_before_a_server_is_asked(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("just some notes, no weights " * 10)
    refused(slackwater("run", "model=gguf", "model.path=notes.gguf", cwd=tmp_path), "notes.gguf", "GGUF")


def test_a_truncated_gguf_says_how_much_is_missing(tmp_path: Path, model_file: Path) -> None:
    with model_file.open("rb") as whole:
        (tmp_path / "half.gguf").write_bytes(whole.read(20_000_000))
    refused(slackwater("run", "model=gguf", "model.path=half.gguf", cwd=tmp_path), "half.gguf", "truncated")


def test_a_checksum_that_does_not_match_is_refused(tmp_path: Path, model_file: Path) -> None:
    refused(slackwater("run", "model.sha256=" + "0" * 64, cwd=tmp_path), "sha256")


def test_a_model_that_cannot_be_fetched_says_what_to_do_without_a_network(tmp_path: Path) -> None:
    offline = {
        "SLACKWATER_CACHE": str(tmp_path / "cache"),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "0",
        "PIP_DEFAULT_TIMEOUT": "2",
        "PIP_NO_CACHE_DIR": "1",
    }
    refused(slackwater("run", cwd=tmp_path, **offline), "model=gguf")


@pytest.mark.parametrize("words", [
    ["hydra.mode=RUN"], ["hydra/sweeper=basic"], ["hydra.sweeper._target_=x.y"], ["--experimental-rerun", "x.pickle"],
    ["hydra.sweep.dir=x"], ["experiment=round"], ["-cd", ".", "-cn", "round"],
], ids=" ".join)
def test_what_leads_round_the_sweeper_is_refused_before_anything(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "round.yaml").write_text("hydra:\n  mode: RUN\n")
    (tmp_path / "round.yaml").write_text("defaults:\n  - config\n  - _self_\nhydra:\n  mode: RUN\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.sweep.job.Job.__call__", lambda job, composed: pytest.fail("a trial was run"))
    assert main(["run", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "bypasses" in said.err or "leave it out" in said.err
    if words[0] == "hydra.mode=RUN":  # looking at the config goes on to work
        assert main(["run", *words, "--cfg", "job"]) == 0


@pytest.mark.parametrize(("file", "said"), [
    ("name: [a\n", "asked.yaml cannot be read as YAML: line 2"),
    ("name: \xff\n", "asked.yaml is not UTF-8"),
    ("defaults:\n  - oneshot\nthink_time_s: ???\n", "mode.think_time_s must be given: mode.think_time_s=…"),
    ("defaults:\n  - oneshot\n  - infer_os: off\n", "mode/asked.yaml: its defaults list has an unquoted off"),
    ("defaults: 5\n", "mode/asked"),
])
def test_a_fault_in_a_users_own_conf_is_one_line(
    file: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mode").mkdir()
    (tmp_path / "mode" / "asked.yaml").write_text(file, encoding="latin-1" if "\xff" in file else "utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "-cd", ".", "mode=oneshot,asked", "--dry-run"]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


@pytest.mark.usefixtures("model_file")
def test_what_a_config_file_demands_may_be_given_even_if_it_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text("mode: ???\nnum_ctx: ???\n")
    monkeypatch.chdir(tmp_path)
    for words, missing in ((["num_ctx=2048"], "mode must be given"), (["mode=oneshot"], "num_ctx must be given")):
        assert main(["run", "experiment=mine", *words, "--dry-run"]) == 2
        assert missing in capsys.readouterr().err
    assert main(["run", "experiment=mine", "mode=oneshot", "num_ctx=2048", "--dry-run"]) == 0


@pytest.mark.usefixtures("model_file")
def test_lists_in_an_experiment_are_the_cells_of_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(
        "defaults:\n  - override /mode: oneshot\ninfer_os: [off, quantization]\nprompt.text: 潮, 汐!\n")
    monkeypatch.chdir(tmp_path)
    plans: list[SweepPlan] = []
    monkeypatch.setattr("pipeline.sweep.conduct.check_stop", plans.append)
    assert main(["run", "experiment=mine", "--dry-run", "--json"]) == 0
    assert [cell["cell"] for cell in json.loads(capsys.readouterr().out)["cells"]] == [
        "oneshot-off", "oneshot-quantization"]
    assert {cell.config.prompt.text for cell in plans[0].cells} == {"潮, 汐!"}


def test_an_experiment_that_is_not_yaml_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text("defaults: [}\n")
    refused(slackwater("run", "experiment=mine", cwd=tmp_path), "mine.yaml")


def test_a_store_of_another_schema_is_refused_before_anything_is_measured(tmp_path: Path, model_file: Path) -> None:
    database = tmp_path / "mlflow.db"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES ('deadbeef')")
    refused(slackwater("run", f"tracking.uri=sqlite:///{database}", cwd=tmp_path), "schema")


def test_a_store_that_cannot_be_written_is_refused_at_once(tmp_path: Path, model_file: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    done = run_as_nobody(
        [sys.executable, "-m", "pipeline", "run", f"tracking.uri=sqlite:///{locked}/mlflow.db"],
        cwd=Path("/"),
        PYTHONPATH=str(ROOT),
        model_file=model_file,
    )
    refused(done, "locked")


def test_dropping_all_caches_needs_root_and_says_what_does_not(tmp_path: Path, model_file: Path) -> None:
    done = run_as_nobody(
        [sys.executable, "-m", "pipeline", "run", "clear=drop_caches"],
        cwd=Path("/"),
        PYTHONPATH=str(ROOT),
        model_file=model_file,
    )
    refused(done, "drop_caches", "root", "clear=unload")


def test_a_prompt_longer_than_the_context_is_found_at_the_first_load_with_the_servers_count(
    tmp_path: Path, model_file: Path, empty_store: Path
) -> None:
    shutil.copytree(empty_store, tmp_path, dirs_exist_ok=True)
    done = slackwater(
        "run",
        "mode=oneshot",
        "num_ctx=256",
        "engine.knobs.n_batch=256",
        "engine.knobs.n_ubatch=256",
        "prompt.text=" + "tide " * 400,
        "max_tokens=4",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "256" in done.stderr
    assert "tokens" in done.stderr


def test_an_engine_that_cannot_run_on_this_machine_ends_the_sweep_at_its_first_trial(
    tmp_path: Path, model_file: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(empty_store, tmp_path, dirs_exist_ok=True)
    broken = tmp_path / "engine.py"
    broken.write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    monkeypatch.setattr(llamacpp_available, "program", lambda: [sys.executable, str(broken)])
    monkeypatch.setattr(sys, "argv", ["slackwater"])
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    code = main(["run", "mode=oneshot,interactive", "repetitions=3", "meter.rate_hz=20", f"tracking.uri={store}"])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.count("\n") == 1
    assert said.err.startswith("slackwater: engine=llamacpp cannot run on this machine: ")
    assert main(["show", "--store", store, "--json"]) == 0
    assert [trial["verdict"] for trial in json.loads(capsys.readouterr().out)["trials"]] == ["failed"]


def test_a_command_that_does_not_exist_suggests_one(tmp_path: Path) -> None:
    refused(slackwater("shwo", cwd=tmp_path), "shwo is not a command", "show")


def test_an_unknown_sweep_is_named_and_says_how_to_make_one(tmp_path: Path) -> None:
    done = slackwater("show", "nothing", "--store", f"sqlite:///{tmp_path}/none.db", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
