"""Ed25519 (RFC 8032): the one module that loads `cryptography`, and is loaded by the first key of its kind."""

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def signing(seed: bytes) -> Callable[[bytes], bytes]:
    """Return what signs with a seed of 32 bytes.  Raises `ValueError` for any other."""
    if len(seed) != 32:
        raise ValueError(f"an ed25519 key is a seed of 32 bytes, not {len(seed)}")
    return Ed25519PrivateKey.from_private_bytes(seed).sign


def public_half(seed: bytes) -> bytes:
    """Return the public key of a seed, both of 32 bytes."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def accepts(public_key: bytes, signature: bytes, content: bytes) -> bool:
    """Tell whether a signature of the content is by a public key of 32 bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, content)
    except InvalidSignature:
        return False
    return True
