"""Operators and backbones to choose from, the leaderboard, and measurements of the lab."""

from typing import Annotated

from fastapi import APIRouter, Query

from grafting_core.specs.backbone import DIT_XL_2_256, BackboneCard, backbone_cards
from grafting_core.specs.operators import KINDS, OperatorBase
from grafting_core.specs.private_names import ANOTHERS
from service.api.deps import LabDep
from service.api.problems import ApiError
from service.domain.latency_table import latency_table
from service.domain.leaderboard import PAGE, BadCursor, leaderboard
from service.domain.oracles import with_oracles
from service.domain.registry_queries import grafts_of, registered_views
from service.domain.rung_agreement import measured
from service.domain.visibility import shown_to
from service.schemas.leaderboard import Leaderboard
from service.schemas.registry import RegisteredView
from service.schemas.rung_agreement import LatencyTable, Measurements
from service.schemas.runs import BackboneView, OperatorView

router = APIRouter()


@router.get("/leaderboard", tags=["leaderboard"])
def show_leaderboard(
    lab: LabDep,
    limit: Annotated[int, Query(ge=1, le=200)] = PAGE,
    protocol: Annotated[str | None, Query(max_length=64)] = None,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
) -> Leaderboard:
    """List the best finished runs, grouped by evaluation protocol.

    `protocol` selects one group by its digest; `cursor` returns the rows after the page that it came with.
    """
    if cursor is not None and protocol is None:
        raise ApiError("bad-cursor", "give the protocol of the cursor's group with it")
    try:
        with lab.database.reading() as session:
            owner = lab.principal.only_owner
            board = leaderboard(session, owner, protocol=protocol, after=cursor, limit=limit)
    except BadCursor as error:
        raise ApiError("bad-cursor", "no row of this group has that id") from error
    return with_oracles(lab.storage, board)


@router.get("/measured", tags=["leaderboard"])
def show_measured(lab: LabDep) -> Measurements:
    """Return rank correlations between the rungs of the fidelity ladder, and latencies by hardware."""
    with lab.database.reading() as session:
        return measured(session, lab.principal.only_owner)


@router.get("/latencies", tags=["leaderboard"])
def list_latencies(
    lab: LabDep,
    kind: Annotated[str | None, Query(max_length=200)] = None,
    tokens: Annotated[int | None, Query(ge=1, le=10**9)] = None,
) -> LatencyTable:
    """List the seconds that operators take in their place, as workers measured them for studies, by device.

    `kind` is the kind of an operator, `pairs`, or `rest` for everything that is not an operator.
    """
    table = latency_table(lab.storage, kind, tokens)
    with lab.database.reading() as session:
        seen = shown_to(session, lab.principal.only_owner, [row.made_by for row in table.rows])
    rows = [
        row if row.made_by in seen else row.model_copy(update={"made_by": ANOTHERS}) for row in table.rows
    ]
    return LatencyTable(rows=rows)


@router.get("/operators", tags=["catalogue"])
def list_operators() -> list[OperatorView]:
    """List every kind of operator with its fields and its cost at the dims of DiT-XL/2."""
    return [operator_view(kind, cls) for kind, cls in KINDS.items()]


def operator_view(kind: str, cls: type[OperatorBase]) -> OperatorView:
    """Describe a kind of operator at the defaults of its fields."""
    spec = cls(kind=kind)
    cost = spec.flops(DIT_XL_2_256.dims)
    properties = cls.model_json_schema()["properties"]
    return OperatorView(
        kind=kind,
        slots=list(cls.slots),
        summary=cls.summary,
        fields={name: schema for name, schema in properties.items() if name != "kind"},
        num_params=spec.num_params(DIT_XL_2_256.dims),
        operator_flops=cost.operator,
        feature_flops=cost.features,
        total_flops=spec.computed_flops(DIT_XL_2_256.dims),
    )


@router.get("/backbones", tags=["catalogue"])
def list_backbones(lab: LabDep) -> list[BackboneView]:
    """List all known backbones; those without weights can only be planned for."""
    with lab.database.reading() as session:
        found = {view.name: view for view in registered_views(session, "backbone")}
    return [_backbone_view(card, found[card.name]) for card in backbone_cards().values()]


def _backbone_view(card: BackboneCard, registered: RegisteredView) -> BackboneView:
    own = registered.model_dump(
        include={"owner", "private", "revision", "damaged", "size", "licence", "registering"}
    )
    return BackboneView(
        **own,
        name=card.name,
        digest=card.digest,
        depth=card.depth,
        width=card.dims.width,
        num_heads=card.dims.num_heads,
        num_tokens=card.dims.num_tokens,
        num_params=card.num_params,
        forward_flops=card.forward_flops(),
        pretraining_flops=card.pretraining.flops if card.pretraining else None,
        runnable=card.weights is not None,
        figures=card.figures,
        arithmetic=card.arithmetic,
        grafts=grafts_of(card),
        origin=card.origin,
    )
