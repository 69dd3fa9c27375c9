"""make_html.py DIRECTORY - write the pages in man/ into DIRECTORY for the web, with links between them, and an index

Pages of the system lead to man7.org. Needs mandoc.
"""

import html
import pathlib
import re
import subprocess
import sys

MAN = pathlib.Path(__file__).resolve().parent.parent / "man"
ELSEWHERE = "https://man7.org/linux/man-pages/man{section}/{name}.{section}.html"
OF_OTHER_PACKAGES = "https://manpages.debian.org/{name}.{section}"
NOT_AT_MAN7 = {"bwrap", "newgidmap", "newuidmap", "pasta", "subuid"}
STYLE = """\
:root { color-scheme: light dark; }
body { max-width: 46em; margin: 0 auto; padding: 1em; font: 100%/1.5 sans-serif; }
nav, table.head, table.foot { font-size: 85%; width: 100%; }
td.head-vol, td.foot-date { text-align: center; }
td.head-rtitle, td.foot-os { text-align: right; }
h1 { font-size: 115%; margin: 1.6em 0 0.4em; }
h2 { font-size: 100%; margin: 1.2em 0 0.4em; }
h1 a.permalink, h2 a.permalink, dt a.permalink { color: inherit; text-decoration: none; }
dt { margin-top: 0.5em; }
dd { margin-left: 2.5em; }
dl.Bl-compact > dt { margin-top: 0; }
table.Nm td { vertical-align: top; }
td:first-child > code.Nm { padding-right: 0.6em; }
code, pre, kbd, samp { font-family: monospace; }
code.Nm, code.Fl, code.Cm, code.Ic { font-weight: bold; }
pre { overflow-x: auto; padding: 0.7em 1em; border-left: 3px solid #8888; background: #8881; line-height: 1.35; }
"""


def render(page):
    """The HTML of PAGE."""
    argv = ["mandoc", "-T", "html", "-O", "style=hako.css,man=%N.%S", page]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    text = re.sub(r'<a class="Xr" href="([^"]+)\.(\d)"', link, text)
    return text.replace("<body>", '<body>\n<nav><a href="index.html">hako</a></nav>', 1)


def link(found):
    """The start of the link FOUND: to a page of ours, or to where others have theirs."""
    name, section = found.groups()
    if (MAN / f"{name}.{section}").exists():
        return f'<a class="Xr" href="{name}.{section}.html"'
    place = OF_OTHER_PACKAGES if name in NOT_AT_MAN7 else ELSEWHERE
    return f'<a class="Xr" href="{place.format(name=name, section=section)}"'


def index(pages):
    """The HTML that leads to PAGES, by section."""
    entries = []
    for page in sorted(pages, key=lambda page: (page.suffix, page.name)):
        about = re.search(r"^\.Nd (.*(?:\n[^.].*)*)", page.read_text(), re.M)[1]
        title = f"{page.stem}({page.suffix[1:]})"
        entries.append(f'<dt><a href="{page.name}.html">{title}</a></dt>\n<dd>{html.escape(about, quote=False)}</dd>')
    head = '<meta charset="utf-8"/>\n<meta name="viewport" content="width=device-width, initial-scale=1.0"/>'
    head += '\n<link rel="stylesheet" href="hako.css" type="text/css"/>\n<title>hako</title>'
    body = "<h1>hako</h1>\n<p>Small composable commands that isolate processes on Linux.</p>"
    body += "\n<dl>\n" + "\n".join(entries) + "\n</dl>"
    return f"<!DOCTYPE html>\n<html>\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n"


if __name__ == "__main__":
    directory, sources = pathlib.Path(sys.argv[1]), list(MAN.iterdir())
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hako.css").write_text(STYLE)
    (directory / "index.html").write_text(index(sources))
    for source in sources:
        (directory / f"{source.name}.html").write_text(render(source))
