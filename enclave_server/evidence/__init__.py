"""What proves this machine: the TEE or its stand-in, the vendors' collateral, and the document made of both."""
