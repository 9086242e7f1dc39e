import uuid

import pytest

from penstock.core.ids import uuid7, uuid7_unix_ms


def test_an_id_tells_its_time():
    assert 1_700_000_000_123 == uuid7_unix_ms(uuid7(1_700_000_000_123))


def test_ids_are_version_7_and_the_rfcs_variant():
    made = uuid.UUID(uuid7())
    assert (7, uuid.RFC_4122) == (made.version, made.variant)


def test_ids_differ():
    assert 1000 == len({uuid7(1) for _ in range(1000)})


@pytest.mark.parametrize("text", ["", "x", str(uuid.UUID(int=0)), str(uuid.uuid4())])
def test_what_is_no_uuid7_is_refused(text):
    with pytest.raises(ValueError):
        uuid7_unix_ms(text)
