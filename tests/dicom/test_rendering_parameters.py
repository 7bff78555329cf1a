"""Query parameters of rendered resources and of WADO-URI."""

from __future__ import annotations

import pytest

from dicomcloud.dicom.rendering import Rendering, Viewport, Window, parse_rendering, parse_uri_rendering
from dicomcloud.errors import BadRequest


def test_without_parameters_the_image_is_rendered_as_it_is() -> None:
    assert parse_rendering([]) == (Rendering(), [])
    assert parse_rendering([("accept", "image/png"), ("PatientID", "1")]) == (Rendering(), [])


def test_all_parameters_of_rendered_resources_are_understood() -> None:
    rendering, warnings = parse_rendering(
        [
            ("viewport", "512,256,10,,-100.5,50"),
            ("window", "40,400.5,linear-exact"),
            ("quality", "75"),
            ("annotation", "patient,technique"),
            ("iccprofile", "srgb"),
        ]
    )
    assert rendering == Rendering(
        viewport=Viewport(512, 256, 10, 0, -100.5, 50),
        window=Window(40, 400.5, "linear-exact"),
        quality=75,
        annotation=frozenset({"patient", "technique"}),
        icc_profile="srgb",
    )
    assert warnings == []


@pytest.mark.parametrize("value", ["512,512", "512,512,,,512,512", "512,512,10", "1,65500,0.5,0.5,-3,-4"])
def test_viewports_are_accepted(value: str) -> None:
    assert parse_rendering([("viewport", value)])[0].viewport is not None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("viewport", value)
            for value in ("", "512", "512,", ",512", "0,5", "-5,5", "5,5,", "5,5,1,", "5,5,1,1,1,1,1")
        ),
        *(("viewport", value) for value in ("5.5,5", "a,b", "5,5,x", "5,5,-1", "5,5,0,0,0,5", "5,5,0,0,5,0")),
        *(("viewport", value) for value in ("1000000000,1000000000", "65501,1", "99999999999999999999,1")),
        *(("viewport", value) for value in ("5,5,nan", "5,5,1_0", "5,5,0,0,inf", "５,５", "5,5,,,1e999,1")),
        *(("window", value) for value in ("", "40", "40,400", "40,400,linear,1", "40,400,Linear", "40,400,cubic")),
        *(("window", value) for value in ("x,400,linear", "40,0,linear", "40,0.5,linear", "40,-1,sigmoid", ",,")),
        *(("window", value) for value in ("nan,1,linear", "40,inf,linear", "40,0,linear-exact", "0x1,5,linear")),
        *(("quality", value) for value in ("", "0", "101", "-1", "50.5", "high", "1_0", "99999999999999999999")),
        *(("annotation", value) for value in ("", "patient,", ",patient", "pat ient", "1", "patient;technique")),
        *(("iccprofile", value) for value in ("", "maybe", "SRGB")),
    ],
)
def test_bad_values_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_rendering([(name, value)])
    assert name in caught.value.message


def test_the_value_that_is_wrong_is_in_the_message() -> None:
    with pytest.raises(BadRequest, match="200"):
        parse_rendering([("quality", "200")])


def test_a_parameter_cannot_be_given_twice() -> None:
    with pytest.raises(BadRequest, match="quality"):
        parse_rendering([("quality", "50"), ("quality", "60")])


def test_unsupported_annotations_are_left_out_with_the_warning_of_the_standard() -> None:
    rendering, warnings = parse_rendering([("annotation", "patient,sponsor,Technique")])
    assert rendering.annotation == {"patient"}
    assert warnings == ["The following annotation values are not supported: sponsor, Technique"]


def test_all_parameters_of_wado_uri_are_understood() -> None:
    pairs = [("rows", "300"), ("columns", "200"), ("region", "0.1,0.2,0.5,1.0"), ("windowCenter", "-600.5")]
    pairs += [("windowWidth", "1500"), ("imageQuality", "80"), ("annotation", "patient"), ("frameNumber", "3")]
    found, warnings = parse_uri_rendering([*pairs, ("imageAnnotation", "technique")])
    assert found.frame == 3
    assert found.presentation_state is None
    assert found.rendering == Rendering(
        viewport=Viewport(200, 300),
        window=Window(-600.5, 1500),
        quality=80,
        annotation=frozenset({"patient", "technique"}),
        region=(0.1, 0.2, 0.5, 1.0),
    )
    assert warnings == []


def test_one_of_rows_and_columns_is_enough() -> None:
    assert parse_uri_rendering([("rows", "512")])[0].rendering.viewport == Viewport(None, 512)


def test_a_presentation_state_is_named_by_two_uids() -> None:
    pairs = [("presentationSeriesUID", "1.2"), ("presentationUID", "1.3")]
    assert parse_uri_rendering(pairs)[0].presentation_state == ("1.2", "1.3")
    with pytest.raises(BadRequest, match="together"):
        parse_uri_rendering(pairs[:1])
    with pytest.raises(BadRequest, match="presentationUID"):
        parse_uri_rendering([pairs[0], ("presentationUID", "x")])


@pytest.mark.parametrize("pairs", [[("frameNumber", "1")], [("windowCenter", "1"), ("windowWidth", "2")]])
def test_a_presentation_state_excludes_frames_and_windows(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(BadRequest, match=pairs[0][0]):
        parse_uri_rendering([*pairs, ("presentationSeriesUID", "1.2"), ("presentationUID", "1.3")])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("rows", value) for value in ("", "0", "-1", "5.0", "1000000000", "x")),
        *(("columns", value) for value in ("", "0", "66000")),
        *(
            ("region", value)
            for value in ("", "0,0,1", "0,0,1,1,1", "0.5,0,0.5,1", "0,0.6,1,0.5", "0,0,1.1,1", "-0.1,0,1,1")
        ),
        *(("region", value) for value in ("nan,0,1,1", "a,b,c,d")),
        *(("frameNumber", value) for value in ("", "0", "-1", "1.5", "x")),
        *(("imageQuality", value) for value in ("0", "101", "")),
        *(("windowCenter", value) for value in ("1",)),  # without a width
        *(("windowWidth", value) for value in ("1",)),
        *(("imageAnnotation", value) for value in ("", "?")),
    ],
)
def test_bad_wado_uri_values_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_uri_rendering([(name, value)])
    assert name in caught.value.message


@pytest.mark.parametrize(("center", "width"), [("40", "0"), ("40", "-1"), ("x", "1"), ("1", "nan")])
def test_absurd_windows_are_refused(center: str, width: str) -> None:
    with pytest.raises(BadRequest, match=r"window"):
        parse_uri_rendering([("windowCenter", center), ("windowWidth", width)])
