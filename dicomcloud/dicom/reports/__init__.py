"""What people read of instances that are no images: Structured Reports, key objects, plans, presentation states.

    report_html, report_text     a document for the browser, for a terminal or a mail
    referenced_instances         study and series of what a document refers to, so that links need no search
    encapsulated_document        the PDF, CDA, STL, OBJ or MTL that an instance carries
    media_types_of               the rendered media types of an instance (PS3.18 Table 8.7.4-1)

Everything is made from a data set in the DICOM JSON Model, the one that the index keeps; no file is read. A document
holds texts of strangers: control characters become U+FFFD, every text is escaped and isolated from the direction of
its surroundings, there is no script, no inline style, nothing is loaded from anywhere, and the page says so to the
browser (`CONTENT_SECURITY_POLICY`, also in its head).

A Structured Report is its content tree (PS3.3 C.17.3): containers are sections, the rest are rows of a name and a
value with what they were inferred or selected from below them. Of an encapsulated CDA document it is the narrative.
Instances of other classes are a table of their attributes.
"""

from __future__ import annotations

from .document import Bulk, Link
from .html_page import CONTENT_SECURITY_POLICY, HtmlPage
from .media_types import EncapsulatedDocument, encapsulated_document, media_types_of, referenced_instances
from .page import MAX_REPORT_LENGTH, clean
from .plain_text import TextPage
from .reading import Attributes, age, code_meaning, moment, person_name, unit_symbol
from .report import write_report

__all__ = [
    "CONTENT_SECURITY_POLICY",
    "MAX_REPORT_LENGTH",
    "EncapsulatedDocument",
    "Link",
    "age",
    "clean",
    "code_meaning",
    "encapsulated_document",
    "media_types_of",
    "moment",
    "person_name",
    "referenced_instances",
    "report_html",
    "report_text",
    "unit_symbol",
]


def report_html(attributes: Attributes, *, link: Link | None = None, bulk: Bulk | None = None) -> bytes:
    """An instance as an HTML document in UTF-8, at most `MAX_REPORT_LENGTH` bytes long.

    `link` gives the addresses of referenced instances; other schemes than http and https are not linked. `bulk` reads
    texts that are too long for the metadata, and CDA documents; without it their place says that they are there.
    """
    page = HtmlPage()
    write_report(page, attributes, link, bulk)
    return page.document()


def report_text(attributes: Attributes, *, bulk: Bulk | None = None) -> bytes:
    """The same document as plain text in UTF-8, lines ending in LF, at most `MAX_REPORT_LENGTH` bytes long."""
    page = TextPage()
    write_report(page, attributes, None, bulk)
    return page.document()
