"""Data sets in the DICOM JSON Model: their single texts, and to and from Native DICOM Model XML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from lxml import etree

from .attributes import json_key, keyword_of, tag_of, vr_of

NATIVE_MODEL_NAMESPACE: Final = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
_XML_SPACE: Final = "{http://www.w3.org/XML/1998/namespace}space"
_ROOT: Final = f"{{{NATIVE_MODEL_NAMESPACE}}}"
# PS3.19 Table A.1.5-2: the five components of a name group (PS3.5 6.2.1)
_NAME_PARTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_MAX_DEPTH: Final = 64  # of sequences, as in a file
_WHOLE_NUMBERS: Final = {"SL", "SS", "UL", "US", "SV", "UV"}
_XML_PIECE: Final = 1 << 20
# What the Char production of XML 1.0 leaves out.
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(attributes: Mapping[str, Any], keyword_or_tag: str | int, default: str = "") -> str:
    """The first value of an attribute as text, of a person name its alphabetic group (else the first it has).

    The attribute is given by keyword, as 8 hexadecimal digits or as a number. `default` if it is absent, empty,
    unknown, a sequence or binary.
    """
    tag = keyword_or_tag if isinstance(keyword_or_tag, int) else tag_of(keyword_or_tag)
    values = attributes.get(json_key(tag), {}).get("Value") if tag is not None else None
    if not values:
        return default
    value = values[0]
    if isinstance(value, Mapping):
        value = next((value[group] for group in _NAME_GROUPS if value.get(group)), None)
    return default if value is None else _number_text(value)


def native_model_xml(attributes: Mapping[str, Any]) -> bytes:
    """The Native DICOM Model (PS3.19 A.1) of a data set in the DICOM JSON Model, as UTF-8 with an XML declaration.

    Characters that XML 1.0 cannot have (most control characters) become U+FFFD. An empty value among others is a
    Value without text; private attributes carry their private creator.
    """
    root = etree.Element(_ROOT + "NativeDicomModel", nsmap={None: NATIVE_MODEL_NAMESPACE})  # type: ignore[dict-item]
    root.set(_XML_SPACE, "preserve")
    _add_attributes(root, attributes)
    document: bytes = etree.tostring(root, xml_declaration=True, encoding="UTF-8")
    return document


def _add_attributes(parent: Any, attributes: Mapping[str, Any]) -> None:
    for key, attribute in attributes.items():
        tag = int(key, 16)
        vr = attribute["vr"]
        element = etree.SubElement(parent, _ROOT + "DicomAttribute", tag=key, vr=vr)
        if keyword := keyword_of(tag):
            element.set("keyword", keyword)
        if tag >> 16 & 1 and (creator := _private_creator(attributes, tag)):
            element.set("privateCreator", _clean(creator))
        if "BulkDataURI" in attribute:
            etree.SubElement(element, _ROOT + "BulkData", uri=_clean(attribute["BulkDataURI"]))
        elif "InlineBinary" in attribute:
            etree.SubElement(element, _ROOT + "InlineBinary").text = attribute["InlineBinary"]
        for number, value in enumerate(attribute.get("Value", ()), 1):
            _add_value(element, vr, str(number), value)


def _add_value(element: Any, vr: str, number: str, value: Any) -> None:
    if vr == "SQ":
        _add_attributes(etree.SubElement(element, _ROOT + "Item", number=number), value or {})
    elif vr == "PN":
        name = etree.SubElement(element, _ROOT + "PersonName", number=number)
        for group in _NAME_GROUPS:
            if value and value.get(group):
                parts = etree.SubElement(name, _ROOT + group)
                for part, content in zip(_NAME_PARTS, value[group].split("^", 4), strict=False):
                    if content:
                        etree.SubElement(parts, _ROOT + part).text = _clean(content)
    else:
        child = etree.SubElement(element, _ROOT + "Value", number=number)
        if value is not None:
            child.text = _clean(_number_text(value))


def _private_creator(attributes: Mapping[str, Any], tag: int) -> str:
    """The creator that reserved the block of a private element (PS3.5 7.8.1); a creator itself has none."""
    block = tag >> 8 & 0xFF
    return text(attributes, tag & 0xFFFF0000 | block) if block >= 0x10 else ""


def _number_text(value: Any) -> str:
    """A value as text; a whole number without a decimal point, as DS has it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _clean(value: str) -> str:
    return _NO_XML.sub("\ufffd", value)


# ---------------------------------------------------------------------------------------------------------------------
# Native DICOM Model → DICOM JSON Model


def from_native_model_xml(document: bytes | memoryview) -> dict[str, Any]:
    """The data set of a Native DICOM Model document (PS3.19 A.1) in the DICOM JSON Model, keys ascending.

    The document is read as a stream of events, so that it costs no more memory than what it holds. Elements count in
    any namespace or none. Values of DS and IS stay the texts that they are. A private attribute whose block its
    creator does not hold is put where it belongs (PS3.5 7.8.1); the creator is added where it is missing.

    Raises ValueError for what is no such document: malformed XML, a document type declaration (no entity is ever
    resolved and nothing is fetched), other elements, more than 64 nested sequences.
    """
    target = _NativeModel()
    # huge_tree stays off: libxml2 then bounds the depth and the expansion of entities.
    events: Any = target  # the stubs want text that may be bytes
    parser = etree.XMLParser(target=events, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    view = memoryview(document)
    try:
        for start in range(0, len(view), _XML_PIECE):
            parser.feed(bytes(view[start : start + _XML_PIECE]))
        parser.close()
    except etree.XMLSyntaxError as error:
        raise target.fault or ValueError(f"it is not well-formed XML: {error.msg}") from None
    else:
        if target.fault or target.result is None:
            raise target.fault or ValueError("it ends too early")
        return target.result
    finally:
        target.fault = None  # whose traceback has the target and the document: they would keep each other


class _NativeModel:
    """Takes the events of the parser. Each level is a data set that is being filled, with its current attribute."""

    def __init__(self) -> None:
        self._levels: list[_Level] = []
        self._text: list[str] | None = None
        self.result: dict[str, Any] | None = None
        self.fault: ValueError | None = None  # the parser does not always hand on what its target raises

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        self.fault = ValueError("it has a document type declaration, which is not accepted")
        raise self.fault

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if self.fault:
            return
        try:
            self._start(tag.rpartition("}")[2], attributes)
        except ValueError as fault:
            self.fault = fault
            raise

    def end(self, tag: str) -> None:
        if self.fault:
            return
        try:
            self._end(tag.rpartition("}")[2])
        except ValueError as fault:
            self.fault = fault
            raise

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        if not self._levels:
            if name != "NativeDicomModel" or self.result is not None:
                raise ValueError(f"it begins with <{name[:64]}>, not with <NativeDicomModel>")
            self._levels.append(_Level())
            return
        level = self._levels[-1]
        if name == "DicomAttribute" and level.attribute is None:
            level.begin(attributes)
        elif level.attribute is None:
            raise ValueError(f"<{name[:64]}> stands outside a <DicomAttribute>")
        elif name == "Item":
            if len(self._levels) > _MAX_DEPTH:
                raise ValueError(f"sequences are nested more than {_MAX_DEPTH} deep")
            level.number = attributes.get("number", "")
            self._levels.append(_Level())
        elif name == "BulkData":
            level.attribute["BulkDataURI"] = attributes.get("uri") or attributes.get("uuid") or ""
        elif name == "PersonName":
            level.number, level.name = attributes.get("number", ""), {}
        elif name in _NAME_GROUPS:
            level.group, level.parts = name, {}
        elif name in _NAME_PARTS or name in ("Value", "InlineBinary", "Length"):
            if name == "Value":
                level.number = attributes.get("number", "")
            self._text = []
        else:
            raise ValueError(f"<{name[:64]}> is no element of the Native DICOM Model")

    def data(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _end(self, name: str) -> None:
        level = self._levels[-1]
        text, self._text = "".join(self._text or ()), None
        if name == "NativeDicomModel":
            self.result = self._levels.pop().finish()
        elif name == "DicomAttribute":
            level.end()
        elif name == "Item":
            item = self._levels.pop().finish()
            self._levels[-1].add(item)
        elif name == "Value":
            level.add(_xml_value(level.vr, text))
        elif name == "InlineBinary" and level.attribute is not None:
            level.attribute["InlineBinary"] = "".join(text.split())
        elif name == "PersonName":
            level.add(level.name or None)
        elif name in _NAME_GROUPS:
            if joined := "^".join(level.parts.get(part, "") for part in _NAME_PARTS).rstrip("^"):
                level.name[name] = joined
        elif name in _NAME_PARTS:
            level.parts[name] = text

    def comment(self, text: str) -> None:
        pass

    def pi(self, target: str, data: str | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class _Level:
    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}
        self.attribute: dict[str, Any] | None = None
        self.vr = self.number = self.group = self._key = self._creator = ""
        self.name: dict[str, str] = {}
        self.parts: dict[str, str] = {}
        self._values: list[tuple[int, Any]] = []
        self._moved: list[tuple[str, int, dict[str, Any]]] = []

    def begin(self, attributes: Mapping[str, str]) -> None:
        tag = tag_of(attributes.get("tag", "") or attributes.get("keyword", ""))
        if tag is None:
            raise ValueError(f"a <DicomAttribute> has the tag {attributes.get('tag', '')[:64]!r}")
        self._key = json_key(tag)
        self.vr = attributes.get("vr") or vr_of(tag)
        self._creator = attributes.get("privateCreator", "")
        self.attribute = {"vr": self.vr}
        self._values = []

    def add(self, value: Any) -> None:
        number = int(self.number) if self.number.isascii() and self.number.isdigit() else len(self._values) + 1
        self._values.append((number, value))

    def end(self) -> None:
        assert self.attribute is not None
        if self._values:
            self._values.sort(key=lambda entry: entry[0])
            self.attribute["Value"] = [value for _, value in self._values]
        tag = int(self._key, 16)
        is_creator = 0x10 <= tag & 0xFFFF <= 0xFF
        if self._creator and tag >> 16 & 1 and not is_creator:
            self._moved.append((self._creator, tag, self.attribute))
        else:
            self.attributes[self._key] = self.attribute
        self.attribute = None

    def finish(self) -> dict[str, Any]:
        for creator, tag, attribute in self._moved:
            block = self._block_of(creator, tag)
            self.attributes[json_key(tag & 0xFFFF00FF | block << 8)] = attribute
        return dict(sorted(self.attributes.items()))

    def _block_of(self, creator: str, tag: int) -> int:
        """The block of this creator in the group of the tag; that of the tag where it is free."""
        group, own = tag & 0xFFFF0000, tag >> 8 & 0xFF
        if text(self.attributes, group | own) == creator:
            return own
        taken = {block: text(self.attributes, group | block) for block in range(0x10, 0x100)}
        found = next((block for block, name in taken.items() if name == creator), None)
        if found is None:
            candidates = [own] if own >= 0x10 else []
            found = next((block for block in (*candidates, *taken) if not taken[block]), None)
            if found is None:
                raise ValueError(f"group {tag >> 16:04X} has no free block for the private creator {creator[:64]!r}")
            self.attributes[json_key(group | found)] = {"vr": "LO", "Value": [creator]}
        return found


def _xml_value(vr: str, value: str) -> Any:
    if not value:
        return None
    if vr == "PN":  # not as PS3.19 has it, but some write it so
        return {group: part for group, part in zip(_NAME_GROUPS, value.split("="), strict=False) if part}
    if vr in _WHOLE_NUMBERS:
        digits = value.strip()
        return int(digits) if len(digits) <= 24 and digits.lstrip("+-").isdigit() and digits.isascii() else value
    if vr in ("FL", "FD"):
        try:
            return float(value)
        except ValueError:
            return value
    return value
