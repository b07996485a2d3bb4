"""Who listens on a TCP port of this machine, and whether that is a model's server or passes connections on to one.

What a process needs of memory is measured elsewhere; here it only tells a server from a forwarder.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_LISTEN = "0A"
"""TCP_LISTEN in /proc/net/tcp (include/net/tcp_states.h)."""
_SERVERS = re.compile(r"ollama|llama[-_.]?(cpp|server|file)|xllamacpp|vllm|sglang|lms|lm-studio|koboldcpp|mistralrs|"
                      r"local-?ai|text-generation|exllama|mlc_llm", re.IGNORECASE)
"""Programs that serve models, and may hold none yet."""
_RUNS_OTHERS = re.compile(r"(python|pypy|bash|sh|node|uv)[\d.]*")
_WEIGHTS = re.compile(rb"\.gguf|\.safetensors|/blobs/sha256-")
_BYTES = 128 * 1024 * 1024
"""Resident memory that a program which only passes connections on does not have."""


def is_here(host: str) -> bool:
    """Is it an address or a name of this machine: loopback, the wildcard, or one that can be bound here?"""
    try:
        addresses = {str(info[4][0]).split("%")[0] for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    for address in map(ipaddress.ip_address, addresses):
        if address.is_loopback or address.is_unspecified:
            return True
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
            return True
    return False


@dataclass(frozen=True)
class Listening:
    """A socket that listens."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    socket: str
    """As /proc/PID/fd names it (proc(5))."""
    uid: int
    """Of the user who opened it."""


def listening(port: int, host: str = "", root: Path = Path("/")) -> list[Listening]:
    """The sockets that listen on a TCP port, IPv4 and IPv6; of a `host` those that a connection to it reaches."""
    found = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):  # no IPv6 here
            for words in map(str.split, (root / "proc/net" / name).read_text("utf-8").splitlines()[1:]):
                address, _, number = words[1].rpartition(":")
                if words[3] == _LISTEN and int(number, 16) == port:
                    found.append(Listening(_address(address), f"socket:[{words[9]}]", int(words[7])))
    return _reached(found, host) if host else found


def listener(port: int, host: str = "", root: Path = Path("/")) -> int | None:
    """The process that holds a listening socket of the port, the oldest of several; None: none, or not ours to see.

    Not psutil.net_connections, which names the youngest of several that share a socket: a worker, not its server."""
    sockets = {each.socket for each in listening(port, host, root)}
    folders = sorted((root / "proc").glob("[0-9]*"), key=lambda path: int(path.name)) if sockets else []
    return next((int(folder.name) for folder in folders if not sockets.isdisjoint(_open_files(folder))), None)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address of /proc/net/tcp: 32-bit words in this machine's byte order."""
    words = [int(text[at:at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _reached(found: Sequence[Listening], host: str) -> list[Listening]:
    """As connect(2) has it: the host's addresses one after the other, of each its own socket before a wildcard's."""
    try:
        names = [str(info[4][0]).split("%")[0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []
    for name in names:
        address = ipaddress.ip_address(name)
        every = ["0.0.0.0", "::"] if address.version == 4 else ["::"]
        if address.is_unspecified:  # a client's word for this machine
            address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
        for wanted in (address, *map(ipaddress.ip_address, every)):
            if there := [each for each in found if each.address == wanted]:
                return there
    return []


def passes_on(pid: int) -> str:
    """What to say of a listener that holds no model, in itself or below, and is not a program that may load one: it
    most likely passes connections on. "" for a server."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        resident = 0
        for each in (top, *top.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                resident += each.memory_info().rss
                if _is_server(each.cmdline()) or _maps_weights(each.pid):
                    return ""
        if resident < _BYTES:
            return (f"process {pid} ({top.name()}) listens there and holds no model: {resident / 2**20:.1f} MiB in "
                    "all. It may pass connections on, as docker-proxy, socat and ssh -L do")
    return ""


def _is_server(command: list[str]) -> bool:
    words = [Path(word).name for word in command[:4]]
    if words and _RUNS_OTHERS.fullmatch(words[0]):
        return any(_SERVERS.match(word) for word in words[1:])
    return bool(words and _SERVERS.match(words[0]))


def _maps_weights(pid: int) -> bool:
    try:
        return _WEIGHTS.search(Path(f"/proc/{pid}/maps").read_bytes()) is not None
    except OSError:
        return False  # another user's: its memory alone must tell


def _open_files(folder: Path) -> set[str]:
    """What the descriptors of a process stand for; empty for another user's process, or one that has ended."""
    names = set()
    with contextlib.suppress(OSError):
        for entry in (folder / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed since it was listed
                names.add(entry.readlink().name)
    return names
