"""The vendors' roots of trust, pinned by public key. A root is never trusted by name.

A pin is the SHA-256 of the root's SubjectPublicKeyInfo (DER). Each was cross-checked in many independent
public repositories; `docs/verification.md` says how to check them again.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Root:
    """One trust anchor: a name to show to people and the pin that counts."""

    name: str
    spki_sha256: bytes


def _root(name: str, pin: str) -> Root:
    return Root(name, bytes.fromhex(pin))


@dataclass(frozen=True, slots=True)
class Roots:
    """The anchors of each vendor. An empty tuple trusts nobody. The defaults are the vendors' production roots."""

    intel: tuple[Root, ...] = field(
        default=(
            _root("Intel SGX Root CA", "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"),
        )
    )
    amd: tuple[Root, ...] = field(
        default=(
            _root("ARK-Milan", "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"),
            _root("ARK-Genoa", "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"),
            _root("ARK-Turin", "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08"),
        )
    )
    nvidia_device: tuple[Root, ...] = field(
        default=(
            _root(
                "NVIDIA Device Identity CA",
                "a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4",
            ),
        )
    )
    nvidia_rim: tuple[Root, ...] = field(
        default=(
            _root(
                "NVIDIA CoRIM signing Root CA",
                "dec1dc316477aa851eebdf51327ae9f864bc8d89254657ed1e7eb9168af1e1a3",
            ),
        )
    )
    aws: tuple[Root, ...] = field(
        default=(
            _root("aws.nitro-enclaves", "f2caf5ecc6190b4a8399b78bc58a2bbcd0382375db8a1bfd78a82743874fd225"),
        )
    )


VENDOR = Roots()


def is_vendor(root: Root) -> bool:
    """Whether a root is one of the pins above: anything else (a simulator, a test PKI) is shown as such."""
    return any(
        root in group
        for group in (VENDOR.intel, VENDOR.amd, VENDOR.nvidia_device, VENDOR.nvidia_rim, VENDOR.aws)
    )
