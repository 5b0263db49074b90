"""Who may use the gateway, and how much of it: API keys, limits, admission, a cache salt for each tenant, counted use.

`gate.py` is what the hot path calls. It never waits for the database: keys are held in memory and looked at again every
few seconds, and counts are written in the background.
"""
