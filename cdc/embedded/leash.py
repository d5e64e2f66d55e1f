"""Becomes a server that dies with its parent: `leash.py PARENT SIGNAL UID GID USER COMMAND…`.

Run as a script, with the standard library only, between fork and exec of a server: what a `preexec_fn` would do,
without running Python code in a forked copy of a process with threads. UID -1 keeps the user. The order matters: a
change of credentials clears the parent-death signal (prctl(2)), and the parent may have died before it was asked for.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str]) -> None:
    """Does not return: becomes the command, or ends with the reason on stderr."""
    parent, death, uid, gid = (int(argument) for argument in arguments[:4])
    user, command = arguments[4], arguments[5:]
    if uid >= 0:
        os.initgroups(user, gid)
        os.setgid(gid)
        os.setuid(uid)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, death, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("the parent ended before the server started")
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # a shell's background jobs ignore some, and exec keeps that
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
