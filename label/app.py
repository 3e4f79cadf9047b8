"""MONAI Label's app for bundles, with read-only studies.

The module is installed as ``main.py`` of the app, and MONAI Label's original one as ``bundle_app.py``.
"""

from __future__ import annotations

import bundle_app
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from read_only_studies import ReadOnlyStudies


class AnomalyApp(bundle_app.MyApp, MONAILabelApp):
    """App of the server; MONAI Label finds it by the name of its base class."""

    def init_datastore(self) -> Datastore:
        """Open a folder of studies, or connect to a DICOMweb server."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return ReadOnlyStudies(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )
