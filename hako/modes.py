"""The modes of the caller's terminal: PROG has it too, and may leave it without echo, or raw."""

import os

# What note() found: (descriptor, os.stat_result, attributes); none, or one.
noted = []


def note():
    """Keep the modes of the terminal that is stdin, stdout and stderr, if it is and we are in its foreground.

    One that is not all three may be another's of the same pipeline, and its modes those that this one needs.
    """
    if noted or not is_one() or is_background(0):
        return
    import fcntl
    import termios

    try:
        fd = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 3)
        noted.append((fd, os.fstat(fd), termios.tcgetattr(fd)))
    except (termios.error, OSError):
        pass  # hung up: nobody is there


def put_back():
    """Put the terminal that was noted into those modes, if it is still ours; and start it, if PROG has stopped it."""
    for fd, status, attributes in noted:
        import termios  # loaded already, by note()

        try:
            if os.path.samestat(os.fstat(fd), status) and not is_background(fd):
                termios.tcsetattr(fd, termios.TCSANOW, attributes)
                termios.tcflow(fd, termios.TCOON)
        except (termios.error, OSError):
            pass  # closed, or hung up


def is_one():
    """Whether 0, 1 and 2 are one terminal."""
    try:
        return all(os.isatty(fd) and os.path.samestat(os.fstat(fd), os.fstat(0)) for fd in (0, 1, 2))
    except OSError:
        return False


def is_controlling(fd):
    """Whether the terminal FD is our controlling terminal."""
    try:
        os.tcgetpgrp(fd)
    except OSError:
        return False
    return True


def is_background(fd):
    """Whether FD is our controlling terminal, and others are in its foreground."""
    return is_controlling(fd) and os.tcgetpgrp(fd) != os.getpgrp()
