"""Write man/hako.3: the library, as its docstrings tell it.

A docstring is paragraphs; lines in two columns are a list.
"""

import inspect
import re
import sys
import textwrap

import hako
from hako import library, link, pool

HEAD = r"""\
.\" Made by `make reference` from the docstrings of hako; a test holds it to them.
.Dd November 29, 2026
.Dt HAKO 3
.Os hako
.Sh NAME
.Nm hako
.Nd programs in sandboxes, from Python
.Sh SYNOPSIS
.Sy import hako
.Sh DESCRIPTION
"""
TYPES = r"""
.Ss Types and constants
.Bl -tag -width Ds
.It Vt Program
A sequence of strings, bytes or paths, one at least: a command line.
.It Vt Text
Bytes, or a string, which is UTF-8 then.
.It Vt Size
A number of bytes, or text like
.Ql 256M ,
with K, M or G for powers of 1024.
.It Vt File
A descriptor, an object that has one, None or one of the constants.
.It Dv PIPE , Dv DEVNULL , Dv STDOUT
Those of
.Sy subprocess .
.It Dv CAPTURE
Into the Result.
.El
"""
TAIL = r"""
.Sh EXAMPLES
A program in a sandbox that holds the host's programs, for two seconds at most:
.Bd -literal -offset indent
$ python3 \-c \(aq
> import hako
> result = hako.run(["sh", "\-c", "echo $((6 * 7)); exit 3"], time=2)
> print(result.status, result.code, result.stdout)\(aq
exited 3 b\(aq42\en\(aq
.Ed
.Pp
Many of them, two at a time, and what became of them:
.Bd -literal -offset indent
$ python3 \-c \(aq
> import hako
> box = hako.Sandbox(time=2, output="1K", rlimits={"nofile": 64})
> with hako.Pool(2) as pool:
>     futures = [pool.submit(box, ["expr", "5", "/", n]) for n in "210"]
> for future in futures:
>     result = future.result()
>     print(result.status, result.code, (result.stdout + result.stderr).decode().strip())\(aq
exited 0 2
exited 0 5
exited 2 expr: division by zero
.Ed
.Pp
Output as it comes:
.Bd -literal -offset indent
$ python3 \-c \(aq
> import hako
> with hako.Sandbox().stream(["sh", "\-c", "echo one; read line; echo $line"], input="two") as stream:
>     print(b"".join(chunk.data for chunk in stream), stream.result.ok)\(aq
b\(aqone\entwo\en\(aq True
.Ed
.Sh SEE ALSO
.Xr hako-limit 1 ,
.Xr hako-policy 1 ,
.Xr hako-ps 1 ,
.Xr hako-run 1 ,
.Xr hako-task 1 ,
.Xr hako-top 1 ,
.Xr hako-policy 5 ,
.Xr hako-report 5
.Sh CAVEATS
The worker is a child of the caller: who waits for any child may meet it.
.Pp
Limits of memory, processes and the share of the CPU need cgroups that the
caller may make, as
.Xr hako-limit 1
says.
Where they are not to be had the status is internalError, and nothing runs.
.Pp
When a worker is killed, what it ran ends with it; how far that came is not known.
It is not run again.
"""
CLASSES = (  # with the methods that are told
    (library.Sandbox, ("run", "popen", "run_async", "stream", "replace")),
    (library.Result, ("ok", "check")),
    (library.Process, ("poll", "wait", "kill", "close")),
    (library.Stream, ()),
    (library.Chunk, ()),
    (pool.Pool, ("run", "submit", "submit_task", "map", "shutdown")),
    (library.TaskFailed, ()),
    (library.Failure, ()),
    (link.WorkerLost, ()),
)
MADE = (library.Sandbox, pool.Pool)  # by the caller, so their arguments matter
REFERENCE = re.compile(r"(\(?)([a-z][\w-]*)\((\d)\)([.,;:)]*)")
COLUMNS = re.compile(r"(\S+(?: \S+)*?)\s{2,}(\S.*)")


def reference():
    """The text of man/hako.3."""
    parts = [HEAD.lstrip("\\\n"), *told(library.__doc__.partition("\n\n")[2], first=True), TYPES.lstrip("\n")]
    parts += [".Ss hako.run\n", *literal(f"hako.{signature(library.run, 'run')}"), *told(library.run.__doc__)]
    for of, methods in CLASSES:
        parts.append(f".Ss hako.{of.__name__}\n")
        parts += literal(f"hako.{signature(of.__init__, of.__name__)}") if of in MADE else []
        parts += told(of.__doc__, first=of not in MADE)
        for name in methods:
            method = getattr(of, name)
            spelt = name if isinstance(method, property) else signature(method, name)
            shown = of.__name__.lower() if of is not library.Sandbox else "box"
            kind = "await " if inspect.iscoroutinefunction(method) else ""
            parts += [".Pp\n", *literal(f"{kind}{shown}.{spelt}"), *told(method.__doc__)]
    return "".join(parts) + TAIL.lstrip("\n")


def signature(function, name):
    """How FUNCTION is called by NAME, with the types of its arguments."""
    found = inspect.signature(function)
    parameters = [parameter for parameter in found.parameters.values() if parameter.name != "self"]
    result = "" if name == name.title() or found.return_annotation == "None" else f" -> {found.return_annotation}"
    arguments = ", ".join(map(spelling, parameters))
    stars = [at for at, parameter in enumerate(parameters) if parameter.kind is parameter.KEYWORD_ONLY]
    if stars:
        before, after = parameters[: stars[0]], parameters[stars[0] :]
        arguments = ", ".join([*map(spelling, before), "*", *map(spelling, after)])
    return f"{name}({arguments}){result}"


def spelling(parameter):
    """PARAMETER as it is written, a constant by its name."""
    stars = {parameter.VAR_KEYWORD: "**", parameter.VAR_POSITIONAL: "*"}.get(parameter.kind, "")
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}".replace("-10", "CAPTURE")
    kind = str(parameter.annotation).replace("os.PathLike[str]", "Path")
    return f"{stars}{parameter.name}: {kind}{default}"


def literal(text):
    """The lines of TEXT, a call, as they are."""
    lines = textwrap.wrap(text, 76, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [".Bd -literal -compact\n", *(f"{escaped(line)}\n" for line in lines), ".Ed\n"]


def told(doc, first=False):
    """The docstring DOC in mdoc; FIRST: nothing stands before it."""
    made = []
    for paragraph in inspect.cleandoc(doc).split("\n\n"):
        lines = paragraph.splitlines()
        listed = all(COLUMNS.fullmatch(line) or line.startswith("   ") for line in lines)
        if not first:
            made.append(".Pp\n")
        first = False
        if not listed:
            made += flowing(" ".join(line.strip() for line in lines))
            continue
        made.pop() if made and made[-1] == ".Pp\n" else None
        made.append(".Bl -tag -width Ds\n")
        entries = []
        for line in lines:
            if line.startswith("   "):
                entries[-1][1].append(line.strip())
            else:
                term, text = COLUMNS.fullmatch(line).groups()
                entries.append((term, [re.sub(r"(,?)\s{2,}", ", ", text)]))
        for term, texts in entries:
            made += [f".It {escaped(term)}\n", *flowing(" ".join(texts))]
        made.append(".El\n")
    return made


def flowing(text):
    """TEXT in lines, its sentences and references each on their own."""
    made = []
    for sentence in re.split(r"(?<=[.:;]) (?=[A-Z(])", text):
        words = []
        for word in sentence.split():
            found = REFERENCE.fullmatch(word)
            if found and not found[1]:
                made += [line(words)] if words else []
                words = []
                made.append(f".Xr {found[2]} {found[3]}{''.join(f' {mark}' for mark in found[4])}\n")
            else:
                words.append(word)
        made += [line(words)] if words else []
    return made


def line(words):
    """WORDS as lines of text."""
    wrapped = textwrap.wrap(" ".join(words), 78, break_long_words=False, break_on_hyphens=False)
    return "".join(f"{escaped(text)}\n" for text in wrapped)


def escaped(text):
    """TEXT so that nothing in it is a request."""
    text = text.replace("\\", r"\e")
    return rf"\&{text}" if text[:1] in (".", "'") else text


if __name__ == "__main__":
    sys.stdout.write(reference())
    assert set(hako.__all__) >= {of.__name__ for of, _ in CLASSES}
