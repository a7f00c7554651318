"""Estimates of the steps that see images: packing, learning a backbone, embedding, the report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs.estimate.facts import Estimate, Setting, rates, table_bytes
from jobs.rates import LIBRARY_BYTES, RATES, Rate


def shards(setting: Setting) -> Estimate:
    """Packing, or copying: one stream."""
    stored = setting.stored
    seconds = setting.images / RATES["pack"].value + (stored or 0) / RATES["copy"].value
    how = f"{setting.images:,} images, one after the other"
    return Estimate(seconds, None, LIBRARY_BYTES, stored, stored, how, rates("pack", "copy"))


def train(setting: Setting) -> Estimate:
    """Views or the network, what is slower; before that one pass of this process, in which all images are decoded."""
    learn = _Learning(setting)
    loop = setting.config.train.loop
    worker, driver = learn.memory
    return Estimate(
        seconds=None if learn.image_s is None else learn.start_s + loop.epochs * setting.images * learn.image_s,
        worker_bytes=worker if loop.workers > 1 else None,
        driver_bytes=driver if loop.workers > 1 else max(worker, driver),
        bytes_read=learn.bytes_read,
        bytes_written=None if learn.parameters is None else 8 * learn.parameters * learn.checkpoints,
        how=learn.how,
        rates=learn.rates,
    )


@dataclass(frozen=True)
class _Learning:
    setting: Setting

    @property
    def gpus(self) -> int:
        """Of a worker."""
        wanted = self.setting.config.train.loop.gpus_per_worker
        return int(self.setting.gpus > 0) if wanted is None else wanted

    @property
    def workers(self) -> int:
        """That can work at a time on the GPUs of `deploy`, where it names any."""
        return _on_machines(self.setting, self.setting.config.train.loop.workers, self.gpus)

    @property
    def pixels(self) -> int:
        """Of all views of an image."""
        return sum(bank.size**2 * bank.count for bank in self.setting.config.train.views.banks)

    @property
    def pace(self) -> Rate | None:
        """Of the network of a worker."""
        network, loop = self.setting.network, self.setting.config.train.loop
        return None if network is None else network.learn.of(loop.precision, loop.cpus_per_worker, self.gpus)

    @property
    def views_s(self) -> float:
        """In which a worker makes the views of an image; those of small images are made many at once."""
        config = self.setting.config.train
        return 0.0 if config.views.base else 1 / (RATES["views"].value * config.images.threads)

    @property
    def image_s(self) -> float | None:
        """In which all workers together are through with an image."""
        pace = self.pace
        return None if pace is None else max(self.pixels / pace.value, self.views_s) / self.workers

    @property
    def start_s(self) -> float:
        loop = self.setting.config.train.loop
        group = RATES["group_start"].value if loop.workers > 1 else 0.0
        return group + self.setting.decoded(loop.cpus_per_worker)

    @property
    def parameters(self) -> int | None:
        """Of the backbone, its projection head and the prototypes."""
        network, swav = self.setting.network, self.setting.config.train.objective
        if network is None:
            return None
        return network.parameters + (network.dim + swav.dim) * swav.hidden + (swav.prototypes or 0) * swav.dim

    @property
    def checkpoints(self) -> int:
        """That are written, most of which go again."""
        loop = self.setting.config.train.loop
        return 1 + loop.epochs // loop.checkpoint_every

    @property
    def bytes_read(self) -> float | None:
        """By the index, and by each epoch, unless small images stay in the cache."""
        config = self.setting.config.train
        passes = 2 if config.views.base else 1 + config.loop.epochs
        return None if self.setting.stored is None else self.setting.stored * passes

    @property
    def memory(self) -> tuple[float, float]:
        """Of a worker (a GPU's own apart), as `ImagesConfig` says; of the driver."""
        config, setting = self.setting.config.train, self.setting
        loop, images = config.loop, config.images
        rows = loop.batch_rows / loop.workers
        waiting = min(images.shuffle_rows, setting.images) / loop.workers * (setting.facts.image_bytes or 0)
        cache = min(images.cache_bytes, setting.images / loop.workers * 3 * (config.views.base or 0) ** 2)
        views = (images.ahead + 2) * rows * self.pixels * 3
        index = 24 * setting.images + 25 * setting.images / loop.workers
        lanes = 8 * 2**20 * images.lanes / loop.workers
        learning = 16 * (self.parameters or 0) + (0 if self.gpus else rows * self.pixels * self._activations)
        return LIBRARY_BYTES + waiting + cache + views + index + lanes + learning, LIBRARY_BYTES + 48 * setting.images

    @property
    def _activations(self) -> float:
        """Bytes for each pixel of a view, until the backward pass."""
        network = self.setting.network
        half = 0.6 if self.setting.config.train.loop.precision == "bf16" else 1.0
        return 0.0 if network is None else network.activation_bytes * half

    @property
    def how(self) -> str:
        loop, setting = self.setting.config.train.loop, self.setting
        where = f"{self.workers * self.gpus:,} GPUs" if self.gpus else f"{loop.workers * loop.cpus_per_worker:,} cores"
        where += _short(self.setting, loop.workers, self.workers)
        views = self.pace is not None and self.views_s > self.pixels / self.pace.value
        slower = f"{'views take' if views else 'the network takes'} longest"
        index = setting.decoded(loop.cpus_per_worker)
        return f"{loop.epochs:,} epochs of {setting.images:,} images on {where}, {slower}; the index {index:,.0f} s"

    @property
    def rates(self) -> dict[str, Rate]:
        name = f"{self.setting.config.backbone.name} learns"
        own = {} if self.pace is None else {name: self.pace}
        views = ["views"] if self.views_s else []
        group = ["group_start"] if self.setting.config.train.loop.workers > 1 else []
        return own | rates(*views, "decode", "small", *group)


def extract(setting: Setting) -> Estimate:
    """Beside GPUs decoding or the network, what is slower; on CPUs both."""
    work = _Embedding(setting)
    network, config = setting.network, setting.config.extract
    start, decode = RATES["extract_start"].value, setting.decoded(work.decoders)
    embed, side = work.embed_s, setting.side
    both = None if embed is None else max(embed, decode) if work.gpus else embed + decode
    batches = (8 if work.gpus else 4) * (config.batch_size or (256 if work.gpus else 16)) * 3 * side**2
    ahead = min(config.ahead_bytes, setting.images * 3 * side**2)
    held = 0.0 if network is None else 8 * min(config.rows_per_file, setting.images / work.actors) * network.dim
    return Estimate(
        seconds=None if both is None else start + both,
        worker_bytes=LIBRARY_BYTES + 4 * (network.parameters if network else 0) + ahead + batches + held,
        driver_bytes=LIBRARY_BYTES,
        bytes_read=setting.stored,
        bytes_written=None if network is None else table_bytes(setting.images, network.dim),
        how=f"{setting.images:,} images, {work.actors:,} workers on {'GPUs' if work.gpus else 'CPUs'}; "
        f"decoding takes {decode:,.0f} s of {work.decoders:,.0f} cores"
        f"{_short(setting, config.actors or work.actors, work.actors)}",
        rates=work.rates,
    )


@dataclass(frozen=True)
class _Embedding:
    setting: Setting

    @property
    def gpus(self) -> int:
        """Of a worker; a part of one counts as one."""
        wanted = self.setting.config.extract.gpus_per_actor
        return int(self.setting.gpus > 0 if wanted is None else wanted > 0)

    @property
    def actors(self) -> int:
        """Workers that can work at a time on the GPUs of `deploy`, where it names any."""
        setting, each = self.setting, self.setting.config.extract.gpus_per_actor
        wanted = setting.config.extract.actors or (setting.gpus if self.gpus else setting.cpus) or 1
        return _on_machines(setting, wanted, self.gpus if each is None else each)

    @property
    def decoders(self) -> float:
        """Cores that decode: `decode_threads` of each worker, as far as its share of the machine goes, or the share."""
        machines, threads = self.setting.config.deploy.gpu, self.setting.config.extract.decode_threads
        if self.gpus:
            share = machines.cpus / max(1, machines.gpus)
            return self.actors * min(threads or share, share)
        return max(self.actors, min(self.actors * (threads or 1), self.setting.cpus))

    @property
    def pace(self) -> Rate | None:
        """Of a worker's network."""
        network = self.setting.network
        return None if network is None else network.embed.of(self.setting.config.backbone.precision, 1, self.gpus)

    @property
    def embed_s(self) -> float | None:
        pace = self.pace
        return None if pace is None else self.setting.images * self.setting.side**2 / (pace.value * self.actors)

    @property
    def rates(self) -> dict[str, Rate]:
        pace = self.pace
        own = {f"{self.setting.config.backbone.name} embeds": pace} if pace and math.isfinite(pace.value) else {}
        return own | rates("extract_start", "decode", "small")


def _on_machines(setting: Setting, workers: int, gpus: float) -> int:
    """Of so many workers of `gpus` each, those that the GPUs of `deploy` suffice for; all where it names none."""
    return min(workers, max(1, int(setting.gpus / gpus))) if gpus and setting.gpus else workers


def _short(setting: Setting, wanted: int, there: int) -> str:
    """What is missing, if anything."""
    return f" ({wanted:,} workers are wanted, but deploy.gpu has {setting.gpus:,} GPUs)" if there < wanted else ""


def report(setting: Setting) -> Estimate:
    """Some images of some clusters, read one by one."""
    config = setting.config.report
    shown = min(setting.images, config.max_clusters * (config.typical + config.uncertain))
    read = None if setting.facts.image_bytes is None else shown * setting.facts.image_bytes
    seconds = RATES["report"].value + setting.images / RATES["report_rows"].value
    how = f"{shown:,} images shown at most"
    return Estimate(seconds, None, LIBRARY_BYTES, read, None, how, rates("report", "report_rows"))
