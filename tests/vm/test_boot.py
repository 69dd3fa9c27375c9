"""tests/vm/boot: what COMMAND meets, what comes out, and that nothing is left."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

BOOT = pathlib.Path(__file__).parent / "boot"
BYTES = bytes(range(1, 256))
DEADLINE = 600  # seconds, against hanging: the first run of all downloads a kernel


@pytest.fixture(scope="module", autouse=True)
def prepared():
    """The first run of all says what it installs, too."""
    done = boot("true")
    assert done.returncode == 0, done.stderr


def boot(*words, **options):
    """Run boot with WORDS; bytes in and out."""
    return subprocess.run([BOOT, *words], capture_output=True, check=False, timeout=DEADLINE, **options)


def start(*words):
    """Start boot with WORDS; return it and the pid of its QEMU."""
    process = subprocess.Popen([BOOT, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: any(name(pid) == "qemu-system-x86" for pid in children.read_text().split()))
    return process, children.read_text().split()[0]


def name(pid):
    """The name of process PID; None if it has ended."""
    try:
        state, _, comm = pathlib.Path(f"/proc/{pid}/status").read_text().partition("State:")
    except FileNotFoundError:
        return None
    return None if comm.split()[0] == "Z" else state.split()[1]


def wait_until(condition):
    """Wait until CONDITION() is true, and not for ever."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_command(tmp_path):
    """Its words and its status pass unchanged; it writes what it likes, and nothing of that is seen here."""
    code = r"""
        printf '%s\0' "$@"
        pwd; id -u; cat; echo on stderr >&2
        echo changed >file; cat file
        sleep 1000 &
        exit 42
    """
    words = [BYTES, "", "a b", "'", "-x", "\N{SNOWMAN}"]
    here = tmp_path / "it's \N{SNOWMAN}"
    here.mkdir()
    (here / "file").write_text("as it was\n")
    done = boot("--", "sh", "-c", code, "sh", *words, cwd=here)
    expected = b"".join(os.fsencode(word) + b"\0" for word in words)
    expected += os.fsencode(here) + b"\n0\non stderr\nchanged\n"
    assert (done.returncode, done.stdout, done.stderr) == (42, expected, b"")
    assert (here / "file").read_text() == "as it was\n"


def test_a_machine_that_fails():
    done = boot("--append", "rdinit=/nothing init=/nothing", "true")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (125, b"", 1)
    assert done.stderr.startswith(b"boot: the machine failed: ")
    assert b"panic" in done.stderr


def test_a_machine_that_takes_too_long():
    done = boot("--timeout", "1", "true")
    assert (done.returncode, done.stdout, done.stderr) == (125, b"", b"boot: the machine took longer than 1 seconds\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_an_interruption_leaves_nothing(number):
    process, pid = start("true")
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE)
    status = -signal.SIGKILL if number == signal.SIGKILL else 128 + number
    assert (process.returncode, out, err) == (status, b"", b"")
    wait_until(lambda: name(pid) is None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "COMMAND is missing [see boot --help]"),
        (["--"], "COMMAND is missing [see boot --help]"),
        (["--bogus", "true"], "option --bogus not recognized [see boot --help]"),
        (["--memory", "1G", "true"], "--memory: not a whole number below 1000000: '1G'"),
        (["--timeout", "", "true"], "--timeout: not a whole number below 1000000: ''"),
        (["--cpus", "0", "true"], "--cpus: not at least 1: '0'"),
    ],
)
def test_bad_usage(words, message):
    done = boot(*words)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (125, b"", f"boot: {message}\n")


def test_a_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    done = boot("true", env={**os.environ, "HAKO_VM_CACHE": str(tmp_path / "file/cache")})
    message = f"boot: HAKO_VM_CACHE: {tmp_path}/file/cache: Not a directory\n"
    assert (done.returncode, done.stdout, done.stderr.decode()) == (125, b"", message)
