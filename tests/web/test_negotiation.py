"""Content negotiation: what is sent for each Accept header and `accept` parameter, with the clause of PS3.18."""

from __future__ import annotations

import doctest

import pytest

from dicomcloud.errors import BadRequest, NotAcceptable
from dicomcloud.web import negotiation
from dicomcloud.web.negotiation import Choice, Offer, negotiate

LE, JPEG, J2K, J2K_LOSSY = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
)
DICOM_PARTS = Offer("application/dicom", multipart=True, transfer_syntaxes=(LE, J2K))
DICOM = Offer("application/dicom", transfer_syntaxes=(LE, J2K))
BYTES_PARTS = Offer("application/octet-stream", multipart=True, transfer_syntaxes=(LE,))
BYTES = Offer("application/octet-stream", transfer_syntaxes=(LE,))
STORED_PARTS = Offer("image/jp2", multipart=True, transfer_syntaxes=(J2K_LOSSY, J2K), stored=(J2K_LOSSY,))
J2K_PARTS = Offer("image/jp2", multipart=True, transfer_syntaxes=(J2K, J2K_LOSSY))
JSON = Offer("application/dicom+json")
XML_PARTS = Offer("application/dicom+xml", multipart=True)
XML = Offer("application/dicom+xml")
JPG, GIF, PNG, PDF = Offer("image/jpeg"), Offer("image/gif"), Offer("image/png"), Offer("application/pdf")
H265, MPEG = Offer("video/H265"), Offer("video/mpeg")

STUDY = (DICOM_PARTS,)
INSTANCE = (DICOM_PARTS, DICOM)
METADATA = (JSON, XML_PARTS)
STORE = (JSON, XML, XML_PARTS)
FRAMES = (BYTES_PARTS, J2K_PARTS)
STORED = (BYTES_PARTS, STORED_PARTS)
FRAME = (BYTES_PARTS, J2K_PARTS, BYTES)
DOCUMENT = (PDF, BYTES_PARTS, BYTES)
RENDERED = (JPG, GIF, PNG)

CHROME = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
    "application/signed-exchange;v=b3;q=0.7"
)
RELATED = "multipart/related"
IN_DICOM = f'{RELATED}; type="application/dicom"'
IN_OCTETS = f'{RELATED}; type="application/octet-stream"'
IN_J2K = f'{RELATED}; type="image/jp2"'
IN_XML = f'{RELATED}; type="application/dicom+xml"'
TS = "; transfer-syntax="
QUOTED_SYNTAX = f'{RELATED}; type="application/dicom;transfer-syntax={J2K}"'

# clause, resource, Accept, choice
HEADERS = [
    ("8.4.1, missing", STUDY, None, Choice(DICOM_PARTS, LE)),
    ("8.4.1, missing", METADATA, None, Choice(JSON)),
    ("8.4.1, empty", METADATA, "", Choice(JSON)),
    ("8.7.7, */* is the default", INSTANCE, "*/*", Choice(DICOM_PARTS, LE)),
    ("8.7.7, */* is the default", FRAMES, "*/*", Choice(BYTES_PARTS, LE)),
    ("8.7.7, type/*", METADATA, "application/*", Choice(JSON)),
    ("8.7.7, type/* is a single part first", INSTANCE, "application/*", Choice(DICOM, LE)),
    ("8.7.7, type/* of parts", STUDY, "application/*", Choice(DICOM_PARTS, LE)),
    ("8.7.7, type/*", RENDERED, "image/*", Choice(JPG)),
    ("8.7.7, type/*", FRAMES, "image/*", Choice(J2K_PARTS, J2K)),
    # 8.7.3.4, 8.7.8.2: transfer syntax
    ("8.7.3.4, none: Explicit VR LE", STUDY, IN_DICOM, Choice(DICOM_PARTS, LE)),
    ("8.7.3.4, as stored", STUDY, f"{IN_DICOM}{TS}*", Choice(DICOM_PARTS, "*")),
    ("8.7.3.4, quoted *", FRAMES, f'{IN_OCTETS}{TS}"*"', Choice(BYTES_PARTS, "*")),
    ("8.7.3.4, a UID", STUDY, f"{IN_DICOM}{TS}{J2K}", Choice(DICOM_PARTS, J2K)),
    ("8.7.3.4, the type's default", FRAMES, IN_J2K, Choice(J2K_PARTS, J2K)),
    ("8.7.3.4, several ranges", FRAMES, f"{IN_J2K}{TS}{JPEG}, {IN_J2K}{TS}{J2K_LOSSY}", Choice(J2K_PARTS, J2K_LOSSY)),
    ("8.7.8.2, unknown is ignored", STUDY, f"{IN_DICOM}{TS}{JPEG}, */*;q=0.1", Choice(DICOM_PARTS, LE)),
    ("8.7.8.2, no meaning for JSON", METADATA, "application/dicom+json; transfer-syntax=*", Choice(JSON)),
    ("8.7.8.2, inside the quotes of type", STUDY, QUOTED_SYNTAX, Choice(DICOM_PARTS, J2K)),
    ("8.7.8.2, single part", INSTANCE, f"application/dicom{TS}{J2K}", Choice(DICOM, J2K)),
    ("8.7.8.2, weights", INSTANCE, f"application/dicom{TS}{LE};q=0.5, application/dicom{TS}{J2K}", Choice(DICOM, J2K)),
    # 8.6.1.2 and RFC 2387: the type parameter
    ("8.6.1.2, unquoted type", STUDY, f"{RELATED}; type=application/dicom{TS}*", Choice(DICOM_PARTS, "*")),
    (
        "8.6.1.2, any order and case",
        STUDY,
        'Multipart/Related;Transfer-Syntax=*;TYPE="Application/DICOM"',
        Choice(DICOM_PARTS, "*"),
    ),
    ("8.6.1.2, no type", FRAMES, RELATED, Choice(BYTES_PARTS, LE)),
    ("8.6.1.2, type is a wildcard", FRAMES, f'{RELATED}; type="*/*"', Choice(BYTES_PARTS, LE)),
    ("8.6.1.2, type is a wildcard", FRAMES, f'{RELATED}; type="image/*"', Choice(J2K_PARTS, J2K)),
    ("8.6.1.2, no type: something in parts", METADATA, RELATED, Choice(XML_PARTS)),
    ("8.6.1.2, no type, nothing in parts", (JSON,), RELATED, Choice(JSON)),
    ("8.6.1.2, in parts or not", STORE, IN_XML, Choice(XML_PARTS)),
    ("8.6.1.2, in parts or not", STORE, "application/dicom+xml", Choice(XML)),
    ("8.7.3, a type with capitals", (H265,), "video/H265", Choice(H265)),
    ("8.7.3, in any case", (H265,), "VIDEO/h265", Choice(H265)),
    ("8.7.3, a former name", (MPEG,), "video/mpeg2", Choice(MPEG)),
    # 8.7.8.1: selection
    ("8.7.8.1, order among equals", METADATA, f"{IN_XML}, application/dicom+json", Choice(XML_PARTS)),
    ("8.7.8.1, order among equals", RENDERED, "image/png, image/gif", Choice(PNG)),
    (
        "8.7.8.1, the stored one among equals",
        STORED,
        f"{IN_OCTETS}{TS}{LE}, {IN_J2K}{TS}{J2K}, {IN_J2K}{TS}{J2K_LOSSY}",
        Choice(STORED_PARTS, J2K_LOSSY),
    ),
    (
        "8.7.8.1, a weight before the stored one",
        STORED,
        f"{IN_OCTETS}{TS}{LE}, {IN_J2K}{TS}{J2K_LOSSY};q=0.9",
        Choice(BYTES_PARTS, LE),
    ),
    ("8.7.8.1, only where it is named", STORED, f"{IN_OCTETS}, {IN_J2K}", Choice(BYTES_PARTS, LE)),
    ("8.7.8.1, the highest weight", RENDERED, "image/gif;q=0.2, image/png;q=0.9, image/jpeg;q=.5", Choice(PNG)),
    ("8.7.8.1, the most specific range", RENDERED, "image/*, image/jpeg;q=0.5", Choice(GIF)),
    ("8.7.8.1, the most specific range", RENDERED, "*/*;q=0.9, image/*;q=0.1, image/png;q=0.2", Choice(PNG)),
    ("8.7.8.1, a weight of 0 excludes", RENDERED, "image/jpeg;q=0, */*", Choice(GIF)),
    ("8.7.8.1, wildcard last", METADATA, "application/dicom+xml, */*;q=0.1", Choice(JSON)),
    ("8.7.8.1, blanks around q", STORE, "application/json, application/dicom+xml; q=0.9, */*; q = 0.1", Choice(JSON)),
    # 8.4.1: invalid and unknown entries
    ("8.4.1, unknown", METADATA, "application/x-unknown, application/dicom+json", Choice(JSON)),
    ("8.4.1, invalid", METADATA, "json, ,;, image/png;q=2, a/b/c, application/dicom+json;q=0.1", Choice(JSON)),
    ("8.4.1, extra parameters", METADATA, "application/dicom+json;charset=utf-8;profile=x", Choice(JSON)),
    ("8.4.1, a comma in quotes", STUDY, f'{RELATED}; x="a, b"; type="application/dicom"', Choice(DICOM_PARTS, LE)),
    # 8.7.5: DICOM or rendered
    ("8.7.5, a browser", METADATA, CHROME, Choice(JSON)),
    ("8.7.5, a browser", RENDERED, CHROME, Choice(JPG)),
    ("8.7.5, an <img>", RENDERED, "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", Choice(JPG)),
    ("8.7.5, axios and Angular", METADATA, "application/json, text/plain, */*", Choice(JSON)),
    ("8.7.5, excluded types do not count", RENDERED, "image/png, application/dicom;q=0", Choice(PNG)),
    ("8.7.5, excluded types do not count", METADATA, "application/dicom+json, text/html;q=0", Choice(JSON)),
    ("8.7.5, compressed bulk data", FRAMES, f'{RELATED}; type="image/jpeg", {IN_DICOM}, */*', Choice(BYTES_PARTS, LE)),
    # 10.4.4: what clients ask of each resource
    ("10.4.4, dicomweb-client", METADATA, "application/dicom+json, application/json", Choice(JSON)),
    ("10.4.4, alias", METADATA, "application/json", Choice(JSON)),
    ("10.4.4, single part of one item", INSTANCE, "application/dicom", Choice(DICOM, LE)),
    ("10.4.4, single part of one item", FRAME, "application/octet-stream", Choice(BYTES, LE)),
    ("10.4.4, ECG viewer", DOCUMENT, "application/octet-stream", Choice(BYTES, LE)),
    ("10.4.4, its own media type", DOCUMENT, "application/pdf, application/octet-stream;q=0.5", Choice(PDF)),
    ("10.4.4, one header for all", METADATA, f"application/dicom+json, {RELATED}; type=a/b{TS}*", Choice(JSON)),
]


@pytest.mark.parametrize(
    ("clause", "offers", "header", "choice"), HEADERS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_the_accept_header_chooses(clause, offers, header, choice):
    assert negotiate(header, None, offers) == choice


# clause, resource, Accept, accept parameter, choice
PARAMETERS = [
    ("8.3.3.1, before the header", RENDERED, "image/jpeg", "image/png", Choice(PNG)),
    ("8.3.3.1, of a browser", RENDERED, CHROME, "image/png", Choice(PNG)),
    ("8.3.3.1, DICOM in a browser's address line", INSTANCE, CHROME, "application/dicom", Choice(DICOM, LE)),
    ("8.3.3.1, with weights", RENDERED, None, "image/png;q=0.5,image/gif", Choice(GIF)),
    ("8.3.3.1, a plus sign", STORE, None, "application/dicom+xml", Choice(XML)),
    ("8.3.3.1, a plus sign that became a blank", STORE, None, "application/dicom xml", Choice(XML)),
    ("8.3.3.1, the same inside quotes", STORE, None, f'{RELATED}; type="application/dicom xml"', Choice(XML_PARTS)),
    ("8.3.3.1, a transfer syntax is no wildcard", INSTANCE, None, f"application/dicom{TS}*", Choice(DICOM, "*")),
    ("8.7.8.1, the header where the parameter has nothing", RENDERED, "image/gif", "image/x-unknown", Choice(GIF)),
    ("8.7.8.1, the default where the parameter has nothing", RENDERED, "*/*", "nonsense", Choice(JPG)),
    ("8.3.3.1, empty", RENDERED, "image/gif", "", Choice(GIF)),
]


@pytest.mark.parametrize(("clause", "offers", "header", "parameter", "choice"), PARAMETERS)
def test_the_accept_parameter_goes_before_the_header(clause, offers, header, parameter, choice):
    assert negotiate(header, parameter, offers) == choice


@pytest.mark.parametrize(
    ("clause", "offers", "header"),
    [
        ("8.7.8.1", METADATA, "text/csv"),
        ("8.7.8.1, nothing valid", METADATA, "nonsense"),
        ("8.7.8.1, all excluded", METADATA, "*/*;q=0"),
        ("8.7.8.1, default excluded", (JSON,), "*/*, application/dicom+json;q=0"),
        ("8.7.8.2, transfer syntax", STUDY, f"{IN_DICOM}{TS}{JPEG}"),
        ("8.7.8.2, Implicit VR never leaves", STUDY, f"application/dicom{TS}1.2.840.10008.1.2"),
        ("10.4.4 note 3, single part of several", STUDY, "application/dicom"),
        ("10.4.4 note 3, single part of several", FRAMES, "application/octet-stream"),
        ("8.6.1.2, other multipart", STUDY, "multipart/form-data, multipart/mixed"),
        ("8.7.7, type/* of another type", METADATA, "image/*"),
    ],
)
def test_nothing_acceptable_is_refused_with_the_list_of_what_is_available(clause, offers, header):
    with pytest.raises(NotAcceptable) as refusal:
        negotiate(header, None, offers)
    for offer in offers:
        assert str(offer) in refusal.value.message


def test_the_list_names_types_and_transfer_syntaxes_as_they_are_asked_for():
    with pytest.raises(NotAcceptable) as refusal:
        negotiate("text/csv", None, (DICOM_PARTS, JSON))
    assert refusal.value.message == (
        "None of the acceptable media types (text/csv) is available. Available: "
        f'multipart/related; type="application/dicom" (transfer-syntax: *, {LE}, {J2K}) | application/dicom+json'
    )


@pytest.mark.parametrize(
    "header", ["application/dicom, image/jpeg", "text/html, application/dicom+json, */*", f"{IN_DICOM}, image/png"]
)
def test_dicom_and_rendered_media_types_together_are_a_bad_request_8_7_5(header):
    with pytest.raises(BadRequest, match="DICOM and rendered"):
        negotiate(header, None, INSTANCE)


@pytest.mark.parametrize("parameter", ["*/*", "image/*", "image/png, */*;q=0.1", RELATED + '; type="*/*"', RELATED])
def test_a_wildcard_in_the_accept_parameter_is_a_bad_request_8_3_3_1(parameter):
    with pytest.raises(BadRequest, match="wildcard"):
        negotiate("*/*", parameter, RENDERED)


def test_the_examples_of_the_documentation_hold():
    results = doctest.testmod(negotiation)
    assert results.attempted
    assert not results.failed
