"""A program that holds exact amounts of GPU memory on command, through the CUDA driver alone (no toolkit).

Commands come as lines on stdin: "hold MIB" answers "done", "free" gives it back; it ends with its stdin. Prints "ready"
with a context made, or one line that says why it cannot. Source: CUDA driver API, cuMemAlloc, cuDevicePrimaryCtxRetain.
"""

from __future__ import annotations

import ctypes
import sys

MIB = 1024 * 1024


class NoCudaError(Exception):
    """No driver, no device, or it refused; the message is for the user."""


def _call(cuda: ctypes.CDLL, name: str, *arguments: object) -> None:
    status = getattr(cuda, name)(*arguments)
    if status != 0:
        said = ctypes.c_char_p()
        cuda.cuGetErrorName(status, ctypes.byref(said))
        raise NoCudaError(f"{name}: {(said.value or b'unknown error').decode()} ({status})")


def open_device() -> ctypes.CDLL:
    """The driver with the first device's primary context current. Raises NoCudaError."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise NoCudaError(f"no CUDA driver: {error}") from error
    _call(cuda, "cuInit", 0)
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call(cuda, "cuDeviceGet", ctypes.byref(device), 0)
    _call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    _call(cuda, "cuCtxSetCurrent", context)
    return cuda


def main() -> int:
    """Serve commands until stdin ends; 1 where there is no device."""
    try:
        cuda = open_device()
        print("ready", flush=True)
        held: list[ctypes.c_uint64] = []
        for line in sys.stdin:
            command, *words = line.split()
            if command == "hold":
                pointer, size = ctypes.c_uint64(), int(words[0]) * MIB
                _call(cuda, "cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
                _call(cuda, "cuMemsetD8_v2", pointer, ctypes.c_ubyte(1), ctypes.c_size_t(size))
                _call(cuda, "cuCtxSynchronize")
                held.append(pointer)
            else:
                while held:
                    _call(cuda, "cuMemFree_v2", held.pop())
            print("done", flush=True)
    except NoCudaError as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
