"""The settings that are one of a few words."""

from __future__ import annotations

from enum import StrEnum


class TeeKind(StrEnum):
    """Where CPU evidence comes from."""

    SIMULATED_TDX = "simulated-tdx"
    SIMULATED_SNP = "simulated-snp"
    SIMULATED_AZURE_SNP = "simulated-azure-snp"  # a real vTPM under a simulated CPU
    TDX = "tdx"
    SNP = "snp"
    AZURE_SNP = "azure-snp"
    AZURE_TDX = "azure-tdx"


class ConfigIdentity(StrEnum):
    """Whether the configuration file has to be the one that the machine was launched with."""

    AUTO = "auto"  # on a real TEE
    REQUIRED = "required"
    OFF = "off"


class Isolation(StrEnum):
    """Whether the engine gets network, process and mount namespaces of its own."""

    REQUIRED = "required"
    AUTO = "auto"
    NONE = "none"


class AccessMode(StrEnum):
    """Who may use the gateway."""

    KEYS = "keys"
    OPEN = "open"


class SecretName(StrEnum):
    """What an owner can give to a running gateway."""

    DATABASE_URL = "database_url"
    KEY_PEPPER = "key_pepper"
    MODEL_KEY = "model_key"
    TLS_ISSUER = "tls_issuer"
