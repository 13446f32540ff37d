"""The tests: true sentences about the service, each held against the real thing."""
