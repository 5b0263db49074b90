"""TCB statuses: Intel's words, and how several of them become one."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class TcbStatus(StrEnum):
    """Intel's statuses. The two "TDRelaunchAdvised" are a verifier's own: no collateral may carry them."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    REVOKED = "Revoked"

    @property
    def is_ours(self) -> bool:
        return self.startswith("TDRelaunchAdvised")

    @property
    def is_out_of_date(self) -> bool:
        return self.startswith("OutOfDate")

    @property
    def if_brought_up_to_date(self) -> TcbStatus:
        """What would be left if the out-of-date part were updated."""
        match self:
            case TcbStatus.OUT_OF_DATE:
                return TcbStatus.UP_TO_DATE
            case TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED:
                return TcbStatus.CONFIGURATION_NEEDED
        return self

    @property
    def needs_configuration(self) -> bool:
        return "Configuration" in self

    @property
    def needs_hardening(self) -> bool:
        return self.endswith("SWHardeningNeeded")


def converge(statuses: Iterable[TcbStatus]) -> TcbStatus:
    """The one status of platform, TDX module and quoting enclave together (Intel QVL 4.1.2.4.17.4).

    Revoked outweighs all; out of date outweighs the need for software hardening; the need for configuration stays.
    """
    found = frozenset(statuses)
    if TcbStatus.REVOKED in found:
        return TcbStatus.REVOKED
    configuration = any(s.needs_configuration for s in found)
    if any(s.is_out_of_date for s in found):
        return TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED if configuration else TcbStatus.OUT_OF_DATE
    hardening = any(s.needs_hardening for s in found)
    if configuration and hardening:
        return TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED
    if configuration:
        return TcbStatus.CONFIGURATION_NEEDED
    return TcbStatus.SW_HARDENING_NEEDED if hardening else TcbStatus.UP_TO_DATE


def relaunch_advised(status: TcbStatus) -> TcbStatus:
    """The same status for a TD that only needs a restart to run on the updated platform."""
    if status.needs_configuration:
        return TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED
    return TcbStatus.TD_RELAUNCH_ADVISED
