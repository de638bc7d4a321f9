"""Metrics that are measured outside: Prometheus, programs, webhooks."""
