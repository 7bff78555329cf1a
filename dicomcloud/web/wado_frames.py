"""WADO-RS: frames, as stored, uncompressed, or encoded anew (PS3.18 10.4.1.1.6, 8.7.3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import BinaryIO, Final

from flask import Response, request

from ..archive import Archive, InstanceRow
from ..dicom.frames import Frames
from ..dicom.pixel_data import JPEG_BASELINE, JPEG_XL_RECOMPRESSION, TRANSFER_SYNTAXES, CannotTranscode
from ..errors import BadRequest, NotFound
from .multipart import OutgoingPart
from .negotiation import Choice, Offer
from .openapi import content, faults
from .responses import not_modified
from .retrieve import (
    AS_STORED,
    EXPLICIT_LITTLE_ENDIAN,
    OCTET_STREAM,
    Source,
    Unattainable,
    attain,
    attributes_of,
    blueprint,
    entity_tag,
    instance_url,
    multipart,
    single_part,
    takes_file_spans,
)
from .service import check_uids, current_service

_MAX_FRAMES = 100_000

# The default transfer syntax of each media type first (PS3.18 Table 8.7.3-5), then the others that are made here.
_IMAGES: Final = {
    "image/jpeg": ("1.2.840.10008.1.2.4.70",),
    "image/jls": ("1.2.840.10008.1.2.4.80",),
    "image/jp2": ("1.2.840.10008.1.2.4.90",),
    "image/jphc": ("1.2.840.10008.1.2.4.201",),
    "image/dicom-rle": ("1.2.840.10008.1.2.5",),
}
ENCODED_AS: Final[Mapping[str, tuple[str, ...]]] = {
    media_type: (
        *defaults,
        *(
            uid
            for uid, syntax in TRANSFER_SYNTAXES.items()
            if syntax.encodable and syntax.media_type == media_type and uid not in defaults
        ),
    )
    for media_type, defaults in _IMAGES.items()
}

_RESPONSES = {
    "200": {
        "description": "The frames in the order asked for, each a part; one frame also alone",
        "content": content(
            'multipart/related; type="application/octet-stream"',
            'multipart/related; type="application/octet-stream"; transfer-syntax=*',
            OCTET_STREAM,
            *(kind for media_type in ENCODED_AS for kind in (f'multipart/related; type="{media_type}"', media_type)),
        ),
    },
    **faults(400, 404, 406, 410),
}


@blueprint.route("/studies/<study>/series/<series>/instances/<instance>/frames/<frame_list>")
@blueprint.doc(
    summary="Retrieve Frames",
    description="Frame numbers from 1, separated by commas. Uncompressed little endian pixels; with "
    "`transfer-syntax=*` the stored bit stream; or encoded in an image type, where a transfer-syntax can choose one of "
    "several. Of several ranges alike, the one with the stored transfer syntax counts, then the first. Each part's "
    "Content-Type names its transfer syntax.",
    responses=_RESPONSES,
)
def retrieve_frames(study: str, series: str, instance: str, frame_list: str) -> Response:
    check_uids(study=study, series=series, instance=instance)
    numbers = frame_numbers(frame_list)
    row, frames = current_service().archive.frames(study, series, instance)
    if frames is None:
        raise NotFound("The instance has no pixel data, thus no frames")
    if max(numbers) > frames.count:
        raise NotFound(f"The instance has {frames.count} frames; there is no frame {max(numbers)}")
    if not frames.separable:
        raise BadRequest("The frames of this instance cannot be told apart; retrieve the instance or its bulk data")
    url = f"{instance_url(row)}/frames"
    locations = {number: f"{url}/{number}" for number in numbers}
    offers = frame_offers(row.transfer_syntax, frames.encapsulated, alone=len(numbers) == 1)
    return attain(offers, lambda choice: send_frames(row, frames, locations, numbers, choice, f"{url}/{frame_list}"))


def frame_numbers(text: str) -> list[int]:
    numbers = [int(item) if item.isascii() and item.isdigit() and len(item) < 10 else 0 for item in text.split(",")]
    if len(numbers) > _MAX_FRAMES:
        raise BadRequest(f"More than {_MAX_FRAMES} frames are asked for at once")
    if min(numbers) < 1:
        raise BadRequest(f"The frame list must be numbers from 1, separated by commas, not {text[:80]!r}")
    return numbers


@lru_cache(maxsize=512)
def frame_offers(transfer_syntax: str, encapsulated: bool, *, alone: bool) -> tuple[Offer, ...]:
    """Uncompressed pixels first, the default; then image types, the one that is stored before the others.

    Who names several transfer syntaxes gets the stored one, if it is among them.
    """
    stored = TRANSFER_SYNTAXES.get(transfer_syntax)
    images, kept = dict(ENCODED_AS), {} if encapsulated else {OCTET_STREAM: (EXPLICIT_LITTLE_ENDIAN,)}
    if encapsulated and stored is not None and stored.media_type != OCTET_STREAM:
        others = images.pop(stored.media_type, ())
        images = {stored.media_type: (transfer_syntax, *(uid for uid in others if uid != transfer_syntax)), **images}
        kept[stored.media_type] = (transfer_syntax,)
        if transfer_syntax == JPEG_XL_RECOMPRESSION:  # it holds a JPEG stream
            kept["image/jpeg"] = (JPEG_BASELINE,)
    native = (EXPLICIT_LITTLE_ENDIAN, transfer_syntax) if encapsulated else (EXPLICIT_LITTLE_ENDIAN,)
    return tuple(
        Offer(media_type, in_parts, syntaxes, stored=kept.get(media_type, ()))
        for in_parts in ((True, False) if alone else (True,))
        for media_type, syntaxes in {OCTET_STREAM: native, **images}.items()
    )


def target_syntax(row: InstanceRow, frames: Frames, choice: Choice) -> str | None:
    """The transfer syntax that frames have to be brought into; None: they leave as they are stored."""
    wanted = choice.transfer_syntax or EXPLICIT_LITTLE_ENDIAN
    if wanted in (AS_STORED, row.transfer_syntax) or (wanted == EXPLICIT_LITTLE_ENDIAN and not frames.encapsulated):
        return None
    return wanted


def send_frames(
    row: InstanceRow,
    frames: Frames,
    locations: Mapping[int, str],
    numbers: Sequence[int],
    choice: Choice,
    location: str,
) -> Response:
    """The frames as the choice has them; `locations` are the Content-Locations of the parts. Raises Unattainable."""
    etag = entity_tag(choice, row.file_key, *numbers)
    if answer := not_modified(etag):
        return answer
    target = target_syntax(row, frames, choice)
    if target not in (None, EXPLICIT_LITTLE_ENDIAN):
        _require(row, target or "")
    parts: Iterable[OutgoingPart]
    if request.method == "HEAD" and target is None and len(numbers) > 1:
        kind = _content_type(row, frames, target)
        parts = iter([OutgoingPart({"Content-Type": kind, "Content-Location": locations[numbers[0]]}, None, ())])
    else:
        parts = frame_parts(current_service().archive, row, frames, locations, numbers, target)
    if not choice.offer.multipart:
        return single_part(next(iter(parts)), etag)
    media_type = _content_type(row, frames, target).partition(";")[0]
    return multipart(media_type, list(parts) if len(numbers) == 1 else parts, etag, location)


def _require(row: InstanceRow, target: str) -> None:
    """Raises Unattainable with all syntaxes that the attributes of the image rule out, if `target` is one of them."""
    attributes, archive = attributes_of(row), current_service().archive
    if not archive.may_become(row, attributes, target):
        every = (uid for uids in ENCODED_AS.values() for uid in uids)
        raise Unattainable([uid for uid in every if not archive.may_become(row, attributes, uid)])


def frame_parts(
    archive: Archive,
    row: InstanceRow,
    frames: Frames,
    locations: Mapping[int, str],
    numbers: Sequence[int],
    target: str | None,
) -> Iterator[OutgoingPart]:
    """A part for each frame. The first one is made at once: Unattainable if it cannot be had in `target`.

    What cannot be had uncompressed, and what turns out later not to suit, goes out as stored, and its part says so
    (PS3.18 8.7.3.4).
    """
    stored = _content_type(row, frames, None)

    spans = takes_file_spans()

    def part(number: int, content_type: str, data: bytes) -> OutgoingPart:
        headers = {"Content-Type": content_type, "Content-Location": locations[number]}
        return OutgoingPart(headers, len(data), [data])

    def part_as_stored(number: int) -> OutgoingPart:
        if spans and (found := archive.open_frame(row, frames, number)) is not None:
            headers = {"Content-Type": stored, "Content-Location": locations[number]}
            return OutgoingPart(headers, found[2], Source.of_span(*found))
        return part(number, stored, archive.read_frame(row, frames, number))

    if target is None:
        return chain([part_as_stored(numbers[0])], map(part_as_stored, numbers[1:]))

    def transcoded(results: Iterator[BinaryIO | CannotTranscode]) -> Iterator[OutgoingPart]:
        for number, frame in zip(numbers, results, strict=True):
            if isinstance(frame, CannotTranscode):
                yield part(number, stored, archive.read_frame(row, frames, number))
            else:
                source = Source.of_open_file(frame, spans=spans)
                headers = {"Content-Type": wanted, "Content-Location": locations[number]}
                yield OutgoingPart(headers, source.size, source)

    wanted = _content_type(row, frames, target)
    results = archive.open_frames_as(row, frames, numbers, target)
    found = next(results)
    if isinstance(found, CannotTranscode) and target != EXPLICIT_LITTLE_ENDIAN:
        raise Unattainable([target])
    parts = transcoded(chain([found], results))
    return parts if len(numbers) > 1 else iter([next(parts)])


def _content_type(row: InstanceRow, frames: Frames, target: str | None) -> str:
    """The media type and transfer syntax of frames in `target`; None: as they are stored."""
    uid = target or (row.transfer_syntax if frames.encapsulated else EXPLICIT_LITTLE_ENDIAN)
    syntax = TRANSFER_SYNTAXES.get(uid)
    return f"{syntax.media_type if syntax else OCTET_STREAM}; transfer-syntax={uid}"
