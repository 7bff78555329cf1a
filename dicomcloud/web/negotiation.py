"""Which media type and transfer syntax an answer has: Accept header and `accept` parameter (PS3.18 8.3.3, 8.7).

A view says what its resource has, best first, and is told what to send:

>>> EXPLICIT_LE, JPEG_2000 = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.90"
>>> instance = (
...     Offer("application/dicom", multipart=True, transfer_syntaxes=(EXPLICIT_LE, JPEG_2000)),
...     Offer("application/dicom", transfer_syntaxes=(EXPLICIT_LE, JPEG_2000)),  # a single item only, 10.4.4
... )
>>> metadata = (Offer("application/dicom+json"), Offer("application/dicom+xml", multipart=True))
>>> frames = (
...     Offer("application/octet-stream", multipart=True, transfer_syntaxes=(EXPLICIT_LE,)),
...     Offer("image/jp2", multipart=True, transfer_syntaxes=(JPEG_2000,)),  # stored so, or can be made
...     Offer("application/octet-stream", transfer_syntaxes=(EXPLICIT_LE,)),  # one frame only
... )
>>> choice = negotiate('multipart/related; type="application/dicom"; transfer-syntax=*', None, instance)
>>> choice.offer.multipart, choice.as_stored
(True, True)
>>> negotiate("application/dicom", None, instance).transfer_syntax
'1.2.840.10008.1.2.1'
>>> negotiate(None, None, metadata).offer.media_type
'application/dicom+json'
>>> negotiate("image/*;q=0.5, application/octet-stream;q=0.1", None, frames).offer.media_type
'image/jp2'

Bulk data is offered like frames; an Encapsulated Document first in its own media type, e.g. `Offer("application/pdf")`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import BadRequest, NotAcceptable
from .multipart import parse_media_type, split_outside_quotes

AS_STORED = "*"

_ALIASES = {
    "application/json": "application/dicom+json",
    # what the types below were called in the Standard before they were registered, and by clients
    "image/x-jls": "image/jls",
    "image/x-dicom-rle": "image/dicom-rle",
    "image/jhc": "image/jphc",
    "video/mpeg2": "video/mpeg",
}
# Types that are of one kind only (8.7.3, 8.7.4). JPEG 2000, video and others are both, depending on the resource.
_DICOM_TYPES = {"application/dicom", "application/dicom+json", "application/dicom+xml"}
_RENDERED_TYPES = {
    "image/jpeg",
    "image/gif",
    "image/png",
    "text/html",
    "text/plain",
    "text/xml",
    "text/rtf",
    "application/pdf",
}
_Q_VALUE = re.compile(r"(0(\.\d*)?|1(\.0*)?|\.\d+)\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Offer:
    """One representation that a resource has.

    `media_type` is that of the item, or of each part when `multipart`. `transfer_syntaxes` are the UIDs that can be
    asked for; the first is the one for those who ask for none (Explicit VR Little Endian, 8.7.3.4). Empty: transfer
    syntaxes have no meaning here, and a `transfer-syntax` parameter is ignored. `stored` are those in
    which the resource lies there: nothing is lost and nothing has to be encoded.
    """

    media_type: str
    multipart: bool = False
    transfer_syntaxes: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()

    def __str__(self) -> str:
        name = f'multipart/related; type="{self.media_type}"' if self.multipart else self.media_type
        if self.transfer_syntaxes:
            name += f" (transfer-syntax: {', '.join((AS_STORED, *self.transfer_syntaxes))})"
        return name


@dataclass(frozen=True, slots=True)
class Choice:
    """What to send. `transfer_syntax` is one of the offer's UIDs, or `*` for as stored, or "" where there are none."""

    offer: Offer
    transfer_syntax: str = ""

    @property
    def as_stored(self) -> bool:
        return self.transfer_syntax == AS_STORED


@dataclass(frozen=True, slots=True)
class _Range:
    """One entry of an Accept header: `multipart` is None where both will do; `kind` may be `*/*` or `image/*`."""

    multipart: bool | None
    kind: str
    transfer_syntax: str | None
    q: float

    def includes(self, offer: Offer) -> bool:
        if self.kind == "*/*":
            return True
        if self.multipart is not None and self.multipart != offer.multipart:
            return False
        main, _, subtype = self.kind.partition("/")
        if subtype == "*":
            return offer.media_type.startswith(main + "/")
        return self.kind == offer.media_type.lower()  # video/H265

    def choice(self, offer: Offer) -> Choice | None:
        """The offer in the transfer syntax that this range asks for; None when it cannot be had (8.7.8.2)."""
        if not offer.transfer_syntaxes:
            return Choice(offer)
        if self.transfer_syntax is None:
            return Choice(offer, offer.transfer_syntaxes[0])
        if self.transfer_syntax == AS_STORED or self.transfer_syntax in offer.transfer_syntaxes:
            return Choice(offer, self.transfer_syntax)
        return None

    @property
    def specificity(self) -> tuple[int, bool, bool]:
        """RFC 9110 12.5.1: an exact type before type/* before */*; then the one with more parameters."""
        wildcards = self.kind.count("*")
        return -wildcards, self.multipart is True, self.transfer_syntax is not None


def negotiate(header: str | None, accept_parameter: str | None, offers: Sequence[Offer]) -> Choice:
    """Choose among `offers`, the first of which is the resource's default.

    `header` is the Accept header, `accept_parameter` the value of the `accept` query parameter (percent-decoded; a
    `+` that has become a blank is understood). The parameter goes first; the header counts when nothing that the
    parameter names is available (8.7.8.1). A missing header accepts everything. Entries that are malformed or name
    what is unknown are ignored (8.4.1). An offer's quality is that of the most specific range that includes it; among
    equals the transfer syntax wins that is stored, if it is named (who names all that they decode gets the pixels
    without loss and at once), then the range that stands first, and within one range the offer that does. `*/*` means
    the default, `type/*` offers of that type, singly before in parts; `multipart/related` without a type (or with
    `type="*/*"`) means the first offer in parts, or the default where there is none.

    Raises NotAcceptable, with the list of what is available; BadRequest for a wildcard in the `accept` parameter and
    for DICOM and rendered media types together (8.7.5).
    """
    return _negotiate(header or "*/*", accept_parameter or "", tuple(offers))


@lru_cache(maxsize=512)
def _negotiate(header: str, accept_parameter: str, offers: tuple[Offer, ...]) -> Choice:
    choice = _best(_parameter_ranges(accept_parameter), offers) if accept_parameter else None
    choice = choice or _best(_ranges(header), offers)
    if choice is None:
        asked = accept_parameter or header
        available = " | ".join(map(str, offers))
        raise NotAcceptable(f"None of the acceptable media types ({asked[:200]}) is available. Available: {available}")
    return choice


def _best(ranges: tuple[_Range, ...], offers: tuple[Offer, ...]) -> Choice | None:
    best: Choice | None = None
    best_rank = (0.0, True)
    for wanted in ranges:
        for offer in _in_order(wanted, offers):
            choice = wanted.choice(offer)
            if choice is None:
                continue
            names_stored = wanted.transfer_syntax in (AS_STORED, *offer.stored) and bool(offer.stored)
            if (rank := (_quality(choice, ranges), names_stored)) > best_rank:
                best, best_rank = choice, rank
    return best


def _in_order(wanted: _Range, offers: tuple[Offer, ...]) -> list[Offer]:
    """The offers that a range includes, those first that it means first.

    `application/*` means a type of its own before that of parts, `multipart/related` something in parts before the
    default of the resource.
    """
    included = [offer for offer in offers if wanted.includes(offer)]
    if wanted.multipart:
        included.sort(key=lambda offer: not offer.multipart)
    elif wanted.kind != "*/*":
        included.sort(key=lambda offer: offer.multipart)
    return included


def _quality(choice: Choice, ranges: tuple[_Range, ...]) -> float:
    """The q of the most specific range that includes the choice."""
    including = [r for r in ranges if r.includes(choice.offer) and r.choice(choice.offer) == choice]
    return max(including, key=lambda r: r.specificity).q


@lru_cache(maxsize=512)
def _ranges(header: str) -> tuple[_Range, ...]:
    """The valid entries of an Accept header, in order. Raises BadRequest when the kinds are mixed (8.7.5)."""
    kinds: set[str] = set()
    ranges: list[_Range] = []
    for entry in split_outside_quotes(header, ","):
        try:
            media_type = parse_media_type(entry)
            parameters = dict(media_type.parameters)
            q = _q_value(parameters.get("q", "1"))
            multipart: bool | None = None
            kind = media_type.name
            if kind in ("multipart/related", "multipart/*"):
                multipart = True
                inner = parse_media_type(parameters.get("type") or "*/*")
                kind = inner.name
                parameters = {**inner.parameters, **parameters}  # transfer-syntax inside the quotes of type
            elif "*" not in kind:
                multipart = False
        except ValueError:
            continue
        if q and kind in _DICOM_TYPES:
            kinds.add("DICOM")
        elif q and kind in _RENDERED_TYPES and not multipart and "transfer-syntax" not in parameters:
            kinds.add("rendered")
        ranges.append(_Range(multipart, _ALIASES.get(kind, kind), parameters.get("transfer-syntax"), q))
    if len(kinds) > 1:
        raise BadRequest(f"DICOM and rendered media types cannot be accepted in one request: {header[:200]}")
    return tuple(ranges)


def _parameter_ranges(accept_parameter: str) -> tuple[_Range, ...]:
    """The entries of the `accept` query parameter, where wildcards are not allowed (8.3.3.1)."""
    repaired = re.sub(r"(?<=[\w.-]) (?=(json|xml)\b)", "+", accept_parameter)
    ranges = _ranges(repaired)
    if any("*" in wanted.kind for wanted in ranges):
        raise BadRequest(f"The query parameter accept holds a wildcard: {accept_parameter[:200]}")
    return ranges


def _q_value(text: str) -> float:
    if not _Q_VALUE.match(text):
        raise ValueError(f"{text!r} is not a weight")
    return float(text)


def check_charset(value: str) -> None:
    """Raises BadRequest unless UTF-8, in which every text is, is among the character sets of a
    `charset` query parameter (PS3.18 8.3.3.2)."""
    names = []
    for item in filter(str.strip, value.split(",")):
        name, *parameters = (piece.strip().lower() for piece in item.split(";"))
        if not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters):
            names.append(name)
    if value.strip() and not {"utf-8", "utf8", "*", "us-ascii"} & set(names):
        raise BadRequest(f"charset {value[:80]!r} is not available; available: UTF-8")
