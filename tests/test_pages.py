"""The pages in man/: what they say is what the commands say of themselves, and what they do.

A page is read as mandoc renders it, in HTML, where macros have become words. Its
examples are run as they stand: of "$ " and "> " and what is typed behind them, the
very transcript must come out.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hako import core, kernel

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.prefix) / "bin"
PAGES = sorted((ROOT / "man").iterdir())
COMMANDS = sorted(path.name for path in (ROOT / "bin").iterdir())
# In the order of mdoc(7), which mandoc insists on.
SECTIONS = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO", "CAVEATS"]
LACKING = {
    ".1": (),
    ".3": ("OPTIONS", "EXIT STATUS"),
    ".5": ("SYNOPSIS", "OPTIONS", "EXIT STATUS"),
    ".7": ("OPTIONS", "EXIT STATUS"),
}
OF_THE_SYSTEM = {  # pages that come with Linux, to which ours may point
    *("bwrap(1)", "env(1)", "ldd(1)", "newgidmap(1)", "newuidmap(1)", "nice(1)", "nohup(1)", "pasta(1)"),
    *("tty(1)", "core(5)", "passwd(5)", "subuid(5)"),
    *("clone3(2)", "execve(2)", "mount(2)", "mount_setattr(2)", "pidfd_open(2)", "pivot_root(2)", "setns(2)"),
    *("flock(2)", "seccomp(2)", "seccomp_unotify(2)", "setrlimit(2)", "syscalls(2)"),
    *("capabilities(7)", "cgroups(7)", "ip(7)", "keyrings(7)", "landlock(7)"),
    *("mount_namespaces(7)", "namespaces(7)", "pid_namespaces(7)", "user_namespaces(7)"),
}
# Of others, in examples and advice.
OPTIONS_OF_OTHERS = {"--ro-bind", "--seccomp", "--scope", "--user", "--dns-forward", "--security-opt"}
LANDLOCK_OF_THE_EXAMPLES = 6  # the version with all that they show
ORDINARY = 65534
DIGITS = str.maketrans("123456789", "000000000")
SECONDS = 60  # more than the examples of one page ever take

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
each_command = pytest.mark.parametrize("name", COMMANDS)


def mandoc(page, *options):
    return subprocess.run(["mandoc", *options, page], capture_output=True, text=True, timeout=SECONDS, check=False)


def rendered(page):
    """PAGE as a tree of HTML."""
    return ElementTree.fromstring(f"<page>{mandoc(page, '-T', 'html', '-O', 'fragment').stdout}</page>")


def words(element):
    """The text of ELEMENT, with one blank between words."""
    return " ".join("".join(element.itertext()).split())


def sections(page):
    """The sections of PAGE: {heading: element}, without the heading in it."""
    found = {}
    for section in rendered(page).iter("section"):
        if section.get("class") == "Sh":
            heading = section.find("h1")
            section.remove(heading)
            found[words(heading)] = section
    return found


def page_of(name):
    return ROOT / "man" / f"{name}.1"


def docstring_options(name):
    """The options in the docstring of the command NAME: [(spelling, what it says)]."""
    listed = core.load(name).__doc__.partition("\nOptions:\n")[2].partition("\n\n")[0]
    entries = re.split(r"\n  (?=-)", f"\n{listed}")[1:]
    return [tuple(re.split(r"\s{2,}", entry, maxsplit=1)) for entry in entries]


def page_options(name):
    """The options in the page of the command NAME: [(spelling, what it says)]."""
    terms = sections(page_of(name))["OPTIONS"].findall("dl/*")
    return [(words(term), words(text)) for term, text in zip(terms[::2], terms[1::2], strict=True)]


def test_every_command_has_a_page_and_every_page_its_command():
    assert [page.name for page in PAGES if page.suffix == ".1"] == [f"{name}.1" for name in COMMANDS]
    assert "hako-chain.7" in [page.name for page in PAGES]


def test_the_reference_is_that_of_the_docstrings():
    made = subprocess.run(
        [sys.executable, ROOT / "tools/make_reference.py"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ROOT},
    )
    assert made.stdout == (ROOT / "man/hako.3").read_text()


@each_page
def test_mandoc_finds_nothing_wrong(page):
    lint = mandoc(page, "-T", "lint", "-W", "warning")
    assert (lint.returncode, lint.stdout, lint.stderr) == (0, "", "")


@each_page
def test_sections(page):
    assert list(sections(page)) == [name for name in SECTIONS if name not in LACKING[page.suffix]]


@each_page
def test_words_are_those_of_the_source(page):
    """A heading or a word that mdoc takes for a macro is lost; one behind .Sm off is glued to the next."""
    source = re.findall(r"^\.S[hs] (.*)$", page.read_text(), re.M)
    assert [words(heading) for heading in rendered(page).iter() if heading.tag in ("h1", "h2")] == [
        heading.removeprefix("\\&") for heading in source
    ]
    tree = rendered(page)
    for display in tree.iter("pre"):
        display.clear()
    assert re.findall(r"\w*[A-Z]{4}[a-z]{2}\w*", words(tree)) == []


@each_command
def test_name_is_the_first_line_of_the_docstring(name):
    assert words(sections(page_of(name))["NAME"]).replace("\u2014", "-") == core.load(name).__doc__.partition("\n")[0]


@each_command
def test_synopsis_is_the_usage_of_the_docstring(name):
    usage = core.load(name).__doc__.partition("\nUsage:\n")[2].partition("\n\n")[0]
    assert words(sections(page_of(name))["SYNOPSIS"]) == " ".join(usage.split())


@each_command
def test_options_are_those_of_the_docstring(name):
    options = [spelling for spelling, _ in docstring_options(name)]
    assert options
    assert [spelling for spelling, _ in page_options(name)] == options


@each_command
def test_an_option_says_no_less_than_the_docstring(name):
    """Errors, signals and defaults at least; and something in any case."""
    described = dict(page_options(name))
    for spelling, text in docstring_options(name):
        wanted = re.findall(r"\b(?:E[A-Z]{3,}|SIG[A-Z]+)\b", text)
        wanted += [f"The default is {value}." for value in re.findall(r"\[default: (.+)\]", text)]
        assert described[spelling]
        assert [text for text in wanted if text not in described[spelling]] == [], spelling


@each_page
def test_no_option_is_promised_that_no_command_has(page):
    known = {word for name in COMMANDS for spelling, _ in docstring_options(name) for word in long_options(spelling)}
    assert long_options(words(rendered(page))) <= known | OPTIONS_OF_OTHERS


def long_options(text):
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def test_the_profiles_and_groups_are_those_of_seccomp_exec():
    headings = {"Built-in profiles": "profiles:", "Built-in groups": "groups, for USE:"}
    told = []
    for section in rendered(ROOT / "man" / "hako-rules.5").iter("section"):
        if section.get("class") == "Ss" and words(section.find("h2")) in headings:
            terms = section.findall("dl/*")
            told.append(headings[words(section.find("h2"))])
            told += [f"{words(name)} {words(text)}" for name, text in zip(terms[::2], terms[1::2], strict=True)]
    listed = output(["seccomp-exec", "--list"], ROOT).splitlines()
    assert [" ".join(line.split()) for line in listed] == told


@each_command
def test_a_command_that_waits_says_so_first(name):
    if "waits" in core.load(name).__doc__:
        assert "waits for it" in words(sections(page_of(name))["DESCRIPTION"].find("p"))


@each_page
def test_references_lead_somewhere(page):
    found = [words(link) for link in rendered(page).iter("a") if link.get("class") == "Xr"]
    also = [words(link) for link in sections(page)["SEE ALSO"].iter("a")]
    ours = {f"{path.stem}({path.suffix[1:]})" for path in PAGES}
    namesakes = {name for name in ours if name.startswith(f"{page.stem}(")} - {f"{page.stem}({page.suffix[1:]})"}
    assert also
    assert namesakes <= set(also)
    assert [name for name in found if name not in ours | OF_THE_SYSTEM] == []
    assert [name for name in also if also.count(name) > 1] == []


@pytest.fixture(params=["root", "ordinary user"] if os.geteuid() == 0 else ["ordinary user"])
def somebody(request):
    """Who runs the examples: the words to put in front, and a directory of that user."""
    # Not tmp_path: nobody but its owner may enter the directories above that.
    directory = Path(tempfile.mkdtemp(prefix="hako-pages-", dir="/tmp"))
    directory.chmod(0o755)
    as_user = []
    if request.param != "root" and os.geteuid() == 0:
        os.chown(directory, ORDINARY, ORDINARY)
        as_user = ["setpriv", f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", "--"]
    yield as_user, directory
    shutil.rmtree(directory)


@each_page
def test_examples_do_what_the_page_shows(page, somebody):
    as_user, directory = somebody
    displays = ["".join(display.itertext()).strip("\n") for display in sections(page)["EXAMPLES"].iter("pre")]
    assert displays
    assert all(display.startswith("$ ") for display in displays)
    transcript = "\n".join(displays) + "\n"
    said = output([*as_user, "sh", "-c", script(transcript)], directory)
    if page.name == "landlock-exec.1" and kernel.landlock_abi() < LANDLOCK_OF_THE_EXAMPLES:
        assert f"landlock-exec: landlock: Linux {os.uname().release} " in said  # refused, and nothing else
        return
    assert said == transcript


def test_the_report_of_the_page_is_like_one(tmp_path):
    """The same keys in the same order, values of the same types."""
    (display,) = sections(ROOT / "man/hako-report.5")["DESCRIPTION"].iter("pre")
    told = json.loads("".join(display.itertext()))
    made = json.loads(output(["hako-limit", "--time=60", "--report=-", "true"], tmp_path))
    assert list(told) == list(made)
    assert told["start_time"].translate(DIGITS) == made["start_time"].translate(DIGITS)
    assert all(None in (told[key], made[key]) or type(told[key]) is type(made[key]) for key in made)


@each_page
def test_command_lines_outside_the_examples_are_right(page):
    """As far as that can be told without running them: every link of their chains reads its options and operands."""
    displays = [words(display) for _, section in sections(page).items() for display in section.iter("pre")]
    for display in displays:
        if display.partition(" ")[0] not in core.COMMANDS:
            continue
        argv = shlex.split(display.replace("\\ ", ""))
        while argv and argv[0] in core.COMMANDS:
            args = core.read(argv[0], core.load(argv[0]), argv[1:])
            argv = [args["PROG"], *args["ARG"]]
        assert argv[0]


@pytest.fixture(scope="module")
def website(tmp_path_factory):
    """What make html makes: {name: tree of HTML}."""
    directory = tmp_path_factory.mktemp("html")
    argv = ["make", "-s", "-C", ROOT, f"BUILD={directory}", "html"]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    entity = re.compile("&nbsp;")
    pages = (directory / "html").glob("*.html")
    return {page.name: ElementTree.fromstring(entity.sub(" ", page.read_text().partition("\n")[2])) for page in pages}


def test_every_page_is_on_the_web_and_the_index_leads_to_it(website):
    assert set(website) == {"index.html", *(f"{page.name}.html" for page in PAGES)}
    listed = [link.get("href") for link in website["index.html"].iter("a")]
    assert sorted(listed) == sorted(f"{page.name}.html" for page in PAGES)
    assert all(words(text) for text in website["index.html"].iter("dd"))


def test_links_on_the_web_lead_somewhere(website):
    """To a page of ours or another's; to a place that is there in it."""
    places = {name: {node.get("id") for node in tree.iter() if node.get("id")} for name, tree in website.items()}
    for name, tree in website.items():
        links = [link for link in tree.iter("a") if link.get("class") != "In"]  # as in #include <FILE>
        assert len(links) > 5
        for found in (link.get("href") for link in links):
            file, _, place = found.partition("#")
            assert found.startswith("https://") or (file or name) in website
            assert not place or place in places[file or name]
        references = [link for link in links if link.get("class") == "Xr"]
        ours = {f"{page.stem}({page.suffix[1:]})" for page in PAGES}
        assert all(words(link) not in ours or not link.get("href").startswith("https:") for link in references)


def script(transcript):
    """The shell script that repeats what is typed in TRANSCRIPT, saying each command before it is run."""
    commands, typing = [], False
    for line in transcript.splitlines():
        if line.startswith("$ "):
            commands.append([line])
            typing = True
        elif typing and line.startswith("> "):
            commands[-1].append(line)
        else:
            typing = False
    steps = []
    for lines in commands:
        steps += [shlex.join(["printf", "%s\\n", *lines]), *(line[2:] for line in lines)]
    return "\n".join(steps)


def output(argv, directory):
    """What ARGV, run in DIRECTORY, says on stdout and stderr; it and what it left behind are killed."""
    env = {"PATH": f"{BIN}:{core.DEFAULT_PATH}", "LC_ALL": "C"}
    # A file, not a pipe: to the end of a pipe whoever is left behind would keep us waiting.
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(
            argv, cwd=directory, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        try:
            process.wait(SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        file.seek(0)
        return file.read().decode()
