"""Evidence from this machine's own hardware. One of the edges that touch the world; nothing that decides imports it.

What is collected is untrusted like any evidence: the caller still compares what it says with what was asked.
"""
