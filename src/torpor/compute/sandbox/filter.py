"""Which system calls a compute may make: an allow list, compiled once at start.

What isn't named here doesn't exist for the compute (ENOSYS), so that programs fall back as they would on an older kernel; what is named as
refused fails with EPERM. Other ABIs than the machine's own (32-bit, x32) end the process.
The list is that of the container engines' default profile, less what only the host or a debugger has use for.

Pure, but for libseccomp's memory.
"""

import errno
from collections.abc import Iterator

from torpor.compute.sandbox.libseccomp import ALLOW, Compiler, Masked, refuse

_FILES = """
access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate fchdir fchmod
fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate
futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown lgetxattr link linkat
listxattr llistxattr lremovexattr lseek lsetxattr lstat memfd_create mkdir mkdirat mknod mknodat newfstatat open openat openat2 pipe pipe2
pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir
sendfile setxattr splice stat statfs statx symlink symlinkat sync_file_range tee truncate umask unlink unlinkat utime utimensat utimes
write writev
"""
_MEMORY = """
brk madvise membarrier mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
pkey_mprotect remap_file_pages map_shadow_stack
"""
_PROCESSES = """
alarm arch_prctl capget capset execve execveat exit exit_group fork futex futex_waitv get_robust_list getcpu getegid geteuid getgid
getgroups getitimer getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get
ioprio_set kill pause pidfd_open pidfd_send_signal prctl prlimit64 rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
sched_getparam sched_getscheduler sched_rr_get_interval sched_setattr sched_setparam sched_setscheduler sched_yield
set_robust_list set_tid_address setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid
setrlimit setsid setuid sigaltstack tgkill tkill vfork wait4 waitid
"""
_WAITING = """
clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
getrandom gettimeofday nanosleep poll ppoll pselect6 restart_syscall select signalfd signalfd4 sysinfo time timer_create timer_delete
timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times uname
"""
_TALKING = """
accept accept4 bind connect getpeername getsockname getsockopt listen msgctl msgget msgrcv msgsnd recvfrom recvmmsg recvmsg semctl semget
semop semtimedop sendmmsg sendmsg sendto setsockopt shmat shmctl shmdt shmget shutdown
"""
ALLOWED = tuple(" ".join((_FILES, _MEMORY, _PROCESSES, _WAITING, _TALKING)).split())

_REFUSED = """
_sysctl acct add_key adjtimex bpf chroot clock_adjtime clock_settime create_module delete_module fanotify_init fanotify_mark
finit_module fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy init_module io_cancel io_destroy io_getevents io_pgetevents
io_setup io_submit io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl lookup_dcookie mbind
memfd_secret migrate_pages modify_ldt mount mount_setattr move_mount move_pages mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedsend mq_unlink name_to_handle_at nfsservctl open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise
process_mrelease process_vm_readv process_vm_writev ptrace query_module quotactl quotactl_fd reboot request_key sched_setaffinity seccomp
set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon sync syncfs sysfs syslog umount2
unshare uselib userfaultfd ustat vhangup vmsplice
"""
REFUSED = tuple(_REFUSED.split())
"""Named, though what isn't allowed is refused anyway: for these the refusal is a promise, with EPERM. `sync` and `syncfs` would make one
tenant write out what all the others have in memory; `sched_setaffinity` take a processor that is kept free for others."""

_NAMESPACES = 0x7E020080  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET; and the bit of NEWTIME, no signal's number
_LOW = 0xFFFFFFFF  # the kernel looks at the low half of these arguments only
_AF_UNIX = 1
_PERSONALITIES = (0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, 32-bit names of the machine, old version numbers; asking
_SET_PROJECT, _SET_FLAGS = 0x401C5820, 0x40086602  # FS_IOC_FSSETXATTR and FS_IOC_SETFLAGS: both can take files out of a project's quota


def compile_filter(machine: str) -> bytes:
    """The filter for a machine ("x86_64", "aarch64"), as `bwrap --seccomp` takes it. Raises SeccompMissing."""
    with Compiler(refuse(errno.ENOSYS), machine) as compiler:
        for name in ALLOWED:
            compiler.rule(ALLOW, name)
        for name in REFUSED:
            compiler.rule(refuse(errno.EPERM), name)
        # clone3 takes its flags in memory, where no filter can look. It doesn't exist here: the C library falls back to clone.
        compiler.rule(ALLOW, "clone", Masked(0, _NAMESPACES, 0))
        for bit in _bits(_NAMESPACES):
            compiler.rule(refuse(errno.EPERM), "clone", Masked(0, bit, bit))
        for name in ("socket", "socketpair"):
            compiler.rule(ALLOW, name, Masked(0, _LOW, _AF_UNIX))
            for condition in _differs(0, _AF_UNIX):
                compiler.rule(refuse(errno.EAFNOSUPPORT), name, condition)
        for condition in _differs_from_both(1, _SET_PROJECT, _SET_FLAGS):
            compiler.rule(ALLOW, "ioctl", condition)
        for value in (_SET_PROJECT, _SET_FLAGS):
            compiler.rule(refuse(errno.EPERM), "ioctl", Masked(1, _LOW, value))
        for value in _PERSONALITIES:
            compiler.rule(ALLOW, "personality", Masked(0, _LOW, value))
        return compiler.program()


def _bits(mask: int) -> Iterator[int]:
    return (1 << position for position in range(64) if mask >> position & 1)


def _differs(position: int, value: int) -> Iterator[Masked]:
    """Conditions of which at least one holds when the low half of an argument isn't `value`."""
    return (Masked(position, bit, ~value & bit) for bit in _bits(_LOW))


def _differs_from_both(position: int, one: int, other: int) -> Iterator[Masked]:
    """The same for two values: what has the first bit in which they differ from `one` is not `other`, and the other way round."""
    first = (one ^ other) & -(one ^ other)
    for value in (one, other):
        for bit in _bits(_LOW & ~first):
            yield Masked(position, first | bit, value & first | ~value & bit)
