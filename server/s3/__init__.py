"""One bucket, safely: what its answers mean, and how often it is asked again."""
