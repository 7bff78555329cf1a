"""multipart/related: what real clients send is split byte for byte, and what is written can be split again."""

from __future__ import annotations

import email.parser
import email.policy
import gzip
import io
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomcloud.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from dicomcloud.web.multipart import (
    OUT_PIECE,
    InflatedStream,
    MultipartBody,
    OutgoingPart,
    boundary_of,
    parse_media_type,
    read_in_pieces,
    read_parts,
)


def split(body: bytes, boundary: str = "b", piece: int = 1 << 20, **limits: int) -> list[tuple[dict[str, str], bytes]]:
    return [
        (dict(part.headers), b"".join(part.chunks))
        for part in read_parts(io.BytesIO(body), boundary, piece=piece, **limits)
    ]


def contents(body: bytes, boundary: str = "b", piece: int = 1 << 20) -> list[bytes]:
    return [content for _, content in split(body, boundary, piece)]


DICOM = {"content-type": "application/dicom"}

HEAD = b"--b\r\nContent-Type: application/dicom\r\n"

ACCEPTED = {
    "two parts as the RFC has them": (
        HEAD + b"\r\none\r\n" + HEAD + b"\r\ntwo\r\n--b--\r\n",
        [(DICOM, b"one"), (DICOM, b"two")],
    ),
    "a line break in front of the first boundary": (b"\r\n--b\r\n\r\none\r\n--b--\r\n", [({}, b"one")]),
    "a preamble": (b"to be ignored\r\n--b\r\n\r\none\r\n--b--\r\n", [({}, b"one")]),
    "a preamble that looks like a boundary": (b"--bb\r\n x --b\r\n--b\r\n\r\none\r\n--b--", [({}, b"one")]),
    "an epilogue": (b"--b\r\n\r\none\r\n--b--\r\nmore\r\n--b\r\n\r\nnot a part\r\n--b--", [({}, b"one")]),
    "no line break at the very end": (b"--b\r\n\r\none\r\n--b--", [({}, b"one")]),
    "blanks after the boundary": (
        b"--b \t\r\n\r\none\r\n--b  \r\n\r\ntwo\r\n--b-- \r\n",
        [({}, b"one"), ({}, b"two")],
    ),
    "lines that end in LF only": (
        b"--b\nContent-Type: application/dicom\n\none\n--b\n\ntwo\n--b--\n",
        [(DICOM, b"one"), ({}, b"two")],
    ),
    "a CR at the end of a value where lines end in LF": (b"--b\n\none\r\n--b--\n", [({}, b"one\r")]),
    "header lines that end in LF only": (
        b"--b\r\nContent-Type: application/dicom\n\none\r\n--b--",
        [(DICOM, b"one")],
    ),
    "a folded header in odd case": (
        b"--b\r\nCONTENT-type:\r\n application/dicom\r\n\r\none\r\n--b--",
        [(DICOM, b"one")],
    ),
    "a part without content": (HEAD + b"\r\n\r\n--b--", [(DICOM, b"")]),
    "a part that is headers only": (HEAD + b"\r\n--b--", [(DICOM, b"")]),
    "a part without the empty line": (HEAD + b"--b--", [(DICOM, b"")]),
    "a part that is nothing": (b"--b\r\n--b\r\n\r\none\r\n--b--", [({}, b""), ({}, b"one")]),
    "no part at all": (b"--b--\r\n", []),
    "a longer boundary in the data": (
        b"--b\r\n\r\none\r\n--bb\r\n--bb--\r\n\r\n--b--",
        [({}, b"one\r\n--bb\r\n--bb--\r\n")],
    ),
    "the boundary inside a line": (
        b"--b\r\n\r\none--b\r\n--b\r\n\r\n\n--b\r\n--b--",
        [({}, b"one--b"), ({}, b"\n--b")],
    ),
    "the boundary and then text": (
        b"--b\r\n\r\none\r\n--b two\r\n--b--two\r\n--b-\r\n--b--",
        [({}, b"one\r\n--b two\r\n--b--two\r\n--b-")],
    ),
    "an LF boundary line where lines end in CRLF": (
        b"--b\r\n\r\none\r\n--b\n\r\n--b--",
        [({}, b"one\r\n--b\n")],
    ),
    "line breaks around the content": (
        b"--b\r\n\r\n\r\n\r\none\r\n\r\n\r\n--b--",
        [({}, b"\r\n\r\none\r\n\r\n")],
    ),
}


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(("body", "parts"), ACCEPTED.values(), ids=ACCEPTED)
def test_every_form_that_clients_send_is_split_whatever_pieces_it_arrives_in(body, parts, piece):
    assert split(body, piece=piece) == parts


def test_a_boundary_may_hold_spaces_and_signs():
    for boundary in ("DICOM FILE", "----=_Part_1", "a.b+c(d)'e,f/g:h=i?j"):
        body = f"\r\n--{boundary}\r\nContent-Type:application/dicom\r\n\r\none\r\n--{boundary}--".encode()
        assert split(body, boundary) == [(DICOM, b"one")]


REFUSED = {
    "cut off in the content": (b"--b\r\n\r\none", "cut off"),
    "cut off in the close delimiter": (b"--b\r\n\r\none\r\n--b-", "cut off"),
    "cut off after a delimiter": (b"--b\r\n\r\none\r\n--b", "cut off"),
    "cut off in the headers": (b"--b\r\nContent-Type: application/dicom\r\n", "cut off"),
    "another boundary than announced": (b"--other\r\n\r\none\r\n--other--", "boundary 'b'.*'--oth"),
    "no boundary": (b"DICM" * 100, "boundary 'b'"),
    "an empty body": (b"", "it is empty"),
    "no boundary in the first MiB": (b"--x\r\n" + bytes(1 << 22), "boundary 'b'"),
    "headers that are none": (b"--b\r\nDICM\x01\x02\r\n\r\none\r\n--b--", "not a header line"),
    "headers without end": (b"--b\r\nX: " + b"y" * 20_000 + b"\r\n\r\none\r\n--b--", "longer than 16384"),
}


@pytest.mark.parametrize("piece", [5, 1 << 20])
@pytest.mark.parametrize(("body", "fault"), REFUSED.values(), ids=REFUSED)
def test_a_malformed_body_is_a_bad_request_that_says_why(body, fault, piece):
    with pytest.raises(BadRequest, match=fault):
        split(body, piece=piece)


def test_a_boundary_that_does_not_come_is_not_awaited_for_ever():
    stream = io.BytesIO(bytes(8 << 20))
    with pytest.raises(BadRequest, match="boundary 'b'"):
        next(read_parts(stream, "b"))
    assert stream.tell() <= 3 << 20


def test_a_part_in_base64_is_not_supported_and_a_binary_one_is():
    body = b"--b\r\nContent-Transfer-Encoding: %s\r\n\r\none\r\n--b--"
    assert contents(body % b"Binary") == contents(body % b"8bit") == contents(body % b"7bit") == [b"one"]
    for encoding in (b"base64", b"quoted-printable"):
        with pytest.raises(UnsupportedMediaType, match=encoding.decode()):
            split(body % encoding)


def test_the_number_of_parts_is_limited():
    body = b"--b\r\n\r\none" + b"\r\n--b\r\n\r\none" * 2 + b"\r\n--b--"
    assert len(split(body, max_parts=3)) == 3
    with pytest.raises(PayloadTooLarge, match="more than 2 parts"):
        split(body, max_parts=2)


def test_parts_that_nobody_reads_or_reads_in_part_are_skipped():
    body = b"--b\r\n\r\n" + bytes(5000) + b"\r\n--b\r\n\r\ntwo\r\n--b\r\n\r\nthree\r\n--b--"
    parts = read_parts(io.BytesIO(body), "b", piece=1000)
    first = next(parts)
    assert next(first.chunks)
    next(parts).chunks.close()  # type: ignore[attr-defined]
    assert list(first.chunks) == []
    assert [b"".join(part.chunks) for part in parts] == [b"three"]


def test_the_body_is_read_to_its_end_so_that_the_connection_can_be_used_again():
    stream = io.BytesIO(b"--b\r\n\r\none\r\n--b--\r\n" + bytes(3000))
    for _ in read_parts(stream, "b", piece=100):
        pass
    assert stream.read() == b""


class _Endless:
    """A body that is made while it is read: one part of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.pieces: Iterator[bytes] = self._make(size)

    def _make(self, size: int) -> Iterator[bytes]:
        yield b"--b\r\n\r\n"
        block = bytes(1 << 20)
        for _ in range(size >> 20):
            yield block
        yield b"\r\n--b--\r\n"

    def read(self, size: int = -1, /) -> bytes:
        return next(self.pieces, b"")


def test_memory_stays_at_a_few_pieces_however_large_a_part_is():
    tracemalloc.start()
    received = sum(len(chunk) for part in read_parts(_Endless(256 << 20), "b") for chunk in part.chunks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert received == 256 << 20
    assert peak < 8 << 20


_LOOK_ALIKES = [
    b"\r\n--bb",
    b"\r\n--bbQz",
    b"x--bbQ--",
    b"\r\n",
    b"\n--b",
    b"--",
    b"-",
    b"\r",
    b"\n",
    b" ",
    b"x",
    b"\0",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.sampled_from(_LOOK_ALIKES), max_size=12).map(b"".join), max_size=5), st.integers(1, 40))
def test_whatever_is_written_is_read_again(values, piece):
    parts = [OutgoingPart({"Content-Type": "application/dicom"}, len(value), [value]) for value in values]
    body = MultipartBody("application/dicom", parts, boundary="bbQ")
    written = b"".join(body)
    assert body.content_length == len(written)
    assert contents(written, "bbQ", piece) == values


RELATED = "multipart/related"


@pytest.mark.parametrize(
    ("value", "name", "parameters"),
    [
        (f"{RELATED}; type=application/dicom; boundary=ab", RELATED, {"type": "application/dicom", "boundary": "ab"}),
        ('Multipart/Related;BOUNDARY="DICOM FILE";Type="a/b"', RELATED, {"boundary": "DICOM FILE", "type": "a/b"}),
        (f"{RELATED}; boundary=DICOM FILE; type=a/b", RELATED, {"boundary": "DICOM FILE", "type": "a/b"}),
        (f"{RELATED}; boundary=----=_Part_1; start=<a@b>", RELATED, {"boundary": "----=_Part_1", "start": "<a@b>"}),
        (RELATED + r'; type="a/b; c=*"; boundary="a\"b"', RELATED, {"type": "a/b; c=*", "boundary": 'a"b'}),
        ("application/dicom;transfer-syntax=1.2.840", "application/dicom", {"transfer-syntax": "1.2.840"}),
        ("application/dicom;;x;y=1;y=2;", "application/dicom", {"y": "1"}),
        ("*/* ; q = 0.1", "*/*", {"q": "0.1"}),
    ],
)
def test_content_types_are_read_as_they_are_meant(value, name, parameters):
    parsed = parse_media_type(value)
    assert (parsed.name, parsed.parameters) == (name, parameters)


@pytest.mark.parametrize("value", ["", "dicom", "application/", "/dicom", "application/di com", "a/b/c", ";", "ä/b"])
def test_what_is_no_media_type_is_refused(value):
    with pytest.raises(ValueError, match="not a media type"):
        parse_media_type(value)


@pytest.mark.parametrize(
    "parameter",
    ["", "; boundary=", '; boundary=""', "; boundary=" + "x" * 201, "; boundary=a\x01b", "; boundary=\u2028"],
)
def test_a_boundary_that_is_missing_or_impossible_is_a_bad_request(parameter):
    with pytest.raises(BadRequest, match="boundary"):
        boundary_of(parse_media_type("multipart/related" + parameter))


def test_a_body_has_exact_line_breaks_headers_in_order_and_its_length():
    parts = [
        OutgoingPart({"Content-Type": "image/jls", "Content-Location": "/x"}, 3, [b"a", b"bc"]),
        OutgoingPart({}, 0, []),
    ]
    body = MultipartBody("application/octet-stream", parts, boundary="b")
    assert body.content_type == 'multipart/related; type="application/octet-stream"; boundary="b"'
    written = b"".join(body)
    assert written == (
        b"--b\r\nContent-Type: image/jls\r\nContent-Location: /x\r\nContent-Length: 3\r\n\r\nabc\r\n"
        b"--b\r\nContent-Length: 0\r\n\r\n\r\n--b--\r\n"
    )
    assert body.content_length == len(written)


def test_another_parser_reads_what_is_written():
    body = MultipartBody("application/dicom", [OutgoingPart({"Content-Type": "application/dicom"}, 3, [b"one"])] * 2)
    message = f"Content-Type: {body.content_type}\r\n\r\n".encode() + b"".join(body)
    parts = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(message).get_payload()
    assert [part.get_payload(decode=True) for part in parts] == [b"one", b"one"]


def test_the_boundary_is_a_new_one_each_time():
    assert MultipartBody("a/b", []).content_type != MultipartBody("a/b", []).content_type


def test_pieces_are_neither_large_nor_many():
    parts = [OutgoingPart({}, 1_000_000, [bytes(1_000_000)])] + [OutgoingPart({}, 100, [bytearray(100)])] * 1000
    pieces = list(MultipartBody("a/b", parts))
    assert max(map(len, pieces)) <= OUT_PIECE
    assert len(pieces) < 16
    assert [len(content) for _, content in split(b"".join(pieces), _boundary(pieces[0]))] == [1_000_000] + [100] * 1000


def _boundary(first_piece: bytes) -> str:
    return first_piece.split(b"\r\n")[0][2:].decode()


def test_parts_of_unknown_size_or_number_are_sent_without_a_length():
    parts = [OutgoingPart({}, None, [b"one"]), OutgoingPart({}, 3, [b"two"])]
    assert MultipartBody("a/b", parts).content_length is None
    lazily = MultipartBody("a/b", iter(parts), boundary="b")
    assert lazily.content_length is None
    assert contents(b"".join(lazily)) == [b"one", b"two"]
    assert contents(b"".join(MultipartBody("a/b", iter([]), boundary="b"))) == []


class _Source:
    def __init__(self, *chunks: bytes) -> None:
        self.chunks, self.opened, self.closed = chunks, False, False

    def __iter__(self) -> Iterator[bytes]:
        self.opened = True
        return iter(self.chunks)

    def close(self) -> None:
        self.closed = True


def test_a_source_is_opened_when_its_turn_comes_and_closed_after_it():
    sources = [_Source(bytes(200_000)) for _ in range(3)]
    pieces = iter(MultipartBody("a/b", [OutgoingPart({}, 200_000, source) for source in sources]))
    for _ in range(2):
        next(pieces)
    assert [(source.opened, source.closed) for source in sources] == [(True, True), (True, False), (False, False)]


@pytest.mark.parametrize("sent", [0, 1])
def test_all_sources_are_closed_when_the_client_goes_away(sent):
    sources = [_Source(bytes(100_000)) for _ in range(3)]
    body = MultipartBody("a/b", [OutgoingPart({}, 100_000, source) for source in sources])
    for _ in range(sent):
        next(iter(body))
    body.close()
    assert all(source.closed for source in sources)


def test_the_supplier_of_lazy_parts_is_closed_when_the_client_goes_away():
    closed = []

    def supply() -> Iterator[OutgoingPart]:
        try:
            while True:
                yield OutgoingPart({}, 100_000, [bytes(100_000)])
        finally:
            closed.append(True)

    body = MultipartBody("a/b", supply())
    next(iter(body))
    body.close()
    assert closed == [True]


@pytest.mark.parametrize("chunks", [[b"ab"], [b"ab", b"cd"]])
def test_a_source_that_breaks_its_promise_breaks_the_connection(chunks):
    with pytest.raises(RuntimeError, match="a part of 3 bytes"):
        list(MultipartBody("a/b", [OutgoingPart({}, 3, chunks)]))


def test_a_range_of_a_file_is_read_in_pieces_and_the_file_closed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    for size, expected in (
        (None, [b"234", b"567", b"89"]),
        (4, [b"234", b"5"]),
        (0, []),
        (99, [b"234", b"567", b"89"]),
    ):
        file = path.open("rb")
        file.seek(2)
        assert list(read_in_pieces(file, size, piece=3)) == expected
        assert file.closed


def read_all(stream: InflatedStream, size: int = 1000) -> bytes:
    return b"".join(iter(lambda: stream.read(size), b""))


@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
def test_a_gzip_body_of_several_members_is_inflated(size):
    data = bytes(range(256)) * 100
    compressed = gzip.compress(data, mtime=0) + gzip.compress(b"") + gzip.compress(data)
    assert read_all(InflatedStream(io.BytesIO(compressed), 1 << 20), size) == data * 2


def test_a_gzip_body_may_be_a_multipart_body():
    body = gzip.compress(b"--b\r\n\r\none\r\n--b--", mtime=0)
    assert [
        bytes(chunk) for part in read_parts(InflatedStream(io.BytesIO(body), 100), "b") for chunk in part.chunks
    ] == [b"one"]


def test_a_gzip_body_cannot_inflate_beyond_the_limit():
    stream = InflatedStream(io.BytesIO(gzip.compress(bytes(10_000_000))), 1_000_000)
    with pytest.raises(PayloadTooLarge, match="1000000"):
        read_all(stream, 100_000)
    assert read_all(InflatedStream(io.BytesIO(gzip.compress(bytes(1000))), 1000)) == bytes(1000)


@pytest.mark.parametrize(
    ("body", "fault"), [(b"DICM" * 10, "not gzip"), (gzip.compress(b"x" * 999, mtime=0)[:-9], "cut off")]
)
def test_a_gzip_body_that_is_broken_is_a_bad_request(body, fault):
    with pytest.raises(BadRequest, match=fault):
        read_all(InflatedStream(io.BytesIO(body), 1 << 20))
