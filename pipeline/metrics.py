"""The metric dictionary: every name that a trial logs, with its unit, what it means, its source and its pitfalls.

Pure data and the few questions one can ask of it; what a meter reads is said in the meter's own file. `slackwater
metrics` prints it, `make docs` makes a page of it, and tests/unit/test_metrics.py holds it against the code that logs.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.language import N_
from pipeline.plugins import METERS

PHASE = "<phase>"
PHASES = ("baseline", "initialization", "pre_generation", "during_generation", "load", "prefill", "decode",
          "post_generation", "stabilized", "released")
"""All phases of a trial, in their order."""
INTERVALS = ("during_generation", "load", "prefill", "decode")
PARTS = INTERVALS[1:]
MOMENTS = tuple(phase for phase in PHASES if phase not in INTERVALS)
WITH_SERVER = MOMENTS[1:]
"""The moments at which a server of ours runs."""
COMPONENTS = ("weights", "repacked", "kv", "compute", "output", "prompt_cache")
"""What an engine says it holds, in the order of a reader's interest."""
KINDS = ("anon", "file", "shmem", "swap")
"""The kinds of a tree's memory; the first three are its RSS."""
WORK = ("during_generation/prompt_tokens", "during_generation/output_tokens")
"""What two trials must agree in to have done the same work, besides their configs."""

PLACES: Mapping[str, Sequence[str]] = {
    "component": COMPONENTS,
    "kind": KINDS,
    "stat": ("peak", "mean"),
    "series": ("tree_rss", "tree_anon", "tree_file", "tree_shmem", "tree_swap", "system_used", "system_available",
               "system_cached"),
    "part": ("weights", "kv", "compute"),
    "stage": ("clear", "start", "load", "generate", "settle", "think", "release", "stop", "window", "read", "prove"),
    "device": (), "event": (), "n": (),
}
"""What may stand in a name's <place>: one of these, or any word where none is named (the machine decides)."""

_UNITS = (("tokens_per_s", "tokens/s"), ("_mib", "MiB"), ("_pct", "%"), ("_ms", "ms"), ("_us", "µs"), ("_s", "s"),
          ("_mhz", "MHz"), ("_cores", N_("cores")), ("_tokens", N_("tokens")), ("_events_count", N_("events")),
          ("_faults", N_("faults")), ("_faults_count", N_("faults")), ("samples", N_("samples")),
          ("_slots", N_("slots")), ("_processes", N_("processes")), ("/is_stable", N_("0 or 1")))


@dataclass(frozen=True)
class Metric:
    """One entry: a name, or a family of names that differ in what stands in a <place>."""

    name: str
    meaning: str
    source: str
    pitfall: str = ""
    phases: Sequence[str] = field(default=(), kw_only=True)
    """What <phase> may be."""

    @property
    def unit(self) -> str:
        """The unit, which is the end of the name. Raises ValueError for a name that ends in none."""
        for ending, unit in _UNITS:
            if self.name.endswith(ending):
                return unit
        raise ValueError(f"{self.name} does not end in a known unit")

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches every name of the family, and no other."""
        return re.compile("".join(
            f"(?:{'|'.join(map(re.escape, self._choices(part)))})" if self._choices(part)
            else r"[a-z0-9_]+" if part.startswith("<") else re.escape(part) for part in _parts(self.name)))

    def names(self) -> list[str]:
        """Every name of the family; a <place> that the machine decides stays as it is."""
        return ["".join(parts) for parts in itertools.product(*(self._choices(part) or (part,)
                                                                for part in _parts(self.name)))]

    def _choices(self, part: str) -> Sequence[str]:
        return self.phases if part == PHASE else PLACES[part[1:-1]] if part.startswith("<") else ()


@dataclass(frozen=True)
class Section:
    """Metrics that are read together."""

    title: str
    about: str
    metrics: Sequence[Metric]


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(<[a-z]+>)", name) if part]


_STATUS = N_("/proc/PID/status of every process of the tree, up to 100 times a second; the median of the phase's "
             "window")
_MEMINFO = N_("/proc/meminfo, up to 25 times a second; the median of the phase's window")
_ROLLUP = N_("/proc/PID/smaps_rollup of every process of the tree, once at the phase's end")
_OVER = N_("/proc/PID/status, up to 100 times a second over the interval")
_SYSTEM_OVER = N_("/proc/meminfo, up to 25 times a second over the interval")
_MARKS = N_("time.monotonic_ns() where the event happens")
_LOG = N_("the engine's own account of its buffers (its log)")

SECTIONS: Sequence[Section] = (
    Section(N_("The server's memory at a moment"),
            N_("The server's process tree: the server, its descendants, and what was re-parented to us. Read at "
               "the same named moments in every mode."), (
        Metric(f"{PHASE}/tree_rss_mib",
               N_("Resident memory of the tree: anonymous + file-mapped + shared. In the phase `stabilized` it is "
                  "the headline."), _STATUS,
               N_("Swapped pages have left it (tree_swap_mib), and a page shared by two processes counts twice "
                  "(tree_pss_mib does not). It says nothing of GPU memory."), phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_anon_mib",
               N_("Anonymous memory: heap, KV cache, compute buffers, and weights that were read."), _STATUS,
               N_("Mapped weights are not in it: by this figure alone a mapped model looks like no "
                  "model."), phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_file_mib", N_("Pages of mapped files: mapped weights, libraries."), _STATUS,
               N_("The kernel may drop these pages under pressure and read them again; the model is then smaller and "
                  "slower."), phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_file_model_mib", N_("Of the file pages, those of the model's files: mapped weights."),
               N_("/proc/PID/smaps of the processes that map them, once at the phase's end"),
               N_("0 where the weights are read instead of mapped."), phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_file_program_mib",
               N_("Of the file pages, all others: the engine's program and its libraries."),
               N_("/proc/PID/smaps of the processes that map them, once at the phase's end"),
               N_("Moves by some MiB with how these files came into the page cache; the clear stage evicts them for "
                  "that (clear/program_resident_after_mib)."), phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_shmem_mib", N_("Shared memory (tmpfs, System V, shared anonymous mappings)."), _STATUS,
               N_("Counted once per process that maps it."), phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_swap_mib", N_("What the kernel has moved to swap."), _STATUS,
               N_("Above zero makes the trial suspect: RSS is then smaller without anything being freed."),
               phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_pss_mib", N_("Resident memory with every shared page divided among those who map it."),
               _ROLLUP,
               N_("It moves when a neighbour maps the same libraries. Absent if one process does not let us read it."),
               phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_uss_mib", N_("Pages that no other process maps."), _ROLLUP,
               N_("Mapped weights are in it as long as only one process maps them."), phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_processes", N_("Processes in the tree."), _STATUS, phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_pss_cost_ms", N_("How long reading PSS and USS took."), _MARKS,
               N_("About 10 µs per MiB; it comes after the phase's window, so it is in no other figure."),
               phases=WITH_SERVER),
        Metric(f"{PHASE}/samples", N_("Readings the phase's figures rest on."), N_("the sampler"),
               N_("A moment needs 3; an interval's mean is given from 10 on, and a short `load` or `prefill` has "
                  "none."),
               phases=(*MOMENTS, *INTERVALS)),
        Metric(f"{PHASE}/lost_samples", N_("Readings that should have been taken in the phase and were not."),
               N_("the sampler"),
               N_("Too few left for what its value needs make the phase suspect, which then enters no comparison."),
               phases=(*MOMENTS, *INTERVALS)),
    )),
    Section(N_("The machine's memory at a moment"),
            N_("The whole machine, neighbours included. Beside the tree's figures, never instead of them."), (
        Metric(f"{PHASE}/system_used_pct",
               N_("MemTotal − MemAvailable, in percent of MemTotal: psutil's virtual_memory().percent, unrounded."),
               _MEMINFO,
               N_("The memory of all programs. A mapped model counts as available, and an idle machine moves by tenths "
                  "of a percent."), phases=MOMENTS),
        Metric(f"{PHASE}/system_used_mib", "MemTotal − MemAvailable.", _MEMINFO,
               N_("Moves by hundreds of MiB on its own (per-CPU free lists, neighbours)."), phases=MOMENTS),
        Metric(f"{PHASE}/system_available_mib", N_("MemAvailable: what a new program could have without swapping."),
               _MEMINFO, N_("The kernel's estimate."), phases=MOMENTS),
        Metric(f"{PHASE}/system_free_mib", N_("MemFree: pages that hold nothing."), _MEMINFO,
               N_("Small on a healthy machine: the page cache fills what is free."), phases=MOMENTS),
        Metric(f"{PHASE}/system_cached_mib", N_("Page cache and reclaimable slab."), _MEMINFO,
               N_("Shared anonymous memory is in it too. The model's file stays here after the server has ended."),
               phases=MOMENTS),
        Metric(f"{PHASE}/system_swap_used_mib", N_("Swap in use, by all programs."), _MEMINFO, phases=MOMENTS),
        Metric(f"{PHASE}/system_per_cpu_free_mib",
               N_("Freed pages on per-CPU lists, which MemAvailable does not count."), "/proc/zoneinfo, once",
               N_("Only with `system` among meter.sources."), phases=WITH_SERVER),
        Metric(f"{PHASE}/system_swapped_in_mib", N_("Read back from swap since boot."), "/proc/vmstat, once",
               N_("Only with `system` among meter.sources."), phases=WITH_SERVER),
        Metric(f"{PHASE}/system_swapped_out_mib", N_("Written to swap since boot."), "/proc/vmstat, once",
               N_("Only with `system` among meter.sources."), phases=WITH_SERVER),
    )),
    Section(N_("Peaks and means over an interval"),
            N_("`during_generation` runs from the request to the last token; `load`, `prefill` and `decode` are "
               "its parts. In interactive mode the model is loaded before, so turns have no `load`."), (
        Metric(f"{PHASE}/tree_rss_peak_mib", N_("The highest resident size of the tree: the kernel's high-water mark."),
               N_("VmHWM, reset where a part begins (5 to /proc/PID/clear_refs) and read where it ends; or the "
                  "sampled maximum, if that is larger"),
               N_("For several processes a lower bound: they may have peaked at different instants."),
               phases=INTERVALS),
        Metric(f"{PHASE}/tree_rss_peak_bound_mib",
               N_("What the peak cannot have been above: the sum of the processes' own peaks."),
               N_("VmHWM of every process"),
               N_("Equals the peak for a single process; with several the truth is between. Absent if one of them "
                  "ended meanwhile: its mark ends with it."), phases=INTERVALS),
        Metric(f"{PHASE}/tree_rss_sampled_peak_mib", N_("The highest RSS that a sample saw."), _OVER,
               N_("Misses what falls between two readings."), phases=INTERVALS),
        Metric(f"{PHASE}/tree_<kind>_sampled_peak_mib",
               N_("The highest anonymous, file-mapped, shared or swapped memory that a sample saw."), _OVER,
               N_("The kernel keeps no mark for the kinds, only for their sum."), phases=INTERVALS),
        Metric(f"{PHASE}/tree_rss_mean_mib", N_("The mean RSS over the interval."), _OVER, phases=INTERVALS),
        Metric(f"{PHASE}/tree_<kind>_mean_mib",
               N_("The mean anonymous, file-mapped, shared or swapped memory over the interval."), _OVER,
               phases=INTERVALS),
        Metric(f"{PHASE}/system_used_<stat>_pct",
               N_("The largest reading, or the mean, of the machine's used memory over the interval, in percent."),
               _SYSTEM_OVER, N_("Neighbours included."), phases=INTERVALS),
        Metric(f"{PHASE}/system_used_<stat>_mib",
               N_("The largest reading, or the mean, of the machine's used memory over the interval."), _SYSTEM_OVER,
               N_("Neighbours included."), phases=INTERVALS),
    )),
    Section(N_("Work and speed"),
            N_("What was done meanwhile. A difference in memory between arms that did different work is not shown "
               "as an effect."), (
        Metric(f"{PHASE}/duration_s", N_("Length of the interval."), _MARKS, phases=INTERVALS),
        Metric(f"{PHASE}/server_duration_s", N_("Length of the part as the server counts it."),
               N_("its answer or its log"),
               N_("Ollama's load duration includes waiting in its queue, and is not zero for a model that is loaded."),
               phases=PARTS),
        Metric("during_generation/prompt_tokens", N_("Tokens of the prompt."), N_("the server's count"),
               N_("Includes tokens taken from its cache.")),
        Metric("during_generation/output_tokens", N_("Tokens generated."), N_("the server's count"),
               N_("A count other than `max_tokens` is noted; one unlike the cell's other trials makes the trial "
                  "suspect.")),
        Metric("during_generation/time_to_first_token_s", N_("From the request to the first token."), _MARKS,
               N_("In one-shot it includes the load.")),
        Metric("decode/tokens_per_s", N_("Tokens after the first one, per second of `decode`."), _MARKS,
               N_("Noisy with busy neighbours; compared as a ratio.")),
    )),
    Section(N_("Settling and release"),
            N_("Whether memory had stopped moving, and what an unload gives back with the server still up."), (
        Metric("stabilized/time_to_stable_s",
               N_("From the last token (or an unload inside the wait) until memory was stable."),
               N_("the settle rule, on tree RSS"),
               N_("Includes the rule's own window (settle.window_s), which is its minimum.")),
        Metric("stabilized/is_stable", N_("1: stable; 0: the limit was reached first."), N_("the settle rule"),
               N_("0 makes the trial suspect.")),
        Metric("stabilized/tree_read_back_faults",
               N_("Page faults of the tree that needed the disk, from the first token until memory was stable, less "
                  "those by which its file pages grew."), "/proc/PID/stat",
               N_("Pages that the kernel had taken away and that came back: 64 or more (a quarter of a MiB) make the "
                  "trial suspect.")),
        Metric("released/returned_mib", N_("Tree RSS before the unload less tree RSS after it."), _STATUS,
               N_("With mode.keep_alive_s the model may be gone before, and nothing is left to return.")),
        Metric("released/returned_pct", N_("What an unload returned, in percent of what was there before."), _STATUS),
        Metric("released/residual_mib", N_("Tree RSS after the unload: what the empty server keeps."), _STATUS,
               N_("Compare it with initialization/tree_rss_mib: the difference is what the allocator did not return.")),
        Metric("released/half_life_s", N_("From the request to unload until half of the returned memory was free."),
               N_("the sampled tree RSS"), N_("Resolution is one sample (10 ms). Absent if less than 2 % came back.")),
        Metric("released/time_to_99pct_s", N_("From the request to unload until 99 % of the returned memory was free."),
               N_("the sampled tree RSS"), N_("Resolution is one sample (10 ms). Absent if less than 2 % came back.")),
    )),
    Section(N_("The engine's account"),
            N_("What the engine itself says it holds, compared with the settled tree of the last turn. Together with "
               "the empty server it explains the tree."), (
        Metric("engine/weights_mib", N_("Weights as loaded."), _LOG,
               N_("With repacking the repacked part is counted separately.")),
        Metric("engine/repacked_mib", N_("Weights copied into the CPU's own layout."), _LOG,
               N_("A second copy if the weights are mapped.")),
        Metric("engine/kv_mib", N_("The KV cache of all slots."), _LOG, N_("Sized by num_ctx × slots, used or not.")),
        Metric("engine/compute_mib", N_("Scratch buffers of the computation."), _LOG,
               N_("Resident only once a prompt has used them.")),
        Metric("engine/output_mib", N_("Buffers for logits."), _LOG),
        Metric("engine/prompt_cache_mib", N_("State of finished prompts that llama.cpp keeps."), _LOG,
               N_("Grows with distinct prompts up to its limit (8192 MiB by default): no leak.")),
        Metric("engine/stated_mib", N_("All of its buffers on the host: the sum of the engine/<component>_mib."), _LOG),
        Metric("engine/unexplained_mib", N_("Settled tree − empty server − stated: threads, heap, library pages."),
               N_("tree RSS and the engine's account"),
               N_("Negative where the engine states what is not resident (mapped weights that were never touched).")),
        Metric("engine/<component>_<device>_mib",
               N_("What the engine holds on a device, such as engine/weights_cuda0_mib."), _LOG,
               N_("Not part of the tree's RSS.")),
        Metric("engine/claimed_mib", N_("Ollama's one figure for everything."), "/api/ps, size",
               N_("Buffers from its log: no threads, heap or libraries; one of two KV caches is missing for "
                  "sliding-window models.")),
        Metric("engine/claimed_minus_tree_mib", N_("Ollama's one figure less the settled tree RSS."),
               N_("/api/ps and tree RSS")),
        Metric("plan/<part>_mib", N_("What the model's header says the cell will hold."),
               N_("the GGUF header, before any server is started"), N_("An estimate, for refusing what cannot fit.")),
    )),
    Section(N_("As found"),
            N_("The comparison that started this project, out of the same trials: interactive read at "
               "`initialization`, one-shot at `post_generation`."), (
        Metric("as_found/tree_rss_mib", N_("Tree RSS where the original comparison read it."), _STATUS,
               N_("Not to be compared between modes. That is its point.")),
        Metric("as_found/system_used_pct", N_("The machine's used memory where the original comparison read it."),
               _MEMINFO, N_("Not to be compared between modes. That is its point.")),
    )),
    Section(N_("The trial and the sampler"), N_("Whether the measurement itself can be trusted."), (
        Metric("trial/neighbours_cores", N_("Cores that other processes kept busy."),
               N_("/proc/stat less the tree and us"),
               N_("From half a core a note says that speed is noisy; memory is not.")),
        Metric("trial/stolen_cores", N_("Cores that the host of this virtual machine took away."), "/proc/stat, steal",
               N_("Nothing in here can be on time then.")),
        Metric("trial/tree_major_faults", N_("Page faults of the tree that needed the disk."), "/proc/PID/stat",
               N_("Reading mapped weights causes these; that alone is not a reason for doubt.")),
        Metric("trial/<stage>_s", N_("Where the trial's time went, by stage; `window`, `read` and `prove` are ours."),
               _MARKS),
        Metric("sampler/samples", N_("Readings of the whole trial."), N_("the sampler")),
        Metric("sampler/lost_slots", N_("Deadlines missed by a whole period."), N_("the sampler"),
               N_("More than 1 % is noted; whether they were needed is judged phase by phase.")),
        Metric("sampler/lateness_p50_ms", N_("How late a reading was: the median."), N_("the sampler")),
        Metric("sampler/lateness_p99_ms", N_("How late a reading was: 99 % were not later."), N_("the sampler"),
               N_("More than its period (10 ms) is noted.")),
        Metric("sampler/cpu_pct", N_("CPU the sampler took, in percent of one core."), "its CPU clock"),
        Metric("sampler/rss_mib", N_("Memory the sampler took; it is not in the tree."), "/proc/PID/status"),
    )),
    Section(N_("Charts"),
            N_("The timeline for MLflow's charts: the step is milliseconds since the trial began. All readings are "
               "in the run's timeline.parquet."), (
        Metric("timeline/<series>_mib", N_("Memory over time, at most `tracking.timeline_points` points."),
               N_("the sampler"),
               N_("Each piece of time gives its smallest and its largest reading, so that no peak is lost.")),
    )),
)


@functools.cache
def sections() -> Sequence[Section]:
    """All of the dictionary: what is said here, then what each meter says of its own figures (its `SECTION`)."""
    meters = [getattr(module, "SECTION", None) for module in METERS.all().values()]
    return (*SECTIONS, *(section for section in meters if isinstance(section, Section)))


def entries() -> list[Metric]:
    """The metrics of all sections."""
    return [metric for section in sections() for metric in section.metrics]


def find(name: str) -> Metric | None:
    """The entry of a logged name; None if the dictionary has none."""
    return next((metric for metric in entries() if metric.pattern.fullmatch(name)), None)


def search(text: str) -> list[Metric]:
    """The entry that has exactly this name, else every entry with a name that contains the text."""
    exact = find(text) or next((metric for metric in entries() if metric.name == text), None)
    if exact is not None:
        return [exact]
    return [metric for metric in entries() if any(text in name for name in (metric.name, *metric.names()))]
