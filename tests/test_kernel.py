"""The system calls that Python lacks: what they do, and that every error names the call and its object."""

import os
import resource

import pytest

from hako import kernel
from hako.failure import Failure

BAD = 1000  # a descriptor that is not open
ROOTS = ("mount", "fs", "pivot", "hostname")  # what an ordinary user is refused before it is looked at


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: kernel.setns(BAD, 0, "/x"), "setns /x: Bad file descriptor"),
        (lambda: kernel.unshare(1 << 40), "unshare: Invalid argument"),
        (lambda: kernel.clone3(1 << 60), "clone3: Invalid argument"),
        (lambda: kernel.pidfd_open(2**22 + 1), "pidfd_open 4194305: No such process"),
        (lambda: kernel.pidfd_send_signal(BAD, 9), "pidfd_send_signal 9: Bad file descriptor"),
        (lambda: kernel.close_range(5, 4), "close_range 5 4: Invalid argument"),
        (lambda: kernel.openat2(kernel.AT_FDCWD, "no", 0, 0, "no"), "openat2 no: No such file or directory"),
        (lambda: kernel.open_tree(BAD, b"", kernel.AT_EMPTY_PATH, "x"), "open_tree x: Bad file descriptor"),
        (lambda: kernel.mount_setattr(BAD, 0, 1, "x"), "mount_setattr x: Bad file descriptor"),
        (lambda: kernel.fsmount("nosuchfs", {}, 0, "/x"), "fsopen nosuchfs: No such device"),
        (lambda: kernel.fsmount("tmpfs", {"size": "wide"}, 0, "/x"), "fsconfig tmpfs size /x: Invalid argument"),
        (lambda: kernel.mount(None, "/no/such", None, 1 << 18), "mount /no/such: No such file or directory"),
        (lambda: kernel.umount2("/no/such", 0), "umount2 /no/such: No such file or directory"),
        (lambda: kernel.pivot_root(b"/no/such", b"."), "pivot_root /no/such .: No such file or directory"),
        (lambda: kernel.sethostname("x" * 65), f"sethostname {'x' * 65}: Invalid argument"),
        (lambda: kernel.landlock_create_ruleset(1 << 63), "landlock_create_ruleset: Invalid argument"),
        (lambda: kernel.landlock_allow_beneath(BAD, 1, 0, "/x"), "landlock_add_rule /x: Bad file descriptor"),
        (lambda: kernel.set_ambient([0]), "prctl PR_CAP_AMBIENT_RAISE cap_chown: Operation not permitted"),
    ],
)
def test_an_error_names_the_call_and_its_object(attempt, message):
    if os.getuid() != 0 and any(word in message for word in ROOTS):
        return
    with pytest.raises(Failure) as caught:
        attempt()
    assert str(caught.value) == message
    assert caught.value.errno is not None


def in_child(work):
    """The exit status of a child, made by clone3, that runs WORK."""
    pid, pidfd = kernel.clone3(0)
    if pid == 0:
        status = 99
        try:
            status = work() or 0
        finally:
            os._exit(status)
    assert os.get_inheritable(pidfd) is False
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_clone3_makes_a_child_with_a_pidfd():
    assert in_child(lambda: 7) == 7


def test_mounts_by_name_in_a_namespace_of_its_own(place):
    def work():
        flags = kernel.CLONE_NEWNS | (kernel.CLONE_NEWUSER if os.getuid() else 0)
        kernel.unshare(flags)
        kernel.mount(None, "/", None, kernel.MS_PRIVATE | 1 << 14)
        kernel.mount("none", str(place), "tmpfs", 0, "size=8k")
        status = os.statvfs(place)
        size = status.f_blocks * status.f_frsize
        kernel.umount2(str(place), kernel.MNT_DETACH)
        return 0 if size == 8192 and os.statvfs(place).f_blocks != status.f_blocks else 1

    assert in_child(work) == 0


def test_close_all_but():
    def work():
        kept = os.dup(0)
        others = [os.dup(0) for _ in range(5)]
        kernel.close_all_but([kept, others[2], 1])
        opened = {fd for fd in range(200) if os.path.exists(f"/proc/self/fd/{fd}")}
        return 0 if opened == {0, 1, 2, kept, others[2]} else 1

    assert in_child(work) == 0


def test_openat2_stays_within_its_root(place):
    (place / "out").symlink_to("/etc/passwd")
    fd = os.open(place, os.O_PATH)
    with pytest.raises(Failure, match="No such file"):
        kernel.openat2(fd, "out", os.O_RDONLY, kernel.RESOLVE_IN_ROOT, "out")
    os.close(kernel.openat2(fd, "/", os.O_PATH, kernel.RESOLVE_IN_ROOT, "/"))
    os.close(fd)


def test_too_many_descriptors_on_their_way():
    """Others of this user may have sent them: the errno alone speaks of something else."""

    def work():
        if os.getuid() == 0:
            os.setresuid(65533, 65533, 65533)
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
        with pytest.raises(Failure) as caught:
            for _ in range(100):
                kernel.send_descriptor(ours, ours, b"x")
        hint = "this user has more of them on their way than RLIMIT_NOFILE allows"
        return 0 if str(caught.value) == f"sendmsg: Too many references: cannot splice [{hint}]" else 1

    ours, theirs = kernel.socketpair()
    assert in_child(work) == 0
    os.close(ours)
    os.close(theirs)
