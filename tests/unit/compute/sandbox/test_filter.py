"""The system-call filter, run by an interpreter of BPF for both machines, and by the kernel for this one."""

import ctypes
import errno
import fcntl
import os
import platform
import signal
import socket
import struct
import sys
from collections.abc import Callable

import pytest

from torpor.compute.sandbox import libseccomp
from torpor.compute.sandbox.filter import ALLOWED, REFUSED, compile_filter
from torpor.compute.sandbox.libseccomp import ARCHITECTURES, SeccompMissing

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_AF_UNIX, _AF_INET, _AF_NETLINK, _AF_ALG, _AF_VSOCK = 1, 2, 16, 38, 40
_X86_64 = {
    "read": 0, "open": 2, "mmap": 9, "ioctl": 16, "pipe": 22, "sendmsg": 46, "socket": 41, "socketpair": 53, "clone": 56, "fork": 57,
    "execve": 59, "kill": 62, "ptrace": 101, "personality": 135, "mount": 165, "unshare": 272, "keyctl": 250, "io_uring_setup": 425,
    "clone3": 435, "bpf": 321, "userfaultfd": 323, "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "pidfd_getfd": 438,
    "perf_event_open": 298, "sync": 162, "reboot": 169, "vmsplice": 278, "syncfs": 306, "kcmp": 312, "io_setup": 206, "add_key": 248,
}  # fmt: skip
_AARCH64 = {
    "read": 63, "mmap": 222, "ioctl": 29, "sendmsg": 211, "socket": 198, "socketpair": 199, "clone": 220, "execve": 221, "kill": 129,
    "ptrace": 117, "personality": 92, "mount": 40, "unshare": 97, "keyctl": 219, "io_uring_setup": 425, "clone3": 435, "bpf": 280,
    "userfaultfd": 282, "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270, "pidfd_getfd": 438, "perf_event_open": 241,
    "sync": 81, "reboot": 142, "vmsplice": 75, "syncfs": 267, "kcmp": 272, "io_setup": 0, "add_key": 217,
}  # fmt: skip
_NUMBERS = {"x86_64": _X86_64, "aarch64": _AARCH64}
_UNKNOWN = 9999


class Kernel:
    """Decides about system calls as the kernel does, by running the program."""

    def __init__(self, machine: str) -> None:
        self._program = list(struct.iter_unpack("=HBBI", compile_filter(machine)))
        self._machine = machine

    def decide(self, call: str | int, *arguments: int, architecture: int | None = None) -> int:
        """The action for one call."""
        number = call if isinstance(call, int) else _NUMBERS[self._machine][call]
        values = (list(arguments) + [0] * 6)[:6]
        data = struct.pack("=iIQ6Q", number, architecture or ARCHITECTURES[self._machine], 0, *values)
        accumulator, at = 0, 0
        while True:
            code, yes, no, k = self._program[at]
            at += 1
            match code:
                case 0x20:  # load a word
                    accumulator = struct.unpack_from("=I", data, k)[0]
                case 0x54:  # and
                    accumulator &= k
                case 0x05:  # jump
                    at += k
                case 0x15 | 0x25 | 0x35:  # equal, greater, greater or equal
                    holds = accumulator == k if code == 0x15 else accumulator > k if code == 0x25 else accumulator >= k
                    at += yes if holds else no
                case 0x06:  # return
                    return int(k)
                case _:
                    raise AssertionError(f"unknown instruction {code:#x}")


@pytest.fixture(params=["x86_64", "aarch64"], scope="module")
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return Kernel(request.param)


def test_no_call_is_both_allowed_and_refused() -> None:
    assert not set(ALLOWED) & set(REFUSED)
    assert len(set(ALLOWED)) == len(ALLOWED)


@pytest.mark.parametrize("call", ["read", "mmap", "sendmsg", "execve", "kill"])
def test_the_usual_is_allowed(kernel: Kernel, call: str) -> None:
    assert kernel.decide(call) == _ALLOW


@pytest.mark.parametrize(
    "call",
    ["ptrace", "mount", "unshare", "keyctl", "io_uring_setup", "bpf", "userfaultfd", "open_by_handle_at", "setns", "process_vm_readv",
     "pidfd_getfd", "perf_event_open", "sync", "syncfs", "reboot", "vmsplice", "kcmp", "io_setup", "add_key"],
)  # fmt: skip
def test_what_only_the_host_needs_is_refused(kernel: Kernel, call: str) -> None:
    assert kernel.decide(call) == _ERRNO | errno.EPERM


def test_unknown_calls_do_not_exist(kernel: Kernel) -> None:
    assert kernel.decide(_UNKNOWN) == _ERRNO | errno.ENOSYS
    assert kernel.decide("clone3") == _ERRNO | errno.ENOSYS


def test_other_abis_end_the_process(kernel: Kernel) -> None:
    assert kernel.decide("read", architecture=0x40000003) == _KILL  # i386
    assert kernel.decide("read", architecture=0x40000028) == _KILL  # 32-bit ARM


def test_x32_calls_are_not_there() -> None:
    assert Kernel("x86_64").decide(0x40000000 | _X86_64["read"]) != _ALLOW


@pytest.mark.parametrize("call", ["socket", "socketpair"])
@pytest.mark.parametrize("family", [0, _AF_INET, 10, _AF_NETLINK, _AF_ALG, _AF_VSOCK, 17, 0x10001, 0x80000001])
def test_only_unix_sockets_can_be_made(kernel: Kernel, call: str, family: int) -> None:
    assert kernel.decide(call, _AF_UNIX) == _ALLOW
    assert kernel.decide(call, _AF_UNIX | 7 << 32) == _ALLOW  # the kernel looks at the low half only
    assert kernel.decide(call, family) == _ERRNO | errno.EAFNOSUPPORT


_SIGCHLD, _THREAD = 17, 0x3D0F00  # what fork and pthread_create give


@pytest.mark.parametrize("flag", [0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_namespace_can_be_made(kernel: Kernel, flag: int) -> None:
    assert kernel.decide("clone", _SIGCHLD) == kernel.decide("clone", _THREAD) == kernel.decide("clone", 0x1200011) == _ALLOW
    assert kernel.decide("clone", _SIGCHLD | flag) == _ERRNO | errno.EPERM


@pytest.mark.parametrize("request_", [0x401C5820, 0x40086602, 0x401C5820 | 1 << 32, 0x40086602 | 7 << 40])
def test_files_stay_in_their_quota(kernel: Kernel, request_: int) -> None:
    assert kernel.decide("ioctl", 3, request_) == _ERRNO | errno.EPERM


@pytest.mark.parametrize("request_", [0x541B, 0x5401, 0x40049409, 0x401C5821, 0xFFFFFFFF, 0, 0x40086603])
def test_other_ioctls_work(kernel: Kernel, request_: int) -> None:
    assert kernel.decide("ioctl", 3, request_) == _ALLOW


def test_personality_can_be_asked_for_but_not_changed_at_will(kernel: Kernel) -> None:
    assert kernel.decide("personality", 0xFFFFFFFF) == kernel.decide("personality", 0) == _ALLOW
    assert kernel.decide("personality", 0x40000) != _ALLOW  # no randomized addresses
    assert kernel.decide("personality", 0x400000) != _ALLOW  # readable means executable


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libseccomp, "_LIBRARY", "libseccomp-that-is-not-there.so.2")
    with pytest.raises(SeccompMissing, match="is missing"):
        compile_filter("x86_64")


# -- the real kernel


def under_filter(action: Callable[[], int]) -> int:
    """The exit code of a child that does `action` under the filter; minus the signal that ended it."""
    program = compile_filter(platform.machine())
    pid = os.fork()
    if pid == 0:
        try:
            _install(program)
            os._exit(action())
        except BaseException:
            os._exit(99)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _install(program: bytes) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program)

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    given = Program(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.prctl(22, 2, ctypes.byref(given), 0, 0) == 0  # a filter


def _errno_of(name: str, *arguments: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    number = _NUMBERS[platform.machine()][name]
    return 0 if libc.syscall(number, *arguments) >= 0 else ctypes.get_errno()


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("unshare", (0x10000000,), errno.EPERM),
        ("setns", (0, 0), errno.EPERM),
        ("ptrace", (0, 0, 0, 0), errno.EPERM),
        ("keyctl", (0, 0), errno.EPERM),
        ("io_uring_setup", (1, 0), errno.EPERM),
        ("userfaultfd", (1,), errno.EPERM),
        ("bpf", (0, 0, 0), errno.EPERM),
        ("mount", (0, 0, 0, 0, 0), errno.EPERM),
        ("open_by_handle_at", (0, 0, 0), errno.EPERM),
        ("clone3", (0, 0), errno.ENOSYS),
        ("clone", (0x10000000 | 17, 0, 0, 0, 0), errno.EPERM),
        ("socket", (_AF_INET, 1, 0), errno.EAFNOSUPPORT),
        ("socket", (_AF_ALG, 5, 0), errno.EAFNOSUPPORT),
    ],
)
def test_the_kernel_refuses(name: str, arguments: tuple[int, ...], code: int) -> None:
    assert under_filter(lambda: _errno_of(name, *arguments)) == code


def test_programs_run_under_it() -> None:
    def work() -> int:
        one, other = socket.socketpair()
        one.send(b"x")
        fcntl.fcntl(other, fcntl.F_GETFL)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write_end, b"y")
            os.execv(sys.executable, [sys.executable, "-c", "import threading; t = threading.Thread(); t.start(); t.join()"])
        return 0 if (other.recv(1), os.read(read_end, 1)) == (b"x", b"y") and os.waitpid(child, 0)[1] == 0 else 1

    assert under_filter(work) == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other ABI is x86-64's")
def test_the_32_bit_abi_ends_the_process() -> None:
    def work() -> int:
        import mmap

        code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov $20, %eax (getpid of i386); int $0x80; ret
        memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(code)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        ctypes.CFUNCTYPE(ctypes.c_int)(address)()
        return 0

    assert under_filter(work) == -signal.SIGSYS
