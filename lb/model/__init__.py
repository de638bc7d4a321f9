"""Desired state: what people and other services ask for, as typed, frozen values."""
