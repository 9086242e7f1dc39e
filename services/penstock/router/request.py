"""A request as the flow sees it: validated, its caller known, its deadline set. Both fronts make
one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.core.deadline import Deadline
from penstock.quota.v1.quota_pb2 import Principal
from penstock.router.v1.router_pb2 import CacheControl
from penstock.type.v1.chat_pb2 import ChatInput


@dataclass(frozen=True, slots=True)
class Request:
    request_id: str
    principal: Principal
    model: str
    """As the client wrote it: "auto", an alias, or pinned."""
    input: ChatInput
    """Validated; `max_tokens` is absent where the client named none."""
    deadline: Deadline
    local_only: bool = False
    stream: bool = False
    """False: the client gets the answer as a whole, and until then another attempt may follow."""
    cache_control: CacheControl = field(default_factory=CacheControl)
    user: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    client_request_id: str = ""
    traceparent: str = ""
    """Of the caller's own trace (W3C); empty: the request begins one."""
    facts: dict[str, str] = field(default_factory=dict)
    """Filled by the flow where it ends without an answer: what was charged all the same. Whoever
    tells the client hands it on.
    """

    @property
    def choices(self) -> int:
        return self.input.n if self.input.HasField("n") else 1
