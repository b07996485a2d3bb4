"""A program of known behaviour for the meters to be held against: allocates and touches exact amounts on command.

Commands come as JSON lines on stdin, one answer per line on stdout; it ends with its stdin. Standard
library only. `Program` is the tester's side of it.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

MIB = 1024 * 1024
PAGE = mmap.PAGESIZE


class Program:
    """The running program. Every method returns its answer: begin_ns and end_ns (monotonic) and more."""

    def __init__(self, core: int | None = None) -> None:
        self._process = subprocess.Popen([sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.pid = self._process.pid
        self.tell("ready")
        if core is not None:
            os.sched_setaffinity(self.pid, {core})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.end()

    def send(self, do: str, **arguments: object) -> None:
        """Give a command and do not wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the truth program ended with status {self._process.wait()}")
        return dict(json.loads(line))

    def tell(self, do: str, **arguments: object) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        self.send(do, **arguments)
        return self.answer()

    def end(self) -> None:
        """End the program and the children it still has; a detached child ends with its pipe."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def touch(memory: mmap.mmap) -> None:
    """Make every page resident by writing one byte to it."""
    memory[::PAGE] = b"\1" * len(range(0, len(memory), PAGE))


def anonymous(size: int) -> mmap.mmap:
    """`size` bytes of private memory in 4 KiB pages, resident."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    touch(memory)
    return memory


def shared(size: int) -> mmap.mmap:
    """`size` bytes of memory that children share, resident."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    touch(memory)
    return memory


def mapped(path: str) -> mmap.mmap:
    """A file, mapped for reading, every page read."""
    fd = os.open(path, os.O_RDONLY)
    memory = mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    os.close(fd)
    memory[::PAGE]
    return memory


class _Commands:
    """One method per command."""

    def __init__(self) -> None:
        self.held: dict[str, mmap.mmap] = {}
        self.pids: list[int] = []
        self.room = anonymous(MIB)  # what the interpreter itself needs to run a spike is resident before the first

    def ready(self) -> dict[str, object]:
        return {"pid": os.getpid()}

    def hold(self, name: str, kind: str, mib: float = 0, path: str = "") -> dict[str, object]:
        """Keep mib of anon or shmem, or the file at path, under a name."""
        size = int(mib * MIB)
        self.held[name] = mapped(path) if kind == "file" else shared(size) if kind == "shmem" else anonymous(size)
        return {"bytes": len(self.held[name])}

    def free(self, name: str) -> dict[str, object]:
        self.held.pop(name).close()
        return {}

    def spike(self, mib: float, hold_ms: float) -> dict[str, object]:
        """mib of private memory, resident for hold_ms, then given back."""
        memory = anonymous(int(mib * MIB))
        full = time.monotonic_ns()
        time.sleep(hold_ms / 1000)
        memory.close()
        return {"full_ns": full}

    def child(self, mib: float) -> dict[str, object]:
        """Fork a child that holds mib until it is ended."""
        ready, reached = os.pipe()
        pid = os.fork()
        if pid == 0:
            # The tester closing its end must end the child even if this program is gone by then.
            memory = anonymous(int(mib * MIB))
            os.write(reached, b".")
            signal.pause()
            memory.close()
            os._exit(0)
        os.close(reached)
        os.read(ready, 1)
        os.close(ready)
        self.pids.append(pid)
        return {"pid": pid}

    def end_child(self, pid: int) -> dict[str, object]:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        self.pids.remove(pid)
        return {}

    def alternate(self, mib: float, hold_ms: float, rounds: int) -> dict[str, object]:
        """Two children take turns: never both hold their mib at once."""
        pairs = []
        for _ in range(2):
            down_read, down_write = os.pipe()
            up_read, up_write = os.pipe()
            pid = os.fork()
            if pid == 0:
                while os.read(down_read, 1) == b"g":
                    memory = anonymous(int(mib * MIB))
                    time.sleep(hold_ms / 1000)
                    memory.close()
                    os.write(up_write, b".")
                os._exit(0)
            pairs.append((pid, down_write, up_read))
            os.close(down_read)
            os.close(up_write)
        time.sleep(0.5)  # both are found before the first round
        begin = time.monotonic_ns()
        for turn in range(2 * rounds):
            _, down, up = pairs[turn % 2]
            os.write(down, b"g")
            os.read(up, 1)
        self.pids += [pid for pid, _, _ in pairs]
        return {"begin_ns": begin, "pids": [pid for pid, _, _ in pairs]}

    def vfork(self, fifo: str) -> dict[str, object]:
        """A child that stays between vfork and exec, in this program's memory, until somebody writes to the fifo."""
        wait_there = (os.POSIX_SPAWN_OPEN, 3, fifo, os.O_RDONLY, 0)
        pid = os.posix_spawn("/bin/true", ["true"], {}, file_actions=[wait_there])
        os.waitpid(pid, 0)
        return {"pid": pid}

    def detach(self, mib: float) -> dict[str, object]:
        """A grandchild in a session of its own, its parent gone, that holds mib until this program ends."""
        answer_read, answer_write = os.pipe()
        life_read, life_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            os.close(life_write)
            memory = anonymous(int(mib * MIB))
            os.write(answer_write, str(os.getpid()).encode())
            os.read(life_read, 1)  # ends with this program, whose end of the pipe closes then
            memory.close()
            os._exit(0)
        os.close(life_read)
        os.waitpid(pid, 0)
        detached = int(os.read(answer_read, 32))
        return {"pid": detached}


def main() -> None:
    """Obey until stdin ends, then end the children that are left."""
    commands = _Commands()
    for line in sys.stdin:
        arguments = json.loads(line)
        begin = time.monotonic_ns()
        said = getattr(commands, arguments.pop("do"))(**arguments)
        print(json.dumps({"begin_ns": begin, "end_ns": time.monotonic_ns(), **said}), flush=True)
    for pid in commands.pids:
        os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    main()
