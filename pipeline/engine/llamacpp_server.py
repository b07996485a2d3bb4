"""The program of the embedded engine: llama.cpp's HTTP server in a process that is up before a model is in it.

Run as a script by engine/llamacpp.py; imports nothing of ours and little else, since its own memory is measured.

    llamacpp_server.py LIBRARIES COMMANDS ANSWERS KNOB=VALUE…    COMMANDS, ANSWERS: inherited file descriptors
    llamacpp_server.py LIBRARIES devices                         what llama.cpp can compute on, as JSON

LIBRARIES is a folder of ours for links to shared libraries that the system lacks (see `borrow`).
One JSON object per line: {"do": "ping" | "load" | "unload" | "quit"} in, {"ok": …} or {"error": …} out.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys

TYPE_CHECKING = False  # as type checkers read it; importing typing would cost memory
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, TextIO

UNUSABLE = 78
"""Exit status where llama.cpp's library cannot be loaded (sysexits.h, EX_CONFIG); why is the log's last line."""

LOAD_MODES = {"none": "NONE", "mmap": "MMAP", "mlock": "MLOCK", "mmap_mlock": "MMAP_MLOCK", "direct_io": "DIRECT_IO"}


def make_params(xllamacpp: Any, knobs: Mapping[str, str]) -> Any:
    """CommonParams from KNOB → text; a knob that is not consumed is an error, none can be dropped silently."""
    left = dict(knobs)

    def number(name: str) -> int:
        return int(left.pop(name))

    def truth(name: str) -> bool:
        return {"true": True, "false": False}[left.pop(name)]

    def choice(enum: Any, prefix: str, name: str) -> Any:
        return getattr(enum, prefix + name.upper())

    params = xllamacpp.CommonParams()
    params.model.path = os.fsencode(left.pop("model")).decode("utf-8")  # whatever the locale makes of its bytes
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.verbosity = 4
    params.ui = False
    params.sse_ping_interval = -1  # a ping would look like progress
    params.n_ctx = number("n_ctx")
    params.n_parallel = number("n_parallel")
    params.n_batch = number("n_batch")
    params.n_ubatch = number("n_ubatch")
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = number("n_threads")
    params.n_threads_http = number("n_threads_http")
    params.n_gpu_layers = number("n_gpu_layers")
    flash = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = choice(flash, "LLAMA_FLASH_ATTN_TYPE_", "enabled" if truth("flash_attn") else "disabled")
    params.cache_type_k = choice(xllamacpp.ggml_type, "GGML_TYPE_", left.pop("cache_type_k"))
    params.cache_type_v = choice(xllamacpp.ggml_type, "GGML_TYPE_", left.pop("cache_type_v"))
    params.load_mode = choice(xllamacpp.llama_load_mode, "LLAMA_LOAD_MODE_", LOAD_MODES[left.pop("load_mode")])
    params.lazy_mode = choice(xllamacpp.llama_lazy_mode, "LLAMA_LAZY_MODE_", "on" if truth("lazy_mode") else "off")
    params.no_extra_bufts = not truth("repack")
    params.kv_unified = truth("kv_unified")
    params.swa_full = truth("swa_full")
    params.cache_ram_mib = number("cache_ram_mib")
    params.cache_idle_slots = truth("cache_idle_slots")
    params.cache_prompt = truth("cache_prompt")
    params.n_ctx_checkpoints = number("n_ctx_checkpoints")
    params.warmup = truth("warmup")
    params.fit_params = truth("fit")
    if left:
        raise ValueError(f"unknown knobs: {', '.join(left)}")
    return params


def devices(xllamacpp: Any) -> list[dict[str, Any]]:
    """[{name, description, type, memory_total}] of llama.cpp's devices; type CPU, GPU, IGPU or ACCEL."""
    return [
        {"name": device["name"], "description": device["description"], "memory_total": device["memory_total"],
         "type": device["type"].name.rpartition("_")[2]}
        for device in xllamacpp.get_device_info()
    ]


def serve(xllamacpp: Any, commands: Iterable[str], answers: TextIO, knobs: Mapping[str, str]) -> None:
    """Answer commands until `quit`, or until the other end of the pipe is closed."""
    params, server = make_params(xllamacpp, knobs), None
    for line in commands:
        command = json.loads(line)["do"]
        answer: dict[str, Any] = {"ok": True}
        if command == "quit":
            break
        try:
            if command == "load" and server is None:
                server = xllamacpp.Server(params)
                answer["address"] = server.listening_address
            elif command == "unload":
                server = None
                gc.collect()
            elif command != "ping":
                answer = {"error": f"cannot {command} now"}
        except (RuntimeError, ValueError, MemoryError) as error:  # what the bindings raise
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def borrow(said: str, folder: str) -> None:
    """Where the loader misses a library of which a package in this environment carries a copy, begin anew with it.

    Comes back if there is none. Wheels carry such copies under names of their own (scikit_learn.libs/
    libgomp-e985bcbb.so.1.0.0), so the loader is shown a link by the name that it looks for, for this program alone."""
    import glob
    import re

    found = re.search(r"\b(lib[\w+.-]+?)\.so\.(\d+)", said)
    if found is None or not re.search("cannot open shared object file|Error loading shared library", said):
        return
    name, (stem, major) = found[0], found.groups()
    copies = sorted(copy for site in sys.path if site for libs in ("*.libs", "*/.libs") for version in ("", ".*")
                    for copy in glob.glob(f"{glob.escape(site)}/{libs}/{stem}[-.]*so.{major}{version}"))
    searched = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    link = os.path.join(folder, name)
    if not copies or (folder in searched and os.path.exists(link)):
        return
    os.makedirs(folder, exist_ok=True)
    os.symlink(copies[0], f"{link}.{os.getpid()}")
    os.replace(f"{link}.{os.getpid()}", link)
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, dict.fromkeys([folder, *searched])))
    os.execv(sys.executable, sys.orig_argv)


def main(arguments: Sequence[str]) -> None:
    """Entry point."""
    libraries, *arguments = arguments
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler waits for ever while C code runs
    try:
        import xllamacpp  # type: ignore[import-untyped]
    except ImportError as error:
        reason = str(error)
        try:
            borrow(reason, libraries)
        except OSError as refused:
            reason += f"; no link to a copy: {refused}"
        print(f"cannot load xllamacpp: {reason}", file=sys.stderr, flush=True)
        sys.exit(UNUSABLE)

    if arguments == ["devices"]:
        print(json.dumps({"version": xllamacpp.__version__, "devices": devices(xllamacpp)}))
        return
    commands, answers, *pairs = arguments
    serve(xllamacpp, os.fdopen(int(commands), encoding="utf-8"), os.fdopen(int(answers), "w", encoding="utf-8"),
          dict(pair.split("=", 1) for pair in pairs))


if __name__ == "__main__":
    main(sys.argv[1:])
