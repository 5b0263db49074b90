"""Simulated TEEs: real formats and real signatures under roots of their own, with any defect on request.

No default policy trusts these roots; a development policy has to name them. See `docs/adr` for why there is
a simulator instead of a switch that turns checks off.
"""

from attestation.simulator.tdx import DEFAULT_TD, DEFAULT_TD15, SimulatedTdx, TdxDefect

__all__ = ["DEFAULT_TD", "DEFAULT_TD15", "SimulatedTdx", "TdxDefect"]
