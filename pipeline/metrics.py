"""The metric dictionary: every name that a trial logs, with its unit, what it means, its source and its pitfalls.

Pure data and the few questions one can ask of it. `slackwater metrics` prints it, `make docs` makes a page of it, and
tests/unit/test_metrics.py holds it against the code that logs: nothing undocumented, nothing that is never logged.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PHASE = "<phase>"
MOMENTS = ("baseline", "initialization", "pre_generation", "post_generation", "stabilized", "released")
WITH_SERVER = MOMENTS[1:]
"""The moments at which a server of ours runs."""
INTERVALS = ("during_generation", "load", "prefill", "decode")
PARTS = INTERVALS[1:]

PLACES: Mapping[str, Sequence[str]] = {
    "component": ("weights", "repacked", "kv", "compute", "output", "prompt_cache"),
    "part": ("weights", "kv", "compute"),
    "stage": ("clear", "start", "load", "generate", "settle", "think", "release", "stop", "window", "read", "prove"),
    "device": (), "event": (), "n": (),
}
"""What may stand in a name's <place>: one of these, or any word where none is named (the machine decides)."""

_UNITS = (("tokens_per_s", "tokens/s"), ("_mib", "MiB"), ("_pct", "%"), ("_ms", "ms"), ("_us", "µs"), ("_s", "s"),
          ("_mhz", "MHz"), ("_cores", "cores"), ("_tokens", "tokens"), ("_events_count", "events"),
          ("_faults", "faults"), ("_faults_count", "faults"), ("samples", "samples"), ("_slots", "slots"),
          ("_processes", "processes"),
          ("/is_stable", "0 or 1"))


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
        raise ValueError(f"{self.name} ends in no unit that is known here")

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


_STATUS = "/proc/PID/status of every process of the tree, 100 times a second; the median of the phase's window"
_MEMINFO = "/proc/meminfo, 25 times a second; the median of the phase's window"
_ROLLUP = "/proc/PID/smaps_rollup of every process of the tree, once at the phase's end"
_OVER = "/proc/PID/status, 100 times a second over the interval"
_MARKS = "time.monotonic_ns() where the event happens"
_LOG = "the engine's own account of its buffers (its log)"
_CGROUP = "the server's own memory cgroup, v2 or v1; absent where it shares one"
_PSI = "/proc/pressure/memory (PSI)"
_NVML = "NVML (nvidia-ml-py)"
_NPU = "/sys/class/accel (Intel), DRM fdinfo (AMD XDNA)"

SECTIONS: Sequence[Section] = (
    Section("The server's memory at a moment",
            "The server's process tree: the server, its descendants, and what was re-parented to us. Read at the same "
            "named moments in every mode.", (
        Metric(f"{PHASE}/tree_rss_mib", "Resident memory of the tree: anonymous + file-mapped + shared. In the phase "
               "`stabilized` it is the headline.", _STATUS,
               "Swapped pages have left it (tree_swap_mib), and a page shared by two processes counts twice "
               "(tree_pss_mib does not). It says nothing of GPU memory.", phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_anon_mib", "Anonymous memory: heap, KV cache, compute buffers, and weights that were "
               "read.",
               _STATUS, "Mapped weights are not in it: alone it makes a mapped model look like none.",
               phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_file_mib", "Pages of mapped files: mapped weights, libraries.", _STATUS,
               "The kernel may drop these pages under pressure and read them again; the model is then smaller and "
               "slower.",
               phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_shmem_mib", "Shared memory (tmpfs, System V, shared anonymous mappings).", _STATUS,
               "Counted once per process that maps it.", phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_swap_mib", "What the kernel has moved to swap.", _STATUS,
               "Above zero makes the trial suspect: RSS is then smaller without anything being freed.",
               phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_pss_mib", "Resident memory with every shared page divided among those who map it.",
               _ROLLUP,
               "It moves when a neighbour maps the same libraries. Absent if one process does not let us read it.",
               phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_uss_mib", "Pages that no other process maps.", _ROLLUP,
               "Mapped weights are in it as long as only one process maps them.", phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_processes", "Processes in the tree.", _STATUS, phases=WITH_SERVER),
        Metric(f"{PHASE}/tree_pss_cost_ms", "How long reading PSS and USS took.", _MARKS,
               "About 10 µs per MiB; it falls behind the phase's window, so it is in no other figure.",
               phases=WITH_SERVER),
        Metric(f"{PHASE}/samples", "Readings the phase's figures rest on.", "the sampler",
               "0 makes the trial suspect; a short `load` or `prefill` may have few.", phases=(*MOMENTS, *INTERVALS)),
    )),
    Section("The machine's memory at a moment",
            "The whole machine, neighbours included. Beside the tree's figures, never instead of them.", (
        Metric(f"{PHASE}/system_used_pct", "MemTotal − MemAvailable, in percent of MemTotal: psutil's "
               "virtual_memory().percent, unrounded.", _MEMINFO,
               "Everybody's memory. A mapped model counts as available, and an idle machine moves by tenths of a "
               "percent.",
               phases=MOMENTS),
        Metric(f"{PHASE}/system_used_mib", "MemTotal − MemAvailable.", _MEMINFO,
               "Moves by hundreds of MiB on its own (per-CPU free lists, neighbours).", phases=MOMENTS),
        Metric(f"{PHASE}/system_available_mib", "MemAvailable: what a new program could have without swapping.",
               _MEMINFO,
               "The kernel's estimate.", phases=MOMENTS),
        Metric(f"{PHASE}/system_free_mib", "MemFree: pages that hold nothing.", _MEMINFO,
               "Small on a healthy machine: the page cache fills what is free.", phases=MOMENTS),
        Metric(f"{PHASE}/system_cached_mib", "Page cache and reclaimable slab.", _MEMINFO,
               "Shared anonymous memory is in it too. The model's file stays here after the server has ended.",
               phases=MOMENTS),
        Metric(f"{PHASE}/system_swap_used_mib", "Swap in use, by anybody.", _MEMINFO, phases=MOMENTS),
        Metric(f"{PHASE}/system_per_cpu_free_mib", "Freed pages on per-CPU lists, which MemAvailable does not count.",
               "/proc/zoneinfo, once", "Only with `system` among meter.sources.", phases=WITH_SERVER),
        Metric(f"{PHASE}/system_swapped_in_mib", "Read back from swap since boot.", "/proc/vmstat, once",
               "Only with `system` among meter.sources.", phases=WITH_SERVER),
        Metric(f"{PHASE}/system_swapped_out_mib", "Written to swap since boot.", "/proc/vmstat, once",
               "Only with `system` among meter.sources.", phases=WITH_SERVER),
    )),
    Section("Peaks and means over an interval",
            "`during_generation` runs from the request to the last token; `load`, `prefill` and `decode` are its "
            "parts. "
            "In interactive mode the model is loaded before, so turns have no `load`.", (
        Metric(f"{PHASE}/tree_rss_peak_mib", "The highest resident size of the tree: the kernel's high-water mark.",
               "VmHWM, set back where a part begins (5 to /proc/PID/clear_refs) and read where it ends; or the sampled "
               "maximum, if that is larger",
               "For several processes a lower bound: they may have peaked at different instants.",
               phases=INTERVALS),
        Metric(f"{PHASE}/tree_rss_peak_bound_mib", "What the peak cannot have been above: the sum of the processes' "
               "own "
               "peaks.", "VmHWM of every process", "Equals the peak for a single process; with several the truth is "
               "between.",
               phases=INTERVALS),
        Metric(f"{PHASE}/tree_rss_sampled_peak_mib", "The highest RSS that a sample saw.", _OVER,
               "Misses what is shorter than 10 ms.", phases=INTERVALS),
        *(Metric(f"{PHASE}/tree_{kind}_sampled_peak_mib", f"The highest {what} that a sample saw.", _OVER,
                 "The kernel keeps no mark for the kinds, only for their sum.", phases=INTERVALS)
          for kind, what in (("anon", "anonymous memory"), ("file", "file-mapped memory"), ("shmem", "shared memory"),
                             ("swap", "swap of the tree"))),
        *(Metric(f"{PHASE}/tree_{kind}_mean_mib", f"The mean {what} over the interval.", _OVER, phases=INTERVALS)
          for kind, what in (("rss", "RSS"), ("anon", "anonymous memory"), ("file", "file-mapped memory"),
                             ("shmem", "shared memory"), ("swap", "swap of the tree"))),
        *(Metric(f"{PHASE}/system_used_{stat}_{unit}", f"The {word} of {PHASE}/system_used_{unit} over the interval.",
                 "/proc/meminfo, 25 times a second over the interval", "Neighbours included.", phases=INTERVALS)
          for stat, word in (("peak", "largest reading"), ("mean", "mean")) for unit in ("pct", "mib")),
    )),
    Section("Work and speed", "What was done meanwhile. A difference in memory between arms that did different work is "
            "not shown as an effect.", (
        Metric(f"{PHASE}/duration_s", "Length of the interval.", _MARKS, phases=INTERVALS),
        Metric(f"{PHASE}/server_duration_s", "Length of the part as the server counts it.", "its answer or its log",
               "Ollama's load duration includes waiting in its queue, and is not zero for a model that is loaded.",
               phases=PARTS),
        Metric("during_generation/prompt_tokens", "Tokens of the prompt.", "the server's count",
               "Tokens that it took from its cache are in it."),
        Metric("during_generation/output_tokens", "Tokens generated.", "the server's count",
               "Other than `max_tokens` is noted; other than in the cell's other trials makes the trial suspect."),
        Metric("during_generation/time_to_first_token_s", "From the request to the first token.", _MARKS,
               "In one-shot the load is in it."),
        Metric("decode/tokens_per_s", "Tokens after the first one, per second of `decode`.", _MARKS,
               "Noisy with busy neighbours; compared as a ratio."),
    )),
    Section("Settling and release", "Whether memory had come to rest, and what an unload gives back with the server "
            "still up.", (
        Metric("stabilized/time_to_stable_s", "From the last token (or an unload inside the wait) until memory was "
               "stable.",
               "the settle rule, on tree RSS", "Contains the rule's own window (settle.window_s): that is its least."),
        Metric("stabilized/is_stable", "1: stable; 0: the limit was reached first.", "the settle rule",
               "0 makes the trial suspect."),
        Metric("released/returned_mib", "Tree RSS before the unload less tree RSS after it.", _STATUS,
               "With mode.keep_alive_s the model may be gone before, and nothing is left to return."),
        Metric("released/returned_pct", "What an unload returned, in percent of what was there before.", _STATUS),
        Metric("released/residual_mib", "Tree RSS after the unload: what the empty server keeps.", _STATUS,
               "Set it against initialization/tree_rss_mib: the difference is what the allocator did not return."),
        Metric("released/half_life_s", "From the request to unload until half of what came back was back.",
               "the sampled tree RSS", "Resolution is one sample (10 ms). Absent if less than 2 % came back."),
        Metric("released/time_to_99pct_s", "From the request to unload until 99 % of what came back was back.",
               "the sampled tree RSS", "Resolution is one sample (10 ms). Absent if less than 2 % came back."),
    )),
    Section("The engine's account", "What the engine itself says it holds, set against the settled tree of the last "
            "turn. "
            "Together with the empty server it explains the tree.", (
        Metric("engine/weights_mib", "Weights as loaded.", _LOG, "With repacking the repacked part is counted apart."),
        Metric("engine/repacked_mib", "Weights copied into the CPU's own layout.", _LOG,
               "A second copy if the weights are mapped."),
        Metric("engine/kv_mib", "The KV cache of all slots.", _LOG, "Sized by num_ctx × slots, used or not."),
        Metric("engine/compute_mib", "Scratch buffers of the computation.", _LOG,
               "Resident only once a prompt has used them."),
        Metric("engine/output_mib", "Buffers for logits.", _LOG),
        Metric("engine/prompt_cache_mib", "State of finished prompts that llama.cpp keeps.", _LOG,
               "Grows with distinct prompts up to its limit (8192 MiB by default): no leak."),
        Metric("engine/stated_mib", "All of its buffers on the host: the sum of the engine/<component>_mib.", _LOG),
        Metric("engine/unexplained_mib", "Settled tree − empty server − stated: threads, heap, library pages.",
               "tree RSS and the engine's account",
               "Negative where the engine states what is not resident (mapped weights that were never touched)."),
        Metric("engine/<component>_<device>_mib", "What the engine holds on a device, such as "
               "engine/weights_cuda0_mib.",
               _LOG, "Not part of the tree's RSS."),
        Metric("engine/claimed_mib", "Ollama's one figure for everything.", "/api/ps, size",
               "Buffers from its log: no threads, heap or libraries; one of two KV caches is missing for "
               "sliding-window models."),
        Metric("engine/claimed_minus_tree_mib", "Ollama's one figure less the settled tree RSS.",
               "/api/ps and tree RSS"),
        Metric("plan/<part>_mib", "What the model's header says the cell will hold.",
               "the GGUF header, before any server is started", "An estimate, for refusing what cannot fit."),
    )),
    Section("As found", "The comparison that started this project, out of the same trials: interactive read at "
            "`initialization`, one-shot at `post_generation`.", (
        Metric("as_found/tree_rss_mib", "Tree RSS where the original comparison read it.", _STATUS,
               "Not to be compared between modes. That is its point."),
        Metric("as_found/system_used_pct", "The machine's used memory where the original comparison read it.", _MEMINFO,
               "Not to be compared between modes. That is its point."),
    )),
    Section("Pressure and page cache", "Read once at a phase's moment, where this machine has them "
            "(`meter.sources`).", (
        Metric(f"{PHASE}/pressure_some_avg10_pct", "Share of the last ten seconds in which some task waited for "
               "memory.",
               _PSI, "The whole machine, and ten seconds reach back before the phase.", phases=WITH_SERVER),
        Metric(f"{PHASE}/pressure_full_avg10_pct", "Share of the last ten seconds in which all tasks waited for "
               "memory.",
               _PSI, "The whole machine, and ten seconds reach back before the phase.",
               phases=WITH_SERVER),
        Metric(f"{PHASE}/pressure_some_total_us", "Time in which some task waited for memory, since the trial's first "
               "reading.", _PSI, phases=WITH_SERVER),
        Metric(f"{PHASE}/pressure_full_total_us", "Time in which all tasks waited for memory, since the trial's first "
               "reading.",
               _PSI, phases=WITH_SERVER),
        Metric(f"{PHASE}/pressure_major_faults_count", "Page faults that needed the disk, since the trial's first "
               "reading.",
               "/proc/vmstat, pgmajfault", "The whole machine's; trial/tree_major_faults is the tree's.",
               phases=WITH_SERVER),
        Metric(f"{PHASE}/model_file_resident_mib", "How much of the model's file lies in the page cache.",
               "cachestat(2), else mincore(2)", "Absent for a file that is not ours: the kernel does not tell.",
               phases=WITH_SERVER),
        Metric("clear/model_resident_before_mib", "How much of the model's file lay in the page cache before the "
               "trial evicted it.",
               "cachestat(2), else mincore(2)"),
        Metric("clear/model_resident_after_mib", "How much of it was left afterwards.", "cachestat(2), else mincore(2)",
               "More than 1 % of the file left is noted: the trial did not begin cold."),
    )),
    Section("The server's cgroup", "Only if the server has a memory cgroup to itself. Page cache and kernel memory are "
            "charged to it, so its figures are not the tree's RSS.", (
        Metric(f"{PHASE}/cgroup_current_mib", "All that is charged now.", _CGROUP,
               "Reading a model fills it with page cache.", phases=WITH_SERVER),
        Metric(f"{PHASE}/cgroup_anon_mib", "Anonymous memory.", _CGROUP, phases=WITH_SERVER),
        Metric(f"{PHASE}/cgroup_file_mib", "Page cache.", _CGROUP, phases=WITH_SERVER),
        Metric(f"{PHASE}/cgroup_swap_mib", "Swap.", _CGROUP, "Absent without swap accounting.", phases=WITH_SERVER),
        Metric(f"{PHASE}/cgroup_peak_mib", "The highest charge since the turn's request.", _CGROUP,
               "Since the cgroup was made where the kernel (before 6.12) or our rights allow no reset.",
               phases=(*WITH_SERVER, "during_generation")),
        Metric(f"{PHASE}/cgroup_<event>_events_count", "Entries of memory.events (high, max, oom, oom_kill, …) since "
               "the "
               "trial's first reading.", "memory.events, v2 only", phases=WITH_SERVER),
    )),
    Section("GPU and NPU", "Read once at a phase's moment. Checked against recorded data; `slackwater doctor` says "
            "what "
            "this machine has.", (
        Metric(f"{PHASE}/gpu_used_mib", "Memory in use on all NVIDIA devices.", _NVML,
               "Everybody's. On older drivers their own reserve is in it.", phases=WITH_SERVER),
        Metric(f"{PHASE}/gpu_reserved_mib", "What the driver keeps for itself.", _NVML, phases=WITH_SERVER),
        Metric(f"{PHASE}/gpu_total_mib", "What the devices have.", _NVML, phases=WITH_SERVER),
        Metric(f"{PHASE}/gpu_tree_used_mib", "What NVML charges to the server's tree.", _NVML,
               "Absent in a container (NVML speaks of the host's process ids), under vGPU, and where it does not say.",
               phases=WITH_SERVER),
        Metric(f"{PHASE}/gpu_device<n>_used_mib", "Memory in use on one device, where there are several.", _NVML,
               phases=WITH_SERVER),
        Metric(f"{PHASE}/npu_used_mib", "All buffers resident on an Intel NPU.", _NPU, "Linux 6.15 or newer.",
               phases=WITH_SERVER),
        Metric(f"{PHASE}/npu_busy_us", "Time an Intel NPU was busy, since the trial's first reading.", _NPU,
               "The whole device's.", phases=WITH_SERVER),
        Metric(f"{PHASE}/npu_clock_mhz", "Clock of an Intel NPU, 0 while it sleeps.", _NPU, phases=WITH_SERVER),
        Metric(f"{PHASE}/npu_tree_used_mib", "What an AMD NPU's driver charges to the server's tree.", _NPU,
               phases=WITH_SERVER),
        Metric(f"{PHASE}/npu_tree_busy_us", "Time an AMD NPU worked for the tree, since the trial's first reading.",
               _NPU,
               phases=WITH_SERVER),
    )),
    Section("The trial and the sampler", "Whether the measurement itself can be trusted.", (
        Metric("trial/neighbours_cores", "Cores that other processes kept busy.", "/proc/stat less the tree and us",
               "From half a core a note says that speed is noisy; memory is not."),
        Metric("trial/stolen_cores", "Cores that the host of this virtual machine took away.", "/proc/stat, steal",
               "Nothing in here can be on time then."),
        Metric("trial/tree_major_faults", "Page faults of the tree that needed the disk.", "/proc/PID/stat",
               "Reading mapped weights in is made of these."),
        Metric("trial/<stage>_s", "Where the trial's time went, by stage; `window`, `read` and `prove` are ours.",
               _MARKS),
        Metric("sampler/samples", "Readings of the whole trial.", "the sampler"),
        Metric("sampler/lost_slots", "Deadlines missed by a whole period.", "the sampler",
               "More than 1 % makes the trial suspect."),
        Metric("sampler/lateness_p50_ms", "How late a reading was: the median.", "the sampler"),
        Metric("sampler/lateness_p99_ms", "How late a reading was: 99 % were not later.", "the sampler",
               "More than its period (10 ms) makes the trial suspect."),
        Metric("sampler/cpu_pct", "CPU the sampler took, in percent of one core.", "its CPU clock"),
        Metric("sampler/rss_mib", "Memory the sampler took; it is not in the tree.", "/proc/PID/status"),
    )),
    Section("Charts", "The timeline for MLflow's charts: the step is milliseconds since the trial began. All readings "
            "are "
            "in the run's timeline.parquet.", (
        *(Metric(f"timeline/{series}_mib", f"{what} over time, at most `tracking.timeline_points` points.", source,
                 "Each piece of time gives its smallest and its largest reading, so that no peak is lost.")
          for series, what, source in (
              ("tree_rss", "Tree RSS", _OVER), ("tree_anon", "Its anonymous part", _OVER),
              ("tree_file", "Its file-mapped part", _OVER), ("tree_shmem", "Its shared part", _OVER),
              ("tree_swap", "Its swap", _OVER), ("system_used", "The machine's used memory", "/proc/meminfo"),
              ("system_available", "MemAvailable", "/proc/meminfo"), ("system_cached", "Page cache", "/proc/meminfo"))),
    )),
)

METRICS: Sequence[Metric] = tuple(metric for section in SECTIONS for metric in section.metrics)


def find(name: str) -> Metric | None:
    """The entry of a logged name; None if the dictionary has none."""
    return next((metric for metric in METRICS if metric.pattern.fullmatch(name)), None)


def search(text: str) -> list[Metric]:
    """The entry that has exactly this name, else every entry with a name that contains the text."""
    exact = find(text) or next((metric for metric in METRICS if metric.name == text), None)
    if exact is not None:
        return [exact]
    return [metric for metric in METRICS if any(text in name for name in (metric.name, *metric.names()))]
