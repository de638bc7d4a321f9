"""lb: an eBPF load balancer and traffic-steering control plane for Linux."""

__version__ = "0.1.0"
