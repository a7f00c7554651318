"""Which is due: labels only, a refinement of what the changes touch, or a full fit. Every test is stored.

The tests, in the order in which they decide. A full fit is due when
1. rows have grown by `growth` since the last one: its search then saw less than half of what there is;
2. more than `foreign` of all rows arrived since with a low score: the model describes another collection;
3. the arrivals do not fit in the memory ceiling, where a refinement would have to hold them.
A refinement is due when
4. more arrivals score low than chance explains (`models.drift`): there may be new clusters among them;
5. the typical rows of a cluster score otherwise than those that the model was made from: it moved or changed shape;
6. most rows of a cluster arrived since (`swelling`): they may be several clusters, and had no part in its shape;
7. a cluster lost more than `lost` of its rows;
8. rows fade (`decay`), or the model is to be without rows that went.
Otherwise labels are all that is needed. Tests 4 and 5 hold their error rate over all clusters together.
"""

from __future__ import annotations

from typing import Any

from models.drift import Drift, drift
from pipeline.recluster.config import Mode
from pipeline.recluster.work import Arrived, Decision, Work

_FEW = 30  # arrivals of a cluster that say nothing of it
_WORST = 200  # clusters whose figures are stored with a generation


def decide(work: Work, arrived: Arrived) -> Decision:
    """From what is remembered and what arrived; reads nothing. O(K)."""
    config = work.config
    found = drift(work.memory.reference, arrived.part.arrivals, config.novelty)
    rows = sum(file.rows for file in work.delta.files)
    low = float(arrived.part.arrivals.low_C.sum())
    excess = max(0.0, low - found.overall.expected_fraction * found.overall.rows)
    bytes_held = 4 * arrived.rows * work.labeller.model.dim
    swollen = _swollen(arrived, config.swelling)
    tests: dict[str, Any] = {
        "growth": {"value": rows / max(work.memory.rows_at_fit, 1) - 1, "bar": config.growth},
        "foreign": {"value": excess / max(rows, 1), "bar": config.foreign},
        "bytes_held": {"value": bytes_held, "bar": work.labeller.config.memory_ceiling_bytes},
        "novel": {"p": found.overall.p, "bar": config.novelty.p, "clusters": list(found.novel)[:_WORST]},
        "drifted": {"clusters": list(found.drifted)[:_WORST]},
        "swollen": {"clusters": list(swollen)[:_WORST], "bar": config.swelling},
        "lost": {"value": max(arrived.lost.values(), default=0.0), "bar": config.lost},
    }
    losers = tuple(sorted(cluster for cluster, share in arrived.lost.items() if share > config.lost))
    empty = tuple(sorted(set(arrived.lost) - set(arrived.tally.sizes)))
    mode, why = _verdict(work, found, tests, (swollen, losers))
    touched = tuple(sorted({*found.novel, *found.drifted, *swollen, *losers}))
    if config.mode == "assign" and empty:  # a model that has a cluster without rows would call the next one born
        return Decision("refine", f"{_named(empty)} has no row left", found, tests, touched)
    if config.mode != "auto":
        told = "" if config.mode == mode else f"; by itself it would {mode}: {why}"
        mode, why = config.mode, f"--mode {config.mode}{told}"
    return Decision(mode, why, found, tests, touched)


def _verdict(
    work: Work, found: Drift, tests: dict[str, Any], changed: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[Mode, str]:
    swollen, losers = changed
    growth, foreign, held, lost = (tests[name] for name in ("growth", "foreign", "bytes_held", "lost"))
    arrivals, share, expected = found.overall.rows, found.overall.low_fraction or 0, found.overall.expected_fraction
    named = f", most unexpectedly in {_named(found.novel)}" if found.novel else ""
    novel = found.overall.is_novel or bool(found.novel)
    due: list[tuple[bool, Mode, str]] = [
        (
            growth["value"] >= growth["bar"],
            "refit",
            f"there are {1 + growth['value']:.2f} times the rows of the last full fit",
        ),
        (
            foreign["value"] > foreign["bar"],
            "refit",
            f"{foreign['value']:.0%} of all rows arrived since the last change and score low",
        ),
        (
            held["value"] > held["bar"],
            "refit",
            f"the arrivals take {held['value']:,} bytes, more than cluster.memory_ceiling_bytes",
        ),
        (novel, "refine", f"{share:.1%} of {arrivals:,} arrivals score low, {expected:.1%} expected{named}"),
        (
            bool(found.drifted),
            "refine",
            f"typical rows of {_named(found.drifted)} score otherwise than those of the last change",
        ),
        (
            bool(swollen),
            "refine",
            f"of {_named(swollen)} most rows came since the last change",
        ),
        (lost["value"] > lost["bar"], "refine", f"{_named(losers)} lost up to {lost['value']:.0%} of their rows"),
        (work.fades, "refine", f"older rows fade by {work.config.decay:g}"),
    ]
    like = f"{arrivals:,} arrivals since the last change are like the rows before"
    return next(((mode, why) for is_due, mode, why in due if is_due), ("assign", like))


def _swollen(arrived: Arrived, share: float) -> tuple[int, ...]:
    """Clusters with so many arrivals since the model last changed, beside their other rows."""
    arrivals = arrived.part.arrivals
    found = []
    for cluster, rows in zip(arrivals.id_C.tolist(), arrivals.rows_C.tolist(), strict=True):
        before = arrived.tally.sizes.get(cluster, 0) - rows
        if rows >= _FEW and rows >= share * before:
            found.append(cluster)
    return tuple(found)


def _named(clusters: tuple[int, ...], most: int = 5) -> str:
    more = f" and {len(clusters) - most} more" if len(clusters) > most else ""
    return ("clusters " if len(clusters) > 1 else "cluster ") + ", ".join(map(str, clusters[:most])) + more
