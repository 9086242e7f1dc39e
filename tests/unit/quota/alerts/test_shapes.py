import json

from penstock.quota.alerts import shapes
from support.alerts import an_alert

# The example that Standard Webhooks' own libraries test with.
KNOWN_SECRET = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KNOWN_BODY = b'{"test": 2432232314}'
KNOWN_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_signature_is_the_standard_s() -> None:
    from base64 import b64decode

    head = shapes.headers(
        "p5jXN8AQM9LWM0D4loKWxJek", 1614265330, KNOWN_BODY, [b64decode(KNOWN_SECRET)]
    )
    assert {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": KNOWN_SIGNATURE,
    }.items() <= head.items()


def test_in_a_rotation_both_secrets_sign() -> None:
    both = shapes.headers("1", 2, b"{}", [b"new", b"old"])["webhook-signature"].split(" ")
    alone = [
        shapes.headers("1", 2, b"{}", [secret])["webhook-signature"] for secret in (b"new", b"old")
    ]
    assert alone == both
    assert 2 == len(set(both))


def test_without_a_secret_nothing_is_signed() -> None:
    assert "webhook-signature" not in shapes.headers("1", 2, b"{}", [])


def test_the_generic_body_has_type_time_and_facts() -> None:
    body = json.loads(shapes.body(an_alert("overage", x=2**62), "generic"))
    assert ("alert.overage", "2026-11-10T12:00:00Z") == (body["type"], body["timestamp"])
    assert {"x": 2**62} == body["data"]["detail"]
    assert ["account", "account_id", "detail", "id", "kind", "message"] == sorted(body["data"])


def test_slack_s_body_is_text_in_which_no_name_is_markup() -> None:
    alert = an_alert("grant_expiring", "org <!channel> & co")
    (item,) = json.loads(shapes.body(alert, "slack")).items()
    assert "text" == item[0]
    assert item[1].startswith("Org &lt;!channel&gt; &amp; co has")
