"""What was to be reached, and whether it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .results import Results, Table
from .rows import DEFAULT, METRICS, PLAIN, REFERENCE, UNQUANTIZED

SPEED = {"openvino bf16": 2.4, "openvino int8": 3.0}
BOUNDS = {"bf16": (0.002, 0.02), "int8": (0.005, 0.05)}  # difference of the pixel AUROC, relative one of the AP
SCORING, OUTSIDE, VOLUME = 0.02, 0.1, 4.0
BANKS = {"200,000": 5.0, "1,500,000": 20.0}

Figures = dict[str, Any]


class Target(NamedTuple):
    """Something to reach.

    Attributes:
        what: of what.
        value: what was measured; None where it was not.
        wanted: to be reached.
        at_most: whether ``wanted`` is an upper limit.
        unit: ``times``, or empty for a share.
        bound: what the measured value comes from.
    """

    what: str
    value: float | None
    wanted: float
    at_most: bool = False
    unit: str = "times"
    bound: str = ""

    @property
    def reached(self) -> bool:
        """Whether it was."""
        return self.value is not None and (self.value <= self.wanted if self.at_most else self.value >= self.wanted)

    def sentence(self) -> str:
        """The target, what was measured, and by how much it was missed."""
        limit = f"at {'most' if self.at_most else 'least'} {self._written(self.wanted)}"
        if self.value is None:
            return f"{self.what}, {limit}: not measured{f' ({self.bound})' if self.bound else ''}."
        verdict = "reached"
        if not self.reached:
            gap = abs(self.value - self.wanted)
            verdict = f"**missed** by {f'{100 * gap / self.wanted:.0f} %' if self.unit else self._gap(gap)}"
        return f"{self.what}, {limit}: {self._written(self.value)}, {verdict}. {self.bound}".rstrip()

    def _gap(self, gap: float) -> str:
        return f"{100 * gap:.2g} points" if self.wanted >= 0.01 else f"{gap:.4f}"

    def _written(self, value: float) -> str:
        if self.unit:
            return f"{value:.3g} {self.unit}"
        return f"{100 * value:.2g} %" if self.wanted >= 0.01 else f"{value:.4f}"


def targets(results: Results) -> Iterator[Target]:
    """All targets, judged by the figures there are."""
    runs = results.table("runtimes")
    yield from of_a_slice(runs)
    yield from of_accuracy(results.table("accuracy"))
    yield from of_a_volume(runs)
    yield from of_banks(results.table("bank"), runs)


def of_a_slice(runs: Table) -> Iterator[Target]:
    """The encoder's speed."""
    reference = runs.get(REFERENCE, {})
    for name, wanted in SPEED.items():
        row = runs.get(name, {})
        bound = row.get("error", "")
        if "encoder" in row and "encoder" in reference:
            here, there = (each["gflop"] / each["encoder"] for each in (row, reference))
            bound = f"Its matrix products run at {here:.0f} GFLOP/s, those of {REFERENCE} at {there:.0f}."
        what = f"One slice through the encoder, {name} against {REFERENCE}"
        yield Target(what, ratio(reference, row, "encoder"), wanted, bound=bound)


def of_accuracy(accuracy: Table) -> Iterator[Target]:
    """What precisions cost: the largest difference of all runtimes."""
    reference = accuracy.get(REFERENCE, {})
    for precision, bounds in BOUNDS.items():
        rows = {name: row for name, row in accuracy.items() if name.endswith(precision)}
        for metric, wanted in zip(("pixel_auroc", "pixel_ap"), bounds, strict=True):
            gaps = {name: difference(row, reference, metric) for name, row in rows.items()}
            known = {name: abs(gap) for name, gap in gaps.items() if gap is not None}
            worst = max(known, key=lambda name: known[name], default="")
            relative = "" if metric == "pixel_auroc" else "relative "
            yield Target(
                f"Of the {METRICS[metric]}, {relative}difference of {precision} from {REFERENCE}",
                known.get(worst),
                wanted,
                at_most=True,
                unit="",
                bound=f"The largest is that of {worst}." if worst else "",
            )


def of_a_volume(runs: Table) -> Iterator[Target]:
    """What is outside the encoder, and the whole of a run."""
    reference, default, plain = (runs.get(name, {}) for name in (REFERENCE, DEFAULT, PLAIN))
    ours = f"{DEFAULT}, which runs in {default['backend_name']}" if "backend_name" in default else DEFAULT
    yield Target(
        f"Scoring a slice, share of the encoder's time, {ours}",
        share(default, "score", "encoder"),
        SCORING,
        at_most=True,
        unit="",
        bound=f"With {REFERENCE}: {percent(share(reference, 'score', 'encoder'))}.",
    )
    yield Target(
        f"Outside the encoder, share of the run on the volume, {ours}",
        outside(default),
        OUTSIDE,
        at_most=True,
        unit="",
        bound=f"{largest_part(default)} With {REFERENCE}: {percent(outside(reference))}.".strip(),
    )
    bound = default.get("error", "")
    if "run" in default:
        other = ratio(plain, runs.get(UNQUANTIZED, {}), "run")
        encode = f"The encoder takes {default['parts']['encode']:.0f} of {default['run']:.0f} s."
        bound = f"{encode} {largest_part(default)}" + (f" With {UNQUANTIZED}: {other:.3g} times." if other else "")
    what = f"The volume, {ours}, against {REFERENCE} with one slice a batch, nothing skipped and nothing cropped"
    yield Target(what, ratio(plain, default, "run"), VOLUME, bound=bound)


def of_banks(banks: Table, runs: Table) -> Iterator[Target]:
    """Whole runs against those in which a memory bank is searched."""
    reference, default, other = (runs.get(name, {}) for name in (REFERENCE, DEFAULT, UNQUANTIZED))
    for name, wanted in BANKS.items():
        bank = banks.get(name, {})
        seconds = with_bank(reference, bank)
        bound = bank.get("error", "")
        if seconds:
            sides = {UNQUANTIZED: other, f"{REFERENCE} on both sides": reference}
            ratios = {way: seconds / row["run"] for way, row in sides.items() if "run" in row}
            bound = " ".join(f"With {way}: {value:.3g} times." for way, value in ratios.items())
        yield Target(
            f"The volume, {DEFAULT} against a memory bank of {name} patches with {REFERENCE}",
            seconds / default["run"] if seconds and "run" in default else None,
            wanted,
            bound=bound,
        )


def ratio(slower: Figures, faster: Figures, what: str) -> float | None:
    """How many times less one takes than the other."""
    return slower[what] / faster[what] if what in slower and what in faster else None


def share(row: Figures, part: str, whole: str) -> float | None:
    """A part of a whole."""
    return row[part] / row[whole] if whole in row else None


def outside(row: Figures) -> float | None:
    """The share of a run outside the encoder."""
    return 1 - row["parts"]["encode"] / row["run"] if "run" in row else None


def difference(row: Figures, reference: Figures, metric: str) -> float | None:
    """Of the AUROC as it is, of other metrics relative to the reference."""
    if row.get(metric) is None or reference.get(metric) is None:
        return None
    gap = row[metric] - reference[metric]
    return gap if metric == "pixel_auroc" else gap / reference[metric]


def with_bank(reference: Figures, bank: Figures) -> float | None:
    """Seconds of a run in which each patch is searched in a bank in place of being scored."""
    if "run" not in reference or "search" not in bank:
        return None
    per_patch = bank["search"] / reference["patches_of_slice"]
    return reference["run"] - reference["parts"].get("score", 0) + reference["n_patches"] * per_patch


def largest_part(row: Figures) -> str:
    """What takes longest outside the encoder."""
    parts = {name: seconds for name, seconds in row.get("parts", {}).items() if name != "encode"}
    if not parts:
        return ""
    name = max(parts, key=lambda part: parts[part])
    return f"Outside the encoder the longest part is {name}, {parts[name]:.1f} s."


def percent(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None else f"{100 * value:.1f} %"
