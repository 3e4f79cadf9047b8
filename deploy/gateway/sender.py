"""The sending side: C-STORE of results to the PACS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.status import code_to_category

from gateway.record import Result

LONGEST_SILENCE = 60.0  # s
CONNECTION_TIMEOUT = 10.0  # s


class UnreachableError(Exception):
    """The PACS cannot store anything at present; the message is a phrase that says why."""


@dataclass(frozen=True)
class Destination:
    """A PACS.

    Attributes:
        host: its address.
        port: its TCP port.
        ae_title: its application entity title.
    """

    host: str
    port: int
    ae_title: str

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Read ``HOST:PORT:AET``.

        Raises:
            ValueError: it is not of that form.
        """
        host, port, title = text.rsplit(":", 2)
        if not host or not 0 < int(port) < 65536:
            raise ValueError("host or port")
        return cls(host.strip("[]"), int(port), title)


def read_result(path: Path, folder: Path) -> Result:
    """Read the UIDs of a result of the app.

    Args:
        path: its file.
        folder: folder of the study.

    Returns:
        The result, not sent.

    Raises:
        Exception: the file is damaged; pydicom raises almost anything.
    """
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID"])
    return Result(str(path.relative_to(folder)), str(header.SOPClassUID), str(header.SOPInstanceUID))


def send(results: Sequence[Result], folder: Path, destination: Destination, ae_title: str) -> Iterator[Result]:
    """Send results in one association.

    Args:
        results: results that the PACS has not confirmed.
        folder: folder of the study.
        destination: the PACS.
        ae_title: title of the gateway.

    Yields:
        Each result when the PACS has answered, with ``sent`` or ``refusal`` set.

    Raises:
        UnreachableError: the PACS does not answer, or has no room.
    """
    if not results:
        return
    entity = AE(ae_title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = LONGEST_SILENCE
    entity.connection_timeout = CONNECTION_TIMEOUT
    for sop_class in dict.fromkeys(result.sop_class for result in results):
        syntax = _syntax_of(next(folder / result.path for result in results if result.sop_class == sop_class))
        entity.add_requested_context(sop_class, list(dict.fromkeys([syntax, ImplicitVRLittleEndian])))
    association = entity.associate(destination.host, destination.port, ae_title=destination.ae_title)
    if not association.is_established:
        if association.is_rejected:
            raise UnreachableError("it refuses the association")
        raise UnreachableError("it does not answer")
    try:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        for result in results:
            if result.sop_class not in accepted:
                result.refusal = f"The PACS does not accept objects of the class {UID(result.sop_class).name}."
                yield result
                continue
            status = association.send_c_store(pydicom.dcmread(folder / result.path)).get("Status")
            if status is None:
                raise UnreachableError("the association ended without an answer")
            category = code_to_category(status)
            if category in ("Success", "Warning"):
                result.sent = True
            elif status & 0xFF00 == 0xA700:
                raise UnreachableError("it is out of resources")
            else:
                result.refusal = f"The PACS refused the {UID(result.sop_class).name} with status 0x{status:04X}."
            yield result
    except (RuntimeError, ValueError) as error:  # the association was ended in the meantime
        raise UnreachableError("the association ended") from error
    finally:
        if association.is_established:
            association.release()


def _syntax_of(path: Path) -> str:
    return str(pydicom.dcmread(path, specific_tags=[]).file_meta.TransferSyntaxUID)
