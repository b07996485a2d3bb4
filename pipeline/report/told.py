"""Texts that were made in English elsewhere, said in the language in use: stored reasons and notes, findings, errors.

What is stored stays English, as data; `told` finds the template that a text was made from and fills its translation.
A text of no known template is shown as it is. tests/unit/test_language.py makes such texts and demands that they are
known.
"""

from __future__ import annotations

import functools
import re

from pipeline.language import ENGLISH, N_, _, spoken

TEMPLATES = (
    # stats: verdicts
    N_("identical ({n} of {of})"),
    N_("not enough trials: {n} more needed"),
    N_("no difference larger than {size}"),
    N_("undecided: more than {n} more trials"),
    N_("undecided: about {n} more trials"),
    N_("undecided: about {n} more trial"),
    # stats: drift
    N_("the first trial of a block differs from the others by {size}: it may have warmed something up"),
    N_("drift or slow noise: all cells move by {size} per block; blocks take this out of the effects"),
    N_("drift or slow noise in the difference itself ({what}): {size} per block; mistrust its interval"),
    # stats: refused comparisons
    N_("{one} and {other} did different work ({how}): no effect is computed"),
    N_("{counts} prompt tokens against {others}"),
    N_("{counts} generated tokens against {others}"),
    # stats: methods
    N_("t on paired block differences"),
    N_("t on paired log ratios"),
    N_("Welch's t, days not covered"),
    N_("Welch's t on differences to the shared reference cell"),
    N_("Welch's t on differences to the shared reference cell, log ratios"),
    N_("least squares through level medians, t"),
    N_("line through each trial's turns from {turn} on, t over trials"),
    # a trial: why it does not count
    N_("interrupted"),
    N_("no sample in {phase} of turn {turn}"),
    N_("no sample in {phase}"),
    N_("memory had not settled {seconds} s after turn {turn}"),
    N_("{size} MiB of the server were swapped out"),
    N_("the server cut the prompt of turn {turn} to {n} tokens"),
    N_("the sampler lost {share} % of its slots{stolen}"),
    N_("the sampler was up to {ms} ms late (p99), more than its period{stolen}"),
    N_("{what} by turn {counts}, the cell's other trials {others}"),
    N_("the server did not take what it was asked: {what}"),
    # a trial: what a person should know
    N_("the server's processes are out of reach of our meters: only what its API says is measured"),
    N_("turn {turn}: {n} tokens of the {of} asked for"),
    N_("model file not verified as evicted: {why}"),
    N_("neighbours kept half a core or more busy: speed is noisy, memory is not"),
    N_("some task waited for memory {share} % of the time (PSI)"),
    N_("infer_os.{flag} changes nothing here: on {n} usable cores on and off are both {values}"),
    # a sweep, while it begins
    N_("{sweep} goes on: {done} of {n} trials are done (--fresh starts anew)"),
    N_("{sweep} goes on: {done} of {n} trials are done"),
    N_("precision after {n} blocks: {widths}, wanted {target}"),
    N_("stopped after the failed trial {n}, as design.on_failure=stop asks"),
    # wrong words
    N_("{key} is not allowed: expected {expected}."),
    N_("{key} is not known. {kinds}: {known}."),
    N_("{key} is not a setting. Did you mean {close}? (now {now})"),
    N_("{key} is not a setting. Did you mean {close}?"),
    N_("{key} is not a setting. `slackwater run --cfg job` prints all there are."),
    N_("{key} must be given: {hint}"),
    N_("a whole number"),
    N_("a number"),
    N_("true or false"),
    N_("a whole number from 1"),
    N_("a whole number, 0 or more"),
    N_("seconds, 0 or more"),
    N_("a number above 0"),
)
"""The longer of two that fit comes first."""

_PLACE = re.compile(r"\{(\w+)\}")


def told(text: str) -> str:
    """The text in the language in use; itself in English, or where no template fits. What fills a place is told too."""
    if spoken() == ENGLISH or not text:
        return text
    if (same := _(text)) != text:
        return same
    for template, pattern in _patterns():
        match = pattern.fullmatch(text)
        if match and (translated := _(template)) != template:
            return translated.format(**{name: told(value) for name, value in match.groupdict().items()})
    return text


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    return [(template, re.compile("".join(
        f"(?P<{part}>.*?)" if at % 2 else re.escape(part) for at, part in enumerate(_PLACE.split(template))),
        re.DOTALL)) for template in TEMPLATES if _PLACE.search(template)]
