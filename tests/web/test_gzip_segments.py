"""One gzip stream from segments: every reader has to take it for an ordinary one."""

from __future__ import annotations

import gzip
import zlib
from random import Random

import pytest

from dicomcloud.web.gzip_segments import GzipStream, pack_segment, unpack_segment


def stream(*pieces: tuple[str, bytes]) -> bytes:
    made = GzipStream()
    body = [made.start()]
    body += [made.text(content) if kind == "text" else made.segment(content) for kind, content in pieces]
    return b"".join([*body, made.end()])


@pytest.mark.parametrize("sizes", [[0], [1], [100, 5000], [300_000, 1, 70_000], [1000] * 40])
def test_segments_and_texts_make_one_member(sizes: list[int]) -> None:
    random = Random(len(sizes))
    contents = [random.randbytes(size // 2) * 2 for size in sizes]
    segments = [pack_segment([content[:17], content[17:]]) for content in contents]
    pieces = [("text", b"[")]
    for segment in segments:
        pieces += [("segment", segment), ("text", b",")]
    body = stream(*pieces)
    expected = b"[" + b"".join(content + b"," for content in contents)
    assert gzip.decompress(body) == expected
    first_member = zlib.decompressobj(wbits=31)
    assert first_member.decompress(body) == expected
    assert (first_member.eof, first_member.unused_data) == (True, b"")


@pytest.mark.parametrize("size", [0, 1, 131072, 131073, 1_000_000])
def test_a_segment_unpacks_in_pieces(size: int) -> None:
    content = bytes(size)
    pieces = list(unpack_segment(pack_segment([content])))
    assert b"".join(pieces) == content
    assert max(map(len, pieces), default=0) <= 131072 + 300


def test_a_segment_that_is_changed_is_noticed() -> None:
    segment = bytearray(pack_segment([b"metadata " * 10]))
    segment[0] ^= 1
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(stream(("segment", bytes(segment))))
