"""The Kafel language: a policy's text to a bpf.Policy. Pure: whoever calls gives the texts.

Sources: the reference of the language in the design; what is ours: a name
may begin with "_", as _sysctl does; behind USE or POLICY it may hold hyphens;
and USE of a name that is not defined takes the group of that name from the
library.
"""

import sys

from hako import bpf, prototypes, syscalls
from hako.failure import Failure

ACTIONS = {
    "ALLOW": bpf.ALLOW,
    "LOG": bpf.LOG,
    "DENY": bpf.KILL_THREAD,
    "KILL": bpf.KILL_THREAD,
    "KILL_THREAD": bpf.KILL_THREAD,
    "KILL_PROCESS": bpf.KILL_PROCESS,
    "USER_NOTIF": bpf.USER_NOTIF,
}
WITH_VALUE = {"ERRNO": ("Errno", bpf.ERRNO), "TRAP": ("Trap", bpf.TRAP), "TRACE": ("Trace", bpf.TRACE)}
RESERVED = {*ACTIONS, *WITH_VALUE, "SYSCALL", "USE", "POLICY", "DEFAULT", "define", "ON"}
ARCHITECTURES = {  # the names behind ON, lower case: libseccomp's
    **{"arm": "arm", "aarch64": "aarch64", "arm64": "aarch64", "x86_64": "x86_64", "amd64": "x86_64"},
    **{"x86": "x86", "i386": "x86", "mips": "mips", "mipso32": "mips", "mips64": "mips64"},
    **{"riscv64": "riscv64", "rv64": "riscv64", "m68k": "m68k"},
}
MOST_INCLUDES = 16
MOST_OPERANDS = 200
MOST_SHOWN = 60
MOST_TOKENS = 100_000  # over all includes
MOST_RULES = 20_000  # with each USE counted again
MOST_ARGUMENTS = 16  # in one value: the words of BPF's memory
LETTERS = frozenset("_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
WORD = LETTERS | frozenset("0123456789_")
BLANK = frozenset(" \t\n")
SIGNS = ("&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "&", "|", "(", ")", "{", "}", "[", "]", ",", ";", "#")
COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")


class Source:
    """A text with its name; LENIENT: calls that this architecture lacks are left out (for the built-in ones)."""

    __slots__ = ("lenient", "name", "text")

    def __init__(self, name, text, lenient=False):
        self.name, self.text, self.lenient = name, text, lenient

    def at(self, offset):
        """OFFSET as FILE:LINE:COL."""
        before = self.text[:offset]
        return f"{self.name}:{before.count(chr(10)) + 1}:{offset - before.rfind(chr(10))}"


class Place:
    """Where a rule stands; worked out when somebody asks."""

    __slots__ = ("offset", "source")

    def __init__(self, source, offset):
        self.source, self.offset = source, offset

    def __str__(self):
        return self.source.at(self.offset)


class Token:
    """A word of the language: kind is "id", "number", "end", or the word or sign itself."""

    __slots__ = ("kind", "offset", "source", "value")

    def __init__(self, kind, value, source, offset):
        self.kind, self.value, self.source, self.offset = kind, value, source, offset

    def wrong(self, message):
        """The Failure MESSAGE at this place."""
        return Failure(f"{self.source.at(self.offset)}: {message}")

    def told(self):
        """The word for a message."""
        names = {"end": "end of file", "id": f"name '{brief(str(self.value))}'", "number": f"number {self.value}"}
        return names.get(self.kind, f"'{self.kind}'")


class Lexer:
    """The tokens of a source and of what it includes; INCLUDE turns a name into a Source, or None."""

    def __init__(self, source, include):
        self.include = include
        self.stack = [[source, 0]]

    def tokens(self):
        """All tokens, "end" last."""
        found, last = [], None
        while True:
            token = self.next(last in ("USE", "POLICY"))
            if token is not None:
                found.append(token)
                last = token.kind
                if len(found) > MOST_TOKENS:
                    raise token.wrong(f"more than {MOST_TOKENS} words")
                if last == "end":
                    return found

    def next(self, hyphens):
        """The next token; None for an #include, which has been opened, or the end of an included text."""
        frame = self.stack[-1]
        source, text = frame[0], frame[0].text
        at = frame[1] = self.skip(source, frame[1])
        if at == len(text):
            if len(self.stack) == 1:
                return Token("end", None, source, at)
            self.stack.pop()
            return None
        char = text[at]
        if char in LETTERS:
            return self.word(frame, at, hyphens)
        if char in "0123456789" or (char == "-" and text[at + 1 : at + 2] in tuple("123456789")):
            return self.number(frame, at)
        if text.startswith("#include", at):
            self.open_includes(frame, at + len("#include"))
            return None
        for sign in SIGNS:
            if text.startswith(sign, at):
                frame[1] = at + len(sign)
                return Token(sign, None, source, at)
        raise Failure(f"{source.at(at)}: unexpected char {char!r}")

    @staticmethod
    def skip(source, at):
        """The offset behind blanks and comments from AT on."""
        text, size = source.text, len(source.text)
        while at < size:
            if text[at] in BLANK:
                at += 1
            elif text.startswith("//", at):
                at = text.find("\n", at)
                at = size if at == -1 else at
            elif text.startswith("/*", at):
                end = text.find("*/", at + 2)
                if end == -1:
                    raise Failure(f"{source.at(at)}: unterminated comment")
                at = end + 2
            else:
                break
        return at

    @staticmethod
    def word(frame, at, hyphens):
        """The name or reserved word AT."""
        source, text = frame[0], frame[0].text
        end = at + 1
        while text[end : end + 1] in WORD or (hyphens and text[end : end + 1] == "-"):
            if end >= len(text):
                break
            end += 1
        frame[1] = end
        word = text[at:end]
        return Token(word if word in RESERVED else "id", word, source, at)

    @staticmethod
    def number(frame, at):
        """The number AT: decimal, 0x, 0b, or octal with a 0 in front."""
        source, text = frame[0], frame[0].text
        prefix = text[at : at + 2]
        base, digits, end = 10, "0123456789", at + 1
        if prefix in ("0x", "0b"):
            base, digits = (16, "0123456789abcdefABCDEF") if prefix == "0x" else (2, "01")
            end = at + 2
        while end < len(text) and text[end] in digits:
            end += 1
        word = text[at:end]
        frame[1] = end
        if word in ("0x", "0b"):
            frame[1] = at + 1
            word, base = "0", 10
        elif base == 10 and word.startswith("0") and len(word) > 1:
            octal = word[: next((i for i, digit in enumerate(word) if digit in "89"), len(word))]
            word, base = octal, 8
        value = int(word, base) if len(word) < 100 else 2**64
        if not -(2**63) <= value < 2**64:
            raise Failure(f"{source.at(at)}: number '{brief(text[at:end])}' out of range")
        return Token("number", value % 2**64, source, at)

    def open_includes(self, frame, at):
        """Put the texts that an #include names, its names from AT on, before the rest of this one."""
        source, text = frame[0], frame[0].text
        names = []
        while True:
            blank = at
            while text[at : at + 1] in (" ", "\t") and at < len(text):
                at += 1
            char = text[at : at + 1]
            if char in ("\n", ";") and char:
                break
            if char != '"':
                raise Failure(f"{source.at(at)}: {'unexpected filename' if char else 'unterminated include statement'}")
            if blank == at:
                raise Failure(f"{source.at(at)}: unexpected filename")
            end = text.find('"', at + 1)
            if end == -1 or "\n" in text[at:end]:
                raise Failure(f"{source.at(at)}: unterminated include statement")
            names.append((text[at + 1 : end], at))
            at = end + 1
        if not names:
            raise Failure(f"{source.at(at)}: unterminated include statement")
        frame[1] = at + 1
        if len(self.stack) + 1 > MOST_INCLUDES:
            raise Failure(f"{source.at(at)}: maximum include depth ({MOST_INCLUDES}) exceeded")
        for name, offset in reversed(names):
            included = self.include(name)
            if included is None:
                raise Failure(f"{source.at(offset)}: could not include file '{brief(name)}'")
            self.stack.append([included, 0])


def conditions(tokens):
    """The positions in TOKENS of the parentheses that hold a condition, not a value: with a sign of one in them."""
    found, opened = set(), []  # of the open ones: [position, whether there was a sign]

    def close():
        at, sign = opened.pop()
        if sign:
            found.add(at)
            if opened:
                opened[-1][1] = True

    for at, token in enumerate(tokens):
        if token.kind == "(":
            opened.append([at, False])
        elif token.kind == ")" and opened:
            close()
        elif token.kind in ("{", "}", "end"):
            while opened:
                close()
        elif opened and token.kind in (*COMPARISONS, "!", "&&", "||", ","):
            opened[-1][1] = True
    return found


def brief(word):
    """WORD for a message: not a megabyte of it."""
    return word if len(word) <= MOST_SHOWN else f"{word[: MOST_SHOWN - 3]}..."


class Parser:
    """Makes a Policy of tokens.

    LIBRARY turns the name of a group into its Source, or None.
    """

    def __init__(self, source, arch, include, library):
        self.arch, self.include, self.library = arch, include, library
        self.feed(source)
        self.constants, self.policies, self.default = {}, {}, None
        self.loading = []
        self.numbers = {}

    def feed(self, source):
        """Take the tokens of SOURCE from now on."""
        self.tokens = Lexer(source, self.include).tokens()
        self.conditions = conditions(self.tokens)
        self.at = 0

    @property
    def token(self):
        """The token that is next."""
        return self.tokens[self.at]

    def take(self, *kinds):
        """Take the next token, one of KINDS."""
        token = self.tokens[self.at]
        if token.kind not in kinds:
            wanted = " or ".join({"id": "a name", "number": "a number"}.get(kind, f"'{kind}'") for kind in kinds)
            raise token.wrong(f"syntax error, unexpected {token.told()}, expecting {wanted}")
        self.at += 1
        return token

    def skip(self, kind):
        """Whether KIND was next; then it is taken."""
        found = self.tokens[self.at].kind == kind
        self.at += found
        return found

    def program(self):
        """The whole text: the Policy."""
        if self.token.kind == "end":
            raise self.token.wrong("syntax error, unexpected end of file")
        main = self.statements()
        calls = {}
        for number, rule in main:
            calls.setdefault(number, []).append(rule)
        default = self.default or bpf.Rule(bpf.KILL_THREAD, None, "no DEFAULT")
        return bpf.Policy({self.arch: calls}, default)

    def statements(self):
        """File-scope statements to the end: the (number, rule) pairs of the implicit policy."""
        main = []
        while self.token.kind != "end":
            token = self.token
            if token.kind == "#":
                self.define()
            elif token.kind == "POLICY":
                self.policy()
            elif token.kind == "DEFAULT":
                self.at += 1
                if self.default:
                    raise token.wrong("redefinition of default action")
                self.default = bpf.Rule(self.action(), None, Place(token.source, token.offset))
            else:
                self.extend(main)
                if self.skip(",") and self.token.kind not in (*ACTIONS, *WITH_VALUE, "USE"):
                    raise self.token.wrong(f"syntax error, unexpected {self.token.told()}")
        return main

    def define(self):
        """#define NAME NUMBER."""
        self.take("#")
        self.take("define")
        name = self.take("id")
        value = self.take("number").value
        if self.constants.setdefault(name.value, value) != value:
            raise name.wrong(f"redefinition of constant '{brief(name.value)}'")

    def policy(self):
        """POLICY NAME { entries }."""
        self.take("POLICY")
        name = self.take("id")
        if name.value in self.policies:
            raise name.wrong(f"redefinition of policy '{brief(name.value)}'")
        self.take("{")
        pairs = []
        if not self.skip("}"):
            self.extend(pairs)
            while self.take(",", "}").kind == ",":
                self.extend(pairs)
        self.policies[name.value] = pairs

    def extend(self, pairs):
        """Add an entry to PAIRS."""
        token = self.token
        pairs += self.entry()
        if len(pairs) > MOST_RULES:
            raise token.wrong(f"more than {MOST_RULES} rules")

    def entry(self):
        """USE NAME, or an action with its rules: (number, rule) pairs."""
        token = self.token
        if token.kind == "USE":
            self.at += 1
            return self.use(self.take("id"))
        action = self.action()
        self.take("{")
        pairs = []
        if not self.skip("}"):
            pairs += self.rule(action)
            while self.take(",", "}").kind == ",":
                pairs += self.rule(action)
        return pairs

    def use(self, name):
        """The pairs of the policy NAME (a token), of this text or of the library."""
        if name.value not in self.policies:
            source = self.library(name.value)
            if source is None or name.value in self.loading:
                raise name.wrong(f"undefined policy '{brief(name.value)}'")
            self.load(name.value, source)
        return self.policies[name.value]

    def load(self, name, source):
        """Take in the group NAME from SOURCE: its policies, and nothing else of it."""
        kept = self.tokens, self.conditions, self.at, self.constants
        self.loading.append(name)
        self.constants = {}
        self.feed(source)
        self.statements()
        self.loading.pop()
        self.tokens, self.conditions, self.at, self.constants = kept
        if name not in self.policies:
            raise Failure(f"{source.name}: does not define the policy '{name}'")

    def action(self):
        """An action: SECCOMP_RET_* with its data."""
        token = self.take(*ACTIONS, *WITH_VALUE)
        if token.kind in ACTIONS:
            return ACTIONS[token.kind]
        self.take("(")
        number = self.take("number")
        self.take(")")
        word, base = WITH_VALUE[token.kind]
        if number.value > 0xFFFF:
            raise number.wrong(f"{word} value {number.value} out of range (0-65535)")
        return base + number.value

    def rule(self, action):
        """One rule: the (number, rule) pair, or none if it is for other architectures."""
        token = self.take("id", "SYSCALL")
        literal = None
        if token.kind == "SYSCALL":
            self.take("[")
            literal = self.take("number").value
            self.take("]")
        declared = self.declared() if self.token.kind == "(" else None
        ours = self.guard() if self.token.kind == "ON" else True
        number, names = self.look_up(token, literal, declared) if ours else (None, {})
        condition = None
        if self.skip("{") and not self.skip("}"):
            condition = Expression(self, names, check=number is not None).whole()
            self.take("}")
        if number is None:
            return []
        return [(number, bpf.Rule(action, condition, Place(token.source, token.offset)))]

    def declared(self):
        """(NAME, ...): names for the arguments, {name: (index, size)}; each counts as 64 bits."""
        self.take("(")
        names = {}
        if self.skip(")"):
            return names
        while True:
            name = self.take("id")
            if name.value in names:
                raise name.wrong(f"redefinition of argument '{brief(name.value)}'")
            if len(names) == 6:
                raise name.wrong("too many arguments defined for syscall")
            names[name.value] = (len(names), 8)
            if self.take(",", ")").kind == ")":
                return names

    def guard(self):
        """ON arch, or ON { arch, ... }: whether ours is among them."""
        self.take("ON")
        several = self.skip("{")
        found = []
        while True:
            name = self.take("id")
            arch = ARCHITECTURES.get(name.value.lower())
            if arch is None:
                raise name.wrong(f"unknown architecture '{brief(name.value)}'")
            if arch in found:
                raise name.wrong(f"duplicate architecture '{name.value}'")
            found.append(arch)
            if not several or self.take(",", "}").kind == "}":
                return self.arch in found

    def look_up(self, token, literal, declared):
        """The number of the call that TOKEN names, or LITERAL, and its arguments, DECLARED or the kernel's.

        The number is None if a lenient source names what this architecture lacks.
        """
        if literal is None:
            literal = self.constants.get(token.value)
        if literal is not None:
            return literal & bpf.LOW32, declared or {}
        name = token.value
        if name not in self.numbers:
            self.numbers[name] = syscalls.number(self.arch, name)
        number = self.numbers[name]
        if number is None and not (token.source.lenient and syscalls.exists(name)):
            raise token.wrong(f"undefined syscall '{brief(name)}'")
        return number, Arguments(name, self.arch) if declared is None else declared


class Arguments:
    """The arguments of a call as the kernel names them; looked up when a rule asks."""

    __slots__ = ("arch", "call")

    def __init__(self, call, arch):
        self.call, self.arch = call, arch

    def get(self, name):
        """The (index, size) of the argument NAME, or None."""
        for index, (known, size) in enumerate(prototypes.arguments(self.call, self.arch) or ()):
            if known == name:
                return index, size
        return None


class Expression:
    """Reads a condition; NAMES has the arguments. Without CHECK unknown names pass: the rule is dropped anyway."""

    def __init__(self, parser, names, check):
        self.parser, self.names, self.check = parser, names, check
        self.depth = 0

    def whole(self):
        """bool: alternatives with ",", the loosest "or"."""
        return self.chain("or", ",", self.alternatives)

    def alternatives(self):
        """or: "||"."""
        return self.chain("or", "||", self.conjunction)

    def conjunction(self):
        """and: "&&"."""
        return self.chain("and", "&&", self.primary)

    def chain(self, kind, sign, part):
        """PARTs with SIGN between them."""
        parts = [part()]
        while self.parser.skip(sign):
            parts.append(part())
            self.count(len(parts))
        return parts[0] if len(parts) == 1 else (kind, *parts)

    def count(self, number):
        """Refuse more than MOST_OPERANDS of anything."""
        if number > MOST_OPERANDS:
            raise self.parser.token.wrong(f"maximum expression depth ({MOST_OPERANDS}) exceeded")

    def primary(self):
        """A comparison, a negation, or something in parentheses: a condition or the beginning of a value."""
        self.depth += 1
        self.count(self.depth)
        try:
            if self.parser.skip("!"):
                return ("not", self.primary())
            if self.parser.token.kind == "(" and self.parser.at in self.parser.conditions:
                self.parser.take("(")
                inner = self.whole()
                self.parser.take(")")
                return inner
            return self.comparison()
        finally:
            self.depth -= 1

    def comparison(self):
        """value CMP value."""
        left = self.value()
        token = self.parser.take(*COMPARISONS)
        right = self.value()
        for side in (left, right):
            if sum(leaf[0] == "arg" for leaf in leaves(side)) > MOST_ARGUMENTS:
                raise token.wrong("required stack size exceeds available BPF memory")
        wide = any(
            leaf[2] == 8 if leaf[0] == "arg" else leaf[1] > bpf.LOW32 for leaf in (*leaves(left), *leaves(right))
        )
        return ("compare", token.kind, stripped(left), stripped(right), wide)

    def value(self):
        """band: "|" of "&"s."""
        return self.joined("|", lambda: self.joined("&", self.operand))

    def joined(self, sign, part):
        """PARTs with SIGN between them."""
        parts = [part()]
        while self.parser.skip(sign):
            parts.append(part())
            self.count(len(parts))
        return parts[0] if len(parts) == 1 else (sign, *parts)

    def operand(self):
        """A number, a name, or a value in parentheses; arguments carry their size meanwhile."""
        token = self.parser.take("number", "id", "(")
        if token.kind == "(":
            self.depth += 1
            self.count(self.depth)
            inner = self.value()
            self.parser.take(")")
            self.depth -= 1
            return inner
        if token.kind == "number":
            return ("number", token.value)
        if token.value in self.parser.constants:
            return ("number", self.parser.constants[token.value])
        found = self.names.get(token.value) if self.check else (0, 4)
        if found is None:
            raise token.wrong(f"undefined argument '{brief(token.value)}'")
        return ("arg", *found)


def leaves(value):
    """The numbers and arguments in VALUE."""
    if value[0] in ("&", "|"):
        for part in value[1:]:
            yield from leaves(part)
    else:
        yield value


def stripped(value):
    """VALUE without the sizes of its arguments."""
    if value[0] in ("&", "|"):
        return (value[0], *map(stripped, value[1:]))
    return value[:2]


def parse(source, arch, include, library):
    """The bpf.Policy of SOURCE for ARCH (libseccomp's name).

    INCLUDE and LIBRARY turn the name of a file or group into a Source, or None.
    A Failure names FILE:LINE:COL.
    """
    frames = sys.getrecursionlimit()
    sys.setrecursionlimit(max(frames, 20 * MOST_OPERANDS))  # seven for each level of an expression
    try:
        return Parser(source, arch, include, library).program()
    finally:
        sys.setrecursionlimit(frames)
