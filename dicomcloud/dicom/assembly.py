"""The other way round: a data set in the DICOM JSON Model and its bulk data → the bytes of a PS3.10 file.

    assemble(attributes, find_bulk)    → Assembled: everything is checked, and `chunks` gives the file

The file is in Explicit VR Little Endian, or in the encapsulated transfer syntax of the pixel data that came with it.
Text is always UTF-8 and Specific Character Set says so. Bulk data are views of what lies on disk: they pass in pieces.

Choices where PS3.18 leaves room
- Values are written as they came, valid for their VR or not, as long as they can be: a number in a text is not one.
- A value that is too long for the 16-bit length of its VR becomes UN (PS3.5 6.2.2 note 2).
- Sequences and items have undefined lengths; each frame is one fragment, and the offset table lists all of them.
- Text in a bulk part is UTF-8 if it is valid UTF-8, else in the Specific Character Set that the metadata give.
- Attributes of the Image Pixel Module that are missing are taken from the headers of the bit stream; those that are
  there and contradict it are the instance's failure.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ..errors import FailureReason, InvalidInstance
from . import codestream, raster
from .attributes import AMBIGUOUS_VR, VR_BY_TAG, is_uid, vr_of
from .character_sets import decoder_of
from .encoding import (
    LONG_HEADER,
    LONG_VRS,
    MAX_SHORT,
    SHORT_HEADER,
    TEXT_VRS,
    VR_BYTES,
    Fault,
    element,
    fail,
    first,
    inline_bytes,
    kind_of,
    label,
    value_bytes,
)
from .header import IMPLEMENTATION_CLASS_UID
from .image_parts import (
    ALIASES,
    DOCUMENT_ATTRIBUTES,
    DOCUMENT_CLASSES,
    DOUBLE,
    EXPLICIT_LITTLE_ENDIAN,
    FLOAT,
    OCTET_STREAM,
    PIXEL_DATA,
    EncapsulatedPixels,
    NativePixels,
    Piece,
    Pixels,
    RasterPixels,
    carries,
    complete,
    sort_keys,
)
from .pixel_data import MAX_NATIVE_LENGTH, TRANSFER_SYNTAXES

_PIECE: Final = 1 << 20
_MAX_DEPTH: Final = 64
_UNDEFINED: Final = 0xFFFFFFFF
_MAX_RECODED: Final = 64 << 20  # bytes of one text value that is not UTF-8 yet
_ITEM: Final = struct.pack("<HHL", 0xFFFE, 0xE000, _UNDEFINED)
_ITEM_END: Final = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
_SEQUENCE_END: Final = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
_DOCUMENT: Final = "00420011"


@dataclass(frozen=True, slots=True)
class BulkPart:
    """One bulk data part of a request: its media type in lower case without parameters, and its bytes.

    `transfer_syntax` is the parameter of that name, "" where there is none.
    """

    media_type: str
    data: memoryview
    transfer_syntax: str = ""


@dataclass(frozen=True, slots=True)
class Assembled:
    """A file that is ready to be written. `discarded` names attributes that a data set cannot have and alike."""

    transfer_syntax: str
    discarded: tuple[str, ...]
    pieces: tuple[Piece, ...]

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the file, in order. Raises InvalidInstance where an image cannot be decoded after all."""
        for piece in self.pieces:
            if isinstance(piece, memoryview):
                for start in range(0, len(piece), _PIECE):
                    yield piece[start : start + _PIECE]
            elif isinstance(piece, bytes):
                yield piece
            else:
                yield from piece()


def assemble(
    attributes: Any,
    find_bulk: Callable[[str], Sequence[BulkPart]],
    *,
    study_uid: str | None = None,
    max_decoded: int = 1 << 30,
) -> Assembled:
    """The file of one instance. `attributes` is untrusted JSON; it is not changed.

    `find_bulk` gives the parts of the request that a BulkDataURI names, in order (several: one for each frame).
    `study_uid` is the study of a consumer image or document that names none; `max_decoded` bounds what PNG and GIF
    may unpack to, in bytes.

    Raises InvalidInstance naming the attribute that is at fault.
    """
    assembly = _Assembly(find_bulk, max_decoded)
    try:
        return assembly.run(attributes, study_uid)
    except Fault as fault:
        message = str(fault)
    except Exception as error:  # nothing that a request holds may be more than that instance's failure
        message = f"The metadata cannot be read: {error}"
    raise InvalidInstance(
        FailureReason.CANNOT_UNDERSTAND,
        message,
        sop_class_uid=assembly.uid("00080016"),
        sop_instance_uid=assembly.uid("00080018"),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The data set


class _Assembly:
    def __init__(self, find_bulk: Callable[[str], Sequence[BulkPart]], max_decoded: int) -> None:
        self._find_bulk = find_bulk
        self._max_decoded = max_decoded
        self._root: dict[str, Any] = {}
        self._out: list[Piece] = []
        self._small: list[bytes] = []
        self._discarded: list[str] = []
        self._syntax = EXPLICIT_LITTLE_ENDIAN

    def run(self, attributes: Any, study_uid: str | None) -> Assembled:
        if not isinstance(attributes, Mapping):
            raise Fault("An instance must be a JSON object with the attributes of its data set")
        self._root = root = self._taken(attributes, "")
        meta_syntax = self.uid("00020010") or ""
        for key in [key for key in root if key < "00080000"]:
            del root[key]
            if not key.startswith("0002"):  # File Meta Information is made anew
                self._discarded.append(label(int(key, 16)))
        charset = self._charset(root, ())
        root["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
        pixels = self._pixels(meta_syntax)
        rendered = self._document() or (pixels is not None and pixels.rendered)
        if rendered:
            complete(root, pixels.video if pixels else False, study_uid)
        self._data_set(root, charset, 0, pixels)
        self._flush()
        for key in ("00080018", "0020000D", "0020000E"):
            if self.uid(key) is None:
                value = first(root, key)
                fail(key, "it is missing" if value in (None, "") else f"{str(value)[:64]!r} is no UID")
        meta = _file_meta(self._syntax, self.uid("00080016") or "", self.uid("00080018") or "")
        return Assembled(self._syntax, tuple(self._discarded), (meta, *self._out))

    def uid(self, key: str) -> str | None:
        """A UID of the data set, None if it is missing or none."""
        value = first(self._root, key)
        return value if isinstance(value, str) and is_uid(value) else None

    def _taken(self, attributes: Mapping[Any, Any], path: str) -> dict[str, Any]:
        """The attributes with keys in upper case, ascending; group lengths and delimiters left out."""
        taken = {}
        for given, attribute in attributes.items():
            try:
                tag = int(given, 16) if len(given) == 8 and given.isalnum() else -1
            except (ValueError, TypeError):
                tag = -1
            if tag < 0:
                raise Fault(f"{str(given)[:64]!r} is no tag of 8 hexadecimal digits{path}")
            if not isinstance(attribute, Mapping):
                raise Fault(f"{label(tag)}: it is no JSON object with vr and a value{path}")
            if tag & 0xFFFF == 0:  # group lengths: retired, and they would be wrong
                continue
            if tag >> 16 in (0, 0xFFFE, 0xFFFF):
                self._discarded.append(label(tag))
                continue
            taken[f"{tag:08X}"] = attribute
        return dict(sorted(taken.items()))

    def _charset(self, attributes: Mapping[str, Any], inherited: tuple[str, ...]) -> tuple[str, ...]:
        values = (attributes.get("00080005") or {}).get("Value")
        return tuple(str(value or "") for value in values) if isinstance(values, list) else inherited

    def _flush(self) -> None:
        if self._small:
            self._out.append(b"".join(self._small))
            self._small.clear()

    def _put(self, piece: Piece) -> None:
        """Something that is not to be joined with others: a view, or what is made later."""
        self._flush()
        self._out.append(piece)

    def _data_set(
        self, attributes: Mapping[str, Any], charset: tuple[str, ...], depth: int, pixels: Pixels | None
    ) -> None:
        small = self._small
        for key, attribute in attributes.items():
            tag = int(key, 16)
            vr = attribute.get("vr") or vr_of(tag)
            if vr not in VR_BYTES:
                fail(key, f"{str(vr)[:20]!r} is no VR")
            if pixels is not None and key in pixels.keys:
                pixels.write(key, vr, self)
                continue
            _check_vr(key, tag, vr)
            if "BulkDataURI" in attribute:
                self._bulk(key, tag, vr, attribute, charset, depth)
                continue
            values = attribute.get("Value")
            if values is None:
                values = ()
            elif not isinstance(values, list):
                fail(key, "Value is no array")
            if "InlineBinary" in attribute:
                if values:
                    fail(key, "it has both Value and InlineBinary")
                small.append(element(tag, vr, inline_bytes(key, vr, attribute["InlineBinary"])))
            elif vr == "SQ":
                self._sequence(key, tag, values, charset, depth + 1)
            else:
                small.append(element(tag, vr, value_bytes(key, vr, values)))

    def _sequence(self, key: str, tag: int, items: Sequence[Any], charset: tuple[str, ...], depth: int) -> None:
        if depth > _MAX_DEPTH:
            fail(key, f"sequences are nested more than {_MAX_DEPTH} deep")
        if not items:
            self._small.append(element(tag, "SQ", b""))
            return
        self._small.append(LONG_HEADER(tag >> 16, tag & 0xFFFF, b"SQ", _UNDEFINED))
        for number, item in enumerate(items, 1):
            if item is not None and not isinstance(item, Mapping):
                fail(key, f"item {number} is no JSON object")
            self._small.append(_ITEM)
            if item:
                taken = self._taken(item, f", in item {number} of {label(tag)}")
                own = self._charset(taken, charset)
                if "00080005" in taken:
                    taken["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
                self._data_set(taken, own, depth, None)
            self._small.append(_ITEM_END)
        self._small.append(_SEQUENCE_END)

    # Bulk data

    def parts(self, key: str, attribute: Mapping[str, Any]) -> Sequence[BulkPart]:
        uri = attribute["BulkDataURI"]
        if not isinstance(uri, str) or not uri:
            fail(key, "BulkDataURI is no text")
        if attribute.get("Value") or attribute.get("InlineBinary"):
            fail(key, "it has a BulkDataURI and a value besides")
        parts = self._find_bulk(uri)
        if not parts:
            fail(key, f"no part of the request has the Content-Location {uri[:200]!r}, its BulkDataURI")
        return parts

    def _bulk(
        self, key: str, tag: int, vr: str, attribute: Mapping[str, Any], charset: tuple[str, ...], depth: int
    ) -> None:
        if vr == "SQ":
            fail(key, "a sequence cannot be bulk data")
        parts = self.parts(key, attribute)
        if len(parts) > 1:
            fail(key, f"{len(parts)} parts of the request have the Content-Location that is its BulkDataURI")
        data = parts[0].data
        if depth and key == PIXEL_DATA and self._syntax != EXPLICIT_LITTLE_ENDIAN and _are_fragments(data):
            self._small.append(LONG_HEADER(tag >> 16, tag & 0xFFFF, b"OB", _UNDEFINED))
            self._put(data)
            self._small.append(_SEQUENCE_END)
            return
        if vr in TEXT_VRS and not _is_utf8(data):
            data = _recoded(key, data, charset)
        self.write_long(key, tag, vr, len(data), [data], b" " if vr in TEXT_VRS and vr != "UI" else b"\0")

    def write_long(self, key: str, tag: int, vr: str, length: int, pieces: Iterable[Piece], pad: bytes = b"\0") -> None:
        """An element whose value comes in pieces of `length` bytes together."""
        even = length + (length & 1)
        if even > MAX_NATIVE_LENGTH:
            fail(key, f"{length} bytes are more than an element can have")
        if vr in LONG_VRS or even > MAX_SHORT:
            vr = vr if vr in LONG_VRS else "UN"
            self._small.append(LONG_HEADER(tag >> 16, tag & 0xFFFF, VR_BYTES[vr], even))
        else:
            self._small.append(SHORT_HEADER(tag >> 16, tag & 0xFFFF, VR_BYTES[vr], even))
        for piece in pieces:
            self._put(piece)
        if even > length:
            self._small.append(pad)

    def write_fragments(self, offsets: Sequence[int], frames: Sequence[memoryview]) -> None:
        """Pixel Data of these frames, each a fragment, behind a Basic Offset Table (empty without offsets)."""
        self._small.append(LONG_HEADER(0x7FE0, 0x0010, b"OB", _UNDEFINED))
        self._small.append(struct.pack(f"<HHL{len(offsets)}L", 0xFFFE, 0xE000, 4 * len(offsets), *offsets))
        for frame in frames:
            self._small.append(struct.pack("<HHL", 0xFFFE, 0xE000, len(frame) + (len(frame) & 1)))
            self._put(frame)
            if len(frame) & 1:
                self._small.append(b"\0")
        self._small.append(_SEQUENCE_END)

    # Pixel data and documents

    def _pixels(self, meta_syntax: str) -> Pixels | None:
        keys = [key for key in (PIXEL_DATA, FLOAT, DOUBLE) if key in self._root]
        if not keys:
            return None
        key = keys[0]
        if len(keys) > 1:
            fail(keys[1], f"an instance with {label(int(key, 16))} cannot have it, too")
        attribute = self._root[key]
        if "BulkDataURI" not in attribute:
            if attribute.get("Value"):
                fail(key, "pixel data are InlineBinary or BulkDataURI, not Value")
            inline = attribute.get("InlineBinary")
            if inline is None:
                return None  # present and empty
            data = memoryview(inline_bytes(key, "OW", inline))
            return NativePixels(self._root, key, [data])
        parts = self.parts(key, attribute)
        kinds = sorted({(part.media_type, part.transfer_syntax) for part in parts})
        if len(kinds) > 1:
            names = " and ".join(f"{media}; transfer-syntax={syntax}" for media, syntax in kinds[:2])
            fail(key, f"its parts are of different kinds, {names}")
        pixels = self._pixels_of(key, parts, kinds[0][0], kinds[0][1], meta_syntax)
        self._syntax = pixels.transfer_syntax
        self._discarded += pixels.discarded
        return pixels

    def _pixels_of(self, key: str, parts: Sequence[BulkPart], media_type: str, given: str, meta_syntax: str) -> Pixels:
        """By the media type of the parts and their transfer syntax, given as a parameter or in (0002,0010)."""
        media_type = ALIASES.get(media_type, media_type)
        data = [part.data for part in parts]
        syntax = given or (meta_syntax if carries(meta_syntax, media_type) else "")
        row = TRANSFER_SYNTAXES.get(syntax)
        if syntax and row is None:
            fail(key, f"the transfer syntax {syntax[:64]} is not known")
        if row is not None and (not row.little_endian or not carries(syntax, media_type)):
            fail(key, f"{media_type} parts cannot be in the transfer syntax {syntax}")
        if media_type == OCTET_STREAM and (row is None or not row.encapsulated):
            return NativePixels(self._root, key, data)
        if key != PIXEL_DATA:
            fail(key, f"it must be {OCTET_STREAM}, not {media_type[:80]}")
        if media_type in raster.MEDIA_TYPES and row is None:
            return RasterPixels(self._root, media_type, data, self._max_decoded)
        if media_type in codestream.media_types():
            if media_type == "image/jpeg" and row is None and raster.is_no_dicom_jpeg(data):
                return RasterPixels(self._root, media_type, data, self._max_decoded)
            return EncapsulatedPixels(self._root, media_type, data, syntax, bool(given))
        if row is not None and row.encapsulated:
            return EncapsulatedPixels(self._root, media_type, data, syntax, True)
        fail(key, f"pixel data cannot be {media_type[:80]} without a transfer-syntax parameter")

    def _document(self) -> bool:
        """Encapsulated Document: its MIME type from that of the part. Whether it came as what it is."""
        attribute = self._root.get(_DOCUMENT)
        if attribute is None or "BulkDataURI" not in attribute:
            return False
        part = self.parts(_DOCUMENT, attribute)[0]
        media_type = ALIASES.get(part.media_type, part.media_type)
        if media_type == OCTET_STREAM:
            return False
        stated = first(self._root, "00420012")
        if isinstance(stated, str) and stated:
            stated = stated.partition(";")[0].strip().lower()
            if ALIASES.get(stated, stated) != media_type:
                fail("00420012", f"{stated[:80]!r} contradicts the media type {part.media_type!r} of the part")
        else:
            self._root["00420012"] = {"vr": "LO", "Value": [media_type]}
        if media_type == "application/pdf" and b"%PDF-" not in bytes(part.data[:1024]):
            fail(_DOCUMENT, "the part is no PDF document, although its media type says so")
        if media_type in DOCUMENT_CLASSES and first(self._root, "00080016") in (None, ""):
            self._root["00080016"] = {"vr": "UI", "Value": [DOCUMENT_CLASSES[media_type]]}
            for key, given in DOCUMENT_ATTRIBUTES.items():
                self._root.setdefault(key, given)
        if len(part.data) & 1:
            self._root.setdefault("00420015", {"vr": "UL", "Value": [len(part.data)]})  # PS3.3 C.24.2
        sort_keys(self._root)
        return True


def _check_vr(key: str, tag: int, vr: str) -> None:
    """A VR that is not the dictionary's is let pass where values of the one could be values of the other."""
    known = VR_BY_TAG.get(tag)
    if known is None or vr == known or "UN" in (vr, known) or tag in AMBIGUOUS_VR:
        return
    if kind_of(vr) != kind_of(known):
        fail(key, f"its VR is {known}, not {vr}")


def _are_fragments(data: memoryview) -> bool:
    """Whether these bytes are the items of encapsulated pixel data (PS3.5 A.4), with no delimiter behind them."""
    position = 0
    while position + 8 <= len(data):
        group, element, length = struct.unpack_from("<HHL", data, position)
        if (group, element) != (0xFFFE, 0xE000):
            return False
        position += 8 + length
    return 0 < position == len(data)


def _is_utf8(data: memoryview) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), _PIECE):
            decoder.decode(bytes(data[start : start + _PIECE]))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _recoded(key: str, data: memoryview, charset: tuple[str, ...]) -> memoryview:
    if len(data) > _MAX_RECODED:
        fail(key, f"text of more than {_MAX_RECODED} bytes must be UTF-8")
    return memoryview(decoder_of(charset)(bytes(data)).encode("utf-8"))


def _file_meta(transfer_syntax: str, sop_class: str, sop_instance: str) -> bytes:
    """Preamble, DICM and File Meta Information (PS3.10 7.1)."""
    group = element(0x00020001, "OB", b"\0\1") + b"".join(
        element(tag, vr, value_bytes(f"{tag:08X}", vr, [value]))
        for tag, vr, value in (
            (0x00020002, "UI", sop_class),
            (0x00020003, "UI", sop_instance),
            (0x00020010, "UI", transfer_syntax),
            (0x00020012, "UI", IMPLEMENTATION_CLASS_UID),
            (0x00020013, "SH", "DICOMCLOUD"),
        )
    )
    return bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<L", len(group))) + group
