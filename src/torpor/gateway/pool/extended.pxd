# What is compiled to C and with which types; the code is in extended.py (docs/decisions/0032-the-pool-is-compiled.md).
cimport cython

cdef list _WORDS

@cython.locals(first=Py_ssize_t, second=Py_ssize_t, third=Py_ssize_t)
cpdef Py_ssize_t length_at(bytes data, Py_ssize_t at)
@cython.locals(view="const char *")
cpdef bytes cut(bytes data, Py_ssize_t begin, Py_ssize_t end)
cpdef bytes word(Py_ssize_t number)
cpdef bytes frame(bytes tag, bytes body=*)
cpdef tuple split_parse(bytes body)
cpdef bytes parse(bytes name, bytes rest)
cpdef tuple split_target(bytes body)
cpdef bytes describe(bytes kind, bytes name)
cpdef bytes close(bytes kind, bytes name)
@cython.locals(begin=Py_ssize_t, come=Py_ssize_t, first=Py_ssize_t, second=Py_ssize_t)
cpdef tuple bind_names(bytes data, Py_ssize_t at, Py_ssize_t end)
cpdef bytes bind_head(bytes portal, bytes statement, Py_ssize_t rest_bytes)
cpdef bytes ready_for_query(bytes status=*)
