# What is compiled to C and with which types; the code is in values.py (docs/decisions/0032-the-pool-is-compiled.md).

cdef class Link:
    cpdef send(self, bytes data)
    cpdef close(self)
    cpdef feed(self, Link other)
    cpdef listen(self, bint on)


cdef class Statement:
    cdef public bytes body
    cdef public bytes name
    cdef public bint only_carried
    cdef public bint speaks
    cdef object __weakref__

cpdef bint sets_only_carried(bytes text)
cpdef bint may_set(bytes data, Py_ssize_t at, Py_ssize_t end)
cpdef bytes apply_settings(dict wanted, dict now)
