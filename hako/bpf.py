"""Rules for system calls, and the seccomp program that decides as they do. Pure: no system call here.

A Policy says for each architecture which rules a call meets, first to last; the
first whose condition is true gives the action. A condition is None (always) or
a tuple:

    ("or", c, ...)  ("and", c, ...)  ("not", c)  ("true",)  ("false",)
    ("compare", OP, LEFT, RIGHT, WIDE)    OP: == != < <= > >=, unsigned

LEFT and RIGHT are values: ("arg", INDEX), ("number", N), ("&", v, v, ...),
("|", v, v, ...). WIDE: compared on all 64 bits, else on the low 32.
See seccomp(2) and the kernel's include/uapi/linux/filter.h.
"""

from hako.failure import Failure

KILL_PROCESS, KILL_THREAD = 0x80000000, 0x00000000
TRAP, ERRNO, USER_NOTIF = 0x00030000, 0x00050000, 0x7FC00000
TRACE, LOG, ALLOW = 0x7FF00000, 0x7FFC0000, 0x7FFF0000
NAMES = {
    KILL_PROCESS: "KILL_PROCESS",
    KILL_THREAD: "KILL",
    TRAP: "TRAP",
    ERRNO: "ERRNO",
    USER_NOTIF: "USER_NOTIF",
    TRACE: "TRACE",
    LOG: "LOG",
    ALLOW: "ALLOW",
}

AUDIT_ARCH = {  # by libseccomp's name
    "x86_64": 0xC000003E,
    "x86": 0x40000003,
    "aarch64": 0xC00000B7,
    "arm": 0x40000028,
}
MACHINE_ARCH = {"x86_64": "x86_64", "aarch64": "aarch64"}  # by uname(2)
# x32 calls have the architecture of x86_64 and this bit; those that no rule
# names by number are refused, as another architecture is.
X32 = (0x40000000, 0x7FFFFFFF)

MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
NEAR = 200  # a conditional jump reaches 255 instructions; a little less leaves room for what follows

LD_ABS, LD_IMM, LDX_IMM, LD_MEM, LDX_MEM, ST, STX, TAX, TXA = 0x20, 0x00, 0x01, 0x60, 0x61, 0x02, 0x03, 0x07, 0x87
AND_K, AND_X, OR_K, OR_X, SUB_K, JA, RET = 0x54, 0x5C, 0x44, 0x4C, 0x14, 0x05, 0x06
JEQ_K, JGT_K, JGE_K, JEQ_X, JGT_X, JGE_X = 0x15, 0x25, 0x35, 0x1D, 0x2D, 0x3D
OFFSET_NR, OFFSET_ARCH, OFFSET_ARGS = 0, 4, 16
LOW32 = 0xFFFFFFFF


class Rule:
    """One rule for one call: an action (SECCOMP_RET_*, with its data), a condition, and where it stands."""

    __slots__ = ("action", "condition", "place")

    def __init__(self, action, condition=None, place=""):
        self.action, self.condition, self.place = action, condition, place


class Policy:
    """Which calls a program may make.

    calls     {architecture: {number: [Rule, ...]}}; one that is not in here is refused with foreign
    default   the Rule for a call that no other decides
    foreign   the action for other architectures and x32
    """

    __slots__ = ("calls", "default", "foreign")

    def __init__(self, calls, default, foreign=KILL_THREAD):
        self.calls, self.default, self.foreign = calls, default, foreign


def action_name(action):
    """ACTION, SECCOMP_RET_* with its data, as Kafel writes it."""
    base = action & 0xFFFF0000
    name = NAMES.get(base, f"{action:#x}")
    return f"{name}({action & 0xFFFF})" if base in (TRAP, ERRNO, TRACE) else name


def decide(policy, audit_arch, number, args):
    """The Rule of POLICY for the call NUMBER with six ARGS; None if the architecture or x32 is refused."""
    arch = next((name for name in policy.calls if AUDIT_ARCH[name] == audit_arch), None)
    if arch is None:
        return None
    rules = policy.calls[arch].get(number)
    if rules is None and arch == "x86_64" and X32[0] <= number <= X32[1]:
        return None
    for rule in rules or ():
        if holds(rule.condition, args):
            return rule
    return policy.default


def holds(condition, args):
    """Whether CONDITION is true of ARGS."""
    if condition is None or condition[0] == "true":
        return True
    if condition[0] == "false":
        return False
    if condition[0] == "not":
        return not holds(condition[1], args)
    if condition[0] in ("and", "or"):
        every = all if condition[0] == "and" else any
        return every(holds(part, args) for part in condition[1:])
    _, operator, left, right, wide = condition
    mask = 2**64 - 1 if wide else LOW32
    return COMPARE[operator](value(left, args) & mask, value(right, args) & mask)


COMPARE = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def value(expression, args):
    """The value of EXPRESSION with ARGS, 64 bits."""
    kind = expression[0]
    if kind == "number":
        return expression[1]
    if kind == "arg":
        return args[expression[1]]
    first, *rest = (value(part, args) for part in expression[1:])
    for other in rest:
        first = first & other if kind == "&" else first | other
    return first


def fold(condition):
    """CONDITION without what is known beforehand; None if it is always true, ("false",) if never."""
    if condition is None or condition[0] == "true":
        return None
    if condition[0] == "false":
        return condition
    if condition[0] == "compare":
        if constant(condition[2]) and constant(condition[3]):
            return None if holds(condition, ()) else ("false",)
        return condition
    if condition[0] == "not":
        inner = fold(condition[1])
        return ("false",) if inner is None else None if inner == ("false",) else ("not", inner)
    kind, *parts = condition
    parts = [fold(part) for part in parts]
    ends, goes_on = (None, ("false",)) if kind == "or" else (("false",), None)
    if ends in parts:
        return ends
    parts = [part for part in parts if part != goes_on]
    if not parts:
        return goes_on
    return parts[0] if len(parts) == 1 else (kind, *parts)


def constant(expression):
    """Whether EXPRESSION has no argument in it."""
    if expression[0] in ("&", "|"):
        return all(constant(part) for part in expression[1:])
    return expression[0] == "number"


def live(rules, default):
    """RULES as (action, condition) pairs, DEFAULT (an action) last: without what can never decide."""
    pairs = []
    for rule in rules:
        condition = fold(rule.condition)
        if condition != ("false",):
            pairs.append((rule.action, condition))
        if condition is None:
            break
    else:
        pairs.append((default, None))
    while len(pairs) > 1 and pairs[-2][0] == pairs[-1][0]:
        del pairs[-2]
    return tuple(pairs)


def compile_policy(policy):
    """The program of POLICY: a bytes of struct sock_filter, at most 4096 of them."""
    program = Program()
    entry = program.act(policy.foreign)
    for arch, calls in reversed(policy.calls.items()):
        body = program.search(intervals(policy, arch, calls))
        body = program.emit(LD_ABS, OFFSET_NR, at=body)
        entry = program.jump(JEQ_K, AUDIT_ARCH[arch], body, entry)
    program.emit(LD_ABS, OFFSET_ARCH, at=entry)
    return program.bytes()


def intervals(policy, arch, calls):
    """[(first number, pairs as of live())], ascending from 0: what holds from that number on."""
    default = live((), policy.default.action)
    spots = {number: live(rules, policy.default.action) for number, rules in calls.items()}
    starts = {0: default}
    if arch == "x86_64":
        starts[X32[0]] = live((), policy.foreign)
        starts[X32[1] + 1] = default
    bounds = sorted({*starts, *spots, *(number + 1 for number in spots if number < LOW32)})
    found, under = [], default
    for bound in bounds:
        under = starts.get(bound, under)
        leaf = spots.get(bound, under)
        if not found or found[-1][1] != leaf:
            found.append((bound, leaf))
    return found


class Program:
    """A program on its way, made from its end to its beginning, so that every jump knows its goal.

    A label is the number of instructions from there to the end.
    """

    def __init__(self):
        self.code = []  # (code, jump if true, jump if false, k), the last instruction first
        self.known = {}  # labels of actions and leaves that stand already

    def bytes(self):
        """The program as the kernel takes it."""
        return b"".join(
            code.to_bytes(2, "little") + bytes((yes, no)) + k.to_bytes(4, "little")
            for code, yes, no, k in reversed(self.code)
        )

    def put(self, code, k, yes=0, no=0):
        """Put one instruction in front; return its label."""
        if len(self.code) == MOST_INSTRUCTIONS:
            raise Failure(f"the rules need more than the {MOST_INSTRUCTIONS} instructions that the kernel takes")
        self.code.append((code, yes, no, k & LOW32))
        return len(self.code)

    def emit(self, code, k, at):
        """Put in front an instruction that goes on AT a label; return its label."""
        self.reach(at)
        return self.put(code, k)

    def reach(self, label):
        """See that what is in front of here goes on at LABEL."""
        if label != len(self.code):
            self.put(JA, len(self.code) - label)

    def near(self, label):
        """LABEL, or that of a jump to it, if it is too far for a conditional jump."""
        if len(self.code) - label <= NEAR:
            return label
        return self.put(JA, len(self.code) - label)

    def jump(self, code, k, yes, no):
        """Put in front a conditional jump to the labels YES and NO; return its label."""
        if yes == no:
            return yes
        yes, no = self.near(yes), self.near(no)
        yes = self.near(yes)  # the second may have moved the first out of reach
        here = len(self.code)
        return self.put(code, k, here - yes, here - no)

    def act(self, action):
        """The label of an instruction that returns ACTION, near if there is one."""
        label = self.known.get(action)
        if label is None or len(self.code) - label > NEAR:
            label = self.known[action] = self.put(RET, action)
        return label

    def search(self, spans):
        """The label of a balanced search for the call number, loaded already, in SPANS as of intervals()."""
        if len(spans) == 1:
            return self.leaf(spans[0][1])
        middle = len(spans) // 2
        upper = self.search(spans[middle:])
        lower = self.search(spans[:middle])
        return self.jump(JGE_K, spans[middle][0], upper, lower)

    def leaf(self, pairs):
        """The label of the code that decides by PAIRS as of live()."""
        label = self.known.get(pairs)
        if label is not None and len(self.code) - label <= NEAR:
            return label
        label = self.act(pairs[-1][0])
        for action, condition in reversed(pairs[:-1]):
            label = self.condition(condition, self.act(action), label)
        self.known[pairs] = label
        return label

    def condition(self, condition, yes, no):
        """The label of code that goes to YES if CONDITION holds, else to NO."""
        kind = condition[0]
        if kind == "not":
            return self.condition(condition[1], no, yes)
        if kind == "and":
            for part in reversed(condition[1:]):
                yes = self.condition(part, yes, no)
            return yes
        if kind == "or":
            for part in reversed(condition[1:]):
                no = self.condition(part, yes, no)
            return no
        return self.compare(*condition[1:], yes, no)

    def compare(self, operator, left, right, wide, yes, no):
        """The label of code for a comparison."""
        if operator in ("!=", "<", "<="):  # those that BPF lacks are the others, turned round
            operator = {"!=": "==", "<": ">=", "<=": ">"}[operator]
            yes, no = no, yes
        low = self.half(operator, left, right, 0, yes, no)
        if not wide:
            return low
        if operator == "==":
            return self.half("==", left, right, 1, low, no)
        # Equal high halves leave it to the low ones.
        equal = self.half("==", left, right, 1, low, no)
        return self.half(">", left, right, 1, yes, equal)

    def half(self, operator, left, right, high, yes, no):
        """The label of code that compares one half of LEFT and RIGHT, the HIGH one or the low."""
        codes = {"==": (JEQ_K, JEQ_X), ">": (JGT_K, JGT_X), ">=": (JGE_K, JGE_X)}[operator]
        if constant(right):
            label = self.jump(codes[0], part(right, high), yes, no)
            return self.load(left, high, label)
        label = self.jump(codes[1], 0, yes, no)
        if constant(left):
            label = self.emit(LD_IMM, part(left, high), label)
            label = self.emit(TAX, 0, label)
            return self.load(right, high, label)
        # Loading the left one may need X: the right one waits in memory.
        label = self.emit(LDX_MEM, 0, label)
        label = self.load(left, high, label, depth=1)
        label = self.emit(ST, 0, label)
        return self.load(right, high, label, depth=1)

    def load(self, expression, high, label, depth=0):
        """Code that puts half of EXPRESSION into A, using memory from cell DEPTH on, before LABEL."""
        if depth > 15:
            raise Failure("an expression is too deep for the memory of BPF, 16 words")
        if constant(expression):
            return self.emit(LD_IMM, part(expression, high), label)
        if expression[0] == "arg":
            return self.emit(LD_ABS, OFFSET_ARGS + 8 * expression[1] + 4 * high, label)
        return self.combine(expression, high, label, depth)

    def combine(self, expression, high, label, depth):
        """Code for an "&" or "|" of values: constants at once, the rest one by one."""
        kind, *parts = expression
        fixed = [part(other, high) for other in parts if constant(other)]
        moving = [other for other in parts if not constant(other)]
        by_constant, by_x = (AND_K, AND_X) if kind == "&" else (OR_K, OR_X)
        for number in fixed:
            label = self.emit(by_constant, number, label)
        for other in reversed(moving[1:]):
            # A = (A so far) OP other, with A so far kept in a cell meanwhile
            label = self.emit(by_x, 0, label)
            label = self.emit(LDX_MEM, depth, label)
            label = self.load(other, high, label, depth + 1)
            label = self.emit(ST, depth, label)
        return self.load(moving[0], high, label, depth)


def part(expression, high):
    """The HIGH or low half of a constant EXPRESSION."""
    return value(expression, ()) >> (32 if high else 0) & LOW32
