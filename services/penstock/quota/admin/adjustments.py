"""Adjustments for operators."""

from penstock.quota import admin_wire, wire
from penstock.quota.admin.shapes import any_account
from penstock.quota.checks import Faults
from penstock.quota.ledger import AMOUNT_NANO_USD_MAX
from penstock.quota.store.adjust_store import Adjustment, AdjustStore
from penstock.quota.store.changes import Change
from penstock.quota.store.resolve_store import ResolveStore
from penstock.quota.v1 import admin_pb2, quota_pb2


class AdjustmentsAdmin:
    """Checks what an operator asks to be adjusted, and answers it."""

    def __init__(self, adjustments: AdjustStore, resolutions: ResolveStore) -> None:
        self._adjustments = adjustments
        self._resolutions = resolutions

    async def adjust(
        self, request: admin_pb2.AdjustRequest, change: Change
    ) -> tuple[admin_pb2.AdjustResponse, bool]:
        """And whether this is a repeat."""
        faults = Faults()
        account = None
        if bool(request.account_id) == bool(request.reservation_id):
            faults.add(
                "account_id", "ADJUSTMENT_TARGET_INVALID", "takes this or reservation_id: one"
            )
        elif request.account_id:
            account = any_account(faults, "account_id", request.account_id)
        else:
            faults.uuid7("reservation_id", request.reservation_id)
        amount = request.amount_nano_usd
        if amount == 0:
            faults.add("amount_nano_usd", "AMOUNT_ZERO", "is 0: there is nothing to adjust")
        else:
            faults.amount("amount_nano_usd", abs(amount), high=AMOUNT_NANO_USD_MAX)
        wanted = Adjustment(
            adjustment_key=faults.text(
                "adjustment_key", request.adjustment_key, length_min=1, length_max=128
            ),
            account=account,
            reservation_id=request.reservation_id or None,
            amount_nano_usd=amount,
        )
        faults.check()
        adjusted = await self._adjustments.adjust(change, wanted)
        answer = admin_pb2.AdjustResponse(
            entry=admin_wire.entry(adjusted.entry),
            posted_on=[admin_wire.posted_on(one) for one in adjusted.posted_on],
        )
        return answer, adjusted.is_repeat

    async def resolve(
        self, request: quota_pb2.SettleRequest, change: Change
    ) -> quota_pb2.SettleResponse:
        settle = wire.parse_settle(request, by_operator=True)
        return wire.settle_response(await self._resolutions.resolve(change, settle))
