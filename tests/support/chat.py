"""Short ways to write chats in tests."""

from penstock.core.catalogue import Catalogue
from penstock.core.config import parse
from penstock.type.v1.chat_pb2 import ROLE_USER, ChatInput, ContentPart, Message

CATALOGUE_YAML = """
version: 1
models:
  small:
    source: /models/small.gguf
    context_tokens: 1000
    max_output_tokens: 100
    slots: 2
    supports_tools: true
    tariff: {input_usd_per_mtok: '1', output_usd_per_mtok: '2'}
providers:
  acme:
    base_url: https://api.acme.example/v1
    base_url_env: ACME_BASE_URL
    api_key_env: ACME_API_KEY
    models:
      large:
        context_tokens: 10000
        max_output_tokens: 500
        price: {input_usd_per_mtok: '10', cached_input_usd_per_mtok: '5', output_usd_per_mtok: '40'}
      thinker:
        context_tokens: 10000
        max_output_tokens: 500
        reasoning: true
        price: {input_usd_per_mtok: '10', output_usd_per_mtok: '40'}
aliases:
  auto: {targets: [local/small, acme/large], baseline: acme/large}
  own: {targets: [local/small], baseline: acme/large}
"""


def catalogue(text: str = CATALOGUE_YAML) -> Catalogue:
    return parse(text)


def user(text: str) -> Message:
    return Message(role=ROLE_USER, content=[ContentPart(text=text)])


def chat(text: str = "hello", **fields: object) -> ChatInput:
    return ChatInput(messages=[user(text)], **fields)
