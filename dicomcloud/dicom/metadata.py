"""What is read from, and written of, a data set in the DICOM JSON Model: Native DICOM Model XML, single texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from lxml import etree

from .attributes import json_key, keyword_of, tag_of

NATIVE_MODEL_NAMESPACE: Final = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
_XML_SPACE: Final = "{http://www.w3.org/XML/1998/namespace}space"
_ROOT: Final = f"{{{NATIVE_MODEL_NAMESPACE}}}"
# PS3.19 Table A.1.5-2: the five components of a name group (PS3.5 6.2.1)
_NAME_PARTS: Final = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")
_NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
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
