"""Writes conformance-statement.md, the DICOM Conformance Statement in the form of PS3.2 Annex N, from the code.

    python -m docs.conformance_statement            write docs/conformance-statement.md
    python -m docs.conformance_statement --print    print it

Run it from the project's root after a change of routes, parameters, media types, transfer syntaxes, matching or
character sets; tests/test_conformance_statement.py fails until that is done. Resources, parameters and status codes
are those of the OpenAPI description, the types of matching what the query parser makes of sample values.
"""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
import textwrap
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from werkzeug.http import HTTP_STATUS_CODES

import dicomcloud
from app import create_app
from dicomcloud import __version__, settings
from dicomcloud.dicom import header, query
from dicomcloud.dicom.attributes import (
    INDEXED_ATTRIBUTES,
    REQUEST_ATTRIBUTES,
    VR_BY_TAG,
    IndexedAttribute,
    Level,
    is_multi_valued,
    json_key,
    keyword_of,
    level_of,
    vr_of,
)
from dicomcloud.dicom.character_sets import codec_of
from dicomcloud.dicom.matching import Kind, Match, matches
from dicomcloud.dicom.transfer_syntaxes import TRANSFER_SYNTAXES, TransferSyntax, leaves_as_stored
from dicomcloud.errors import BadRequest, FailureReason, WarningReason
from dicomcloud.web import capabilities

PAGE = Path(__file__).with_name("conformance-statement.md")
PACKAGE = Path(dicomcloud.__file__).parent
COMMAND = "python -m docs.conformance_statement"
DEFAULTS = settings.load(None, {})

Operation = Mapping[str, Any]


def statement() -> str:
    """The whole page, Markdown."""
    operations = _operations()
    sections = (
        _overview(operations),
        _introduction(),
        _implementation_model(),
        _studies_service(operations),
        _uri_service(operations),
        _private_services(operations),
        _character_sets(),
        _configuration(),
        _status_codes(operations),
        _security(),
        _annexes(),
    )
    blocks = [block for section in sections for block in section]
    blocks.insert(blocks.index("## 3 Introduction"), _contents(blocks))
    return "\n\n".join(_wrapped(block) if block[0] not in "#|-" else block for block in blocks) + "\n"


def _contents(blocks: Iterable[str]) -> str:
    lines = ["## 2 Table of Contents", ""]
    for title in blocks:
        level, _, text = title.partition(" ")
        if set(level) == {"#"} and len(level) > 1:
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            lines.append(f"{'  ' * (len(level) - 2)}- [{text}](#{anchor})")
    return "\n".join(lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


# ---------------------------------------------------------------------------------------------------------------------
# Markdown, and the operations of the OpenAPI description


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(*texts: str) -> str:
    return ", ".join(f"`{text}`" for text in texts)


def _tag(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _yes(flag: bool) -> str:
    return "Y" if flag else "N"


# Service (the tag in the OpenAPI description) → what it is in PS3.18. A service that is missing here stops the run.
SERVICES = {
    "WADO-RS": "Retrieve",
    "STOW-RS": "Store",
    "QIDO-RS": "Search",
    "WADO-URI": "URI",
    "DELOW-RS": "Delete",
    "OHIF": "OHIF",
    "changes": "Changes",
}


def _operations() -> dict[str, list[tuple[str, Operation]]]:
    """(path below the root, operation) by service."""
    found: dict[str, list[tuple[str, Operation]]] = {service: [] for service in SERVICES.values()}
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(settings.load(None, {"DICOMCLOUD_DATA_DIR": folder, "DICOMCLOUD_LOG_LEVEL": "warning"}))
        description = app.test_client().get("/openapi.json").get_json()
        app.extensions["dicomcloud"].archive.close()
    for path, item in description["paths"].items():
        for method, operation in item.items():
            if method != "parameters":
                (service,) = operation["tags"]
                if service not in SERVICES:  # logging in and sharing: no services of the Standard
                    continue
                found[SERVICES[service]].append((path.removeprefix(DEFAULTS.root), operation))
    return found


def _media_types(operation: Operation) -> list[str]:
    answers = [answer for status, answer in sorted(operation["responses"].items()) if status < "300"]
    return list(dict.fromkeys(kind for answer in answers for kind in answer.get("content", ())))


def _resources(operations: Iterable[tuple[str, Operation]]) -> str:
    rows = []
    for path, operation in operations:
        kinds = _media_types(operation)
        kinds = list(dict.fromkeys([capabilities.default_media_type(kinds), *kinds]))
        rows.append((operation["summary"], _code(path), _code(*kinds)))
    return _table(("Resource", "Path", "Media types of the response, the default first"), rows)


def _parameters(operations: Iterable[tuple[str, Operation]], place: str) -> str:
    """The documented parameters in this place (query, header), each once, but for matching keys."""
    keys = {attribute.keyword for attribute in INDEXED_ATTRIBUTES}
    found: dict[str, tuple[str, str, str]] = {}
    for _, operation in operations:
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == place and parameter["name"] not in keys:
                schema = parameter["schema"]
                values = _code(*map(str, schema["enum"])) if "enum" in schema else _values(schema)
                name = "{attribute}" if schema["type"] == "object" else parameter["name"]
                found.setdefault(name, (_code(name), values, parameter["description"]))
    return _table(("Name", "Supported values", "Comments"), found.values())


def _values(schema: Mapping[str, Any]) -> str:
    kind = {"string": "text", "integer": "integer", "number": "decimal", "object": "text", "array": "list"}
    limits = [f"from {schema['minimum']}"] if "minimum" in schema else []
    limits += [f"to {schema['maximum']}"] if "maximum" in schema else []
    return " ".join([kind[schema["type"]], *limits])


# ---------------------------------------------------------------------------------------------------------------------
# 1 to 4


def _overview(operations: Mapping[str, list[tuple[str, Operation]]]) -> Iterator[str]:
    yield f"# DICOMcloud {__version__}: DICOM Conformance Statement"
    yield f"""
        In the form of PS3.2 Annex N (DICOM Conformance Statement Template); sections count from 1, as the
        template asks. Sections and tables that do not apply are left out. Made from the code by `{COMMAND}`: do
        not edit it by hand.
    """
    yield "## 1 Conformance Statement Overview"
    yield """
        DICOMcloud is an archive and an origin server for DICOMweb (PS3.18). It stores, finds and returns
        composite instances of every SOP Class, and keeps each as it came. It is no user agent, has no DIMSE
        services and no media services.
    """
    rows = [
        ("Studies Service (PS3.18 10)", "Retrieve (WADO-RS)", "N", _yes(bool(operations["Retrieve"])), "10.4"),
        ("", "Store (STOW-RS)", "N", _yes(bool(operations["Store"])), "10.5"),
        ("", "Search (QIDO-RS)", "N", _yes(bool(operations["Search"])), "10.6"),
        ("", "Delete", "N", _yes(bool(operations["Delete"])), "private extension"),
        ("", "Change feed", "N", _yes(bool(operations["Changes"])), "private extension"),
        ("", "Retrieve Capabilities", "N", "Y", "8.9"),
        ("URI Service (PS3.18 9)", "Retrieve DICOM Instance", "N", _yes(bool(operations["URI"])), "9.4"),
        ("Worklist, Non-Patient Instance, Storage Commitment Services", "", "N", "N", "11, 12, 13"),
    ]
    yield "Table 1-1. DICOM Web Services (UA: user agent, OS: origin server)"
    yield _table(("Service", "Transaction", "UA", "OS", "Reference"), rows)
    yield """
        **SOP Classes.** Every Storage SOP Class, standard, retired and private: what is stored, found and
        returned does not depend on it. A DICOMDIR (Media Storage Directory) is refused.
    """
    yield "Table 1-2. Transfer syntaxes"
    yield _transfer_syntaxes()
    yield """
        All are accepted by Store and kept bit for bit. As stored: leaves without change where it is asked for
        (Implicit VR and Big Endian never leave, PS3.18 8.7.3.4). Decoded: can be had in Explicit VR Little
        Endian. Made: other instances can be had in it. A transfer syntax that is not in the table is stored and
        leaves as it came.
    """


def _transfer_syntaxes() -> str:
    head = ("Transfer Syntax", "UID", "Media type of its frames", "As stored", "Decoded", "Made")
    return _table(head, [_transfer_syntax(syntax) for syntax in TRANSFER_SYNTAXES.values()])


def _transfer_syntax(syntax: TransferSyntax) -> tuple[str, ...]:
    flags = (leaves_as_stored(syntax.uid), syntax.decodable, syntax.encodable)
    return syntax.name, _code(syntax.uid), _code(syntax.media_type), *map(_yes, flags)


def _introduction() -> Iterator[str]:
    yield "## 3 Introduction"
    yield """
        For those who connect other systems with DICOMcloud. It states what the software does, not that two
        systems work together: that has to be tried. Clauses are those of the current edition of the DICOM
        Standard; where an edition matters it is named. For every installation the machine-readable form is at
        hand: [Retrieve Capabilities](#5325-retrieve-capabilities-transaction).
    """


def _implementation_model() -> Iterator[str]:
    yield "## 4 Implementation Model"
    yield """
        One application, the origin server, carries out every transaction. Store: the instances of a request are
        written and synced to disk, then indexed in one transaction, then reported. Search is answered from the
        index; Retrieve from the index and the stored files. It is native: no other system is asked. An instance
        that is reported as stored survives the failure of the machine from then on.
    """


# ---------------------------------------------------------------------------------------------------------------------
# 5.3 DICOM Web Services


def _studies_service(operations: Mapping[str, list[tuple[str, Operation]]]) -> Iterator[str]:
    yield "## 5 Service and Interoperability Description"
    yield "### 5.3 DICOM Web Services"
    yield "#### 5.3.2 Studies Web Service"
    yield f"""
        The root is `{DEFAULTS.root}` (a setting); `/api` and the roots of single services (`/wadors`,
        `/stowrs`, `/qidors`, `/delowrs`) answer alike. Doubled slashes and a slash at the end are accepted.
    """
    yield "##### 5.3.2.1 Common to all transactions"
    yield _table(
        ("Name", "Kind", "Support"),
        [
            ("Accept", "header", "q-values, wildcards, several ranges, `type` and `transfer-syntax` quoted or not. "
             "Missing: as `*/*`. Nothing acceptable: 406 with the list of what is available"),
            ("`accept`", "query parameter", "Search, Retrieve, Store and Capabilities; goes before the header"),
            ("Accept-Charset, `charset`", "header, query parameter", "ignored: every text is UTF-8"),
            ("If-None-Match", "header", "Retrieve and Capabilities: 304 for an ETag that is still right"),
            ("Content-Type, Content-Length, Content-Location, ETag, Vary, Warning", "response header",
             "where they have a meaning; parts of multipart responses have the first three"),
            ("Origin, Access-Control-*", "header", "CORS for the sites of the setting `cors_origins`"),
        ],
    )  # fmt: skip
    yield "##### 5.3.2.2 Retrieve Transaction (WADO-RS)"
    yield from _transaction(operations["Retrieve"])
    yield """
        Without a `transfer-syntax`, pixel data are sent uncompressed in Explicit VR Little Endian; what cannot
        be decoded (video, some rare codecs) leaves as stored, and its part says so. `*` means as stored.
    """
    yield """
        What instances are rendered as, how images are shown, what `quality` means and how thumbnails are chosen is
        described in [rendering.md](rendering.md).
    """
    yield "##### 5.3.2.3 Store Transaction (STOW-RS)"
    yield from _transaction(operations["Store"])
    bodies = dict.fromkeys(kind for _, each in operations["Store"] for kind in each["requestBody"]["content"])
    yield f"Media types of the request: {_code(*bodies)}; `Content-Encoding: gzip` is inflated."
    yield f"""
        The same bytes again are a success. Other bytes under a stored SOP Instance UID follow the setting
        `duplicates` (default: `{DEFAULTS.duplicates}`). Nothing in an instance is changed; a missing or wrong
        preamble and File Meta Information are completed in front of the data set. How data sets are read:
    """
    yield _choices(header)
    yield "Table 5-1. Reasons in the Store Instances Response Module (PS3.18 Annex I)"
    yield _table(("Attribute", "Value", "Meaning"), _reasons())
    yield "##### 5.3.2.4 Search Transaction (QIDO-RS)"
    yield from _transaction(operations["Search"])
    yield f"""
        At most {DEFAULTS.max_results} results are returned at a time (a setting); further ones with `offset`.
        The order is the same each time. Attributes of a level below the resource are not matched (Warning 299)
        and not returned.
    """
    yield from _matching()
    yield "##### 5.3.2.5 Retrieve Capabilities Transaction"
    kinds = _code(capabilities.WADL, capabilities.JSON)
    yield f"""
        OPTIONS on the root of the services and on every resource below it, in {kinds} (the first is the
        default): the WADL document of PS3.18 Annex H, made from the routes, or its JSON form (Annex G), in
        which `resources` is an object, since there is one. On a resource it describes that one and those below
        it. ETag and If-None-Match; a CORS preflight is answered as one.
    """
    yield "##### 5.3.2.6 Delete Transaction (private)"
    yield """
        DELETE is not part of PS3.18. What is deleted is gone for good; the answer to a later request for it is
        410, until it is stored anew.
    """
    yield _table(("Resource", "Path"), [(each["summary"], _code(path)) for path, each in operations["Delete"]])
    yield "##### 5.3.2.7 Change feed (private)"
    yield from _transaction(operations["Changes"])


def _transaction(operations: Sequence[tuple[str, Operation]]) -> Iterator[str]:
    yield _resources(operations)
    told = list(dict.fromkeys(each["description"] for _, each in operations if each.get("description")))
    if told:
        yield "\n".join(f"- {text}" for text in told)
    for place, title in (("query", "Query parameters:"), ("header", "Header fields beside the common ones:")):
        if any(parameter["in"] == place for _, each in operations for parameter in each.get("parameters", ())):
            yield title
            yield _parameters(operations, place)


def _choices(module: Any) -> str:
    """The list in which a module's documentation says how it decides where the Standard leaves room."""
    documentation = inspect.getdoc(module) or ""
    return documentation[documentation.index("\n- ") :].strip()


FAILURES = {
    FailureReason.PROCESSING_FAILURE: "Processing failure, or more than the limits of this server allow",
    FailureReason.DUPLICATE_SOP_INSTANCE: "Duplicate SOP Instance: other bytes are stored under this UID",
    FailureReason.NOT_AUTHORIZED: "Not authorized: the sender may not store into this study",
    FailureReason.OUT_OF_RESOURCES: "Out of resources: no room on the disk, or the storage is away",
    FailureReason.DATA_SET_DOES_NOT_MATCH: "Data set does not match: another study than the one of the URL",
    FailureReason.CANNOT_UNDERSTAND: "Cannot understand: not DICOM, truncated, an identifying UID is missing",
}
WARNINGS = {
    WarningReason.COERCED: "Coercion of data elements",
    WarningReason.ELEMENTS_DISCARDED: "Elements discarded",
    WarningReason.DATA_SET_DOES_NOT_MATCH: "Data set does not match SOP Class",
}


def _reasons() -> Iterator[tuple[str, str, str]]:
    """Those that the code gives; the others are defined for the sake of completeness."""
    sources = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    for failure in FailureReason:
        if f"FailureReason.{failure.name}" in sources:
            yield "Failure Reason (0008,1197)", f"{failure:04X}", FAILURES[failure]
    for warning in WarningReason:
        if f"WarningReason.{warning.name}" in sources:
            yield "Warning Reason (0008,1196)", f"{warning:04X}", WARNINGS[warning]


# ---------------------------------------------------------------------------------------------------------------------
# 5.3.2.4 Matching: what the query parser makes of sample values

_SINGLE = {"AS": "045Y", "AT": "00100010", "DA": "20250102", "DT": "20250102101500", "TM": "101500", "UI": "1.2.3"}
_SINGLE |= dict.fromkeys(("DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"), "1")
_RANGE = {"DA": "20250102-20250105", "DT": "20250102-20250105", "TM": "101500-111500"}
_LIST = {"UI": "1.2.3,1.2.4"}
_ITEM_KEY = 0x00080100  # Code Value, in place of what a sequence may hold


def _kind(level: Level, key: str, value: str, *options: str) -> Kind | None:
    """How the parser matches this key; None where it does not (universal), refuses the value or ignores the key."""
    match = _match(level, key, value, *options)
    return match.kind if match else None


def _match(level: Level, key: str, value: str, *options: str) -> Match | None:
    try:
        parsed = query.parse_query(level, [(key, value), *((name, "true") for name in options)], max_results=1)
    except BadRequest:
        return None
    return parsed.matches[0] if parsed.matches and not parsed.warnings else None


def matching_types(level: Level, tag: int, inner: int | None = None) -> tuple[list[str], list[str]]:
    """The types of matching of an attribute at this level, in the letters of PS3.2, and what options do to it."""
    key, vr = keyword_of(tag), vr_of(tag)
    if vr == "SQ":
        nested = _kind(level, f"{key}.{keyword_of(inner or _ITEM_KEY)}", "1")
        return (["SEQUENCE", "U"] if nested is Kind.SEQUENCE else ["NONE"]), []
    single = _SINGLE.get(vr, "A")
    found = _match(level, key, single)
    if found is None or not matches(found, {json_key(tag): _stored(vr, single)}):
        return ["NONE"], []
    letters = ["S"]
    several = _match(level, key, _LIST.get(vr, "A,B"))
    if vr == "UI" and several and len(several.values) == 2:
        letters.append("L")
    letters += ["U"] if _match(level, key, "") is None else []
    letters += ["*"] if _kind(level, key, "A*") in (Kind.WILDCARD, Kind.NAME) else []
    letters += ["R"] if _kind(level, key, _RANGE.get(vr, "-")) is Kind.RANGE else []
    options = []
    if vr == "CS" and several and len(several.values) == 2:
        options.append("list of codes")
    if _kind(level, key, "A", "fuzzymatching") is Kind.FUZZY:
        options.append("fuzzy")
    if _kind(level, key, "A\\B", "multiplevaluematching") is Kind.ALL:
        options.append("multiple values")
    if _kind(level, key, '""', "emptyvaluematching") is Kind.EMPTY:
        options.append("empty value")
    if found.time_tag:
        options.append(f"combined with {keyword_of(found.time_tag)}")
    return letters, options


def _stored(vr: str, text: str) -> dict[str, Any]:
    """An attribute with this value in the DICOM JSON Model."""
    if vr == "UN" or vr.startswith("O"):
        return {"vr": vr, "InlineBinary": b64encode(text.encode()).decode()}
    return {"vr": vr, "Value": [{"Alphabetic": text} if vr == "PN" else text]}


UNIQUE_KEYS = {Level.STUDY: 0x0020000D, Level.SERIES: 0x0020000E, Level.INSTANCE: 0x00080018}


def _matching() -> Iterator[str]:
    yield """
        Types of matching (PS3.4 C.2.2.2): S single value, L list of UIDs, U universal, * wildcard, R range,
        SEQUENCE, UNIQUE the unique key of the level, NONE returned only. Return: always; when stored (only
        where the instances have it); on request (as a key or in `includefield`). Person names match by their
        parts without regard to case and accents; with `fuzzymatching` by sound as well (Metaphone), word by
        word.
    """
    for level in Level:
        yield f"Table 5-{level + 1}. Attributes of the {level.name.lower()} level"
        rows = [row for each in INDEXED_ATTRIBUTES if each.level is level for row in _attribute_rows(each)]
        yield _table(("Attribute", "Tag", "VR", "Matching", "Options", "Return"), rows)
    yield """
        All other attributes of PS3.6 that are stored are matched as well, at the level to which they belong,
        also in sequences of any depth (dotted paths) and by their tag alone. By their VR:
    """
    yield "Table 5-5. All other attributes"
    yield _table(("VR", "Matching", "Options"), _vr_rows())
    yield "What the Standard leaves open:"
    yield _choices(query)


def _attribute_rows(attribute: IndexedAttribute) -> Iterator[tuple[str, ...]]:
    letters, options = matching_types(attribute.level, attribute.tag)
    if attribute.tag == UNIQUE_KEYS[attribute.level]:
        letters.insert(0, "UNIQUE")
    returned = "when stored" if attribute.conditional else "always" if attribute.returned else "on request"
    name, tag = attribute.keyword, _tag(attribute.tag)
    yield name, tag, attribute.vr, " ".join(letters), ", ".join(options), returned
    for sequence, inner in REQUEST_ATTRIBUTES:
        if sequence == attribute.tag:
            key = f"{keyword_of(sequence)}.{keyword_of(inner)}"
            nested = query.parse_query(attribute.level, [(key, "A*")], max_results=1).matches[0].items[0].kind
            found = "S U *" if nested is Kind.WILDCARD else "S U"
            yield f"> {keyword_of(inner)}", _tag(inner), vr_of(inner), found, "", "with the sequence"


def _vr_rows() -> Iterator[tuple[str, ...]]:
    by_vr: dict[str, list[int]] = {}
    indexed = {attribute.tag for attribute in INDEXED_ATTRIBUTES}
    for tag in VR_BY_TAG:
        if keyword_of(tag) and tag not in indexed and level_of(tag) is not None:
            by_vr.setdefault(vr_of(tag), []).append(tag)
    for vr, tags in sorted(by_vr.items()):
        results = [matching_types(Level.INSTANCE, tag) for tag in sorted(tags, key=lambda t: not is_multi_valued(t))]
        letters, options = max(results[:8], key=lambda result: (len(result[0]), len(result[1])))
        yield vr, " ".join(letters), ", ".join(option for option in options if not option.startswith("combined"))


# ---------------------------------------------------------------------------------------------------------------------
# Other services, character sets, configuration


def _uri_service(operations: Mapping[str, list[tuple[str, Operation]]]) -> Iterator[str]:
    yield "#### 5.3.3 URI Web Service (WADO-URI)"
    yield "At `/wado`, `/wadouri` and `/api/wadouri`."
    yield from _transaction(operations["URI"])


def _private_services(operations: Mapping[str, list[tuple[str, Operation]]]) -> Iterator[str]:
    yield "#### 5.3.4 Private services"
    yield "Not part of PS3.18; JSON of its own for the OHIF viewer, as earlier versions of DICOMcloud had it."
    yield _resources(operations["OHIF"])


# PS3.3 Tables C.12-2 to C.12-5. Of the terms with code extensions only those that have no term without.
CHARACTER_SETS = {
    "ISO_IR 6": "Default repertoire (ASCII)",
    "ISO_IR 100": "Latin alphabet No. 1",
    "ISO_IR 101": "Latin alphabet No. 2",
    "ISO_IR 109": "Latin alphabet No. 3",
    "ISO_IR 110": "Latin alphabet No. 4",
    "ISO_IR 144": "Cyrillic",
    "ISO_IR 127": "Arabic",
    "ISO_IR 126": "Greek",
    "ISO_IR 138": "Hebrew",
    "ISO_IR 148": "Latin alphabet No. 5",
    "ISO_IR 203": "Latin alphabet No. 9",
    "ISO_IR 13": "Japanese katakana and romaji",
    "ISO_IR 166": "Thai",
    "ISO 2022 IR 87": "Japanese kanji (JIS X 0208)",
    "ISO 2022 IR 159": "Japanese supplementary kanji (JIS X 0212)",
    "ISO 2022 IR 149": "Korean",
    "ISO 2022 IR 58": "Simplified Chinese",
    "ISO_IR 192": "Unicode in UTF-8",
    "GB18030": "Chinese",
    "GBK": "Chinese",
}


def _character_sets() -> Iterator[str]:
    yield "### 5.5 Support of Character Sets"
    yield """
        Stored files keep their Specific Character Set (0008,0005). Metadata, search results and matching are in
        Unicode, sent as UTF-8; (0008,0005) is in them as it is stored. Code extensions (ISO 2022) are
        understood for each set of the table. Text without a declared character set is taken for UTF-8 if it is
        valid UTF-8, else for Latin-1; what does not fit the declared set becomes U+FFFD.
    """
    yield "Table 5-6. Character sets"
    rows = [(_code(term), name, codec_of(term) or "") for term, name in CHARACTER_SETS.items()]
    yield _table(("Defined Term", "Repertoire", "Codec (empty: ASCII, or by escape sequence)"), rows)


SETTINGS = (
    "root", "public_url", "duplicates", "max_results", "empty_search_status", "max_request_bytes", "max_parts",
    "max_inflated_bytes", "min_free_bytes", "cors_origins",
)  # fmt: skip


def _configuration() -> Iterator[str]:
    yield "## 6 Configuration"
    yield "Settings that change what is stated here; [settings.md](settings.md) has them all."
    options = {option.name: option for option in settings.OPTIONS}
    shown = [options[name] for name in SETTINGS]
    rows = [
        (_code(each.name), _code(each.show(each.default)) if each.default else "empty", each.help) for each in shown
    ]
    yield _table(("Setting", "Default", "Effect"), rows)


# ---------------------------------------------------------------------------------------------------------------------
# 7 and 8


def _status_codes(operations: Mapping[str, list[tuple[str, Operation]]]) -> Iterator[str]:
    yield "## 7 Network and Media Communication Details"
    yield "### 7.3 Status Codes"
    yield """
        Beside those of the tables, every resource answers 304 (Not Modified) where it has an ETag, 405 (Method
        Not Allowed) with the header Allow, and 500 for a fault of the server, whose reason is in its log. Each
        failure has a status report as JSON or text, by Accept.
    """
    sections = (
        ("7.3.3.2", "URI Web Service", "URI"),
        ("7.3.3.3.1", "Studies Web Service, Retrieve Transaction", "Retrieve"),
        ("7.3.3.3.3", "Studies Web Service, Store Transaction", "Store"),
        ("7.3.3.3.5", "Studies Web Service, Search Transaction", "Search"),
        ("7.3.3.3.7", "Studies Web Service, Delete Transaction (private)", "Delete"),
    )
    for number, title, service in sections:
        yield f"#### {number} {title} as origin server"
        yield _table(("Status", "Condition"), _conditions(operations[service]))
    yield "#### 7.3.3.3.9 Retrieve Capabilities Transaction as origin server"
    rows = [
        ("200 OK", "The description is sent"),
        ("304 Not Modified", "The client has it already (If-None-Match)"),
        ("406 Not Acceptable", "Neither of the media types is acceptable"),
        ("404 Not Found", "There is no such resource"),
    ]
    yield _table(("Status", "Condition"), rows)


def _conditions(operations: Iterable[tuple[str, Operation]]) -> list[tuple[str, str]]:
    """Status and condition; where resources differ, the condition of each."""
    found: dict[int, dict[str, list[str]]] = {}
    for _, operation in operations:
        for status, answer in operation["responses"].items():
            if status.isdigit():
                found.setdefault(int(status), {}).setdefault(answer["description"], []).append(operation["summary"])
    rows = []
    for status, conditions in sorted(found.items()):
        for condition, resources in conditions.items():
            who = f" ({', '.join(resources)})" if len(conditions) > 1 else ""
            rows.append((f"{status} {HTTP_STATUS_CODES[status]}", condition + who))
    return rows


def _security() -> Iterator[str]:
    yield "## 8 Security"
    yield """
        **Access.** Callers are asked who they are as soon as one is known: HTTP Basic (RFC 7617), bearer tokens
        (RFC 6750): JSON Web Tokens of an OpenID Connect provider, API keys, links to one study; or a trusted proxy's
        word. Roles give the permission to search and retrieve, store, delete, administer, and to retrieve de-identified
        copies only; a caller can be confined to studies by patient ID, issuer, institution. Without it the server
        listens to its own machine only.
    """
    yield """
        **Audit trail.** Searches, retrieves, stores, deletes, logins and refusals are recorded in a chain of hashes
        and can be sent as audit messages of PS3.15 A.5 over TLS (RFC 5424, RFC 5425). Patient IDs and names are not
        in the messages, but the text of a search is.
    """
    yield """
        **Integrity.** Instances are kept bit for bit with a check sum (SHA-256), thus Digital Signatures stay
        valid where an instance leaves as stored; they are neither made, checked nor removed. Decoding and
        conversion to another transfer syntax may invalidate them.
    """
    yield """
        **Hostile input.** Bodies, parts, nesting, inflated and decoded sizes are limited; URLs inside stored
        data are never followed; no UID and no name becomes part of a path.
    """


def _annexes() -> Iterator[str]:
    yield "## 9 Annexes"
    yield """
        **IODs created.** None. **Private attributes.** None. **Coercion of attributes.** Not unless it is configured
        (`stow_query_attributes`, `processors`); changes are then recorded in the Original Attributes Sequence.
    """
    yield """
        **Attribute confidentiality (de-identification).** Basic Application Level Confidentiality Profile and its
        options, PS3.15 Annex E, edition 2026c: of what is stored (`anonymizer_enabled`, off by default), of copies
        from WADO-URI (`anonymize=yes`), of all that callers retrieve whose role lets them have nothing else, and
        from the command line. docs/deidentification.md tells the options.
    """


def main() -> None:
    text = statement()
    if "--print" in sys.argv[1:]:
        sys.stdout.write(text)
    else:
        PAGE.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
