"""TOML 1.0 with template calls: read so that every value has a place, and written. Pure but for the calls.

Not tomllib: that one keeps no places, and with re and typing, which it imports,
it takes longer than the rest of a start. A text means here what it means there,
but for dates and times, which nobody needs, numbers of more than 64 bits and
what is nested absurdly deep: these are errors.

A call, as {{ os_env "HOME" }}, stands inside a string, of whatever kind, or for
a whole one. Its value is put in when the string has been read: no value can end
the string that it stands in, whatever is in it. See https://toml.io/en/v1.0.0.
"""

from hako.failure import Failure, show

MOST_PARTS = 16  # of a key
MOST_DEPTH = 32  # of arrays and tables in one another
MOST_CALLED = 2**20  # characters that the calls of one text may bring in
MOST_DIGITS = 20  # of a whole number: of 64 bits it has no more
MOST_SHOWN = 60

DIGITS = frozenset("0123456789")
BARE = DIGITS | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-")
CONTROL = frozenset(map(chr, (*range(32), 127))) - {"\t"}
BLANK = frozenset(" \t")
VALUE_ENDS = frozenset(" \t\n,]}#\0")
SPECIAL = {'"': CONTROL | frozenset('"\\{'), "'": CONTROL | frozenset("'{")}  # in a string with these quotes
ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}
ESCAPED = {char: f"\\{letter}" for letter, char in ESCAPES.items()}
HEXADECIMAL = DIGITS | frozenset("abcdefABCDEF")
BASES = {"0x": (16, HEXADECIMAL), "0o": (8, frozenset("01234567")), "0b": (2, frozenset("01"))}
SPECIAL_FLOATS = ("inf", "+inf", "-inf", "nan", "+nan", "-nan")

# What an item is: a table written in braces, one made by a dotted key, one with a header of its own, one that
# only headers of others name; an array of tables by [[...]]; any other value.
INLINE, DOTTED, HEADER, IMPLIED, TABLES, VALUE = range(6)


class Item:
    """A VALUE: str, int, float, bool, [Item, ...] or {key: Item}; its KIND, as above; OFFSET of it, or of its key."""

    __slots__ = ("kind", "offset", "value")

    def __init__(self, value, offset, kind=VALUE):
        self.value, self.offset, self.kind = value, offset, kind


class Source:
    """A TEXT of the file NAME."""

    __slots__ = ("name", "text")

    def __init__(self, name, text):
        self.name, self.text = name, text

    def line(self, offset):
        """OFFSET as FILE:LINE."""
        return f"{self.name}:{self.text.count(chr(10), 0, offset) + 1}"

    def at(self, offset):
        """OFFSET as FILE:LINE:COL."""
        return f"{self.line(offset)}:{offset - self.text.rfind(chr(10), 0, offset)}"


class Parser:
    """Reads a Source.

    calls   {name: (whether it takes an argument, function)}
    where   offset of what comes next
    called  how many calls there were
    left    characters that they may still bring in
    """

    __slots__ = ("called", "calls", "depth", "end", "left", "root", "source", "text", "where")

    def __init__(self, source, calls):
        self.source, self.calls, self.left = source, calls, MOST_CALLED
        self.text, self.end = source.text + "\0", len(source.text)  # 0 is nowhere allowed: no loop runs past it
        self.where = self.depth = self.called = 0
        self.root = Item({}, 0, HEADER)

    def wrong(self, message, offset=None):
        """The Failure MESSAGE about what stands at OFFSET, or here."""
        return Failure(f"{self.source.at(self.where if offset is None else offset)}: {message}")

    def unexpected(self, wanted):
        """The Failure that something else than what is WANTED stands here."""
        char = self.text[self.where]
        found = "end of file" if self.where == self.end else "end of line" if char == "\n" else repr(char)
        return self.wrong(f"unexpected {found}, expecting {wanted}")

    def document(self):
        """All of the text: the Item of its root."""
        table = self.root
        while self.skip_lines() < self.end:
            if self.text[self.where] == "[":
                table = self.header()
            else:
                self.pair(table)
            self.skip_blanks()
            if self.text[self.where] == "#":
                self.comment()
            if self.where < self.end and self.text[self.where] != "\n":
                raise self.unexpected("end of line")
        return self.root

    def skip_blanks(self):
        """Go behind blanks; return where that is."""
        while self.text[self.where] in BLANK:
            self.where += 1
        return self.where

    def skip_lines(self):
        """Go behind blanks, ends of lines and comments; return where that is."""
        while True:
            char = self.text[self.where]
            if char == "#":
                self.comment()
            elif char == "\n" or char in BLANK:
                self.where += 1
            else:
                return self.where

    def comment(self):
        """Go to the end of the line, which is a comment from here on."""
        end = self.text.find("\n", self.where)
        end = self.end if end == -1 else end
        for offset in range(self.where, end):
            if self.text[offset] in CONTROL:
                raise self.wrong(f"unexpected {self.text[offset]!r} in a comment", offset)
        self.where = end

    def take(self, word):
        """Go behind WORD, which must stand here."""
        if not self.text.startswith(word, self.where):
            raise self.unexpected(f"'{word}'")
        self.where += len(word)

    def header(self):
        """[KEY] or [[KEY]]: the Item of the table that follows."""
        start = self.where
        many = self.text.startswith("[[", start)
        self.where += 1 + many
        *above, last = self.key()
        self.take("]]" if many else "]")
        table = self.root
        for name in above:
            item = table.value.setdefault(name, Item({}, start, IMPLIED))
            table = item.value[-1] if item.kind == TABLES else item
            if table.kind in (INLINE, VALUE):
                raise self.wrong(f"{told((name,))} is no table that can be added to", start)
        item = table.value.get(last)
        if many and (item is None or item.kind == TABLES):
            if item is None:
                item = table.value[last] = Item([], start, TABLES)
            item.value.append(Item({}, start, HEADER))
            return item.value[-1]
        if item is None:
            item = table.value[last] = Item({}, start, HEADER)
        elif many or item.kind != IMPLIED:
            raise self.wrong(f"{told((last,))} is there already", start)
        item.kind, item.offset = HEADER, start
        return item

    def key(self):
        """The parts of the key that stands here."""
        parts = []
        while True:
            start = self.skip_blanks()
            char = self.text[start]
            if char in "\"'":
                if self.text.startswith(char * 3, start):
                    raise self.wrong("a key of several lines")
                called = self.called
                parts.append(self.one_line(char))
                if called != self.called:
                    raise self.wrong("a call cannot be in a key", start)
            else:
                while self.text[self.where] in BARE:
                    self.where += 1
                parts.append(self.text[start : self.where])
                if start == self.where:
                    raise self.wrong("a call cannot be a key") if char == "{" else self.unexpected("a key")
            if len(parts) > MOST_PARTS:
                raise self.wrong(f"a key of more than {MOST_PARTS} parts", start)
            if self.text[self.skip_blanks()] != ".":
                return parts
            self.where += 1

    def pair(self, table):
        """KEY = VALUE, in the Item TABLE."""
        start = self.where
        *above, last = self.key()
        self.take("=")
        for name in above:
            item = table.value.setdefault(name, Item({}, start, DOTTED))
            if item.kind not in (DOTTED, IMPLIED):
                raise self.wrong(f"{told((name,))} is there already", start)
            item.kind = DOTTED
            table = item
        if last in table.value:
            raise self.wrong(f"{told((last,))} is there already", start)
        self.skip_blanks()
        item = table.value[last] = self.value()
        item.offset = start

    def value(self):
        """The Item of the value that stands here."""
        start, char = self.where, self.text[self.where]
        if char in "\"'":
            return Item(self.lines(char) if self.text.startswith(char * 3, start) else self.one_line(char), start)
        if self.text.startswith("{{", start):
            return Item(self.call(), start)
        if char in "[{":
            self.depth += 1
            if self.depth > MOST_DEPTH:
                raise self.wrong(f"nested more than {MOST_DEPTH} deep")
            item = self.array() if char == "[" else self.inline_table()
            self.depth -= 1
            return item
        end = start
        while self.text[end] not in VALUE_ENDS:
            end += 1
        if start == end:
            raise self.unexpected("a value")
        value = self.scalar(self.text[start:end])
        self.where = end
        return Item(value, start)

    def array(self):
        """The Item of [VALUE, ...]."""
        made = Item([], self.where)
        self.where += 1
        while self.text[self.skip_lines()] != "]":
            made.value.append(self.value())
            if self.text[self.skip_lines()] != "]":
                if self.text[self.where] != ",":
                    raise self.unexpected("',' or ']'")
                self.where += 1
        self.where += 1
        return made

    def inline_table(self):
        """The Item of { KEY = VALUE, ... }."""
        made = Item({}, self.where, INLINE)
        self.where += 1
        if self.text[self.skip_blanks()] == "}":
            self.where += 1
            return made
        while True:
            self.skip_blanks()
            self.pair(made)
            if self.text[self.skip_blanks()] not in ",}":
                raise self.unexpected("',' or '}'")
            self.where += 1
            if self.text[self.where - 1] == "}":
                return made

    def scalar(self, word):
        """What WORD, which stands here, means: a truth or a number."""
        if word in ("true", "false"):
            return word == "true"
        if word in SPECIAL_FLOATS:
            return float(word)
        if word[:2] in BASES:
            base, allowed = BASES[word[:2]]
            return self.whole(self.digits(word[2:], allowed), base)
        sign, digits = (word[0], word[1:]) if word[0] in "+-" else ("", word)
        if not sign and (digits[4:5] == "-" or digits[2:3] == ":") and digits[:2].isdigit():
            raise self.wrong("a date or a time, which no key takes")
        mantissa, e, exponent = digits.replace("E", "e").partition("e")
        before, point, behind = mantissa.partition(".")
        number = sign + self.digits(before)
        if before.startswith("0") and before != "0":
            raise self.wrong("a number with a 0 in front")
        if not point and not e:
            return self.whole(number, 10)
        number += f".{self.digits(behind)}" if point else ""
        if e:
            number += f"e{self.digits(exponent[1:] if exponent[:1] in ('+', '-') else exponent)}"
            number = number.replace("e", "e-") if exponent[0] == "-" else number
        return float(number)

    def digits(self, word, allowed=DIGITS):
        """WORD without the "_" between its digits, which are ALLOWED ones."""
        found = word.replace("_", "")
        if not found or not allowed.issuperset(found) or word[0] == "_" or word[-1] == "_" or "__" in word:
            raise self.wrong("neither a string, which has quotes, a number, true nor false")
        return found

    def whole(self, word, base):
        """WORD, digits of BASE and perhaps a sign, as a number of 64 bits."""
        digits = word.lstrip("+-").lstrip("0")
        number = int(word, base) if len(digits) <= (MOST_DIGITS if base == 10 else 64) else 2**64
        if not -(2**63) <= number < 2**63:
            raise self.wrong("a number of more than 64 bits")
        return number

    def one_line(self, quote):
        """The string on one line that begins here with QUOTE."""
        start = self.where
        self.where += 1
        pieces = []
        while True:
            char = self.plain(pieces, quote)
            if char == quote:
                self.where += 1
                return "".join(pieces)
            if char == "\\":
                pieces.append(self.escape())
            else:
                raise self.no_end(start)

    def lines(self, quote):
        """The string, perhaps of several lines, that begins here with three QUOTEs."""
        start = self.where
        self.where += 3
        if self.text[self.where] == "\n":
            self.where += 1
        pieces = []
        while True:
            char = self.plain(pieces, quote)
            if char == quote:
                count = self.quotes(quote)
                if count >= 3:
                    return "".join((*pieces, quote * (count - 3)))
                pieces.append(quote * count)
            elif char == "\n":
                self.where += 1
                pieces.append(char)
            elif char != "\\":
                raise self.no_end(start)
            elif not self.folded():
                pieces.append(self.escape())

    def quotes(self, quote):
        """Go behind the QUOTEs that stand here, five at most; return how many."""
        count = 1
        while count < 5 and self.text[self.where + count] == quote:
            count += 1
        self.where += count
        return count

    def plain(self, pieces, quote):
        """Add to PIECES what is a string, between QUOTEs, as it stands here, and calls; return what ends it."""
        special = SPECIAL[quote]
        while True:
            end = self.where
            while self.text[end] not in special:
                end += 1
            pieces.append(self.text[self.where : end])
            self.where = end
            if self.text.startswith("{{", end):
                pieces.append(self.call())
            elif self.text[end] == "{":
                pieces.append("{")
                self.where += 1
            else:
                return self.text[end]

    def no_end(self, start):
        """The Failure of the string that begins at START and cannot go on here."""
        if self.where == self.end or self.text[self.where] == "\n":
            return self.wrong("a string without an end", start)
        return self.wrong(f"unexpected {self.text[self.where]!r} in a string")

    def folded(self):
        """Go behind a backslash at the end of a line and all blanks that follow; whether there was one here."""
        end = self.where + 1
        while self.text[end] in BLANK:
            end += 1
        if self.text[end] != "\n":
            return False
        while self.text[end] == "\n" or self.text[end] in BLANK:
            end += 1
        self.where = end
        return True

    def escape(self):
        """The character that the backslash here and what follows it mean."""
        letter = self.text[self.where + 1]
        if letter in ESCAPES:
            self.where += 2
            return ESCAPES[letter]
        size = {"u": 4, "U": 8}.get(letter, 0)
        word = self.source.text[self.where : self.where + 2 + size]
        digits = word[2:]
        if not size or len(digits) < size or not HEXADECIMAL.issuperset(digits):
            raise self.wrong(f"no escape: {word!r}")
        number = int(digits, 16)
        if 0xD800 <= number <= 0xDFFF or number > 0x10FFFF:
            raise self.wrong(f"no character: '\\{letter}{digits}'")
        self.where += 2 + size
        return chr(number)

    def call(self):
        """The value of the call that stands here."""
        start = self.where
        self.where += 2
        begin = self.skip_blanks()
        while self.text[self.where] in BARE:
            self.where += 1
        name = self.text[begin : self.where]
        argument = self.argument(start)
        takes, function = self.calls.get(name, (None, None))
        if function is None or takes != (argument is not None) or not self.text.startswith("}}", self.where):
            raise self.no_call(start)
        self.where += 2
        try:
            value = function(argument) if takes else function()
        except Failure as err:
            raise self.wrong(f"{name}: {err}", start) from err
        self.called += 1
        self.left -= len(value)
        if self.left < 0:
            raise self.wrong(f"more than {MOST_CALLED} characters come of the calls", start)
        return value

    def argument(self, start):
        """The argument, if one stands here, of the call that begins at START."""
        quote = self.text[self.skip_blanks()]
        if quote not in "\"'":
            return None
        end = self.where + 1
        while self.text[end] != quote:
            if self.text[end] in CONTROL:
                raise self.no_call(start)
            end += 1
        argument = self.text[self.where + 1 : end]
        self.where = end + 1
        self.skip_blanks()
        return argument

    def no_call(self, start):
        """The Failure of what begins at START with two braces and is no call."""
        line = self.text[start : start + MOST_SHOWN].partition("\n")[0].partition("\0")[0]
        known = ", ".join(f'{name} "..."' if takes else name for name, (takes, _) in self.calls.items())
        hint = f"calls: {known}; two braces that are none are written {{\\u007b"
        return self.wrong(f"not a call: {line!r} [{hint}]", start)


def parse(source, calls):
    """The Item of the root of SOURCE; CALLS are {name: (whether it takes an argument, function)}.

    A Failure names FILE:LINE:COL.
    """
    return Parser(source, calls).document()


def source(name, text):
    """TEXT, the file NAME, as a Source."""
    return Source(name, text.replace("\r\n", "\n"))


def brief(word):
    """WORD for a message: not a megabyte of it."""
    return word if len(word) <= MOST_SHOWN else f"{word[: MOST_SHOWN - 3]}..."


def told(path):
    """PATH, a tuple of keys and indexes, for a message: mounts[1].source."""
    text = ""
    for part in path:
        if type(part) is int:
            text += f"[{part}]"
        else:
            text += ("." if text else "") + show(brief(part))
    return text


def key(name):
    """NAME as a key of TOML."""
    return name if name and BARE.issuperset(name) else string(name)


def value(data):
    """DATA, of strings, numbers, truths, lists, tuples and dictionaries, as TOML on one line."""
    if isinstance(data, bool):
        return "true" if data else "false"
    if isinstance(data, str):
        return string(data)
    if isinstance(data, (list, tuple)):
        return f"[{', '.join(map(value, data))}]"
    if isinstance(data, dict):
        return f"{{ {', '.join(f'{key(name)} = {value(item)}' for name, item in data.items())} }}"
    return repr(data)


def string(text):
    """TEXT as a string of TOML in which nothing is a call."""
    try:
        text.encode()
    except UnicodeEncodeError as err:
        raise Failure(f"not UTF-8, as TOML must be: {brief(text)!r}") from err
    return f'"{"".join(map(written, text))}"'.replace("{{", "{\\u007b")


def written(char):
    """CHAR as it stands in a string of TOML."""
    if char in ESCAPED or char.isprintable():
        return ESCAPED.get(char, char)
    return f"\\u{ord(char):04x}" if char <= "\uffff" else f"\\U{ord(char):08x}"
