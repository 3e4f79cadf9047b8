"""Private codes (designator 99...) for concepts that public terminologies lack."""

from pydicom.sr.coding import Code

SCHEME = "99DPMM"
ANOMALY_SCORE = Code("anomaly-score", SCHEME, "Anomaly score in units of the decision threshold")
BEYOND_LIMIT = Code("beyond-limit", SCHEME, "Share of the foreground beyond the decision threshold")
CASE_P_VALUE = Code("p-value", SCHEME, "Conformal p-value of the case among normal cases")
FLAGGED = Code("flagged", SCHEME, "More conspicuous than normal cases")
N_REGIONS = Code("regions", SCHEME, "Number of connected anomalous regions")
OUTSIDE_FITTED_RANGE = Code("outside-range", SCHEME, "Input outside the range of the normal images")
MILLILITRE = Code("mL", "UCUM", "milliliter")
