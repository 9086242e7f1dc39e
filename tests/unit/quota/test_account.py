import pytest

from penstock.core.ids import API_KEY_PREFIX
from penstock.quota.account import new_secret, parse_id, secret_hash


def test_keys_are_long_random_and_all_different() -> None:
    secrets = {new_secret() for _ in range(100)}

    assert len(secrets) == 100
    # 6 bits a character: at least 160 bits.
    assert all((len(secret) - len(API_KEY_PREFIX)) * 6 >= 160 for secret in secrets)
    assert {32} == {len(secret_hash(secret)) for secret in secrets}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("org_1", 1),
        ("org_0", None),
        ("org_01", None),
        ("org_", None),
        ("org_-1", None),
        ("org_1 ", None),
        ("ORG_1", None),
        ("key_1", None),
        ("org_١", None),
        ("org_" + "9" * 19, None),
    ],
)
def test_ids_have_one_spelling(text: str, number: int | None) -> None:
    assert number == parse_id(text, "org", "team")
