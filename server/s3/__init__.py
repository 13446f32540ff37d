"""One bucket, safely: what its answers mean, and how often a request is retried."""
