"""Texts that were made in English elsewhere, said in the language in use: stored reasons and notes, findings, errors.

What is stored stays English, as data; `told` finds the template that a text was made from and fills its translation.
A text of no known template is shown as it is. tests/unit/test_language.py makes such texts and demands that they are
known.
"""

from __future__ import annotations

import functools
import re

from pipeline.language import ENGLISH, N_, Sentence, _, spoken, worded

TEMPLATES = (
    N_("{used} of {n} tokens of the context were used: what a filled cache costs was not measured; prompt.fill=0.9 "
       "fills it, prompt.tokens=N sets a length"),
    N_("No sweep in {store} has an id that begins with '{name}'. The latest are:\n{listed}\n`slackwater runs{option}` "
       "lists all; `last` is the latest."),
    # stats: verdicts
    N_("identical ({n} of {of})"),
    N_("not enough trials: {n} more needed"),
    N_("no difference larger than {size} points"),
    N_("no difference larger than {size}"),
    N_("undecided: more than {n} more trials"),
    N_("undecided: about {n} more trials"),
    N_("undecided: about {n} more trial"),
    # stats: drift
    N_("the first trial of a block differs from the others by {size}: it may have warmed something up"),
    N_("drift or slow noise: all cells move by {size} per block; blocks take this out of the effects"),
    N_("drift or slow noise in the difference itself ({what}): {size} per block; mistrust its interval"),
    N_("{test} of {what} move by {size}: too little to matter"),
    N_("{test} move by {size}: too little to matter"),
    N_("no drift seen in {test} of {what}"),
    N_("no drift seen in {test}"),
    N_("block means"),
    N_("paired differences"),
    N_("first of block"),
    # stats: refused comparisons
    N_("{one} and {other} did different work ({how}): no effect is computed"),
    N_("{counts} prompt tokens against {others}"),
    N_("{counts} generated tokens against {others}"),
    # stats: limits
    N_("A was measured by method {a}, B by method {b}"),
    N_("A and B ran on different machines ({key}: {a} → {b})"),
    # stats: methods
    N_("t on paired block differences"),
    N_("t on paired log ratios"),
    N_("Welch's t, days not covered"),
    N_("Welch's t on differences to the shared reference cell"),
    N_("Welch's t on differences to the shared reference cell, log ratios"),
    N_("{method}, {level} % because it was looked at after every block, which covers {covered} %"),
    N_("Bonferroni over {n}"),
    N_("t on pooled residual of block and cell, df {n}"),
    N_("t on pooled higher-order interactions (one block), df {n}"),
    N_("no interval: one block and no term to spare"),
    N_("least squares through level medians, t"),
    N_("line through each trial's turns from {turn} on, t over trials"),
    # a plan: what a knob does
    N_("{knob} overrides {flags}, which would set {value}"),
    N_("{knob} sets {setting} too: {why}"),
    N_("the same"),
    N_("the prompt cache is where idle slots are kept"),
    N_("only a mapped file can be read on demand"),
    N_("a batch is computed in parts of n_ubatch"),
    N_("no part is larger than its batch"),
    # a sweep, while it begins
    N_("{sweep} goes on: {done} of {n} trials are done (--fresh starts anew)"),
    N_("{sweep} goes on: {done} of {n} trials are done"),
    N_("warning: measured by method {was} so far, by method {now} from here on; the same cell may read differently"),
    N_("method of measuring: {was} → {now}"),
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
    N_("Modes"),
    N_("Models"),
    N_("Prompts"),
    N_("Designs"),
    N_("Settle rules"),
    N_("Ways to clear"),
    N_("Experiments"),
    N_("{known}. Yours are the files ./experiments/NAME.yaml"),
    N_("model file {path} is not GGUF: it begins with {begin}. Give a GGUF file, such as those that llama.cpp's "
       "convert_hf_to_gguf.py writes."),
    N_("model file {path} is truncated or damaged: it has {n} bytes and ends or breaks inside its header ({why}). "
       "Fetch it again."),
    N_("model file {path} is truncated: it has {n} bytes, its header asks for {size}. Fetch it again."),
    N_("model file {path} cannot be read: {why}"),
    N_("model file {path} is one of {n} parts, and {m} are missing: {names}. Put all of them into {folder}."),
    N_("model={file}: there is no such file ({path}). Give a GGUF file, or a name: {known}."),
    N_("model={name} and model.path={path} both say which weights: leave one of them out. Several models are a list: "
       "{example}."),
    N_("watch {name}: no process has that name. Expected a process id, a program's name or a URL that a local server "
       "listens on."),
    # fetching a model
    N_("fetching"),
    N_("checking"),
    # doctor: facts
    N_("{cpu}, {n} of {of} cores usable"),
    N_("{total} MiB, {available} MiB available now"),
    N_("{total} MiB, {used} MiB used"),
    N_("memory controller v1"),
    N_("none"),
    N_("not in this kernel"),
    N_("unknown"),
    N_("heuristic (0)"),
    N_("always (1)"),
    N_("never (2)"),
    N_("{n} samples at {rate} Hz, {lost} lost, lateness p99 {ms} ms, {share} % of a core, {size} MiB, {priority} "
       "priority"),
    N_("real-time"),
    N_("ordinary"),
    # doctor: meters and engines
    N_("shared: a server started from here runs in {folder} beside this program (systemd-run --user --scope gives a "
       "server a cgroup of its own)"),
    N_("shared: {folder} holds {n} processes besides the server's"),
    N_("v{version}; page cache and kernel memory are charged to it too"),
    N_("this kernel has no memory cgroups"),
    N_("no NVIDIA driver: {error}"),
    N_("no model file is named (a sweep names it)"),
    N_("no accel device under {folder}"),
    N_("not found (llamacpp needs nothing)"),
    N_("no server answers at {url}"),
    # doctor: what spoils a measurement, and what to do
    N_("The {name} meter is not here: {why}."),
    N_("Run on Linux 5.0 or newer with /proc mounted in full."),
    N_("Only {available} MiB of {total} MiB are available: a model would push others out, or be pushed out."),
    N_("End what is not needed (see the neighbours), or take a smaller model."),
    N_("Swap is on ({total} MiB, swappiness {n}): memory can leave RSS without being freed. It is metered, and a trial "
       "that swaps is suspect."),
    N_("sudo swapoff -a for the time of the sweep, if memory suffices."),
    N_("zswap is on: swapped pages still take memory, compressed, but in no process's RSS."),
    N_("Transparent huge pages are always on: anonymous memory grows in steps of 2 MiB. Compare only with runs under "
       "the same setting."),
    N_("Overcommit is off (2): a server that reserves more than it touches may not start."),
    N_("A cgroup limits memory here to {limit} MiB; the system's figures speak of the whole machine ({total} MiB)."),
    N_("Read the tree's figures, or raise the container's limit."),
    N_("A cgroup limits this container to {n} of {of} cores: beyond that the kernel stops every process in it until "
       "the next period, so times scatter, and the sampler may come late."),
    N_("Raise the container's CPU limit by one core more than the server uses (docker run --cpus), or lower "
       "n_threads."),
    N_("Memory is short right now: in the last {seconds} s everything stood still for {share} % of the time, {size} "
       "MiB were swapped."),
    N_("End what is not needed (see the neighbours) and look again."),
    N_("Other processes keep {n} cores busy: times and the system's percentage will scatter; the process tree's "
       "figures are not affected."),
    N_("Measure when the machine is quiet."),
    N_("The host of this virtual machine takes {n} of a core away (steal): the sampler may lose more than 1 % of its "
       "slots, and such trials do not count."),
    N_("Measure at another time, or on a machine of your own."),
    N_("A sweep of slackwater runs here (process {pid}): what it does is seen in the figures above."),
    N_("Look again when it has ended; a sweep started now waits for it."),
    N_("Wait until the sweep that runs here has ended: what holds memory may be its server."),
    N_("Others hold memory: process {pid} {size} MiB ({command}){more}. What they do moves the system's percentage, "
       "not the tree's figures."),
    N_(", and {n} more with over {least} MiB"),
    N_("End them, or read the tree's figures."),
    N_("The kernel's peak cannot be reset here (/proc/PID/clear_refs is refused even for our own process), so a "
       "phase's peak would be the process's."),
    N_("Run outside the sandbox that forbids it."),
    N_("clear=drop_caches is not possible: it needs root."),
    N_("Use clear=unload (the default), which needs no permission."),
    N_("Processes of other users (a system-wide Ollama) show neither PSS nor a peak that can be reset, nor whether "
       "their model file is cached."),
    N_("Let slackwater start the server, or run as that user or root."),
    N_("The sampler does not run here: {why}"),
    N_("Fix what the message names."),
    N_("The sampler cannot keep {rate} Hz here now: {lost} of {n} slots lost, lateness p99 {ms} ms (a period is "
       "{period} ms). Phases that lack readings would not count."),
    N_("Leave a core free, allow real-time priority (root, or ulimit -r 1), or lower meter.rate_hz."),
    # watch
    N_("A child that has detached from this process is not counted: the process is not ours, so the kernel hands such "
       "a child to init, where its origin cannot be told."),
)
"""The longer of two that fit comes first."""

_PLACE = re.compile(r"\{(\w+)\}")


def told(text: str) -> str:
    """The text in the language in use; itself in English, or where no template fits. What fills a place is told too."""
    if spoken() == ENGLISH or not text:
        return text
    if isinstance(text, Sentence):
        return worded(text)
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
