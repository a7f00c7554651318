"""Fill the parts of a report that are about time: from a clustering's generations and what they say of themselves."""

from __future__ import annotations

from jobs.report.change import Change, EventCounts, GenerationLine
from pipeline.cluster.published import Published
from pipeline.history.diff import Fate, diff
from pipeline.history.lineage import Lineage, Node
from pipeline.progress import Progress
from pipeline.recluster.evidence import Evidence
from pipeline.tables.clusterings import DIED, Generation


def change(found: Published, lineage: Lineage, on_progress: Progress) -> Change | None:
    """What a generation changed; None for a fresh fit. Reads the files of assignments that it does not share."""
    generation, parent = found.generation, found.generation.parent
    if parent is None:
        return None
    evidence, compared = Evidence.of(generation), None
    if parent in lineage.generations:
        compared = diff(found.table, found.clustering.name, parent, generation.generation, on_progress=on_progress)
    return Change(
        generation=generation.generation,
        parent=parent,
        decision=generation.decision,
        why=evidence.why,
        arrived=compared.arrived if compared else evidence.arrived,
        removed=compared.gone if compared else evidence.removed,
        moved=compared.moved if compared else None,
        fates=_fates(lineage, generation.generation, parent),
        flows=compared.flows if compared else (),
        drift=evidence.drift,
    )


def _fates(lineage: Lineage, number: int, parent: int) -> tuple[Fate, ...]:
    """As recorded, so that they are known even where the parent has ended."""
    before = lineage.sizes(parent)

    def fate(node: Node) -> Fate:
        after = 0 if node.event == DIED else node.size
        return Fate(node.cluster, node.event, node.parents, before.get(node.cluster, 0), after, node.log_hastings)

    return tuple(fate(node) for node in lineage.changes[number] if node.cluster >= 0)


def generation_lines(lineage: Lineage) -> tuple[GenerationLine, ...]:
    """The generations that there are, oldest first. Reads nothing."""
    totals = lineage.totals()
    return tuple(
        _line(each, totals.get(number, (0, 0)), lineage) for number, each in sorted(lineage.generations.items())
    )


def _line(generation: Generation, totals: tuple[int, int], lineage: Lineage) -> GenerationLine:
    evidence = Evidence.of(generation)
    continues = generation.parent is not None
    return GenerationLine(
        number=generation.generation,
        created_at=generation.created_at,
        decision=generation.decision,
        clusters=totals[0],
        images=totals[1],
        counts=EventCounts.of(lineage.changes[generation.generation]) if continues else None,
        arrived=evidence.arrived,
        low_fraction=evidence.drift.overall.low_fraction if evidence.drift else None,
    )
