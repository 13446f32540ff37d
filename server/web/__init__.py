"""The page for a browser, and what programs ask for over HTTP: status, metrics, health."""
