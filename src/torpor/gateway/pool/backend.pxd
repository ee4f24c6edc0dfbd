# What is compiled to C and with which types; the code is in backend.py (docs/decisions/0032-the-pool-is-compiled.md).
cimport cython

cdef class Backend

from torpor.gateway.pool.client cimport Client
from torpor.gateway.pool.engine cimport Group, Pool
from torpor.gateway.pool.extended cimport cut, length_at, parse
from torpor.gateway.pool.values cimport Link, Statement


cdef class Backend:
    cdef public Pool pool
    cdef public Group group
    cdef public Link link
    cdef public Client client
    cdef public Client last
    cdef public object ops
    cdef public Py_ssize_t outstanding
    cdef public bytes status
    cdef public bint ready
    cdef public bint opening
    cdef public bint skipping
    cdef public bint copying_in
    cdef public bint serves_signs
    cdef public bytes prelude
    cdef public set left
    cdef public dict statements
    cdef public Statement unnamed
    cdef public Py_ssize_t segment
    cdef public dict doubtful
    cdef public dict unconfirmed
    cdef public dict carried
    cdef public dict reported
    cdef public Py_ssize_t pid
    cdef public bytes key
    cdef public Py_ssize_t canceling
    cdef public double idle_since
    cdef public object watch
    cdef public bytes trouble
    cdef bytes _rest
    cdef Py_ssize_t _skip
    cdef bint _skip_muted
    cdef bint _said_fatal

    cpdef ask(self, bytes sql, bint wait=*)
    cpdef prepare(self, Statement statement, list out)
    cpdef bint knows(self, Statement statement)
    @cython.locals(client=Client, out=list, at=Py_ssize_t, run=Py_ssize_t, end=Py_ssize_t, after=Py_ssize_t, length=Py_ssize_t,
                   tag="unsigned char", muted=bint, ended=bint, idle=bint, said_ready=bint)
    cpdef received(self, bytes data)
    cpdef bytes known_answers(self)
    cpdef _copies_in(self, kind)
    cpdef _failed(self, bytes body, ops)
    cpdef _confirm(self, op)
    cpdef _settle(self, op)
    cpdef _undo(self, op)
    cpdef bint _parameter(self, bytes body, Client client, ops, bint muted)
    cpdef _sign(self, str what, op)
