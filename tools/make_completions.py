"""make_completions.py DIRECTORY - write what bash, zsh and fish need to complete command lines of hako into DIRECTORY

All of it comes from the docstrings of the commands; what a value may be, from
its placeholder, or from the tables here. In a chain, PROG may be a command of
hako again, and then its options and operands come next.
"""

import pathlib
import re
import sys

from hako import core, kernel, policy, rules

# What each placeholder stands for: words, or with a colon in front what a shell lists by itself.
# What is not here, a number say, cannot be completed.
PLACEHOLDERS = {
    "FILE": ":path",
    "PATH": ":path",
    "DIR": ":directory",
    "UPPER": ":directory tmpfs",
    "TARGET": ":directory",
    "USER": ":user",
    "GROUP": ":group",
    "CAP": ":capability all",
    "RULES": ":profile :path",
    "POLICY": ":policy :path",
    "PID": ":pid",
    "PROG": ":prog",
    "NET": "none host pasta :path",
}
# The same for options whose placeholder does not tell.
OPTIONS = {
    "--mount": ":path",
    "--ro-bind": ":path",
    "--rw-bind": ":path",
    "--env": ":variable",
    "--chdir": "",  # a directory, but not one of here
    "--userns": "auto always never",
    "--map": "self subid",
    "--tolerate": "pids memory",
    "--scope": "abstract-unix signal",
}


class Option:
    """An option.

    short       -x, without the -, or None
    long        --name
    value       the placeholder of its value, or None
    kinds       what that may be
    about       what the docstring says of it
    repeatable  whether it may be given again
    """

    def __init__(self, spelling, about, usage):
        self.short = next(iter(re.findall(r"(?<![\w-])-(\w)\b", spelling)), None)
        self.long = re.search(r"--[\w-]+", spelling)[0]
        self.value = next(iter(re.findall(r"=(\S+)", spelling)), None)
        self.about = re.sub(r"\s+", " ", about).strip()
        self.kinds = None if self.value is None else OPTIONS.get(self.long, kinds(self.value))
        self.repeatable = f"{self.long}={self.value}]..." in usage

    def names(self):
        """Its spellings."""
        return [self.long] if self.short is None else [f"-{self.short}", self.long]


class Command:
    """The command NAME.

    options    its Options
    operands   placeholders
    instead    {long option: placeholders behind it}, where those are others
    """

    def __init__(self, name):
        doc = core.load(name).__doc__
        usage = doc.partition("\nUsage:\n")[2].partition("\n\n")[0]
        listed = doc.partition("\nOptions:\n")[2].partition("\n\n")[0]
        entries = [re.split(r"\s{2,}", entry, maxsplit=1) for entry in re.split(r"\n  (?=-)", f"\n{listed}")[1:]]
        first, *others = re.split(rf"\n  (?={name} )", f"\n{usage}")[1:]
        self.name = name
        self.options = [Option(spelling, about, usage) for spelling, about in entries]
        self.operands = operands(first)
        self.instead = {long: operands(line) for line in others for long in needed(line)}


def kinds(placeholder):
    """What a value that is called PLACEHOLDER may be; a word that is none is the value itself, as in --fs=none."""
    return placeholder if placeholder.islower() else PLACEHOLDERS.get(placeholder, "")


def operands(usage):
    """The placeholders of the operands in the line USAGE."""
    return [name for name in re.findall(r"(?<![=\w-])[A-Z]{2,}\b", usage) if name != "ARG"]


def needed(usage):
    """The options without which the line USAGE does not hold."""
    return re.findall(r"--[a-z][\w-]*", re.sub(r"\[[^][]*\]", "", usage))


def words_of(kind):
    """The words that KIND, one with a colon, stands for; none if they are the shell's to list."""
    known = {
        ":capability": kernel.CAPABILITIES,
        ":profile": [name for name, _ in rules.listed(rules.PROFILES)],
        ":policy": sorted(path.stem for path in pathlib.Path(policy.POLICIES).glob("*.toml")),
    }
    return list(known.get(kind, ()))


def expanded(text):
    """TEXT, kinds, as (words, what the shell lists)."""
    words, listed = [], []
    for kind in text.split():
        found = words_of(kind) if kind.startswith(":") else [kind]
        words += found
        if kind == ":policy" or not found:
            listed.append(kind[1:])
    return words, listed


def patterns(command, value):
    """The shell patterns for COMMAND and its options that take a VALUE of one kind, "hako-run:--mount"."""
    return "|".join(f"{command.name}:{name}" for option in value for name in option.names())


def by_kinds(command):
    """The options of COMMAND that take a value, together if their kinds are the same: {kinds: [Option]}."""
    found = {}
    for option in command.options:
        if option.value is not None:
            found.setdefault(option.kinds, []).append(option)
    return found


def bash(commands):
    """The completions for bash."""
    values, instead, first, options = [], [], [], []
    for command in commands:
        for text, those in by_kinds(command).items():
            words, listed = expanded(text)
            values.append(f"{patterns(command, those)}) words='{' '.join(words)}' kinds='{' '.join(listed)}' ;;")
        for long, names in command.instead.items():
            instead.append(f"{command.name}:{long}) operands='{' '.join(names)}' ;;")
        first.append(f"{command.name}) operands='{' '.join(command.operands)}' ;;")
        longs = [option.long + ("" if option.value is None else "=") for option in command.options]
        shorts = [f"-{option.short}" for option in command.options if option.short]
        options.append(f"{command.name}) words='{' '.join(longs + shorts)}' ;;")
    placeholders = []
    for name, text in PLACEHOLDERS.items():
        words, listed = expanded(text)
        placeholders.append(f"{name}) words='{' '.join(words)}' kinds='{' '.join(listed)}' ;;")
    names = " ".join(command.name for command in commands)
    return fill(
        "bash",
        VALUES=values,
        INSTEAD=instead,
        OPERANDS=first,
        OPTIONS=options,
        PLACEHOLDERS=placeholders,
        NAMES=[names],
    )


def zsh(commands):
    """The completions for zsh."""
    functions = []
    for command in commands:
        lines = [f"_hako_{command.name}() {{", "  local -a operands", f"  operands=({zsh_operands(command.operands)})"]
        for long, names in command.instead.items():
            lines.append(f"  (( $words[(I){long}(|=*)] )) && operands=({zsh_operands(names)})")
        lines.append("  _arguments -s -S -A '-*' \\")
        lines += [f"    {spec} \\" for option in command.options for spec in zsh_option(option)]
        functions += [*lines, "    $operands", "}", ""]
    names = " ".join(command.name for command in commands)
    return fill("zsh", FUNCTIONS=functions, NAMES=[names])


def zsh_option(option):
    """The specifications of OPTION for _arguments."""
    about = re.sub(r"([][\\:])", r"\\\1", option.about)
    others = "" if option.repeatable else f"({' '.join(option.names())})"
    for name in option.names():
        sign = "" if option.value is None else "=" if name.startswith("--") else "+"
        value = "" if option.value is None else f":{option.value}:{zsh_action(option.kinds)}"
        yield quoted(f"{'*' if option.repeatable else others}{name}{sign}[{about}]{value}")


def zsh_action(text):
    """The action of _arguments for a value of the kinds TEXT."""
    words, listed = expanded(text)
    if not words and not listed:
        return " "
    return "{_hako_any '" + " ".join(words) + "' " + " ".join(listed) + "}"


def zsh_operands(names):
    """The specifications of the operands NAMES."""
    specs = []
    for number, name in enumerate(names, 1):
        specs.append("*::: :_hako_prog" if name == "PROG" else f"{number}:{name}:{zsh_action(kinds(name))}")
    return " ".join(map(quoted, specs))


def quoted(text):
    """TEXT in single quotes, for a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def fish(commands):
    """The completions for fish."""
    lines, tables = [], []
    for command in commands:
        name, at = command.name, f"complete -c {command.name} -f -n"
        valued = [known for option in command.options if option.value is not None for known in option.names()]
        tables += [f"case {name}", f"    set valued {' '.join(valued)}"]
        tables += [f"    set operands {' '.join(command.operands)}"]
        for long, operands_ in command.instead.items():
            tables.append(f"    contains -- {long} $seen; and set operands {' '.join(operands_)}")
        for option in command.options:
            spelling = (f"-s {option.short} " if option.short else "") + f"-l {option.long[2:]}"
            value = "" if option.value is None else f" -x -a {fish_words(option.kinds)}"
            about = option.about.replace("\\", "\\\\").replace("'", "\\'")
            lines.append(f"{at} '__hako_is options' {spelling} -d '{about}'{value}")
        for operand in dict.fromkeys(
            [*command.operands, *(one for names in command.instead.values() for one in names)]
        ):
            words = "'(__hako_prog)'" if operand == "PROG" else fish_words(kinds(operand))
            lines.append(f"{at} '__hako_is {operand}' -a {words}")
    names = " ".join(command.name for command in commands)
    return fill("fish", TABLES=tables, COMPLETIONS=lines, NAMES=[names])


def fish_words(text):
    """The argument of complete -a for a value of the kinds TEXT."""
    words, listed = expanded(text)
    return "'" + " ".join([*words, *(f"(__hako_{kind})" for kind in listed)]) + "'"


def fill(shell, **parts):
    """The template for SHELL with the lines PARTS in the places of their names."""
    text = (pathlib.Path(__file__).parent / f"completions.{shell}").read_text()
    for name, lines in parts.items():
        text = text.replace(f"@{name}@", "\n".join(lines))
    return text


if __name__ == "__main__":
    every = [Command(name) for name in core.COMMANDS]
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for file_name, text in {"hako.bash": bash(every), "_hako": zsh(every), "hako.fish": fish(every)}.items():
        (directory / file_name).write_text(text)
