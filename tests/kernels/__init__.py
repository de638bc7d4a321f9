"""Other kernels than the running one, in virtual machines: `make test-kernel KERNEL=6.1`."""
