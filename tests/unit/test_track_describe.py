"""What MLflow's page says of a run: the finding first, and nothing of others' texts as markup."""

from __future__ import annotations

import dataclasses

from pipeline.record.reason import Reason
from pipeline.record.sweep import SweepRecord
from pipeline.record.trial import TrialRecord
from pipeline.track.describe import NOTE_LIMIT, describe_sweep, describe_trial


def said(text: str) -> Reason:
    return Reason("said", {"text": text})


RESULT = TrialRecord("s-1", "oneshot-on", 2, 2, 7, "oneshot", "on", "valid", 1, 2)
MEASURED = dataclasses.replace(
    RESULT, notes=[said("a neighbour used 1.2 cores")],
    tags={"engine": "llamacpp", "engine_version": "2026.10", "model": "smollm2-135m",
          "model_digest": "sha256:b179c9523d0e6a0f"},
    turns={"stabilized/tree_rss_mib": {1: 150.0, 2: 172.25}, "released/tree_rss_mib": {2: 55.4},
             "stabilized/tree_anon_mib": {2: 61.0}, "stabilized/tree_file_mib": {2: 111.25},
             "during_generation/tree_rss_peak_mib": {2: 172.3},
             "during_generation/tree_anon_sampled_peak_mib": {2: 61.5}})
SWEEP = SweepRecord("mode_gap-1", "mode_gap", "Which?", "slackwater run experiment=mode_gap", 4, 5, "finished", 9,
                    "The flags save 20.9 MiB.")


def test_the_first_line_of_a_trial_is_its_verdict_and_what_it_found() -> None:
    """The page folds all but three lines away."""
    assert describe_trial(MEASURED).splitlines()[0] == "**valid**: settled 172.2 MiB, peak 172.3, released 55.4."
    failed = dataclasses.replace(RESULT, verdict="failed", reasons=[said("killed by signal 9")])
    assert describe_trial(failed).splitlines()[:3] == ["**failed**.", "", "- killed by signal 9"]


def test_the_table_has_a_line_per_phase_that_was_measured_and_the_peaks_of_an_interval() -> None:
    rows = [line for line in describe_trial(MEASURED).splitlines() if line.startswith("| ")]
    assert rows[1:] == ["| during_generation, peak | 172.3 | 61.5 |  |  |", "| stabilized | 172.2 | 61.0 | 111.2 |  |",
                        "| released | 55.4 |  |  |  |"]


def test_a_trial_says_which_weights_in_which_server() -> None:
    assert "smollm2-135m (`sha256:b179c9523d0e`) in llamacpp 2026.10." in describe_trial(MEASURED)


def test_a_sweep_begins_with_the_question_and_its_answer_and_says_where_the_report_is() -> None:
    lines = describe_sweep(SWEEP, "the table", "report.html").splitlines()
    assert lines[:3] == ["**Which?**", "", "The flags save 20.9 MiB."]
    assert "`report.html`" in lines[4] and "`slackwater run experiment=mode_gap`" in lines
    assert "    the table" in lines


def test_texts_of_others_are_no_markup_and_never_too_long() -> None:
    hostile = "<script>alert(1)</script> `x` [a](javascript:b) |\n# head " * 300
    of_others = [said(hostile)]
    for text in (describe_trial(dataclasses.replace(MEASURED, cell=hostile[:200], reasons=of_others, notes=of_others)),
                 describe_sweep(dataclasses.replace(SWEEP, question=hostile, answer=hostile), None, None)):
        assert len(text) <= NOTE_LIMIT
        outside_code = "".join(text.split("`")[::2]).replace("\\", "")
        assert "<script>" not in outside_code
        assert "\n# head" not in text
