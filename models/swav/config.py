"""Settings of SwAV, and of the clusterer that comes out of it."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from models.config import Config

_PROTOTYPES, _IMAGES = 3000, 1_281_167  # the paper's, of ImageNet's; they grow with the root
_QUEUED, _QUEUED_BATCHES = 3840, 15  # rows, which are so many of the authors' batches of 256
_QUEUE_START, _QUEUE_START_SHARE = 15.0, 0.15


class SwAVConfig(Config):
    """SwAV (Caron et al. 2020): balanced codes of some views, predicted from all others.

    Null is derived from images, batch and epochs by `resolved`. A batch is the rows that one loss sees, over all
    workers; gradients that accumulate do not enlarge it.
    """

    kind: Literal["swav"] = "swav"
    prototypes: int | None = Field(
        None,
        ge=2,
        description="null: 2.65 times the root of the number of images (3,000 for ImageNet, 375 for 20,000), at most "
        "batch + queue: codes are balanced, so each prototype needs a row of its own. The authors' rule is about 10 "
        "times the number of classes",
    )
    queue: int | None = Field(
        None,
        ge=0,
        description="past embeddings of each assigning view that take part in the codes, over all workers, rounded "
        "down to whole batches. null: 0 where the batch has as many rows as prototypes, else the authors' 3,840 "
        "rounded up to whole batches, at most 15 of them and as many as images: older ones are another network's",
    )
    queue_start: float | None = Field(
        None,
        ge=0,
        description="epochs after which the queue begins to fill; it is used when full. null: 15, at most 15 % of the "
        "training: before, embeddings move too fast to be kept",
    )
    freeze: float | None = Field(
        None,
        ge=0,
        description="epochs in which prototypes stay as they were drawn. null: 1, as in all of the authors' runs: "
        "prototypes that learn from the first step tend to collapse",
    )
    epsilon: float = Field(
        0.05, gt=0, description="entropy of the codes: smaller is sharper; .03 when nothing is learned"
    )
    iterations: int = Field(3, ge=1, description="of Sinkhorn-Knopp")
    temperature: float = Field(0.1, gt=0, description="of the softmax that predicts codes")
    hidden: int = Field(2048, ge=0, description="units of the projection head's hidden layer; 0: the head is linear")
    dim: int = Field(128, ge=2, description="dimensions in which embeddings and prototypes are compared")

    def resolved(self, rows: int, batch_rows: int, epochs: int) -> SwAVConfig:
        """The same without null, for `rows` images in batches of `batch_rows`."""
        wanted = self.prototypes or max(2, round(_PROTOTYPES * math.sqrt(rows / _IMAGES)))
        queue = self.queue
        if queue is None:
            batches = min(_QUEUED_BATCHES, -(-_QUEUED // batch_rows))
            queue = 0 if wanted <= batch_rows else min(batches * batch_rows, rows)
        queue = queue // batch_rows * batch_rows
        late = min(_QUEUE_START, _QUEUE_START_SHARE * epochs)
        return self.model_copy(
            update={
                "prototypes": self.prototypes or max(2, min(wanted, batch_rows + queue)),
                "queue": queue,
                "queue_start": late if self.queue_start is None else self.queue_start,
                "freeze": 1.0 if self.freeze is None else self.freeze,
            }
        )


class PrototypesConfig(Config):
    """Prototypes that `shoal train` has learned: there is nothing to fit, so they are loaded and not started."""

    kind: Literal["prototypes"] = "prototypes"
    temperature: float = Field(0.1, gt=0, description="of the softmax over cosines that gives probabilities")
    tolerance: float = Field(1e-4, ge=0, description="gain in mean cosine that counts as none")
