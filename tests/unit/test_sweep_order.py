"""Cells, their names, and the order in which a design runs them."""

from dataclasses import replace
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from pipeline.config import CONF_DIR, Design, InferOs, Mode
from pipeline.defaults import flags_on
from pipeline.errors import ConfigError
from pipeline.outcome import infer_os_label
from pipeline.sweep.cells import cell_names, refuse_other_work
from pipeline.sweep.design import load_design
from pipeline.sweep.design.blocked import blocks
from pipeline.testing import DesignContract
from tests.unit.test_rerun import composed


class TestBlocked(DesignContract):
    name, cells = "blocked", 4


class TestFixed(DesignContract):
    name, cells = "fixed", 4


class TestPaired(DesignContract):
    name = "paired"


class TestFactorial(DesignContract):
    name, cells = "factorial", 4


class FakeConfig:
    def __init__(self, mode: str, **flags: bool) -> None:
        self.mode = Mode(name=mode)
        self.infer_os = InferOs()
        for name, on in flags.items():
            setattr(self.infer_os, name, on)


def names(*cells: tuple[Any, list[str]]) -> list[str]:
    return cell_names([config for config, _ in cells], [overrides for _, overrides in cells])


def test_another_seed_gives_another_order() -> None:
    assert blocks(6, 4, seed=7) != blocks(6, 4, seed=8)


def test_blocks_differ_from_one_another_so_that_no_cell_is_always_first() -> None:
    firsts = [block[0] for block in blocks(4, 40, seed=3)]
    assert set(firsts) == {0, 1, 2, 3}


def test_a_design_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"design\.name=hope"):
        load_design("hope")


def test_pairs_begin_with_either_arm_and_want_two() -> None:
    pairs = load_design("paired").blocks(2, 40, 1)
    assert all(sorted(pair) == [0, 1] for pair in pairs)
    assert {pair[0] for pair in pairs} == {0, 1}
    with pytest.raises(ConfigError, match="two arms"):
        load_design("paired").blocks(3, 2, 1)


def test_the_fixed_design_keeps_the_written_order_and_warns() -> None:
    fixed = load_design("fixed")
    assert fixed.blocks(3, 2, 1) == [[0, 1, 2], [0, 1, 2]]
    assert "drift" in fixed.note


def test_a_factorial_plan_has_every_combination_once() -> None:
    expand = load_design("factorial").expand
    assert expand is not None
    plan = expand(["a", "b", "c"])
    assert len({tuple(cell) for cell in plan}) == 8
    assert plan[0] == ["infer_os.a=false", "infer_os.b=false", "infer_os.c=false"]


def test_the_flags_preset_and_single_flags_have_short_labels() -> None:
    assert infer_os_label(InferOs()) == "off"
    assert infer_os_label(InferOs(memory_optimization=True, quantization=True, cpu_optimization=True)) == "on"
    assert infer_os_label(InferOs(quantization=True)) == "quantization"


def test_the_preset_on_is_what_its_file_says() -> None:
    said = yaml.safe_load((CONF_DIR / "infer_os/on.yaml").read_text())
    flags = {name: value for name, value in said.items() if name != "defaults"}
    assert infer_os_label(InferOs(**flags)) == "on" and flags_on("on") == flags.keys()
    assert flags_on("quantization") == {"quantization"} and flags_on("off") == set()


def test_cells_are_named_by_mode_and_flags() -> None:
    assert names((FakeConfig("oneshot"), ["mode=oneshot", "infer_os=off"]),
                 (FakeConfig("oneshot", quantization=True), ["mode=oneshot", "infer_os.quantization=true"]),
                 ) == ["oneshot-off", "oneshot-quantization"]


def test_what_else_varies_is_in_the_name_and_what_does_not_is_not() -> None:
    assert names((FakeConfig("oneshot"), ["mode=oneshot", "num_ctx=1024", "max_tokens=8"]),
                 (FakeConfig("oneshot"), ["mode=oneshot", "num_ctx=2048", "max_tokens=8"]),
                 ) == ["oneshot-off-num_ctx=1024", "oneshot-off-num_ctx=2048"]


def test_turns_swept_within_a_mode_are_in_the_name() -> None:
    assert names((FakeConfig("interactive"), ["mode.turns=2"]), (FakeConfig("interactive"), ["mode.turns=3"]),
                 ) == ["interactive-off-turns=2", "interactive-off-turns=3"]


def test_a_design_says_refuse_or_skip_and_nothing_else() -> None:
    with pytest.raises(ConfigError, match="refuse or skip"):
        Design(name="blocked", unsupported="ignore")


def test_cells_that_do_different_work_are_refused_unless_that_is_the_question() -> None:
    base, other = composed("mode=oneshot"), composed("mode=interactive", "infer_os=on", "prompt=reasoning")
    refuse_other_work([base, replace(other, prompt=base.prompt), replace(base, infer_os=other.infer_os)])
    for changed, key in ((replace(base, max_tokens=8), "max_tokens"), (replace(base, num_ctx=512), "num_ctx"),
                         (replace(base, prompt=other.prompt), "prompt"),
                         (replace(base, prompt=replace(base.prompt, distinct=False)), "prompt.distinct")):
        with pytest.raises(ConfigError, match=rf"different work.*design\.factor=\[{key}\]"):
            refuse_other_work([base, changed])
        asked = replace(base.design, factor=[key])
        refuse_other_work([replace(base, design=asked), replace(changed, design=asked)])


def test_one_pair_has_no_interval_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="repetitions=2"):
        load_design("paired").blocks(2, 1, 1)
