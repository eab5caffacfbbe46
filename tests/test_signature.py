"""Signatures hold up to verifiers that are not ours."""

import base64
import hashlib
import hmac
import time
from collections.abc import Callable

import pytest
import standardwebhooks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from service.core.signature import (
    HUB_HEADER,
    STANDARD_HEADER,
    signer,
    verify_ed25519,
    verify_hub,
    verify_standard,
)
from service.core.subscription import Scheme, Signing

NOW = 1_700_000_000
ID = "evt_0123456789abcdef"
BODY = b'{"type":"order.created","data":{}}'
OLD, NEW = b"o" * 32, b"n" * 32


def sign(
    *keys: bytes, scheme: Scheme = Scheme.STANDARD, body: bytes = BODY, timestamp: int = NOW
) -> str:
    return signer(Signing(scheme, keys)).sign(ID, timestamp, body)


def test_the_published_vector_comes_out() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signer(Signing(Scheme.STANDARD, (key,))).sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def standard_headers() -> dict[str, str]:
    """Headers signed now, as the library looks at the clock itself."""
    now = int(time.time())
    signatures = sign(NEW, OLD, timestamp=now)
    return {"webhook-id": ID, "webhook-timestamp": str(now), "webhook-signature": signatures}


@pytest.mark.parametrize("held", [OLD, NEW])
def test_a_receiver_with_the_old_or_the_new_secret_accepts(held: bytes) -> None:
    webhook = standardwebhooks.Webhook(base64.b64encode(held).decode())
    assert webhook.verify(BODY, standard_headers())["type"] == "order.created"


def test_a_receiver_with_another_secret_refuses() -> None:
    webhook = standardwebhooks.Webhook(base64.b64encode(b"x" * 32).decode())
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        webhook.verify(BODY, standard_headers())


def test_ed25519_signatures_are_accepted_by_the_public_key() -> None:
    made = sign(NEW, OLD, scheme=Scheme.ED25519)
    content = b"%s.%d.%s" % (ID.encode(), NOW, BODY)
    for seed, part in zip((NEW, OLD), made.split(" "), strict=True):
        version, text = part.split(",")
        assert version == "v1a"
        Ed25519PrivateKey.from_private_bytes(seed).public_key().verify(
            base64.b64decode(text), content
        )


def test_hub_signs_the_body_with_the_first_secret_only() -> None:
    expected = hmac.new(NEW, BODY, hashlib.sha256).hexdigest()
    assert sign(NEW, OLD, scheme=Scheme.HUB_SHA256) == f"sha256={expected}"


@pytest.mark.parametrize(
    ("scheme", "header"),
    [
        (Scheme.STANDARD, STANDARD_HEADER),
        (Scheme.ED25519, STANDARD_HEADER),
        (Scheme.HUB_SHA256, HUB_HEADER),
    ],
)
def test_each_scheme_names_its_header(scheme: Scheme, header: str) -> None:
    assert signer(Signing(scheme, (NEW,))).header == header


def test_nothing_is_signed_under_the_scheme_none() -> None:
    assert signer(Signing(Scheme.NONE)).header is None


def test_keys_are_prepared_once() -> None:
    assert signer(Signing(Scheme.STANDARD, (NEW,))) is signer(Signing(Scheme.STANDARD, (NEW,)))


@pytest.mark.parametrize("scheme", [Scheme.STANDARD, Scheme.ED25519, Scheme.HUB_SHA256])
def test_a_scheme_without_its_secret_is_an_error(scheme: Scheme) -> None:
    with pytest.raises(ValueError, match="needs a secret"):
        signer(Signing(scheme))


def test_an_ed25519_seed_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        signer(Signing(Scheme.ED25519, (b"x" * 31,)))


@given(key=st.binary(min_size=1, max_size=200), body=st.binary(max_size=300))
def test_prepared_keys_make_the_same_hmac_as_the_standard_library(key: bytes, body: bytes) -> None:
    expected = hmac.digest(key, b"%s.%d.%s" % (ID.encode(), NOW, body), "sha256")
    assert sign(key, body=body) == "v1," + base64.b64encode(expected).decode()


def verify(
    key: bytes,
    signatures: str,
    *,
    body: bytes = BODY,
    timestamp: str = str(NOW),
    now: float = NOW,
    check: Callable[..., bool] = verify_standard,
) -> bool:
    return check(key, message_id=ID, timestamp=timestamp, body=body, signatures=signatures, now=now)


def test_our_verifier_accepts_either_of_two_secrets_and_refuses_others() -> None:
    made = sign(NEW, OLD)
    assert verify(OLD, made)
    assert verify(NEW, made)
    assert not verify(b"x" * 32, made)
    assert not verify(NEW, made, body=BODY + b" ")


def test_our_verifier_accepts_ed25519() -> None:
    public = Ed25519PrivateKey.from_private_bytes(NEW).public_key().public_bytes_raw()
    made = sign(NEW, scheme=Scheme.ED25519)
    assert verify(public, made, check=verify_ed25519)
    assert not verify(public, made, body=b"{}", check=verify_ed25519)


@pytest.mark.parametrize(
    ("age", "accepted"), [(300, True), (301, False), (-300, True), (-301, False)]
)
def test_our_verifier_refuses_stale_timestamps(age: int, *, accepted: bool) -> None:
    assert verify(NEW, sign(NEW), now=float(NOW + age)) is accepted


@pytest.mark.parametrize("timestamp", ["", "x", "-5", "9" * 5000, "1_7", "\u0661"])
def test_our_verifier_refuses_timestamps_that_are_no_numbers(timestamp: str) -> None:
    made = base64.b64encode(
        hmac.digest(NEW, f"{ID}.{timestamp}.".encode() + BODY, "sha256")
    ).decode()
    assert not verify(NEW, f"v1,{made}", timestamp=timestamp)


@pytest.mark.parametrize("signatures", ["", " ", "v1", "v1,", "v1,***", "v2,AAAA", "v1,\u00e9"])
def test_our_verifier_refuses_what_is_no_signature(signatures: str) -> None:
    assert not verify(NEW, signatures)


def test_our_verifier_accepts_hub_signatures() -> None:
    made = sign(NEW, scheme=Scheme.HUB_SHA256)
    assert verify_hub(NEW, body=BODY, signature=made)
    assert not verify_hub(OLD, body=BODY, signature=made)
    assert not verify_hub(NEW, body=BODY, signature="sha256=\u00e9")
