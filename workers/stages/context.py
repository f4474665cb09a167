"""Resources shared by all stages of an attempt."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from grafting_core.backbones.base import Backbone
from grafting_core.data.datasets import encode_held_out, encode_latents
from grafting_core.data.latents import Latents
from grafting_core.specs.datasets import DatasetRef
from grafting_core.specs.experiment import ExperimentSpec
from grafting_core.specs.jobs import Job, as_graft
from grafting_core.storage.artifacts import keep_published, read_card
from grafting_core.storage.storage import Storage
from grafting_core.training.finetune import Shard
from grafting_core.training.observer import NullObserver, Observer, PassObserver
from workers.checkpoints import StoredCheckpoints
from workers.contract import RunTicket, StageName, StageReport
from workers.events import EventLog
from workers.observer import StageObserver, StopCondition
from workers.usage import UsageMeter


@dataclass(frozen=True)
class Group:
    """The worker group as a stage sees it: one process of `share.world`."""

    share: Shard
    parallel: Callable[[nn.Module], nn.Module] = lambda module: module
    barrier: Callable[[], None] = lambda: None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process is rank 0, which writes for the group."""
        return self.share.rank == 0


@dataclass
class Context:
    """One attempt on one process. Only rank 0 writes events."""

    ticket: RunTicket
    storage: Storage
    loaded: Backbone | None
    """The backbone of the work; None for work that needs none."""
    group: Group
    meter: UsageMeter
    stop_condition: StopCondition
    events: EventLog | None
    _latents: dict[tuple[int, DatasetRef | None, int], Latents] = field(default_factory=dict)
    _held_out: dict[DatasetRef | None, Latents] = field(default_factory=dict)
    scions: dict[str, bytes] = field(default_factory=dict)
    """Key -> verified weights, read by stage 1 for stage 2, which removes them."""

    @property
    def backbone(self) -> Backbone:
        """Raises ValueError for work that is of no backbone."""
        if self.loaded is None:
            raise ValueError(f"{self.work.kind} work is of no backbone")
        return self.loaded

    @property
    def work(self) -> Job:
        return self.ticket.work

    @property
    def spec(self) -> ExperimentSpec:
        """The work as a graft. Raises ValueError for other kinds."""
        return as_graft(self.work)

    def keep_published(self, folder: str) -> bool:
        """Whether an intact artifact is published that this run may use; `fresh` runs use only theirs."""
        if not keep_published(self.storage, folder):
            return False
        return not self.spec.fresh or self.maker(folder) == self.ticket.run_id

    def maker(self, folder: str) -> str:
        """Run that published the artifact."""
        return str(read_card(self.storage, folder).get("made_by", ""))

    def latents(self, images: int, dataset: DatasetRef | None = None, seed: int = 0) -> Latents:
        """Training latents of a data set, by default the backbone's, encoded once per attempt."""
        key = images, dataset, seed
        if key not in self._latents:
            self._latents[key] = encode_latents(self.backbone, images, dataset, seed)
        return self._latents[key]

    def held_out(self, dataset: DatasetRef | None = None) -> Latents:
        """Latents of held-out samples, which no training uses, encoded once per attempt."""
        if dataset not in self._held_out:
            self._held_out[dataset] = encode_held_out(self.backbone, dataset)
        return self._held_out[dataset]

    def observer(self, stage: StageName, key: str) -> Observer:
        return self.pass_observer(stage, key)

    def pass_observer(self, stage: StageName, key: str) -> PassObserver:
        if self.events is None:
            return NullObserver()  # when rank 0 stops, the whole group ends
        return StageObserver(stage, key, self.events, self.meter, self.stop_condition)

    def checkpoints(self, key: str, part: str = "") -> StoredCheckpoints:
        return StoredCheckpoints(self.storage, self.ticket, key, part)


Stage = Callable[[Context], StageReport]
