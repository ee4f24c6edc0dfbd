# What is compiled to C and with which types; the code is in engine.py (docs/decisions/0032-the-pool-is-compiled.md).
cimport cython

cdef class Group
cdef class Pool

from torpor.gateway.pool.backend cimport Backend
from torpor.gateway.pool.client cimport Client
from torpor.gateway.pool.values cimport Statement, apply_settings


cdef class Group:
    cdef public object key
    cdef public object room
    cdef public dict idle
    cdef public Py_ssize_t opening
    cdef public Py_ssize_t waiters
    cdef public Py_ssize_t clients
    cdef public Py_ssize_t backends
    cdef public dict carried
    cdef public dict reported
    cdef dict _shared
    cdef object _statements
    cdef Py_ssize_t _named

    cpdef Statement statement(self, bytes body)


cdef class Pool:
    cdef public object room
    cdef public bint cares
    cdef public object caching
    cdef public str label
    cdef public object limits
    cdef public set clients
    cdef public set backends
    cdef public set pinned
    cdef public object waiting
    cdef public Py_ssize_t transactions
    cdef public Py_ssize_t waits
    cdef public Py_ssize_t discards
    cdef public double waited_s
    cdef public double longest_wait_s
    cdef public bytes finishing
    cdef object _port
    cdef object _now
    cdef dict _groups
    cdef Py_ssize_t _hungry

    @cython.locals(idle=dict, backend=Backend)
    cpdef bint acquire(self, Client client)
    @cython.locals(client=Client)
    cpdef transaction_ended(self, Backend backend)
    cpdef bytes weigh(self, Backend backend, Client client)
    @cython.locals(group=Group, head=Client, client=Client)
    cpdef backend_rests(self, Backend backend)
    @cython.locals(group=Group, client=Client, backend=Backend)
    cpdef _open_more(self)
    @cython.locals(backends=Py_ssize_t, of_role=Py_ssize_t, each=Group)
    cpdef bint _has_room(self, Group group)
    @cython.locals(other=Group)
    cpdef bint _evict(self, Group group, str role)
    cpdef _queue(self, Client client)
    @cython.locals(waited_s=double)
    cpdef _no_longer_waits(self, Client client)
    cpdef _unite(self, Client client, Backend backend)
    cpdef _separate(self, Client client, Backend backend)
    cpdef _clean(self, Backend backend)
    cpdef _drop(self, Backend backend)
