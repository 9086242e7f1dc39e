"""A collector that is not ours, in a process of its own: OTLP over gRPC or HTTP, with TLS or not.

As a script it reads PROTOCOL, FOLDER (where it keeps what comes, for `penstock.traces.load`),
CERTIFICATE and KEY (PEM files; TLS), TOKEN (a bearer that it demands); it prints its port.
"""

import asyncio
import gzip
import os
import ssl
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

from penstock.traces.decode import spans
from penstock.traces.store import Store

GRPC, HTTP = "grpc", "http/protobuf"


@asynccontextmanager
async def collecting(
    protocol: str, folder: Path, *, port: int = 0, certificate: str = "", key: str = "",
    token: str = "",
) -> AsyncIterator[str]:  # fmt: skip
    """Its endpoint, as for OTEL_EXPORTER_OTLP_ENDPOINT."""
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        __file__,
        env={
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PROTOCOL": protocol,
            "FOLDER": str(folder),
            "PORT": str(port),
            "CERTIFICATE": certificate,
            "KEY": key,
            "TOKEN": token,
        },
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert running.stdout is not None
        listening = (await running.stdout.readline()).decode().strip()
        assert listening, "the collector died"
        yield f"{'https' if certificate else 'http'}://localhost:{listening}"
    finally:
        running.kill()
        await running.communicate()


class Keeper:
    def __init__(self) -> None:
        self._store = Store(Path(os.environ["FOLDER"]), keep=1_000)
        self._lock = threading.Lock()

    def take(self, request: otlp.ExportTraceServiceRequest) -> None:
        with self._lock:
            self._store.add(list(spans(request)))


def is_welcome(authorization: str | None) -> bool:
    token = os.environ["TOKEN"]
    return not token or authorization == f"Bearer {token}"


def tell(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


def serve_grpc(keeper: Keeper) -> None:
    class Traces(otlp_grpc.TraceServiceServicer):
        def Export(self, request, context):
            if not is_welcome(dict(context.invocation_metadata()).get("authorization")):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no bearer of ours")
            keeper.take(request)
            return otlp.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(4))
    otlp_grpc.add_TraceServiceServicer_to_server(Traces(), server)
    address = f"localhost:{os.environ['PORT']}"
    if os.environ["CERTIFICATE"]:
        pair = [Path(os.environ[name]).read_bytes() for name in ("KEY", "CERTIFICATE")]
        port = server.add_secure_port(address, grpc.ssl_server_credentials([tuple(pair)]))
    else:
        port = server.add_insecure_port(address)
    server.start()
    tell(port)
    server.wait_for_termination()


def serve_http(keeper: Keeper) -> None:
    class Traces(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            status = 200
            if self.path != "/v1/traces":
                status = 404
            elif self.headers["content-type"] != "application/x-protobuf":
                status = 415
            elif not is_welcome(self.headers.get("authorization")):
                status = 401
            else:
                keeper.take(otlp.ExportTraceServiceRequest.FromString(body))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("localhost", int(os.environ["PORT"])), Traces)
    if os.environ["CERTIFICATE"]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.environ["CERTIFICATE"], os.environ["KEY"])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    tell(server.server_address[1])
    server.serve_forever()


if __name__ == "__main__":
    {GRPC: serve_grpc, HTTP: serve_http}[os.environ["PROTOCOL"]](Keeper())
