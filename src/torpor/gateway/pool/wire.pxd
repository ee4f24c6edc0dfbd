# What other compiled modules may call without Python in between; the code is in wire.pyx.

cpdef bytes receive(int fd)
cpdef Py_ssize_t send(int fd, bytes data) except -1
cpdef int wait(epoll, double timeout_s) except -1
cpdef int who(int number) except -1
cpdef int what(int number) except -1
