"""A colour for each cluster, readable on white and on near-black."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

NOISE_COLOUR = "#8a939c"

# Each is the farthest, in OKLab, from those before it; lightness stays between 0.52 and 0.75 for both backgrounds.
_DISTINCT = """
    #2f82d6 #e1773b #15957b #a72d91 #90b805 #c59fc7 #8c585e #7348c9 #8e8227 #f35a86
    #df82fb #4abfda #be2517 #99b98e #0f9b23 #5e6591 #daa415 #9587ef #0fcb9c #a068a5
""".split()  # noqa: SIM905 - twenty lines otherwise

_GOLDEN = 0.6180339887  # steps of the golden ratio spread any number of hues


def colours(clusters: Iterable[int]) -> dict[int, str]:
    """Hex colours by cluster: 20 distinct ones, and beyond 20 clusters hues so spread that neighbours in id differ."""
    ids = sorted(set(clusters))
    if len(ids) <= len(_DISTINCT):
        return dict(zip(ids, _DISTINCT, strict=False))
    return {cluster: _spread(index) for index, cluster in enumerate(ids)}


def _spread(index: int) -> str:
    lightness = (0.42, 0.54, 0.64)[index % 3]
    rgb = colorsys.hls_to_rgb(index * _GOLDEN % 1, lightness, 0.62)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)
