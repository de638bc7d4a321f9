"""The headline checks: `make check-…` runs one. The last line says PASS or FAIL, with figures."""
