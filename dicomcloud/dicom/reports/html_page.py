"""A report as an HTML document that needs nothing and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Sequence
from typing import Final

from .page import CUT, MAX_REPORT_LENGTH, Full, Value, clean, one_line

_STYLE: Final = """
:root{color-scheme:light dark;--page:#f3f5f8;--card:#fff;--ink:#1a2330;--soft:#5a6776;--rule:#dde3ea;--accent:#0b5cad;
--good:#11693f;--goodbg:#e0f4e8;--warn:#8a4b00;--warnbg:#fdf0d9}
@media (prefers-color-scheme:dark){:root{--page:#10151b;--card:#192028;--ink:#e4e9ef;--soft:#9aa7b5;--rule:#2d3742;
--accent:#7db8f5;--good:#7fd8a6;--goodbg:#15352a;--warn:#f3c078;--warnbg:#3a2b12}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;padding:1.5rem 1rem 3rem;background:var(--page);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Arial,sans-serif}
.sheet{max-width:60rem;margin:0 auto;background:var(--card);border:1px solid var(--rule);border-radius:.75rem;
padding:2rem 2.25rem;overflow-wrap:anywhere}
h1,h2,h3,h4,h5,h6{line-height:1.25;margin:0 0 .6rem;text-wrap:balance}
h1{font-size:1.75rem}h2{font-size:1.25rem}h3{font-size:1.075rem}h4,h5,h6{font-size:1rem}
.kind{margin:0 0 .25rem;color:var(--soft);font-size:.875rem;letter-spacing:.02em}
.badges{display:flex;flex-wrap:wrap;gap:.5rem;margin:.25rem 0 0;padding:0;list-style:none}
.badges li{padding:.1rem .65rem;border-radius:1rem;font-size:.8125rem;font-weight:600}
.good{background:var(--goodbg);color:var(--good)}.warn{background:var(--warnbg);color:var(--warn)}
.head{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(17rem,100%),1fr));gap:1.25rem 2rem;
margin:1.5rem 0 0;padding:1.25rem 0;border-top:1px solid var(--rule);border-bottom:1px solid var(--rule)}
.head h2{font-size:.8125rem;color:var(--soft);margin:0 0 .35rem;font-weight:600}
dl,dd,dt{margin:0}
.facts div{display:grid;grid-template-columns:6rem 1fr;gap:0 .5rem;font-size:.9375rem}
.facts dt{color:var(--soft)}
main{padding-top:.5rem}
section,section+.rows{margin-top:1.5rem}
section section{margin-top:1rem;padding-inline-start:.875rem;border-inline-start:3px solid var(--rule)}
section section section section section{padding-inline-start:.25rem}
main>section>h2{padding-bottom:.3rem;border-bottom:1px solid var(--rule)}
.rows>div{display:grid;grid-template-columns:minmax(8rem,15rem) minmax(0,1fr);gap:0 1rem;padding:.3rem 0}
.rows>div+div{border-top:1px solid var(--rule)}
.rows dt{color:var(--soft)}
.rows dd .rows{margin-top:.15rem;font-size:.9375em}
.rows dd .rows>div{display:block;padding:.1rem 0;border:0}
.rows dd .rows dt{display:inline}.rows dd .rows dt::after{content:": "}
.rows dd .rows dd{display:inline}
.rows dd .rows dd .rows{padding-inline-start:1rem}
.rows>.block{display:block}
.rows>.block>dd{margin-top:.1rem}
.rows .block>dd>.rows{margin-top:.4rem;padding-inline-start:.875rem;border-inline-start:3px solid var(--rule)}
.rows>.context{font-size:.9375rem}
.rows>.context>dd{color:var(--soft)}
.rows>.nested{display:block}
.rows .nested>dd,.rows dd .rows>.nested>dd{display:block;padding-inline-start:.875rem;
border-inline-start:3px solid var(--rule)}
.rows .nested>dd>.rows,.rows dd .nested>dd>.rows{padding:0;margin:0;font-size:1em}
.relation{font-style:italic}
p{margin:0 0 .6rem}
.text{white-space:pre-wrap;max-width:48rem;margin:0}
.text+.text{margin-top:.5rem}
b.number{font-weight:600;font-variant-numeric:tabular-nums}
time{white-space:nowrap}
.muted,.detail{color:var(--soft)}
.detail{font-size:.875em}
.uid{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.8125em;overflow-wrap:anywhere}
a{color:var(--accent)}
:target{outline:2px solid var(--accent);outline-offset:.25rem;border-radius:.25rem}
.wide{overflow-x:auto;margin:.25rem 0}
table{border-collapse:collapse;font-size:.9375rem;overflow-wrap:normal}
th,td{padding:.3rem .75rem .3rem 0;text-align:start;vertical-align:top;border-bottom:1px solid var(--rule)}
th{color:var(--soft);font-weight:600}
.cut{padding:.75rem 1rem;border-radius:.5rem;background:var(--warnbg);color:var(--warn);font-weight:600}
footer{margin-top:2rem;padding-top:1rem;border-top:1px solid var(--rule);color:var(--soft);font-size:.8125rem}
footer p{margin:0}
@media (max-width:40rem){body{padding:0;background:var(--card)}.sheet{border:0;border-radius:0;padding:1.25rem 1rem}
h1{font-size:1.4rem}.rows>div{display:block}.rows dt{font-size:.875rem}
section section{padding-inline-start:.625rem}}
@media print{:root{--page:#fff;--card:#fff;--ink:#000;--soft:#444;--rule:#bbb;--accent:#000}
body{padding:0;font-size:10pt}.sheet{border:0;padding:0;max-width:none}
h1,h2,h3,h4,h5,h6{break-after:avoid}.rows>div{break-inside:avoid}}
""".strip()
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: What a report may do in a browser: show its own style and nothing else.
CONTENT_SECURITY_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"
)


class HtmlPage:
    """A report in HTML. `stack` holds the elements that are open, so that a document that ends early is whole."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.size = 0
        self.stack: list[str] = []
        self.level = 1
        self.head_open = False
        self.after_title = 0

    def _add(self, markup: str) -> None:
        self.size += len(markup) if markup.isascii() else len(markup.encode("utf-8", "replace"))
        if self.size > MAX_REPORT_LENGTH - 4096:
            raise Full
        self.parts.append(markup)

    def _open(self, name: str, attributes: str = "") -> None:
        self._add(f"<{name}{attributes}>")
        self.stack.append(name)

    def _close(self) -> None:
        self._add(f"</{self.stack[-1]}>\n")
        self.stack.pop()

    def begin_document(self, kind: str, title: str, badges: Sequence[tuple[str, str]]) -> None:
        shown = _escape(one_line(title))
        self._add(
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_escape(CONTENT_SECURITY_POLICY)}">\n'
            '<meta name="referrer" content="no-referrer">\n<meta name="robots" content="noindex">\n'
            f"<title>{shown}</title>\n<style>{_STYLE}</style>\n</head>\n"
        )
        self.stack.append("html")
        self._open("body")
        self._open("div", ' class="sheet"')
        self._add("\n<header>\n")
        if kind:
            self._add(f'<p class="kind">{_escape(kind)}</p>\n')
        self._add(f"<h1><bdi>{shown}</bdi></h1>\n")
        if badges:
            listed = "".join(f'<li class="{kind}">{_escape(badge)}</li>' for badge, kind in badges)
            self._add(f'<ul class="badges" aria-label="Status">{listed}</ul>\n')
        self._add("</header>\n")
        self.after_title = len(self.parts)

    def facts(self, label: str, rows: Sequence[tuple[str, Sequence[Value]]]) -> None:
        if not rows:
            return
        if not self.head_open:
            self._open("div", ' class="head"')
            self.head_open = True
        shown = "".join(f"<div><dt>{_escape(name)}</dt><dd>{_joined(values)}</dd></div>\n" for name, values in rows)
        self._add(f'<div>\n<h2>{_escape(label)}</h2>\n<dl class="facts">\n{shown}</dl>\n</div>\n')

    def begin_content(self, language: str | None) -> None:
        if self.head_open:
            self._close()
            self.head_open = False
        self._open("main", f' lang="{_escape(language)}"' if language else "")
        self._add("\n")

    def end_content(self) -> None:
        self._close()

    def begin_section(self, title: str, anchor: str, language: str) -> None:
        self.level += 1
        attributes = f' id="{anchor}"' if anchor else ""
        self._open("section", attributes + (f' lang="{_escape(language)}"' if language else ""))
        if title:
            heading = f"h{min(self.level, 6)}"
            self._add(f"\n<{heading}><bdi>{_escape(one_line(title))}</bdi></{heading}>\n")

    def end_section(self) -> None:
        self.level -= 1
        self._close()

    def begin_rows(self) -> None:
        self._open("dl", ' class="rows"')
        self._add("\n")

    def end_rows(self) -> None:
        self._close()

    def begin_row(self, relation: str, label: str, values: Sequence[Value], anchor: str, muted: bool) -> None:
        long = any(value.kind == "block" and ("\n" in value.text or len(value.text) > 160) for value in values)
        style = "block" if long else "nested" if not values else "context" if muted else ""
        attributes = f' id="{anchor}"' if anchor else ""
        self._open("div", attributes + (f' class="{style}"' if style else ""))
        names = [f'<span class="relation">{_escape(relation)}</span>'] if relation else []
        names += [f"<bdi>{_escape(one_line(label))}</bdi>"] if label else []
        self._add(f"<dt>{' '.join(names)}</dt>")
        self._open("dd")
        self._add(_joined(values))

    def end_row(self) -> None:
        self._close()
        self._close()

    def paragraph(self, values: Sequence[Value]) -> None:
        self._add(f'<p dir="auto">{" ".join(_markup(value) for value in values)}</p>\n')

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Sequence[Value]]]) -> None:
        self._open("div", ' class="wide" tabindex="0"')
        self._open("table")
        head = "".join(f'<th scope="col">{_escape(name)}</th>' for name in columns)
        self._add(f"<thead><tr>{head}</tr></thead>\n")
        self._open("tbody")
        for row in rows:
            self._add(f"<tr>{''.join(f'<td>{_joined(cell)}</td>' for cell in row)}</tr>\n")
        for _ in range(3):
            self._close()

    def end_document(self, rows: Sequence[tuple[str, Sequence[Value]]]) -> None:
        listed = "".join(f"<p>{_escape(label)} {_joined(values)}</p>\n" for label, values in rows)
        self._add(f"<footer>\n{listed}</footer>\n")

    def cut(self) -> None:
        notice = f'<p class="cut">{CUT}</p>\n'
        self.parts.insert(self.after_title, notice)
        while "main" in self.stack and self.stack[-1] != "main":
            self.parts.append(f"</{self.stack.pop()}>")
        self.parts.append(notice)

    def document(self) -> bytes:
        closing = "".join(f"</{name}>\n" for name in reversed(self.stack))
        return ("".join(self.parts) + closing).encode("utf-8")


def _escape(value: str) -> str:
    return html.escape(clean(value), quote=True)


def _joined(values: Iterable[Value]) -> str:
    return '<span class="muted"> · </span>'.join(_markup(value) for value in values)


def _markup(value: Value) -> str:
    attributes = f' lang="{_escape(value.language)}"' if value.language else ""
    attributes += f' title="{_escape(value.title)}"' if value.title else ""
    shown = f'<span id="{value.anchor}">{_escape(value.text)}</span>' if value.anchor else _escape(value.text)
    detail = f'<span class="detail"><bdi{attributes}>{_escape(value.detail)}</bdi></span>' if value.detail else ""
    match value.kind:
        case "block" if "\n" in value.text or len(value.text) > 160:
            return f'<p class="text" dir="auto">{shown}</p>'
        case "number":
            return f'<b class="number">{shown}</b>' + (
                f" <span{attributes}>{_escape(value.detail)}</span>" if value.detail else ""
            )
        case "muted":
            return f'<span class="muted"><bdi>{shown}</bdi></span>'
        case "uid":
            return f'<span class="uid">{shown}</span>'
        case "time":
            return (
                f"<time>{shown}</time>"
                if re.fullmatch(r"\d{4}-\d\d-\d\d( \d\d:\d\d(:\d\d)?)?", value.text)
                else (f"<bdi>{shown}</bdi>")
            )
        case "reference":
            detail = f' <span class="detail uid">{_escape(value.detail)}</span>' if value.detail else ""
    if value.href:
        shown = f'<a href="{_escape(value.href)}"><bdi>{shown}</bdi></a>'
    else:
        shown = f"<bdi{attributes}>{shown}</bdi>"
    return f"{shown} {detail}" if detail else shown
