"""The narrative of an HL7 CDA document, which is what a person signed."""

from __future__ import annotations

from typing import Any, Final

from lxml import etree

from .document import Document
from .media_types import EncapsulatedDocument
from .page import MAX_DEPTH, MAX_REPORT_LENGTH, Value
from .reading import LANGUAGE, plain

_CDA: Final = "{urn:hl7-org:v3}"


class ClinicalDocument:
    """Writes an encapsulated CDA document."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._page = document.page

    def write(self, document: EncapsulatedDocument) -> None:
        """The narrative of an HL7 CDA document: titles and texts of its sections, which is what a person signed."""
        content = document.content
        if content is None and self._document.bulk is not None:
            content = bytes(self._document.bulk(document.path)[: document.length or MAX_REPORT_LENGTH])
        if content is None:
            self._page.paragraph([Value("The document is a bulk value of the instance.", "muted")])
            return
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
        try:
            root = etree.fromstring(content[:MAX_REPORT_LENGTH].strip(b"\0 "), parser)
        except etree.XMLSyntaxError:
            self._page.paragraph([Value("The document is no well-formed XML and cannot be shown.", "muted")])
            return
        etree.strip_elements(root, etree.Entity, etree.ProcessingInstruction, with_tail=False)
        title = _spaced(root.findtext(f"{_CDA}title"))
        self._page.begin_section(title, "", _xml_language(root))
        rows = [("Patient", f"{_CDA}recordTarget//{_CDA}patient/{_CDA}name"), ("Author", f"{_CDA}author//{_CDA}name")]
        self._page.begin_rows()
        for label, path in rows:
            for name in root.iterfind(path):
                self._page.begin_row("", label, plain(_xml_text(name, " ")), "", True)
                self._page.end_row()
        self._page.end_rows()
        for section in root.iterfind(f"{_CDA}component/{_CDA}structuredBody/{_CDA}component/{_CDA}section"):
            self._cda_section(section, 1)
        for body in root.iterfind(f"{_CDA}component/{_CDA}nonXMLBody/{_CDA}text"):
            words = body.text or "" if body.get("representation") != "B64" else ""
            note = Value("The text is in another format and cannot be shown.", "muted")
            self._page.paragraph([Value(words, "block") if words.strip() else note])
        self._page.end_section()

    def _cda_section(self, section: Any, depth: int) -> None:
        self._document.count()
        self._page.begin_section(_spaced(section.findtext(f"{_CDA}title")), "", _xml_language(section))
        for narrative in section.iterfind(f"{_CDA}text"):
            self._narrative(narrative)
        if depth < MAX_DEPTH:
            for below in section.iterfind(f"{_CDA}component/{_CDA}section"):
                self._cda_section(below, depth + 1)
        self._page.end_section()

    def _narrative(self, element: Any) -> None:
        """A narrative block (CDA 4.3.5): paragraphs, lists, tables; all else is text between them."""
        words = [element.text or ""]

        def flush() -> None:
            if "".join(words).strip():
                self._page.paragraph([Value(_spaced("".join(words)))])
            words.clear()

        for child in element:
            self._document.count()
            name = etree.QName(child).localname if isinstance(child.tag, str) else ""
            if name in ("paragraph", "list", "table", "item"):
                flush()
                if name == "table":
                    rows = [
                        [[Value(_xml_text(cell))] for cell in row.iterchildren(f"{_CDA}th", f"{_CDA}td")]
                        for row in child.iter(f"{_CDA}tr")
                    ]
                    self._page.table([cell[0].text for cell in rows[0]] if rows else [], rows[1:])
                elif name == "list":
                    self._list(child)
                else:
                    self._page.paragraph([Value(_xml_text(child))])
            else:
                words.append("\n" if name == "br" else "".join(map(str, child.itertext())))
            words.append(child.tail or "")
        flush()

    def _list(self, element: Any) -> None:
        ordered = element.get("listType") == "ordered"
        for number, entry in enumerate(element.iterfind(f"{_CDA}item"), 1):
            self._document.count()
            mark = f"{number}." if ordered else "•"
            self._page.paragraph([Value(mark, "muted"), Value(_xml_text(entry, " "))])


def _spaced(value: str | None) -> str:
    return " ".join((value or "").split())


def _xml_text(element: Any, between: str = "") -> str:
    return _spaced(between.join(map(str, element.itertext())))


def _xml_language(element: Any) -> str:
    code = element.find(f"{_CDA}languageCode")
    value = str(code.get("code", "")) if code is not None else ""
    return value if LANGUAGE.fullmatch(value) else ""
