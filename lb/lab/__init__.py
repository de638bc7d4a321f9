"""The lab: a client, a node and backends in network namespaces, for demo, tests and bench alike."""
