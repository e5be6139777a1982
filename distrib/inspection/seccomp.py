"""The system calls that no tool on an untrusted image needs, as a filter that bubblewrap loads.

libseccomp compiles it (by names, so that it holds on every architecture); see seccomp_init(3).
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache

from distrib.errors import ToolMissing

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_UNKNOWN_CALL = -1
_MASKED_EQ = 7
_CLONE_NEWUSER = 0x10000000

# Networks, other processes, mounts and namespaces, keys, kernel code, clocks and power; memory
# that no limit counts; and io_uring, which does what it is told past every filter.
_REFUSED = [
    "socket",
    "socketpair",
    "connect",
    "bind",
    "listen",
    "accept",
    "accept4",
    "sendto",
    "sendmsg",
    "sendmmsg",
    "recvmsg",
    "recvmmsg",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "kcmp",
    "pidfd_getfd",
    "pidfd_open",
    "mount",
    "umount",
    "umount2",
    "pivot_root",
    "chroot",
    "move_mount",
    "open_tree",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "unshare",
    "setns",
    "name_to_handle_at",
    "open_by_handle_at",
    "keyctl",
    "add_key",
    "request_key",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "init_module",
    "finit_module",
    "delete_module",
    "kexec_load",
    "kexec_file_load",
    "quotactl",
    "quotactl_fd",
    "swapon",
    "swapoff",
    "reboot",
    "acct",
    "settimeofday",
    "stime",
    "clock_settime",
    "clock_adjtime",
    "adjtimex",
    "syslog",
    "personality",
    "iopl",
    "ioperm",
    "modify_ldt",
    "vhangup",
    "lookup_dcookie",
    "nfsservctl",
    "uselib",
    "memfd_create",
    "memfd_secret",
    "shmget",
    "shmat",
    "msgget",
    "semget",
    "mq_open",
    "fanotify_init",
]


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@cache
def compiled_filter() -> bytes:
    """The filter for this machine: an array of ``struct sock_filter``. Raises ToolMissing."""
    library = _library()
    context = library.seccomp_init(_ALLOW)
    if not context:
        raise ToolMissing("libseccomp makes no filter", hint="is its version 2.5 or newer?")
    try:
        for name in _REFUSED:
            _refuse(library, context, name, errno.EPERM)
        # Flags of clone3 are behind a pointer that a filter cannot follow: the C library then
        # falls back to clone, whose flags can be seen.
        _refuse(library, context, "clone3", errno.ENOSYS)
        flag = _Comparison(0, _MASKED_EQ, _CLONE_NEWUSER, _CLONE_NEWUSER)
        _refuse(library, context, "clone", errno.EPERM, flag)
        return _exported(library, context)
    finally:
        library.seccomp_release(context)


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError:
        raise ToolMissing("libseccomp2 is not there", hint="apt-get install libseccomp2") from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.restype = None
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_void_p,
    ]
    return library


def _refuse(
    library: ctypes.CDLL,
    context: int,
    name: str,
    number: int,
    comparison: _Comparison | None = None,
) -> None:
    call = library.seccomp_syscall_resolve_name(name.encode())
    if call == _UNKNOWN_CALL:
        return  # An older library does not know it; the kernel's own rules still hold.
    count, array = (1, ctypes.byref(comparison)) if comparison is not None else (0, None)
    status = library.seccomp_rule_add_array(context, _ERRNO | number, call, count, array)
    # EDOM: there is no such call on this architecture.
    if status not in {0, -errno.EDOM}:
        raise ToolMissing(
            f"libseccomp refuses the rule for {name}: {os.strerror(-status)}",
            hint="is its version 2.5 or newer?",
        )


def _exported(library: ctypes.CDLL, context: int) -> bytes:
    descriptor = os.memfd_create("filter", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if library.seccomp_export_bpf(context, descriptor) != 0:
            raise ToolMissing("libseccomp exports no filter", hint="is its version 2.5 or newer?")
        file.seek(0)
        return file.read()
