"""Which RSS guid and URL belong to a Megaphone episode."""
