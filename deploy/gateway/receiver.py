"""The receiving side: a DICOM service that stores images of a PACS and answers C-ECHO."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pydicom
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    MRImageStorage,
    ParametricMapStorage,
    SegmentationStorage,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from gateway.studies import FullError, Studies

logger = logging.getLogger("gateway")

SUCCESS, OUT_OF_RESOURCES, DOES_NOT_MATCH, CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000
# What the app may score, as `TAKEN` in deploy/app/selection.py.
IMAGES = (MRImageStorage, CTImageStorage, EnhancedMRImageStorage, EnhancedCTImageStorage)
RESULTS = (SegmentationStorage, ParametricMapStorage, Comprehensive3DSRStorage)
# Of scripts/inference/dicom_objects.py.
DESCRIPTIONS = tuple(f"Anomaly {kind}, not for diagnosis" for kind in ("mask", "map", "measurements"))
READ = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "Manufacturer", "SeriesDescription"]
LONGEST_SILENCE = 60.0  # s
MAX_ASSOCIATIONS = 10


@dataclass(frozen=True)
class Address:
    """Where the gateway listens.

    Attributes:
        host: address of the network interface.
        port: TCP port.
        ae_title: its application entity title.
        allowed: titles that may send; empty for any.
    """

    host: str
    port: int
    ae_title: str
    allowed: Sequence[str] = ()


class Receiver:
    """DICOM service that puts received files into `Studies`.

    Args:
        address: where it listens.
        studies: the studies.
        manufacturer: that of the app's results, which are not stored when they come back.
    """

    def __init__(self, address: Address, studies: Studies, manufacturer: str) -> None:
        self.address = address
        self.studies = studies
        self.manufacturer = manufacturer
        self.entity = AE(address.ae_title)
        self.entity.require_called_aet = True
        self.entity.require_calling_aet = list(address.allowed)
        self.entity.maximum_associations = MAX_ASSOCIATIONS
        self.entity.acse_timeout = self.entity.dimse_timeout = self.entity.network_timeout = LONGEST_SILENCE
        self.entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            self.entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)

    def start(self) -> None:
        """Listen in threads of their own.

        Raises:
            OSError: the address cannot be used.
        """
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_REJECTED, self._note_rejection)]
        place = (self.address.host, self.address.port)
        self.entity.start_server(place, block=False, evt_handlers=handlers)

    def stop(self) -> None:
        """Abort the associations and stop listening."""
        self.entity.shutdown()

    def _store(self, event: evt.Event) -> int:
        """Return the status for a C-STORE request; only a file that is on the disk is a success."""
        try:
            return self.receive(event.encoded_dataset(), str(event.file_meta.MediaStorageSOPInstanceUID))
        except FullError as error:
            logger.error(f"an image was refused: {error}")
            return OUT_OF_RESOURCES
        except OSError as error:
            logger.error(f"an image was refused, as it cannot be written: {error.strerror}")
            return OUT_OF_RESOURCES
        except Exception as error:  # what pydicom raises for a damaged data set may quote it
            logger.error(f"an image was refused, as it cannot be read ({type(error).__name__})")
            return CANNOT_UNDERSTAND

    def receive(self, data: bytes, sop_instance: str) -> int:
        """Store a file.

        Args:
            data: its content, with preamble and file meta information.
            sop_instance: SOP instance UID of the request.

        Returns:
            Status of the response.

        Raises:
            FullError: there is no room.
            OSError: the file cannot be written.
        """
        header = pydicom.dcmread(BytesIO(data), stop_before_pixels=True, specific_tags=READ)
        study, sop_class = str(header.get("StudyInstanceUID") or ""), str(header.get("SOPClassUID") or "")
        if not study or not sop_instance or str(header.get("SOPInstanceUID")) != sop_instance:
            logger.error("an image was refused: its UIDs are missing, or others than those of the request")
            return DOES_NOT_MATCH
        if self.is_own_result(header):
            logger.info(f"a result of the app came back and is ignored: {UID(sop_class).name}")
            return SUCCESS
        if not self.studies.add(study, sop_instance, data, sop_class in IMAGES):
            logger.info("an image that is there already is ignored")
        return SUCCESS

    def is_own_result(self, header: pydicom.Dataset) -> bool:
        """Return whether an object is a result of the app, which a PACS may route back to where images go."""
        is_described = str(header.get("SeriesDescription", "")) in DESCRIPTIONS
        is_made_here = str(header.get("Manufacturer", "")) == self.manufacturer
        return header.get("SOPClassUID") in RESULTS and (is_described or is_made_here)

    def _note_rejection(self, event: evt.Event) -> None:
        title = "".join(c if c.isprintable() else "_" for c in str(event.assoc.requestor.ae_title))
        logger.warning(f"an association of {title!r} was refused: one of the titles is not that of the settings")
