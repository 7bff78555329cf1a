"""A report as plain text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .page import CUT, MAX_REPORT_LENGTH, Full, Value, as_text, one_line


class TextPage:
    """A report in plain text: sections underlined or followed by a colon, each level indented by two spaces."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.size = 0
        self.depth = 0

    def _add(self, line: str = "") -> None:
        line = ("  " * min(self.depth, 20) + line).rstrip()
        self.size += len(line.encode("utf-8", "replace")) + 1
        if self.size > MAX_REPORT_LENGTH - 1024:
            raise Full
        self.lines.append(line)

    def _gap(self) -> None:
        if self.lines and self.lines[-1]:
            self._add()

    def begin_document(self, kind: str, title: str, badges: Sequence[tuple[str, str]]) -> None:
        title = one_line(title)
        self._add(title)
        self._add("=" * max(3, min(len(title), 78)))
        if below := ", ".join(filter(None, [kind, *(badge for badge, _ in badges)])):
            self._add(below)

    def facts(self, label: str, rows: Sequence[tuple[str, Sequence[Value]]]) -> None:
        if rows:
            self._gap()
        for name, values in rows:
            own = {"Name": label, "ID": f"{label} ID", "Date": f"{label} date"}
            self._labelled(own.get(name, name), values)

    def begin_content(self, language: str | None) -> None:
        self._gap()
        self._add("-" * 40)

    def end_content(self) -> None:
        self._gap()

    def begin_section(self, title: str, anchor: str, language: str) -> None:
        self._gap()
        if title:
            self._add(one_line(title).upper() if self.depth < 1 else one_line(title))
        self.depth += 1

    def end_section(self) -> None:
        self.depth -= 1

    def begin_rows(self) -> None: ...

    def end_rows(self) -> None: ...

    def begin_row(self, relation: str, label: str, values: Sequence[Value], anchor: str, muted: bool) -> None:
        self._labelled(f"{relation} {label}", values)
        self.depth += 1

    def end_row(self) -> None:
        self.depth -= 1

    def _labelled(self, label: str, values: Sequence[Value]) -> None:
        label = one_line(label)
        if any(value.kind == "block" and ("\n" in value.text or len(value.text) > 60) for value in values):
            self._add(f"{label}:")
            self.depth += 1
            for line in "\n".join(as_text(value) for value in values).split("\n"):
                self._add(line)
            self.depth -= 1
        else:
            self._add(f"{label}: {' · '.join(one_line(as_text(value)) for value in values)}".rstrip())

    def paragraph(self, values: Sequence[Value]) -> None:
        for line in " ".join(as_text(value) for value in values).split("\n"):
            self._add(line)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Sequence[Value]]]) -> None:
        self._add(" | ".join(columns))
        for row in rows:
            self._add(" | ".join(", ".join(one_line(as_text(value)) for value in cell) for cell in row))

    def end_document(self, rows: Sequence[tuple[str, Sequence[Value]]]) -> None:
        self._gap()
        for label, values in rows:
            self._labelled(label, values)

    def cut(self) -> None:
        self.lines.insert(0, CUT + "\n")
        self.lines.append("\n" + CUT)

    def document(self) -> bytes:
        return ("\n".join(self.lines) + "\n").encode("utf-8")
