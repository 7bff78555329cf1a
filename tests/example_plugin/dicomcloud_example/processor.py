"""A processor: gives CT images without a station the one of the ward, and refuses phantoms."""

from pydicom.dataset import Dataset


def name_the_station(dataset: Dataset) -> None:
    """Change the attributes in place. A ValueError refuses the instance; its text goes to the sender."""
    if dataset.get("PatientID") == "PHANTOM":
        raise ValueError("phantoms are not archived")
    if dataset.get("Modality") == "CT" and not dataset.get("StationName"):
        dataset.StationName = "WARD7"
    if "PatientComments" in dataset:
        del dataset.PatientComments
