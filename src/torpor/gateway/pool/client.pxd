# What is compiled to C and with which types; the code is in client.py (docs/decisions/0032-the-pool-is-compiled.md).
cimport cython

cdef class Client

from torpor.gateway.pool.backend cimport Backend
from torpor.gateway.pool.engine cimport Group, Pool
from torpor.gateway.pool.extended cimport bind_head, bind_names, cut, length_at
from torpor.gateway.pool.values cimport Link, Statement, may_set, sets_only_carried


cdef class Client:
    cdef public Pool pool
    cdef public Group group
    cdef public Link link
    cdef public object pid
    cdef public bytes key
    cdef public bint auto
    cdef public bytes application_name
    cdef public bint greeted
    cdef public bint is_gone
    cdef public bint is_waiting
    cdef public bint is_stalled
    cdef public str pinned_by
    cdef public Backend backend
    cdef public Backend last
    cdef public dict statements
    cdef public dict carried
    cdef public dict reported
    cdef public bint unsynced
    cdef public bint tracked
    cdef public double waiting_since
    cdef public frozenset warned
    cdef public object session
    cdef public bint cares
    cdef public bint offered
    cdef bytes _rest
    cdef list _pieces
    cdef Py_ssize_t _missing
    cdef Py_ssize_t _reserved
    cdef Py_ssize_t _skip
    cdef bint _skip_passes

    cpdef bint is_amid(self)
    cpdef given(self)
    cpdef dismiss(self, bytes farewell)
    cpdef left(self)
    cpdef received(self, bytes data)
    @cython.locals(backend=Backend, out=list, at=Py_ssize_t, run=Py_ssize_t, end=Py_ssize_t, after=Py_ssize_t, length=Py_ssize_t,
                   rest_at=Py_ssize_t, missing=Py_ssize_t, tag="unsigned char", carried=bint, statement=Statement)
    cpdef _hear(self, bytes data)
    cpdef bint _asks(self, unsigned char tag, bytes data, Py_ssize_t at, Py_ssize_t after, Py_ssize_t end)
    cpdef _keep(self, bytes rest, Py_ssize_t missing)
    cpdef _make_room(self)
    @cython.locals(backend=Backend)
    cpdef _send(self, list out, bytes data, Py_ssize_t run, Py_ssize_t at)
    cpdef Py_ssize_t _pass_on(self, Py_ssize_t after, Py_ssize_t end, bint passes)
    cpdef Py_ssize_t _flush_and_drop(self, list out, bytes data, Py_ssize_t run, Py_ssize_t at, Py_ssize_t after, Py_ssize_t end)
    cpdef _prepare(self, Backend backend, Statement statement, list out, bytes data, Py_ssize_t run, Py_ssize_t at)
    cpdef bint _must_stall(self, Backend backend, bytes name)
    @cython.locals(statement=Statement)
    cpdef _about_statement(self, Backend backend, unsigned char tag, bytes name, list out, bytes data, Py_ssize_t run, Py_ssize_t at)
    cpdef bint _deallocates(self, bytes data, Py_ssize_t at, Py_ssize_t after)
