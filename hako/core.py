"""What every hako command shares: read a chain, fail, become PROG.

Knows argv, messages and exit statuses; knows nothing of namespaces or mounts.
A command is a module of hako.commands: its docstring is its interface, and its
prepare(args) checks everything and returns the enter() that changes the process.
"""

import _signal  # not signal: that one makes enums of everything, 7 ms of a start of 20
import os
import sys

from hako import __version__
from hako.failure import EXPECTED, FAILED, Failure, call, line_of, show

NOT_EXECUTABLE, NOT_FOUND = 126, 127  # as env(1)
COMMANDS = {  # what a chain may name
    "hako-run": "run",
    "hako-enter": "enter",
    "hako-limit": "limit",
    "rlimit-exec": "rlimit_exec",
    "seccomp-exec": "seccomp_exec",
    "landlock-exec": "landlock_exec",
    "hako-policy": "policy",
    "hako-ps": "ps",
    "hako-top": "top",
    "hako-plot": "plot",
    "hako-task": "task",
    "hako-check": "check",
}
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENOENT, ENOEXEC, EBADF, EACCES, ENOTDIR = 2, 8, 9, 13, 20
S_IFMT = 0o170000  # the type of a file in its mode
ST_NOEXEC = 8  # of statvfs(2), which the os module lacks

# Descriptors of the commands of this chain that wait, all close-on-exec: exec
# closes them, which says "PROG runs"; "!" and a line in them say that it will not.
waiting = []

# Called with a path, argv and environment instead of execve(2), by who has a last
# step that must come right before it.
execute = os.execve

# Whether, while the chain is prepared, an earlier link moves to other mounts:
# then the names of this link mean nothing yet.
moved = False

# The argv of PROG, what the chain ends in; None while it is prepared.
prog = None

# What to say should there be no such PROG: nothing can be looked up by then.
advice = ""

# While the chain is prepared: the capabilities that PROG will hold, numbers, as
# far as an earlier link decides that; None if none does.
held = None


def main(argv):
    """Run the chain ARGV: prepare every link, enter each in turn, become PROG; never return."""
    global prog
    name = os.path.basename(argv[0])
    try:
        if name not in COMMANDS:
            raise Failure(f"no command of hako has this name: {', '.join(COMMANDS)}")
        hold_standard_descriptors()
        undo_cpython()
        entries, prog = prepare([name, *argv[1:]])
        sys.path.clear()  # from here on nothing may be imported: the root may be a stranger's
        for link, enter in entries:
            name = link  # whose failure it is, from here on
            enter()
        become(prog)
    except Failure as err:
        fail(f"{getattr(err, 'name', name)}: {err}", err.status)
    except EXPECTED as err:
        fail(f"{name}: {line_of(err)}", FAILED)
    except Exception:
        # A bug, and perhaps in the process that was to be PROG: say so, run nothing.
        sys.excepthook(*sys.exc_info())
        fail(f"{name}: a bug in hako, above", FAILED)


def prepare(argv):
    """Prepare every link of the chain ARGV; return [(name, enter)] and the argv of PROG."""
    global moved, advice
    entries = []
    while argv and argv[0] in COMMANDS:
        name = argv[0]
        try:
            module = load(name)
            args = read(name, module, argv[1:])
            asked = args.get("PROG") is not None  # else the command may choose one
            entries.append((name, module.prepare(args)))
        except Failure as err:
            err.name = name
            raise
        if "PROG" not in args:
            return entries, [name]  # it becomes nothing, and is what the chain ends in
        moved = moved or getattr(module, "MOVES", False)
        argv = [args["PROG"], *args["ARG"]] if args["PROG"] is not None else list(module.DEFAULT)
    advice = advice_on(argv[0]) if asked else f"the default: {name} takes another PROG"
    return entries, argv


def advice_on(word):
    """What to say should there be no PROG of the name WORD, "" for nothing."""
    if is_option(word):
        return "options stand before the operands"
    if moved and any(map(os.path.lexists, places(word))):
        return f"outside of the sandbox it is there: mount it{'' if '/' in word else ', or set PATH'}"
    parts = {part for name in COMMANDS for part in name.split("-")}
    if "-" not in word or parts.isdisjoint(word.split("-")):
        return ""
    from hako import near

    return near.question(word, COMMANDS).rstrip()


def load(name):
    """The module of the command NAME."""
    module = f"hako.commands.{COMMANDS[name]}"
    __import__(module)  # importlib would be one more import
    return sys.modules[module]


def read(name, module, argv):
    """ARGV by the usage of MODULE, the command NAME: docopt's dictionary.

    Stricter than docopt alone, which takes --ver for --verbose: no option is
    guessed. ARG... does not go through docopt, whose time is quadratic in it.
    """
    docopt = import_docopt()
    from hako import patterns

    pattern = getattr(patterns, COMMANDS[name])(docopt)
    words, more, rest = split(docopt, name, pattern, argv)
    answer_help(module, words)
    matched, left, collected = pattern.match(words)
    if not matched or left:
        raise Failure(complaint(name, module, words, left))
    args = {item.name: item.value for item in pattern.flat() + collected}
    for option, values in more.items():
        args[option] = args[option] + values
    if "ARG" in args:
        args["ARG"] = args["ARG"] + rest
    return args


def import_docopt():
    """docopt, without re, which it needs only to read docstrings: `make patterns` has done that.

    re is 10 ms of a start of 20. Should docopt, or who else is in this process,
    want it after all, the stand-in fetches it.
    """
    if "docopt" in sys.modules or "re" in sys.modules:
        import docopt

        return docopt

    class Later(type(sys)):
        def __getattr__(self, name):
            sys.modules.pop("re", None)
            import re

            docopt.re = re
            return getattr(re, name)

    sys.modules["re"] = Later("re")
    try:
        import docopt
    finally:
        del sys.modules["re"]
    return docopt


def split(docopt, name, pattern, argv):
    """ARGV of the command NAME as docopt's words; further values by option; the rest of ARG.

    The second holds what repeats an option that may be repeated, the third what
    stands behind the operands that PATTERN can name.
    """
    options = {key: option for option in pattern.flat(docopt.Option) for key in (option.short, option.long) if key}
    words, more, argv, operands = [], {}, list(reversed(argv)), []
    chains = any(argument.name == "PROG" for argument in pattern.flat(docopt.Argument))
    while argv and (not chains or is_option(argv[-1])):
        word = argv.pop()
        if word == "--":
            break
        if not is_option(word):
            operands.append(word)  # no other command's: options may come behind it
            continue
        for option, value in pairs(name, options, word, argv):
            if type(option.value) is list and any(known.name == option.name for known in words):
                more.setdefault(option.name, []).append(value)
            else:
                words.append(docopt.Option(option.short, option.long, option.argcount, value))
    argv = operands + argv[::-1]
    named = 2 + len({argument.name for argument in pattern.flat(docopt.Argument)})
    return words + [docopt.Argument(None, word) for word in argv[:named]], more, argv[named:]


def is_option(word):
    """Whether WORD is one, or the -- behind them."""
    return word.startswith("-") and word != "-"


def pairs(name, options, word, argv):
    """The (option, value) pairs that WORD stands for, "--long=value" or "-abc"; takes a value from ARGV."""
    if word.startswith("--"):
        key, given, value = word.partition("=")
        found = [(key, value if given else None)]
    elif f"-{word.partition('=')[0]}" in options:  # -env=X, which is not meant for -e with nv=X
        found = [(word.partition("=")[0], None)]
    else:
        found, cluster = [], word[1:]
        while cluster:
            key, cluster = f"-{cluster[0]}", cluster[1:]
            takes = key in options and options[key].argcount
            found.append((key, cluster if takes and cluster else None))
            cluster = "" if takes else cluster
    for key, value in found:
        if key not in options:
            raise Failure(f"unknown option: {key!r} [{meant(name, options, word)}see {name} --help]")
        if not options[key].argcount:
            if value is not None:
                raise Failure(f"{key}: takes no value: {word!r}")
            yield options[key], True
        elif value is None and not argv:
            raise Failure(f"{key}: needs a value [see {name} --help]")
        else:
            yield options[key], argv.pop() if value is None else value


def meant(name, options, word):
    """What WORD, which is none of the OPTIONS of the command NAME, may mean: the beginning of a hint, or ""."""
    from hako import near, patterns

    docopt, others = import_docopt(), {}
    for command, module in COMMANDS.items():
        listed = getattr(patterns, module)(docopt).flat(docopt.Option)
        others[command] = [option.long for option in listed if command != name]
    return near.option(word.partition("=")[0], options, others)


def answer_help(module, words):
    """Print help or the version, if WORDS ask for it, and end."""
    asked = {word.name for word in words if word.name in ("--help", "--version")}
    if asked:
        text = module.__doc__.strip("\n") if "--help" in asked else f"hako {__version__}"
        print_out(text.encode() + b"\n")


def complaint(name, module, words, left):
    """Why docopt did not take WORDS, of which it LEFT some: one line."""
    names = [word.name for word in words if word.name]
    twice = [option for option in names if names.count(option) > 1]
    if twice:
        return f"{twice[0]}: given twice"
    usage = usage_for(name, module, names)
    missing = required(usage)[len(words) - len(names) :]
    if missing:
        return f"{missing[0]} is missing [{usage}]"
    if left and left[-1].name is None:
        return f"too many operands: {left[-1].value!r} [{usage}]"
    return f"what does not go together: {' '.join(names)} [see {name} --help]"


def usage_for(name, module, names):
    """The usage of MODULE, the command NAME, in one line: that of several in which most of the options NAMES are."""
    text = module.__doc__.partition("Usage:")[2].partition(f"\n  {name} (--help")[0]
    usages = [f"{name} {' '.join(usage.split())}" for usage in text.split(f"\n  {name} ")[1:]]
    return max(usages, key=lambda usage: sum(option in usage for option in names))


def required(usage):
    """The operands without which USAGE, one line, does not hold: the words in capitals outside of brackets."""
    depth, found = 0, []
    for word in usage.split():
        if not depth and word.isalpha() and word.isupper():
            found.append(word)
        depth += word.count("[") - word.count("]")
    return found


def hold_standard_descriptors():
    """Put something in the places of 0, 1 and 2 that are closed, so that nothing of ours gets there.

    For us stdin is at its end then, and nothing can be written. It is
    close-on-exec: PROG meets them closed, as its caller had them.
    """
    while True:
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        if fd > 2:
            os.close(fd)
            return
        if fd == 0:  # of an eventfd the end would never come
            os.close(fd)
            os.close(os.pipe()[1])


def undo_cpython():
    """Put back what CPython changed in the process it was started in; exec would pass it on."""
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # ignored since Py_Initialize
        _signal.signal(number, _signal.SIG_DFL)
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)  # die of it, without a traceback
    if "LC_CTYPE" in os.environ:  # perhaps set by CPython in the C locale, PEP 538
        try:
            with open("/proc/self/environ", "rb") as environ:
                if b"\0LC_CTYPE=" not in b"\0" + environ.read():
                    del os.environ["LC_CTYPE"]
        except OSError:
            pass  # without /proc nobody can tell; the value is harmless


def fail(line, status):
    """Say LINE on stderr, tell the waiting commands that PROG will not run and why, exit with STATUS."""
    told = [write(fd, b"!" + os.fsencode(line)[:4000]) for fd in waiting]  # less than PIPE_BUF: all of it or nothing
    if all(told):  # else who waited was killed, which is why this failed, and it ends by that in a moment
        say(line)
    os._exit(status)  # not sys.exit: in a child of a waiting command, Python's end is none of its business


def print_out(data):
    """Write DATA to stdout; end."""
    write_all(1, data, "stdout")
    os._exit(0)


def write_all(fd, data, name):
    """Write all of DATA to FD, called NAME in the message."""
    with call(f"write {name}"):
        if not os.fstat(fd).st_mode & S_IFMT:  # an eventfd of ours, in the place of what is closed
            raise OSError(EBADF, "")
        while data:
            data = data[os.write(fd, data) :]


def say(line):
    """Write LINE to stderr, if there is one to write to."""
    write(2, os.fsencode(line) + b"\n")


def write(fd, data):
    """Write DATA to FD; return whether there is somebody who reads it, which may not matter."""
    try:
        os.write(fd, data)
    except BrokenPipeError:
        return False
    except OSError:
        pass
    return True


def become(argv, env=None):
    """Replace this process with ARGV, found on PATH, by execute(); return what that returns, should it.

    ENV, {name: value}, is the environment to look for PATH in and to pass on, by default this process's. See execve(2).
    """
    env = os.environ if env is None else env
    if not argv[0]:
        raise Failure("an empty name cannot be run: ''", NOT_FOUND)
    denied = None
    for place in places(argv[0], env):
        try:
            return execute(place, argv, env)
        except OSError as err:
            if err.errno not in (ENOENT, ENOTDIR, EACCES) or getattr(err, "final", False):
                raise unusable(argv[0], err) from err
            if err.errno == EACCES or os.path.lexists(place):
                err.place = place
                denied = denied if denied and not hasattr(err, "hint") else err
        except ValueError as err:
            raise Failure(f"{show(argv[0])}: {err}", NOT_EXECUTABLE) from err
    if denied:
        raise unusable(argv[0], denied) from denied
    raise Failure(f"{show(argv[0])}: No such file or directory{f' [{advice}]' if advice else ''}", NOT_FOUND)


def places(name, env=None):
    """Where become() looks for the program NAME, first to last."""
    env = os.environ if env is None else env
    if "/" in name:
        return [name]
    return [os.path.join(place or ".", name) for place in env.get("PATH", DEFAULT_PATH).split(":")]


def unusable(prog, err):
    """The Failure of a PROG that is there and cannot be executed, by the OSError ERR.

    That may have a hint, or the place where PROG is, which may be looked at then.
    """
    hint = getattr(err, "hint", "") or why_not(err.errno, getattr(err, "place", None))
    return Failure(f"{show(prog)}: {err.strerror}" + (f" [{hint}]" if hint else ""), NOT_EXECUTABLE)


def why_not(errno, place):
    """What ERRNO does not tell, of execve(2) of what is at PLACE, None if that is not to be looked at."""
    if errno == ENOENT:
        return "its interpreter or dynamic loader is missing here"
    if errno == ENOEXEC:
        return "neither a program for this machine nor a script with #! and an interpreter"
    if errno != EACCES or place is None:
        return ""
    try:
        if os.path.isdir(place):
            return "a directory"
        if not os.stat(place).st_mode & 0o111:
            return "not executable: chmod +x"
        return "on a mount with noexec" if os.statvfs(place).f_flag & ST_NOEXEC else ""
    except OSError:
        return ""
