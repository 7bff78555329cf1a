"""Masks of angiograms: frames subtracted from others, by the image or by a presentation state (PS3.3 C.7.6.10)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomcloud.dicom.rendering import Rendering, Window, render_frame
from tests.data import make_dataset, make_file

Array = NDArray[Any]
XA_IMAGE, XA_STATE = "1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.11.5"
UID = "1.2.826.0.1.77.9"


def item(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def run() -> Array:
    """Three frames of a vessel on a bright ground, the last two with contrast medium in it."""
    frames = np.full((3, 8, 8), 200, "u1")
    frames[:, :, 0] = 90  # a bone, in all of them
    frames[1, 3, 1:] -= 40
    frames[2, 3, 1:] -= 80
    return frames


def angiogram(**attributes: Any) -> bytes:
    pixels = run()
    return make_file(
        make_dataset(
            SOPClassUID=XA_IMAGE, SOPInstanceUID=UID, Modality="XA", Rows=8, Columns=8, NumberOfFrames=3,
            BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=pixels.tobytes(), **attributes,
        )
    )  # fmt: skip


def levels(file: bytes, number: int, state: bytes | None = None, **asked: Any) -> Array:
    opened = io.BytesIO(state) if state else None
    picture = render_frame(io.BytesIO(file), number, Rendering(**asked), presentation_state=opened)
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize(
    "mask",
    [
        item(MaskOperation="AVG_SUB", MaskFrameNumbers=[1]),
        item(MaskOperation="TID", TIDOffset=2),
        item(MaskOperation="REV_TID", TIDOffset=2, ApplicableFrameRange=[3, 3]),
    ],
    ids=lambda mask: mask.MaskOperation,
)
def test_an_image_recommended_to_be_seen_subtracted_shows_the_vessel_alone(mask: Dataset) -> None:
    found = levels(angiogram(RecommendedViewingMode="SUB", MaskSubtractionSequence=[mask]), 3)
    assert set(found[3, 1:]) == {0}
    assert set(np.delete(found, 3, axis=0).reshape(-1)) == {255}


def test_an_image_to_be_seen_as_it_is_keeps_its_bones() -> None:
    mask = item(MaskOperation="AVG_SUB", MaskFrameNumbers=[1])
    for mode in ("NAT", ""):
        found = levels(angiogram(RecommendedViewingMode=mode, MaskSubtractionSequence=[mask]), 3)
        assert len(set(found.reshape(-1))) == 3


def test_several_mask_frames_are_averaged() -> None:
    mask = item(MaskOperation="AVG_SUB", MaskFrameNumbers=[1, 2])
    file = angiogram(RecommendedViewingMode="SUB", MaskSubtractionSequence=[mask])
    found = levels(file, 3, window=Window(-60, 20, "linear-exact"))
    assert set(found[3][1:]) == {128}  # -80 + 20
    assert set(levels(file, 3, window=Window(-60.5, 1, "linear-exact"))[3]) == {255}


@pytest.mark.parametrize(
    "mask",
    [
        item(MaskOperation="AVG_SUB", MaskFrameNumbers=[9]),
        item(MaskOperation="AVG_SUB"),
        item(MaskOperation="TID", TIDOffset=7),
        item(MaskOperation="NONE"),
        item(MaskOperation="AVG_SUB", MaskFrameNumbers=[1], ApplicableFrameRange=[1, 2]),
    ],
)
def test_a_mask_that_is_not_there_is_not_subtracted(mask: Dataset) -> None:
    found = levels(angiogram(RecommendedViewingMode="SUB", MaskSubtractionSequence=[mask]), 3)
    assert len(set(found.reshape(-1))) == 3


def test_a_mask_is_moved_by_its_shift() -> None:
    mask = item(MaskOperation="AVG_SUB", MaskFrameNumbers=[1], MaskSubPixelShift=[0.0, 1.0])
    found = levels(angiogram(RecommendedViewingMode="SUB", MaskSubtractionSequence=[mask]), 1)
    assert len(set(found[:, 1])) == 1
    assert found[0, 1] != found[0, 4]  # where the bone of the mask came to lie


def test_a_presentation_state_brings_its_own_mask_and_window() -> None:
    reference = item(ReferencedSOPInstanceUID=UID)
    state = make_dataset(
        SOPClassUID=XA_STATE, Modality="PR", PixelData=None, Rows=None, Columns=None, PresentationLUTShape="IDENTITY",
        ReferencedSeriesSequence=[item(SeriesInstanceUID="1.2.3", ReferencedImageSequence=[reference])],
        MaskSubtractionSequence=[item(MaskOperation="AVG_SUB", MaskFrameNumbers=[1])],
        SoftcopyVOILUTSequence=[item(WindowCenter="0", WindowWidth="320", VOILUTFunction="LINEAR_EXACT")],
    )  # fmt: skip
    found = levels(angiogram(), 3, make_file(state))
    assert set(np.delete(found, 3, axis=0).reshape(-1)) == {128}
    assert set(found[3, 1:]) == {64}
