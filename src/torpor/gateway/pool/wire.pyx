# What wire.py promises, as system calls with nothing around them.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EAGAIN, EINTR, errno

import select

cdef extern from "<sys/socket.h>" nogil:
    int MSG_NOSIGNAL
    ssize_t c_recv "recv"(int fd, void *buffer, size_t size, int flags)
    ssize_t c_send "send"(int fd, const void *buffer, size_t size, int flags)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_wait(int epfd, epoll_event *events, int maxevents, int timeout)

cdef enum:
    _READ_BYTES = 65536
    _EVENTS = 256

READ_BYTES = _READ_BYTES
EVENTS = _EVENTS

cdef char _buffer[_READ_BYTES]
cdef epoll_event _events[_EVENTS]
cdef int _count = 0


cpdef bytes receive(int fd):
    cdef ssize_t n = c_recv(fd, _buffer, _READ_BYTES, 0)
    while n < 0 and errno == EINTR:
        PyErr_CheckSignals()
        n = c_recv(fd, _buffer, _READ_BYTES, 0)
    if n < 0:
        PyErr_SetFromErrno(OSError)
    return PyBytes_FromStringAndSize(_buffer, n)


cpdef Py_ssize_t send(int fd, bytes data) except -1:
    cdef ssize_t n
    if data is None:
        raise TypeError("bytes are wanted")
    n = c_send(fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_NOSIGNAL)
    while n < 0 and errno == EINTR:
        PyErr_CheckSignals()
        n = c_send(fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_NOSIGNAL)
    if n < 0:
        if errno == EAGAIN:
            return 0
        PyErr_SetFromErrno(OSError)
    return n


cpdef int wait(epoll, double timeout_s) except -1:
    global _count
    cdef int timeout_ms = -1 if timeout_s < 0 else <int>min(timeout_s * 1000 + 0.999, 1e9)
    _count = epoll_wait(epoll.fileno(), _events, _EVENTS, timeout_ms)
    if _count < 0:
        _count = 0
        if errno != EINTR:
            PyErr_SetFromErrno(OSError)
        PyErr_CheckSignals()
    return _count


cpdef int who(int number) except -1:
    if not 0 <= number < _count:
        raise IndexError(number)
    return _events[number].data.fd


cpdef int what(int number) except -1:
    if not 0 <= number < _count:
        raise IndexError(number)
    return <int>_events[number].events
