"""Tests of the verifying client."""
