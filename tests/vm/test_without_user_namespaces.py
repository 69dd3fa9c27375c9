"""hako-run where user namespaces are switched off: an ordinary user is refused, root needs none."""

import json
import pathlib

import pytest

pytestmark = pytest.mark.usefixtures("nothing_is_left")
NAMESPACES = "user,mnt,pid,net,ipc,uts,cgroup"
REFUSED = {  # by the sysctl that switches them off
    "user.max_user_namespaces": f"hako-run: clone3 {NAMESPACES}: No space left on device "
    "[user.max_user_namespaces is 0 here; root needs none; see hako-check]\n",
    "kernel.unprivileged_userns_clone": f"hako-run: clone3 {NAMESPACES}: Operation not permitted "
    "[user namespaces are not to be had here; root needs none; see hako-check]\n",
}
REASONS = {
    "user.max_user_namespaces": "clone3 user,uts: No space left on device",
    "kernel.unprivileged_userns_clone": "clone3 user,uts: Operation not permitted",
}
NEEDING = ("namespaces", "setns", "mounts", "fd-mounts", "proc", "overlay")


@pytest.fixture(params=REFUSED)
def switched_off(request):
    """The sysctl that is 0 for the test."""
    path = pathlib.Path("/proc/sys", *request.param.split("."))
    before = path.read_text()
    path.write_text("0")
    yield request.param
    path.write_text(before)


def mark(who, *options):
    """Run what leaves a mark in the box of WHO; return how it ended, its stderr and whether the mark is there."""
    done = who.inside("/bin/busybox", "touch", "/data/ran", options=["--writable", *options])
    return done.returncode, done.stderr, (who.box / "data/ran").exists()


def test_an_ordinary_user_is_refused(who, switched_off):
    """In one line, before PROG; root works as ever."""
    pid_file = who.box.parent / "pid"
    expected = (0, "", True) if who.name == "root" else (125, REFUSED[switched_off], False)
    assert mark(who, f"--pid-file={pid_file}") == expected
    assert not pid_file.exists()


@pytest.mark.root
def test_root_may_ask_for_one(who, switched_off):
    """Debian's sysctl is for ordinary users; that of the kernel is for everybody."""
    for_everybody = switched_off == "user.max_user_namespaces"
    expected = (125, REFUSED[switched_off], False) if for_everybody else (0, "", True)
    assert mark(who, "--userns=always") == expected


def test_hako_check_names_the_sysctl(who, switched_off):
    """And what to do. Debian's does not concern root, who needs none for the rest."""
    done = who.run("hako-check", "--json")
    features = json.loads(done.stdout)["features"]
    found = features["user-namespaces"]
    if who.name == "root" and switched_off == "kernel.unprivileged_userns_clone":
        assert found["works"]
    else:
        assert (done.returncode, found["works"], found["cause"]) == (1, False, switched_off)
        assert found["advice"].startswith(f"as root: sysctl -w {switched_off}=")
        assert found["why"] == REASONS[switched_off]
    assert [features[name]["works"] for name in NEEDING] == [True if who.name == "root" else None] * len(NEEDING)


def test_hako_check_finds_them(who):
    features = json.loads(who.run("hako-check", "--json").stdout)["features"]
    assert [name for name in ("user-namespaces", *NEEDING) if not features[name]["works"]] == []


def test_with_them_it_works(who):
    assert mark(who) == (0, "", True)
    assert mark(who, "--userns=always") == (0, "", True)


def test_what_makes_no_namespace_works(who, switched_off):
    done = who.run("rlimit-exec", "--core=0", "seccomp-exec", "minimal", "/bin/busybox", "echo", switched_off)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{switched_off}\n", "")
