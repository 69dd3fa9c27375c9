"""The packages, installed where nothing of hako has been, with what they need from where everybody gets it."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import pytest

import hako
from hako import core

TOP = pathlib.Path(__file__).parent.parent.parent
BIN = pathlib.Path(sys.executable).parent
SYSTEM = "bookworm"
SECONDS = 1200
TRY = """
hako-run --version
rlimit-exec --nofile=16 sh -c 'ulimit -n'
seccomp-exec minimal echo filtered
hako-limit --time=5 sh -c 'exit 4' || echo $?
hako-policy default -- sh -c 'echo inside'
python3 -m hako | wc -l
hako-plot usage || echo $?
ls /usr/share/man/man1 | grep -c -e '^hako-' -e -exec.1
"""
TOLD = f"""\
hako {hako.__version__}
16
filtered
4
inside
{len(core.COMMANDS)}
hako-plot: matplotlib is not installed [pip install matplotlib, or the system's python3-matplotlib]
125
{len(core.COMMANDS)}
"""


def do(*argv, **options):
    """Run ARGV, which must succeed; what it said."""
    done = subprocess.run(
        [str(word) for word in argv],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def place():
    """A directory that everybody may enter."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="hako-clean-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


WAY_OUT = re.compile(r"(?i)\w+_proxy|pip_\w+|ssl_cert_\w+")  # variables that say how the package index is reached
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


@pytest.fixture(scope="module")
def system(place):
    """What runs a script in a fresh Debian, with hako-run; what the scripts write stays for the next."""
    assert os.geteuid() == 0
    root = place / "root"
    do("debootstrap", "--variant=minbase", "--include=ca-certificates", SYSTEM, root)
    do(TOP / "tools/build-deb", place)
    for name in ("root/.hako", "upper"):
        (place / name).mkdir()
    shutil.copy(place / f"hako_{hako.__version__}_all.deb", root / "root/hako.deb")
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    options = ["--proc", "--dev", "--tmpfs=/tmp", "--cap-add=all", "--env", path, f"--overlay={place}/upper"]
    return lambda script, *more: do(BIN / "hako-run", *options, *more, root, "/bin/sh", "-ec", script)


def test_the_debian_package_in_a_fresh_debian(system):
    install = "export DEBIAN_FRONTEND=noninteractive; apt-get update -q; apt-get install -yq {} /root/hako.deb"
    names = ["--network=host", "--mount=/etc/resolv.conf:/etc/resolv.conf:ro"]
    system(install.format("--no-install-recommends"), *names)
    assert system(TRY) == TOLD
    assert "hako" in system("python3 -c 'import hako; print(hako.__name__)'")
    system("dpkg --purge hako")
    assert system("find /usr /etc /var -name '*hako*'") == ""


def test_a_shell_in_a_fresh_debian(system, place):
    """The example, with the root that it is for; nothing of what was done there stays."""
    del system
    script = "dpkg-query -W -f '${Package}\n' base-files; hostname; id -u; rm -r /etc /var; ls / | grep -c etc"
    env = {"PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin"}
    shell = ["sh", TOP / "examples/chroot_shell.sh", place / "root", "bash"]
    assert do(*shell, "-c", f"{script}; touch /new", env=env) == "base-files\nroot\n0\n0\n"
    assert (place / "root/var/lib/dpkg/status").exists()
    assert not (place / "root/new").exists()


def test_make_demo_in_a_fresh_debian(system, place):
    """An ordinary user is told what is missing, root gets it; git, make and python3 have to be there."""
    do("git", "-C", TOP, "bundle", "create", "-q", place / "root/root/hako.bundle", "HEAD")
    names = [f"--mount={path}:{path}:ro" for path in ("/etc/resolv.conf", CERTIFICATES)]
    names += [f"--env={name}" for name in os.environ if WAY_OUT.fullmatch(name)]
    install = "export DEBIAN_FRONTEND=noninteractive; apt-get update -q; apt-get install -yq --no-install-recommends"
    system(f"{install} git make python3; git clone -q /root/hako.bundle /srv/hako", "--network=host", *names)
    told = system("cd /srv/hako; setpriv --reuid=65534 --regid=65534 --clear-groups make demo || echo $?")
    missing = r"^hako: missing system packages: apt-get install --no-install-recommends gcc( [\w.-]+){20,}$"
    assert re.search(missing, told, re.M)
    assert told.endswith("\n2\n")
    done = system("cd /srv/hako; make demo", "--network=host", *names)
    assert "hako: installing gcc " in done
    assert done.splitlines()[-1] == "NoNewPrivs:\t1"


@pytest.mark.parametrize("kind", ["sdist", "wheel", "tree"])
def test_what_pip_installs_in_a_fresh_environment(place, kind):
    """With docopt and python-prctl from the index; nothing of our own environment is lent."""
    tree = place / f"tree-{kind}"
    shutil.copytree(TOP, tree, ignore=lambda _, names: {"build", ".git", "__pycache__"}.intersection(names))
    build = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"
    if kind != "tree":
        do(sys.executable, "-c", build, kind, place / kind, cwd=tree)
    (made,) = [tree] if kind == "tree" else (place / kind).iterdir()
    venv = place / f"venv-{kind}"
    do(os.path.realpath(sys.executable), "-m", "venv", venv)
    do(venv / "bin/pip", "install", "--quiet", made, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    env = {"PATH": f"{venv}/bin:/usr/bin:/bin"}
    script = TRY.replace("/usr/share", f"{venv}/share")
    assert do("sh", "-ec", script, env=env, cwd=place) == TOLD
