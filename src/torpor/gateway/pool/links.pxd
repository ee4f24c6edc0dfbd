# What is compiled to C and with which types; the code is in links.py (docs/decisions/0032-the-pool-is-compiled.md).
cimport cython

from torpor.gateway.pool.backend cimport Backend
from torpor.gateway.pool.client cimport Client
from torpor.gateway.pool.values cimport Link
from torpor.gateway.pool.wire cimport receive, send, wait, what, who

cdef int _IN, _OUT, _HANGUP


cdef class Sockets:
    cdef unsigned long long[::1] counts
    cdef int _control_fd
    cdef object _closed
    cdef object _epoll
    cdef dict _links
    cdef list _broken
    cdef list _closing
    cdef bint _is_over

    @cython.locals(fd=int, said=int, number=int, found=int, left_s=double, link=SocketLink)
    cpdef int turn(self, double until) except? -1
    cpdef bury(self)
    cpdef modify(self, int fd, int mask)
    cpdef broke(self, SocketLink link)


cdef class SocketLink(Link):
    cdef Sockets _sockets
    cdef object _sock
    cdef int _fd
    cdef object _pending
    cdef SocketLink _partner
    cdef bint _wanted
    cdef double _closing_since
    cdef public object owner
    cdef readonly Py_ssize_t slot
    cdef int _mask

    @cython.locals(sent=Py_ssize_t)
    cpdef send(self, bytes data)
    cpdef close(self)
    @cython.locals(before=SocketLink)
    cpdef feed(self, Link other)
    cpdef listen(self, bint on)
    @cython.locals(data=bytes, client=Client, backend=Backend)
    cpdef happened(self, int events)
    @cython.locals(sent=Py_ssize_t)
    cpdef _write(self)
    @cython.locals(partner=SocketLink, held=bint, mask=int)
    cpdef _update(self)
    cpdef _ended(self)
    cpdef _shut(self)
