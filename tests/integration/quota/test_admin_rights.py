"""No call of the operators' service is answered without the operators' token."""

import pytest
from google.protobuf.message_factory import GetMessageClass

from penstock.quota.v1 import admin_pb2
from support.quota_process import SERVICE, QuotaProcess, reason_of

METHODS = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods


@pytest.mark.parametrize("metadata", [(), SERVICE], ids=["none", "the routers'"])
async def test_every_call_needs_the_operators_token(
    quota: QuotaProcess, metadata: tuple[tuple[str, str], ...]
) -> None:
    refused = {}
    for method in METHODS:
        request = GetMessageClass(method.input_type)()
        call = getattr(quota.admin, method.name)
        asked = iter([request]) if method.client_streaming else request
        answer = call(asked, metadata=metadata, timeout=10)
        refused[method.name] = await reason_of(answer.read() if method.server_streaming else answer)
    assert {m.name: "UNAUTHENTICATED SERVICE_TOKEN_INVALID" for m in METHODS} == refused
    assert "ClosePool" in refused
