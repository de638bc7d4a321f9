"""The store: one interface (base.py) and its drivers."""
