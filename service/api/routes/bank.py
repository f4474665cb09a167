"""Routes of the bank: list, show, verify, collect garbage, and fill ahead of use."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from grafting_core.specs.documents.fills import FillDocument, parse_fill
from grafting_core.specs.plans import warmup_notes
from grafting_core.specs.private_names import ANOTHERS, as_shown
from grafting_core.specs.scions import ScionCard
from grafting_core.storage.bank import Bank
from service.api.deps import LabDep
from service.api.documents import DocumentRoute, Unresolved
from service.api.idempotency import IdempotencyKey, accepted, check_startable, submit_once
from service.api.problems import ApiError
from service.domain.bank_catalog import card_to_show, clear, scion_page
from service.domain.visibility import scions_to, shown_to
from service.schemas.bank import Cleared, ClearRequest, ScionDamage, ScionPage, Verified
from service.schemas.runs import SubmitAnswer

router = APIRouter(tags=["bank"], route_class=DocumentRoute)
Hex = Annotated[str, Query(max_length=64, pattern="^[0-9a-f]*$")]
Name = Annotated[str | None, Query(max_length=200)]


@router.get("/scions")
def list_scions(
    lab: LabDep,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Hex = "",
    prefix: Hex = "",
    kind: Name = None,
    backbone: Name = None,
) -> ScionPage:
    """List distilled operators in the order of their keys, one page at a time."""
    with lab.database.reading() as session:
        page = scion_page(
            session, Bank(lab.storage), limit=limit, after=cursor, prefix=prefix, kind=kind, backbone=backbone
        )
        shown = scions_to(session, lab.principal.only_owner, page.scions)
    return page.model_copy(update={"scions": shown})


@router.get("/scions/{key}")
def show_scion(key: str, lab: LabDep) -> ScionCard:
    """Return a scion's card: held-out errors by timestep, scores, curve, cost."""
    card = Bank(lab.storage).full_card(key) if key.isalnum() else None
    if card is None:
        raise ApiError("not-found", f"there is no scion {key!r}")
    with lab.database.reading() as session:
        seen = shown_to(session, lab.principal.only_owner, [card.made_by])
    card = card_to_show(card if seen else card.model_copy(update={"made_by": ANOTHERS}))
    return as_shown(card)


@router.post("/scions:verify")
def verify_scions(lab: LabDep) -> Verified:
    """Read and verify every scion. Damaged ones are moved aside, and made again when a run needs them."""
    bank = Bank(lab.storage)
    keys = [key for key in bank.names() if bank.has(key)]
    damaged = [ScionDamage(key=key, problem=wrong) for key in keys if (wrong := bank.verify(key))]
    for damage in damaged:
        bank.set_aside(damage.key, damage.problem)
    return Verified(checked=len(keys), damaged=damaged)


@router.post("/scions:gc")
def clear_scions(body: ClearRequest, lab: LabDep) -> Cleared:
    """Delete scions by age and size, but none that an unfinished run needs. Needs an admin's key."""
    return clear(lab.database, Bank(lab.storage), **body.model_dump())


@router.post("/scions:fill", status_code=202)
def fill_bank(
    body: Unresolved[FillDocument],
    lab: LabDep,
    response: Response,
    idempotency_key: IdempotencyKey,
) -> SubmitAnswer:
    """Queue one run that distils every operator at every site, ahead of the designs that will use them."""
    spec = parse_fill(body.document)
    check_startable(lab, spec)
    run = submit_once(lab, spec, body.request_digest, idempotency_key)
    return accepted(response, run, warmup_notes(distill=spec.plan))
