"""DICOMcloud: a DICOMweb server and archive."""

__version__ = "0.1.0"
