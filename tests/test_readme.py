"""The README's own commands, and what an installation puts where."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from conftest import BIN, BUSYBOX, Who, wait_until

TOP = pathlib.Path(__file__).parent.parent


README = (TOP / "README.md").read_text()


def blocks(kind):
    """The blocks of the README that are marked KIND."""
    return re.findall(rf"```{kind}\n(.*?)```", README, re.S)


def test_the_transcripts_are_true(who, place):
    """Every console block prints what it says, in the directory that the sh block makes."""
    script, expected = [*blocks("sh")], []
    for block in blocks("console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                script.append(line.removeprefix("$ "))
            else:
                expected.append(line)
    assert len(expected) > 5
    done = who.run(
        "sh", "-c", "\n".join(script), cwd=place, stderr=subprocess.STDOUT, capture_output=False, stdout=subprocess.PIPE
    )
    assert done.stdout.splitlines() == expected


def test_the_python_is_true(who):
    """What a print() prints is what stands behind it."""
    code = "\n".join(blocks("python"))
    wanted = re.findall(r"print\(.*  # (.*)", code)
    assert len(wanted) > 2
    done = who.run(sys.executable, "-I", "-c", code)
    assert (done.stdout.splitlines(), done.stderr) == (wanted, "")


def test_the_commands_named_are_there():
    text = (TOP / "README.md").read_text()
    targets = re.findall(r"(?:`|^ +)make ([a-z-]+)", text, re.M)
    made = re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.M)
    assert {"demo", "check", "hostile-table"} <= set(targets) <= set(made)


@pytest.mark.root
@pytest.mark.parametrize("line", re.findall(r"^    ((?:hako|rlimit|seccomp|landlock)-.*)", README, re.M))
def test_the_first_lines_run(who, place, delegated, line):
    """With what the placeholders stand for in the places of those."""
    del delegated
    (place / "rules").write_text("POLICY all { ALLOW { write } } USE all DEFAULT ALLOW\n")
    (place / "request.json").write_text('{"cmd": ["true"]}')
    values = {
        "request.json": place / "request.json",
        "src": place,
        "dst": "/data",
        "dir": who.box,
        "cmd": "true",
        "rules": place / "rules",
    }
    sandbox = who.start(*who.sandbox("/bin/busybox", "cat", options=[f"--pid-file={place}/pid"]), stdin=subprocess.PIPE)
    try:
        wait_until((place / "pid").exists)
        values["PID"] = (place / "pid").read_text().strip()
        line = re.sub(rf"\b({'|'.join(values)})\b", lambda word: str(values[word[0]]), line)
        line = line.replace("hako-run ", f"hako-run --mount={BUSYBOX}:/bin/busybox:ro ")
        done = who.run("sh", "-c", line)
        assert (done.returncode, done.stderr) == (0, "") or (line == "hako-check" and done.returncode == 1)
        assert done.stdout in ("", '{"status":"exited","code":0}\n') or line in ("hako-ps", "hako-check")
    finally:
        sandbox.communicate()


def test_make_demo_runs_the_main_job(who):
    done = who.run(TOP / "tools/demo", BIN, who.box.parent / "sandbox")
    assert (done.returncode, done.stderr) == (0, "")
    for line in ("the root:      .hako bin proc", "Read-only file system", f"uid={who.uid}", "NoNewPrivs:\t1"):
        assert line in done.stdout


@pytest.mark.root
def test_install_and_uninstall(who, place):
    """What is installed works for everybody, without the checkout; what is uninstalled is gone."""
    prefix = place / "prefix"
    apparmor = place / "apparmor.d"  # not the system's
    (apparmor / "abi").mkdir(parents=True)
    (apparmor / "abi/4.0").touch()
    make = ["make", "-s", "-C", TOP, f"BUILD={BIN.parent.parent}", f"PREFIX={prefix}", f"APPARMOR={apparmor}"]
    subprocess.run([*make, "install"], check=True, stdin=subprocess.DEVNULL)
    ordinary = Who("user")
    os.chown(place, ordinary.uid, ordinary.uid)
    ordinary.box = who.box
    ordinary.env["PATH"] = f"{prefix}/bin:/usr/bin:/bin"
    done = ordinary.inside("rlimit-exec", "--nofile=16", "/bin/sh", "-c", "ulimit -n")
    assert (done.stdout, done.stderr) == ("16\n", "")
    filtered = ordinary.inside("seccomp-exec", "minimal", "/bin/busybox", "echo", "filtered")
    assert (filtered.stdout, filtered.stderr) == ("filtered\n", "")
    assert (prefix / "bin/hako-run").read_text().splitlines()[0].endswith(" -IS")
    assert str(TOP) not in (prefix / "bin/hako-run").read_text()
    assert {path.name for path in (prefix / "share/man").rglob("*.?")} == {
        path.name for path in (TOP / "man").iterdir()
    }
    installed = {path.name for path in (prefix / "lib/hako/hako/policies").iterdir()}
    assert installed == {path.name for path in (TOP / "hako/policies").iterdir()}
    assert list((prefix / "lib/hako").rglob("*.pyc"))
    completed = [
        [
            "fish",
            "-N",
            "-c",
            f"set fish_complete_path {prefix}/share/fish/vendor_completions.d; complete -C 'hako-run --mou'",
        ],
        ["bash", "-c", f". {prefix}/share/bash-completion/completions/hako-run; complete -p hako-run"],
        [
            "zsh",
            "-fc",
            f"fpath=({prefix}/share/zsh/site-functions $fpath); autoload -U compinit; compinit -uD; echo $_comps",
        ],
    ]
    fish, bash, zsh = (ordinary.run(*argv, env={**ordinary.env, "HOME": str(place)}).stdout for argv in completed)
    assert fish.startswith("--mount\t")
    assert bash == "complete -F _hako hako-run\n"
    assert zsh.split().count("_hako") == len(list((TOP / "bin").iterdir()))
    assert confined(apparmor / "hako") == {str(path) for path in (prefix / "bin").iterdir()}
    subprocess.run([*make, "uninstall"], check=True, stdin=subprocess.DEVNULL)
    assert [path for path in prefix.rglob("*") if path.is_symlink() or not path.is_dir()] == []
    assert [path.name for path in apparmor.iterdir()] == ["abi"]


@pytest.mark.root
def test_a_profile_that_an_old_apparmor_cannot_read_stays_away(place):
    place = place / "install"
    make = ["make", "-s", "-C", TOP, f"BUILD={BIN.parent.parent}", f"PREFIX={place}", f"APPARMOR={place}/apparmor.d"]
    subprocess.run([*make, "install"], check=True, stdin=subprocess.DEVNULL)
    assert (place / "bin/hako-check").exists()
    assert not (place / "apparmor.d").exists()


@pytest.mark.root
def test_somebody_else_installs_without_the_profile_and_is_told(place):
    """And uninstalls, without that of others."""
    ordinary, apparmor, build = Who("user"), place / "apparmor.d", place / "build"
    (apparmor / "abi").mkdir(parents=True)
    (apparmor / "abi/4.0").touch()
    build.mkdir()
    (build / "venv").symlink_to(BIN.parent)
    for path in (place, build):
        os.chown(path, ordinary.uid, ordinary.uid)
    make = ["make", "-s", "-C", TOP, f"BUILD={build}", f"PREFIX={place}/prefix", f"APPARMOR={apparmor}"]
    done = ordinary.run(*make, "install")
    assert (done.returncode, done.stderr) == (0, "")
    told, advice = done.stdout.splitlines()
    assert told.startswith(f"hako: {apparmor} is not yours, ")
    assert ordinary.run(place / "prefix/bin/hako-run", "--version").returncode == 0
    subprocess.run(["sh", "-c", advice.removeprefix("      as root: ")], check=True, cwd=TOP)
    assert confined(apparmor / "hako") == {str(path) for path in (place / "prefix/bin").iterdir()}
    assert ordinary.run(*make, "uninstall").returncode == 0
    assert [path.name for path in (place / "prefix").rglob("*") if not path.is_dir()] == []
    assert (apparmor / "hako").exists()


def confined(profile):
    """The programs to which PROFILE of AppArmor is attached, as far as they are there."""
    line = next(line for line in profile.read_text().splitlines() if line.startswith("profile "))
    name, pattern, flags, brace = line.removeprefix("profile ").split(" ")
    assert (name, flags, brace) == ("hako", "flags=(unconfined)", "{")
    done = subprocess.run(["bash", "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


@pytest.mark.root
def test_install_into_a_staging_directory(place):
    make = ["make", "-s", "-C", TOP, f"BUILD={BIN.parent.parent}", f"DESTDIR={place}/stage", "PREFIX=/usr"]
    subprocess.run([*make, "install"], check=True, stdin=subprocess.DEVNULL)
    text = (place / "stage/usr/bin/hako-run").read_text()
    assert 'sys.path[:0] = ["/usr/lib/hako"]' in text
    assert "stage" not in text
    profile = (place / "stage/etc/apparmor.d/hako").read_text()
    assert "\nprofile hako /usr/bin/{" in profile
    assert "\n  userns,\n" in profile
