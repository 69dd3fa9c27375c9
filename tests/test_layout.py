"""The code held to its plan: who imports whom, what is made from what, what stands once."""

import ast
import configparser
import pathlib
import re
import subprocess
import sys

import pytest

from hako import core

TOP = pathlib.Path(__file__).parent.parent
# What each module of hako may import of hako. Downwards only; nothing imports a command.
BASE = {"failure"}
NEAR = {"near"}  # only to explain a failure
PLAN = {
    "__init__": {"library", "pool"},  # which only who wants the library imports
    "failure": set(),
    "near": set(),
    "values": BASE,
    "patterns": set(),
    "foreign": set(),
    "kernel": BASE | {"foreign"},
    "core": BASE | NEAR | {"__init__", "patterns"},
    "__main__": {"core"},
    "sandbox": BASE | {"values"},
    "identity": BASE | NEAR | {"kernel", "values"},
    "guard": BASE | {"kernel"},
    "modes": set(),
    "newfile": BASE,
    "limits": BASE | {"values"},
    "rlimits": BASE | {"values"},
    "cgroup": BASE,
    "group": BASE | {"cgroup", "kernel"},
    "meter": BASE | {"cgroup", "group", "kernel"},
    "json": set(),
    "report": {"json"},
    "usage": BASE | {"report"},
    "output": BASE | {"kernel"},
    "request": BASE | {"identity", "json", "rlimits", "values"},
    "sinks": BASE | {"output"},
    "keep": BASE | {"group", "kernel", "supervise"},
    "records": BASE | {"newfile", "report", "usage"},
    "extra": BASE,
    "record": BASE | {"json"},
    "plot": set(),
    "board": BASE | {"sandboxes"},
    "registry": BASE,
    "listing": BASE | {"registry"},
    "sandboxes": BASE | {"group", "kernel", "meter", "registry"},
    "verdict": {"meter"},
    "loop": BASE,
    "progress": set(),
    "steps": BASE | {"foreign", "kernel"},
    "plan": BASE | {"kernel", "landlock", "limits", "rlimits", "sandbox", "start"},
    "cell": BASE | {"identity", "kernel", "steps"},
    "zygote": BASE
    | {"build", "cell", "guard", "identity", "kernel", "plan", "program", "sandbox"}
    | {"steps", "supervise"},
    "janitor": BASE | {"group", "kernel", "supervise"},
    "job": BASE | {"build", "cell", "changes", "kernel", "meter", "overlay", "report", "supervise", "verdict"},
    "engine": BASE
    | {"build", "cell", "group", "guard", "identity", "janitor", "kernel", "loop", "plan", "sandbox", "steps"}
    | {"supervise", "zygote"},
    "task": BASE
    | {"bpf", "cell", "group", "guard", "identity", "job", "json", "kafel", "limits", "plan", "request", "rules"}
    | {"sandbox", "sinks", "supervise"},
    "server": BASE
    | {"bpf", "changes", "core", "engine", "janitor", "kafel", "kernel", "landlock", "listing", "output", "overlay"}
    | {"progress", "request", "rlimits", "rules", "supervise", "task", "tcp"},
    "limit": BASE | {"cgroup", "group", "keep", "kernel", "meter", "modes", "registry", "supervise", "verdict"},
    "program": BASE | {"guard", "identity", "kernel", "supervise", "values"},
    "build": BASE | {"kernel", "sandbox"},
    "supervise": BASE | {"kernel"},
    "init": BASE | {"identity", "kernel", "supervise"},
    "overlay": BASE | {"kernel"},
    "outside": BASE | {"kernel"},
    "subids": BASE | {"identity", "kernel", "outside", "values"},
    "changes": BASE | {"json", "kernel", "newfile", "overlay", "supervise"},
    "fresh": BASE | {"changes", "json", "kernel", "sandbox", "supervise"},
    "pasta": BASE | {"build", "identity", "kernel", "outside"},
    "launch": BASE
    | {
        "build",
        "changes",
        "fresh",
        "identity",
        "init",
        "kernel",
        "modes",
        "newfile",
        "overlay",
        "pasta",
        "program",
        "registry",
        "subids",
        "supervise",
    },
    "terminal": BASE | {"guard", "kernel", "modes", "program", "sandbox", "supervise"},
    "join": BASE | {"cgroup", "identity", "kernel"},
    "prototypes": set(),
    "syscalls": {"bpf", "kernel"},
    "bpf": BASE,
    "kafel": BASE | {"bpf", "prototypes", "syscalls"},
    "oci": BASE | {"bpf", "kafel", "kernel", "syscalls"},
    "rules": BASE | NEAR | {"bpf", "kafel", "kernel", "oci"},
    "disassembly": {"bpf", "syscalls"},
    "toml": BASE,
    "policy_keys": BASE | NEAR | {"rules", "sandbox", "syscalls", "toml", "values"},
    "policy_text": BASE | {"sandbox", "toml"},
    "policy": BASE | NEAR | {"bpf", "kafel", "policy_keys", "policy_text", "rules", "sandbox", "toml"},
    "policy_plan": BASE | {"identity", "kernel", "limits", "outside", "pasta", "plan", "policy", "sandbox"},
    "policy_options": BASE | {"policy", "policy_keys", "sandbox", "values"},
    "start": BASE | {"bpf", "kernel"},
    "watch": BASE
    | {"bpf", "core", "kafel", "kernel", "newfile", "program", "progress", "report", "rules", "start", "supervise"}
    | {"syscalls"},
    "causes": BASE | {"cgroup", "kernel", "overlay"},
    "probe": BASE
    | {"bpf", "build", "causes", "cgroup", "group", "guard", "identity", "json", "kernel", "landlock", "limits"}
    | {"outside", "overlay", "pasta", "subids", "supervise", "tcp"},
    "tcp": {"bpf", "kernel"},
    "landlock": BASE | {"kernel", "tcp"},
    "elf": BASE,
    "described": BASE
    | {"identity", "landlock", "limits", "plan", "policy", "policy_keys", "policy_options", "policy_plan", "rlimits"}
    | {"rules", "sandbox", "values"},
    "worker": BASE
    | {"cell", "core", "described", "engine", "guard", "job", "kernel", "listing", "output", "registry", "report"}
    | {"request", "sinks", "task", "values"},
    "link": BASE | {"worker"},
    "library": BASE | {"link", "rules"},
    "pool": BASE | {"library", "link"},
    "grid": BASE | {"core", "link", "loop", "output", "progress", "request", "server", "supervise", "task"},
    "commands/__init__": set(),
    "commands/seccomp_exec": BASE | {"core", "disassembly", "kernel", "rules", "start", "watch"},
    "commands/run": BASE
    | {"build", "changes", "core", "launch", "modes", "newfile", "outside", "overlay", "pasta", "program", "records"}
    | {"registry", "sandbox", "subids", "terminal"},
    "commands/enter": BASE | {"core", "join", "kernel", "modes", "program", "supervise", "terminal", "values"},
    "commands/rlimit_exec": {"rlimits"},
    "commands/limit": BASE | {"cgroup", "core", "limit", "limits", "output", "records", "registry", "values"},
    "commands/plot": BASE | {"core", "extra", "newfile", "plot", "record"},
    "commands/top": BASE | {"board", "core", "extra", "json", "kernel", "sandboxes", "supervise", "values"},
    "commands/ps": BASE | {"core", "json", "sandboxes"},
    "commands/policy": BASE
    | {"build", "cgroup", "changes", "core", "fresh", "kernel", "landlock", "launch", "limit", "modes", "newfile"}
    | {"output", "policy", "policy_options", "policy_plan", "program", "records", "rlimits", "sandbox", "start"}
    | {"registry", "terminal"},
    "commands/task": BASE | {"grid", "server", "values"},
    "commands/check": BASE | {"core", "group", "json", "newfile", "overlay", "probe", "values"},
    "commands/landlock_exec": BASE | {"core", "elf", "kernel", "landlock", "values"},
}
# The quotes keep setuptools from taking line 1 for one that pip is to rewrite, without -I: see tools/hako-python.
COMMAND = """\
#!/usr/bin/env -S "python3" -IS
import os, sys; place = os.path.dirname(os.path.realpath(__file__)); exec(open(f"{place}/hako-python").read())
from hako import core
core.main(sys.argv)
"""
EXTRAS = ("hako-plot", "hako-top")  # which take their time
MODULES = sorted(path.relative_to(TOP / "hako").with_suffix("").as_posix() for path in (TOP / "hako").rglob("*.py"))


def imports(name):
    """The modules that hako/NAME.py imports, as far as the source says."""
    for node in ast.walk(ast.parse((TOP / f"hako/{name}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "hako":
            yield from (f"hako.{'__init__' if alias.name.startswith('_') else alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def parts():
    """The parts of the table in CONTRIBUTING.md, the lowest first: [modules]."""
    rows = re.findall(r"^\| [a-z]+ \| [^|]+ \| (.+) \|$", (TOP / "CONTRIBUTING.md").read_text(), re.M)
    found = [re.findall(r"`([^`]+)`", row) for row in reversed(rows[1:])]  # without the heading
    return [[name for name in MODULES if name in part or f"{name.partition('/')[0]}/" in part] for part in found]


def test_the_plan_is_complete():
    assert sorted(PLAN) == MODULES
    assert sorted(name for part in parts() for name in part) == MODULES


def test_the_parts_stand_upon_each_other():
    """No module imports one of a part above its own; "__init__" is the version, too, for who is below."""
    floors = {name: floor for floor, part in enumerate(parts()) for name in part}
    rising = [f"{name} -> {other}" for name in PLAN for other in PLAN[name] if floors[other] > floors[name]]
    assert rising == ["core -> __init__"]


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name):
    of_hako = {module.removeprefix("hako.") for module in imports(name) if module.startswith("hako.")}
    assert of_hako <= PLAN[name]


@pytest.mark.parametrize("name", MODULES)
def test_only_the_kernel_module_knows_ctypes_and_prctl(name):
    found = {module.partition(".")[0] for module in imports(name)} & {"ctypes", "_ctypes", "prctl", "_prctl"}
    assert not found or name in ("kernel", "foreign")


@pytest.mark.parametrize("command", [name for name in core.COMMANDS if name not in EXTRAS])
def test_what_is_imported_at_the_start(command):
    """Start-up is a feature: none of these is needed before PROG runs."""
    code = f"import sys; from hako import core; core.prepare([{command!r}, *sys.argv[1:]]); print(*sys.modules)"
    argv = {
        "rlimit-exec": ["--core=0", "true"],
        "hako-run": ["--userns=auto", "/", "x"],
        "hako-enter": ["1"],
        "seccomp-exec": ["minimal", "true"],
        "hako-limit": ["--memory=64M", "true"],
        "landlock-exec": ["--rwx=/", "true"],
        "hako-policy": ["judge", "true"],
        "hako-ps": [],
        "hako-task": [],
        "hako-check": [],
    }[command]
    if command != "rlimit-exec":
        code = code.replace("core.prepare", "core.moved = True; core.prepare")  # TARGET and PID are not looked at
    places = [str(TOP), *(place for place in sys.path if "site-packages" in place)]
    path = f"import sys; sys.path[:0] = {places!r}; "
    done = subprocess.run([sys.executable, "-IS", "-c", path + code, *argv], capture_output=True, text=True, check=True)
    slow = {"re", "enum", "signal", "functools", "collections", "contextlib", "socket", "subprocess", "json", "typing"}
    slow |= {
        "tomllib",
        "dataclasses",
        "asyncio",
        "logging",
        "argparse",
        "inspect",
        "importlib.util",
        "pathlib",
        "prctl",
        "difflib",
    }
    assert slow & set(done.stdout.split()) == set()
    assert "docopt" in done.stdout.split()


def test_the_patterns_are_those_of_the_docstrings():
    made = subprocess.run(
        [sys.executable, TOP / "tools/make_patterns.py"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": TOP},
    )
    assert made.stdout == (TOP / "hako/patterns.py").read_text()


@pytest.mark.parametrize("command", list(core.COMMANDS))
def test_a_docstring_is_a_help_text(command):
    doc = core.load(command).__doc__
    assert doc.startswith(f"{command} - ")
    assert doc.lower().count("usage:") == 1
    assert doc.rstrip().splitlines()[-1].startswith("See ")
    options = doc.partition("Options:")[2].partition("\n\n")[0].strip("\n").splitlines()
    assert all(line.startswith(("  -", "       ")) for line in options)
    assert all(len(line) <= 120 for line in doc.splitlines())


def test_one_script_a_command():
    scripts = sorted((TOP / "bin").iterdir())
    assert [path.name for path in scripts] == sorted(core.COMMANDS)
    assert {path.read_text() for path in scripts} == {COMMAND}


def test_the_built_commands_are_isolated():
    """Without -I a sandboxed program that can write ~/.local plants a module which the next hako-run imports."""
    for command in core.COMMANDS:
        first, second, *_ = (pathlib.Path(sys.executable).parent / command).read_text().splitlines()
        assert re.fullmatch(r"#!/\S+ -IS", first)
        assert second.startswith("import sys; sys.path[:0] = [")


def test_setup_cfg_names_all_that_is_there():
    config = configparser.ConfigParser()
    config.read(TOP / "setup.cfg")
    scripts = ["tools/hako-python", *(f"bin/{name}" for name in core.COMMANDS)]
    assert sorted(config["options"]["scripts"].split()) == sorted(scripts)
    pages = " ".join(config["options.data_files"].values()).split()
    assert sorted(pages) == sorted(path.relative_to(TOP).as_posix() for path in (TOP / "man").iterdir())
    assert config["options"]["packages"].split() == ["hako", "hako.commands"]


def test_every_function_says_what_it_does():
    for name in MODULES:
        if name == "patterns":
            continue
        tree = ast.parse((TOP / f"hako/{name}.py").read_text())
        kinds = (ast.FunctionDef, ast.ClassDef)
        inner = {id(node) for parent in ast.walk(tree) if isinstance(parent, ast.FunctionDef) for node in parent.body}
        missing = [
            node.name
            for node in ast.walk(tree)
            if isinstance(node, kinds)
            and id(node) not in inner
            and not ast.get_docstring(node)
            and not node.name.startswith("_")
        ]
        assert missing == [], name
    assert ast.get_docstring(ast.parse((TOP / "hako/core.py").read_text()))
