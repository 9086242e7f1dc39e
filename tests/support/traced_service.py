"""A quota service in a process of its own, as far as traces go: run as a script, LISTEN says where.

It shows, and the tests check, how a service uses the interceptor and `operation_span`.
"""

import asyncio
import os

from penstock.core import semconv
from penstock.core.health import Health
from penstock.core.server import Server, run
from penstock.core.telemetry import current_traceparent, operation_span, setup, to_metadata
from penstock.core.telemetry_server import TraceInterceptor
from penstock.quota.v1 import quota_pb2, quota_pb2_grpc


class Quota(quota_pb2_grpc.QuotaServiceServicer):
    async def Settle(self, request, context):
        # What it would send on with calls of its own.
        context.set_trailing_metadata(to_metadata(current_traceparent()))
        return quota_pb2.SettleResponse()

    async def Batch(self, request_iterator, context):
        async for batch in request_iterator:
            results = []
            for operation in batch.operations:
                with operation_span("quota settle", operation.traceparent) as span:
                    span.set({semconv.RESERVATION_ID: operation.settle.reservation_id})
                    results.append(
                        quota_pb2.OperationResult(
                            operation_id=operation.operation_id, settle=quota_pb2.SettleResponse()
                        )
                    )
            yield quota_pb2.BatchResponse(results=results)


async def main(stop: asyncio.Event) -> None:
    telemetry = setup("quota")
    health = Health(["ledger"])
    server = Server(
        listen=os.environ["LISTEN"],
        add=lambda s: quota_pb2_grpc.add_QuotaServiceServicer_to_server(Quota(), s),
        services=[],
        health=health,
        token=None,
        interceptors=[TraceInterceptor(telemetry)],
    )
    await server.start()
    await health.set("ledger", ok=True)
    await stop.wait()
    await server.stop(2)
    await telemetry.aclose()


if __name__ == "__main__":
    run(main)
