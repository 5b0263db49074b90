"""What operators build, measure, sign and boot: the image of the confidential VM, and the numbers that it must show.

`enclave-server image` and `enclave-server refs` are its commands. Nothing here runs inside the VM but `image/guest`.
"""
