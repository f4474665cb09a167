"""What a design is trained on and judged by: the data set that it names, or that of its backbone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from grafting_core.specs.backbone import BackboneCard
from grafting_core.specs.budget import Budget
from grafting_core.specs.datasets import DATASETS, DatasetCard, DatasetRef
from grafting_core.specs.documents.edits import problem
from grafting_core.specs.documents.errors import Problem, SpecError, shown
from grafting_core.specs.documents.explain import nearest
from grafting_core.specs.features import FEATURE_NETWORKS
from grafting_core.specs.plans import DistillPlan, EvaluationProtocol, FinetunePlan
from grafting_core.specs.private_names import hidden, shown_name

Plans = Mapping[str, DistillPlan | FinetunePlan | EvaluationProtocol]


@dataclass(frozen=True)
class BackboneData:
    """A backbone with the registered data set that goes with it, if there is one."""

    card: BackboneCard
    dataset: DatasetCard | None

    @property
    def ref(self) -> DatasetRef | None:
        """What plans name: None is the data set of the backbone's card, where it ships with a package."""
        return self.dataset.ref if self.dataset else None

    @property
    def training(self) -> int:
        """Images at hand for training; 0 where none are known of."""
        return self.dataset.training if self.dataset else self.card.num_images

    @property
    def held_out(self) -> int | None:
        """Images held out from training; None where it is not known how many."""
        if self.dataset is not None:
            return self.dataset.held_out
        return self.card.held_out.images if self.card.held_out else None

    @property
    def feature_network(self) -> str:
        """A registered network of the data set's own classes, else what the backbone's card names."""
        own = [
            name
            for name, kind in FEATURE_NETWORKS.entries.items()
            if self.dataset and kind.card and kind.card.dataset == self.dataset.ref
        ]
        return own[-1] if own else shown_name("feature network", self.card.feature_network)


def with_data(card: BackboneCard, given: str | None) -> BackboneData:
    """The backbone with the data set that a document names, else with that of its card.

    Raises SpecError for a name that the lab does not have, or one whose data does not fit the backbone.
    """
    name = given or card.dataset
    entry = DATASETS.entries.get(name) if name else None
    if given and entry is None:
        message = f"unknown data set {shown(given)}{nearest(given, DATASETS.entries)}"
        raise SpecError([problem(("dataset",), "unknown-dataset", message, given, list(DATASETS.entries))])
    if given and given != card.dataset and entry is not None and entry.card is None:
        message = (
            f"{card.name} is not trained on {given}; name a data set that was registered, or leave it out"
        )
        raise SpecError([problem(("dataset",), "other-dataset", message, given)])
    if card.weights is not None and entry is None:
        known = name is not None and ("data set", name) not in hidden()
        missing = f", and the lab has no {shown(name)}" if known else ""
        message = f"{card.name} has no data set of its own: name a registered one{missing}. {_needed(card)}"
        raise SpecError([problem(("dataset",), "no-dataset", message, given, list(DATASETS.entries))])
    found = entry.card if entry else None
    problems = list(_misfits(card, found)) if found else []
    if problems:
        raise SpecError(problems)
    return BackboneData(card, found)


def _misfits(card: BackboneCard, data: DatasetCard) -> Iterator[Problem]:
    """In what the samples of a data set are not those that a backbone takes."""
    place, given = ("dataset",), data.name
    height, width = (side * card.patch_size for side in card.dims.grid)
    takes = (card.latent_channels, height, width)
    if data.shape != takes:
        message = f"{data.name} has samples of {_size(data.shape)}, {card.name} takes {_size(takes)}"
        yield problem(place, "other-shape", message, given)
    if card.autoencoder == "none" and data.autoencoder is not None:
        message = (
            f"{data.name} holds latents, {card.name} takes pixels; encode the images without autoencoder"
        )
        yield problem(place, "other-autoencoder", message, given)
    own = card.parts.get("autoencoder")
    if own is not None and data.autoencoder != own:
        by = f"the autoencoder {data.autoencoder[:12]}" if data.autoencoder else "none (pixels)"
        message = (
            f"{data.name} was encoded by {by}, {card.name} decodes with {own[:12]}; encode the images anew"
        )
        yield problem(place, "other-autoencoder", message, given)
    if card.num_classes and data.conditions == "none":
        message = f"{data.name} has no labels, {card.name} takes one of {card.num_classes}"
        yield problem(place, "no-labels", message, given)
    if card.num_classes and len(data.classes) > card.num_classes:
        message = f"{data.name} has {len(data.classes)} classes, {card.name} takes {card.num_classes}"
        yield problem(place, "too-many-classes", message, given)
    if data.classes and len(data.classes) < card.num_classes:
        message = f"{data.name} has {len(data.classes)} classes, {card.name} has {card.num_classes}"
        yield problem(place, "too-few-classes", f"{message}. {_needed(card)}", given)


def _needed(card: BackboneCard) -> str:
    """What to register for a backbone, and how it is evaluated without."""
    height, width = (side * card.patch_size for side in card.dims.grid)
    classes = f" in {card.num_classes:,} classes" if card.num_classes else ""
    return (
        f"Register images{classes}, as samples of {_size((card.latent_channels, height, width))}: `graft "
        f"dataset encode IMAGES --name NAME --backbone {card.name} --size SIDE`. Or compare its samples with "
        "any pictures, whatever their classes: `graft evaluate FOLDER --reference PICTURES`"
    )


def _size(shape: tuple[int, int, int]) -> str:
    return " x ".join(str(each) for each in shape)


def check_data(data: BackboneData, protocol: EvaluationProtocol, plans: Plans) -> None:
    """Raises SpecError where plans ask for what backbone or data set do not have."""
    problems = []
    for name, plan in plans.items():
        if plan.dataset not in (None, data.ref):
            message = "the data set is named once, at the top of the document: `dataset: NAME`"
            problems.append(problem((name, "dataset"), "other-dataset", message, plan.dataset))
    problems += _network_problems(data, protocol)
    if problems:
        raise SpecError(problems)


def _network_problems(data: BackboneData, protocol: EvaluationProtocol) -> Iterator[Problem]:
    if data.dataset is None or fits(protocol.feature_network, data):
        return
    side = FEATURE_NETWORKS.entries[protocol.feature_network].side
    size = " x ".join(str(side) for side in data.dataset.image_size)
    message = f"{protocol.feature_network} looks at images of {side} x {side}, not {size}"
    yield problem(("evaluate", "feature_network"), "other-size", message, protocol.feature_network)


def fits(network: str, data: BackboneData) -> bool:
    """Whether a feature network takes images of the data's size; most take any."""
    kind = FEATURE_NETWORKS.entries.get(network)
    if kind is None or data.dataset is None or kind.side is None:
        return True
    return (kind.side, kind.side) == data.dataset.image_size


def check_budget(budget: Budget, card: BackboneCard) -> None:
    """Raises SpecError for a share of pretraining where nobody knows what that took."""
    if budget.share_of_pretraining is not None and card.pretraining is None:
        message = f"it is not known what {card.name} cost to make; limit flops or device_seconds instead"
        place = ("budget", "share_of_pretraining")
        raise SpecError([problem(place, "unknown-pretraining", message, budget.share_of_pretraining)])
