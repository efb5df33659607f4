"""Running an Etlworks flow again with parameters.

A retry starts the flow without any: nobody tells those the failed run had. Where a flow needs some, a person writes
them down in the config (``rerun_parameters``), and asks for a rerun with exactly these. Everything else is as with a
retry: a fresh run, known by the audit id in the answer.

Source: Etlworks Integrator documentation, "Run Flow by ID" (a flat object of texts, which become variables of the
flow).
"""

from collections.abc import Sequence

from exporter.model import SUCCEEDED, DeadLetter
from exporter.model.repairs import Proof, RepairAction
from exporter.platform.repairing import Answered, Case, Effect, Offer, Plan, Repairing, not_sent
from exporter.platform.retrying import Look, Standing, Target
from exporter.platforms.etlworks.config import EtlworksConfig
from exporter.platforms.etlworks.retrying import EtlworksRetries
from exporter.wire.api import Api
from exporter.wire.errors import ApiError, ErrorKind

RERUN = RepairAction.RERUN
NOT_NOW = {
    Standing.BUSY: "the flow is running",
    Standing.RESOLVED: "a later run of the flow succeeded",
    Standing.GONE: "the flow is gone",
}


class EtlworksRepairs:
    """One source's way to repair."""

    def __init__(self, config: EtlworksConfig, api: Api) -> None:
        self._parameters = {
            flow: {parameter.name: parameter.text for parameter in parameters}
            for flow, parameters in config.rerun_parameters.items()
        }
        self._retries = EtlworksRetries(config, api)

    async def plan(self, case: Case) -> Plan:
        names = sorted(self._parameters.get(case.workflow_id, ()))
        look = await self._retries.look(Target(letter=_letter(case)))
        refusal = _refusal(look)
        if refusal is None and case.workflow_id not in self._parameters:
            refusal = f"rerun_parameters of this source names no parameters for flow {case.workflow_id}"
        if refusal is not None:
            return Plan(at=look.at, refusal=refusal, observations=look.observations)
        return Plan(
            at=look.at,
            does="run the flow from its beginning with the parameters of the config; what the failed run did happens "
            "again",
            changes=[f"parameter {name}" for name in names],
            mark={"newest": look.mark, "parameters": names},
            observations=look.observations,
        )

    async def repair(self, cases: Sequence[Case], *, send_by: float) -> Answered:
        [case] = cases
        parameters = self._parameters.get(case.workflow_id, {})
        if sorted(parameters) != case.mark["parameters"]:
            raise not_sent(RERUN, "rerun_parameters were changed since the plan was made", kind=ErrorKind.CONFLICT)
        try:
            look = await self._retries.look(Target(letter=_letter(case)))
        except ApiError as error:
            raise error.unsent() from None
        if (refusal := _refusal(look)) is not None:
            raise not_sent(RERUN, refusal, kind=ErrorKind.CONFLICT)
        audit_id = await self._retries.start(_letter(case), parameters, send_by=send_by)
        return Answered(handles={} if audit_id is None else {case.id: audit_id})

    async def verify(self, case: Case) -> Effect:
        target = Target(letter=_letter(case), mark=case.mark["newest"], sent_at=case.sent_at, handle=case.handle)
        look = await self._retries.look(target)
        effort = next((effort for effort in look.efforts if effort.ours), None)
        if effort is None:
            some = any(effort.ours is None for effort in look.efforts)
            evidence = "it was run since, and nothing says by whom" if some else "the flow was not run since"
            proof = Proof.UNKNOWN if some else Proof.NOT_DONE
            return Effect(at=look.at, proof=proof, evidence=evidence, observations=look.observations)
        ended = effort.result is not None
        proof = Proof.UNKNOWN if not ended else Proof.DONE if effort.result in SUCCEEDED else Proof.NOT_DONE
        return Effect(
            at=look.at,
            proof=proof,
            evidence=f"run {effort.id} ended as {effort.result}" if ended else f"run {effort.id} is under way",
            run_id=effort.run_id,
            observations=look.observations,
        )


def _refusal(look: Look) -> str | None:
    if look.native:
        return "the scheduler is going to run it again by itself"
    return NOT_NOW.get(look.standing) or look.refusal


def _letter(case: Case) -> DeadLetter:
    if case.letter is None:
        raise ValueError(f"{case.action} is done to a dead letter")
    return case.letter


REPAIRING = Repairing(
    offers=(Offer(action=RERUN, needs="a role that may run flows", repeatable=False),), adapter=EtlworksRepairs
)
