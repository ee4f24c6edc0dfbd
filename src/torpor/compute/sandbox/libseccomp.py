"""The few calls of libseccomp that compile a system-call filter. Called once at start; blocking, a few milliseconds.

The binding is our own because those on the package index are unmaintained, and start `ldconfig` and a compiler when they are imported.
"""

import ctypes
import errno
import os
import tempfile
from dataclasses import dataclass

_LIBRARY = "libseccomp.so.2"
KILL_PROCESS = 0x80000000
ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_MASKED_EQUAL = 7
_ATTRIBUTE_BAD_ARCHITECTURE, _ATTRIBUTE_OPTIMIZE = 2, 8
_BINARY_TREE = 2
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The kernel's audit numbers, as libseccomp takes them, by what `uname -m` says."""


def refuse(code: int) -> int:
    """The action that fails with an error number."""
    return _ERRNO | code


@dataclass(frozen=True, slots=True)
class Masked:
    """A condition: the bits of `mask` in argument `position` are those of `value`."""

    position: int
    mask: int
    value: int


class _Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


class SeccompMissing(Exception):
    """libseccomp isn't installed, or it can't do what is asked; the text says which."""


class Compiler:
    """A filter in the making. Use as a context manager: it holds memory of the C library."""

    def __init__(self, default: int, machine: str) -> None:
        """`machine` is one of ARCHITECTURES. Raises SeccompMissing."""
        try:
            self._library = ctypes.CDLL(_LIBRARY, use_errno=True)
        except OSError as error:
            raise SeccompMissing(f"{_LIBRARY} is missing") from error
        self._library.seccomp_init.restype = ctypes.c_void_p
        context: int | None = self._library.seccomp_init(ctypes.c_uint32(default))
        if not context:
            raise SeccompMissing(f"{_LIBRARY} can't make a filter")
        self._context = ctypes.c_void_p(context)
        self._architecture = ctypes.c_uint32(ARCHITECTURES[machine])
        code = self._library.seccomp_arch_add(self._context, self._architecture)
        if code not in (0, -errno.EEXIST):
            raise SeccompMissing(f"{_LIBRARY} doesn't know this machine ({machine})")
        for number in ARCHITECTURES.values():
            if number != self._architecture.value:
                self._library.seccomp_arch_remove(self._context, ctypes.c_uint32(number))  # the machine's own, when compiling for another
        self._set(_ATTRIBUTE_BAD_ARCHITECTURE, KILL_PROCESS)
        self._set(_ATTRIBUTE_OPTIMIZE, _BINARY_TREE)

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._library.seccomp_release(self._context)

    def rule(self, action: int, name: str, *conditions: Masked) -> bool:
        """Do `action` for a system call when all conditions hold. False when this machine, or this libseccomp, has no call of that name."""
        if self._library.seccomp_syscall_resolve_name_arch(self._architecture, name.encode()) < 0:
            return False
        # Rules take the numbers of the machine that compiles, and made-up ones for calls that it lacks: the library translates.
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        comparisons = (_Comparison * len(conditions))(*(_Comparison(c.position, _MASKED_EQUAL, c.mask, c.value) for c in conditions))
        code = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(conditions)), comparisons
        )
        if code != 0:
            raise SeccompMissing(f"{_LIBRARY} refuses a rule for {name}: {os.strerror(-code)}")
        return True

    def program(self) -> bytes:
        """The filter as the kernel (and bwrap) takes it: an array of BPF instructions."""
        with tempfile.TemporaryFile() as file:
            code = self._library.seccomp_export_bpf(self._context, ctypes.c_int(file.fileno()))
            if code != 0:
                raise SeccompMissing(f"{_LIBRARY} can't write the filter: {os.strerror(-code)}")
            file.seek(0)
            return file.read()

    def _set(self, attribute: int, value: int) -> None:
        # Unknown attributes of an older library only make the filter slower, but the first is what shuts other ABIs out.
        code = self._library.seccomp_attr_set(self._context, ctypes.c_int(attribute), ctypes.c_uint32(value))
        if code != 0 and attribute == _ATTRIBUTE_BAD_ARCHITECTURE:
            raise SeccompMissing(f"{_LIBRARY} is too old")
