"""A quota service in memory behind a real gRPC port: keys only, which tests change and break."""

import asyncio
import hashlib
from collections.abc import AsyncIterator

import grpc

from penstock.core.channel import bearer, connect
from penstock.core.errors import NotFound
from penstock.core.health import Health
from penstock.core.server import Server
from penstock.quota.v1.quota_pb2 import (
    DESCRIPTOR,
    GetPrincipalRequest,
    Principal,
    WatchKeysRequest,
    WatchKeysResponse,
)
from penstock.quota.v1.quota_pb2_grpc import (
    QuotaServiceServicer,
    add_QuotaServiceServicer_to_server,
)

TOKEN = "service-token"
KEY = "ps-test-key"


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class FakeQuota(QuotaServiceServicer):
    def __init__(self) -> None:
        self.keys: dict[bytes, Principal] = {}
        self.asked: list[bytes] = []
        self.gate = asyncio.Event()
        """Answers wait for it."""
        self.gate.set()
        self.watchers: set[asyncio.Queue[WatchKeysResponse | None]] = set()
        self.watched = asyncio.Event()
        self.beats = True
        """Signs of life are sent."""
        self._server: Server | None = None
        self._listen = "127.0.0.1:0"

    def put(self, key: str = KEY, **fields: object) -> Principal:
        fields = {"key_id": "key-1", "org_id": "org-1", "team_id": "team-1"} | fields
        fields.setdefault("state", Principal.STATE_ACTIVE)
        self.keys[digest(key)] = Principal(**fields)
        return self.keys[digest(key)]

    def tell(self, key: str) -> None:
        """The watch says that the key changed."""
        for queue in self.watchers:
            queue.put_nowait(WatchKeysResponse(changed_key_hashes=[digest(key)]))

    def beat(self) -> None:
        for queue in self.watchers:
            queue.put_nowait(WatchKeysResponse())

    def end_watches(self) -> None:
        for queue in self.watchers:
            queue.put_nowait(None)

    async def GetPrincipal(self, request: GetPrincipalRequest, context: object) -> Principal:
        self.asked.append(request.key_hash)
        found = self.keys.get(request.key_hash)
        answer = Principal()
        if found is not None:
            answer.CopyFrom(found)
        await self.gate.wait()
        if found is None:
            raise NotFound("no such key", reason="KEY_UNKNOWN")
        return answer

    async def WatchKeys(
        self, request: WatchKeysRequest, context: object
    ) -> AsyncIterator[WatchKeysResponse]:
        queue: asyncio.Queue[WatchKeysResponse | None] = asyncio.Queue()
        self.watchers.add(queue)
        self.watched.set()
        try:
            if self.beats:
                yield WatchKeysResponse()
            while (message := await queue.get()) is not None:
                yield message
        finally:
            self.watchers.discard(queue)

    async def start(self) -> None:
        def add(server: grpc.aio.Server) -> None:
            add_QuotaServiceServicer_to_server(self, server)

        self._server = Server(
            listen=self._listen,
            add=add,
            services=[DESCRIPTOR.services_by_name["QuotaService"].full_name],
            health=Health([]),
            token=TOKEN,
        )
        await self._server.start()
        self._listen = self._server.address

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def channel(self) -> grpc.aio.Channel:
        return connect(self._listen)


METADATA = (bearer(TOKEN),)
