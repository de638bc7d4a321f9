"""Asking backends how they are: one file for each kind of check, one thread for all of them."""
