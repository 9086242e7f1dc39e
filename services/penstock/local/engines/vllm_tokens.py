"""The bytes of a token. Its text cannot always say them: a token may be a part of a character."""

from functools import lru_cache
from typing import Any


class TokenBytes:
    """Token id to bytes, for one Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))

    def __call__(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if self._is_byte_level:
            table = byte_of_character()
            if all(character in table for character in piece):
                return bytes(table[character] for character in piece)
        if len(piece) == len("<0xAB>") and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        # SentencePiece writes a space as this mark.
        return str(piece).replace("▁", " ").encode()


@lru_cache(maxsize=1)
def byte_of_character() -> dict[str, int]:
    """How byte-level BPE writes bytes as printable characters (GPT-2's table), turned around.

    Bytes that are printable in Latin-1 stand for themselves; the others take, in their order, the
    characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + place): byte for place, byte in enumerate(others)}
