"""One bucket, safely."""
