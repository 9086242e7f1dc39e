"""`GET /metrics` for Prometheus, on a port of its own: it tells of all tenants, without a key."""

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from penstock.core.metrics import exposition


def metrics_app(registry: CollectorRegistry) -> Starlette:
    async def metrics(request: Request) -> Response:
        del request
        body, content_type = exposition(registry)
        return Response(body, headers={"content-type": content_type})

    return Starlette(routes=[Route("/metrics", metrics, methods=["GET"])])
