"""Stands in for the postmaster: a program that runs with the native library preloaded and does what it is told, line by line.

Started by tests/unit/native. Calls the C functions by name, since Python's own accept() is accept4(), which PostgreSQL doesn't call.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
import time

C = ctypes.CDLL(None, use_errno=True)
MSG_PEEK = 2


def accept(fd: int) -> dict[str, object]:
    """accept() with room for any address."""
    address = ctypes.create_string_buffer(128)
    length = ctypes.c_uint(len(address))
    began = time.monotonic()
    ctypes.set_errno(0)
    got = C.accept(fd, address, ctypes.byref(length))
    return {
        "fd": got,
        "errno": ctypes.get_errno() if got < 0 else 0,
        "address": address.raw[: length.value].hex(),
        "elapsed_s": time.monotonic() - began,
        "cloexec": got >= 0 and not os.get_inheritable(got),
    }


def recv(fd: int, count: int, flags: int) -> str:
    """recv() as hexadecimal digits."""
    buffer = ctypes.create_string_buffer(max(count, 1))
    got = C.recv(fd, buffer, count, flags)
    return buffer.raw[:got].hex() if got >= 0 else f"errno {ctypes.get_errno()}"


def backend(fd: int) -> None:
    """Serve a client as a backend: echo what it sends, start a program on "x", end when it leaves."""
    while data := bytes.fromhex(recv(fd, 100, 0)):
        if data == b"x":
            subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, close_fds=False)
        os.write(fd, data)
    os._exit(0)


def main() -> None:
    """Read a command with its arguments per line, answer with a line of JSON."""
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(sys.argv[1])
    unix.listen()
    tcp = socket.create_server(("127.0.0.1", 0))
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        answer: object = None
        if command == "accept":
            answer = accept(unix.fileno())
        elif command == "accept tcp":
            answer = accept(tcp.fileno())
        elif command == "tcp port":
            answer = tcp.getsockname()[1]
        elif command == "recv":
            answer = recv(*arguments)
        elif command == "close":
            os.close(arguments[0])
        elif command == "fork":
            answer = os.fork()
            if answer == 0:
                backend(arguments[0])
        elif command == "wait":
            answer = os.waitpid(arguments[0], 0)[1]
        elif command == "environment":
            child = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
            answer = [child, sorted(os.environ)]
        elif command == "pwrite":
            with open(sys.argv[1] + ".pid", "ab") as file:
                answer = os.pwrite(file.fileno(), arguments[0].encode(), 0)
        elif command == "descriptors":
            answer = len(os.listdir("/proc/self/fd"))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
