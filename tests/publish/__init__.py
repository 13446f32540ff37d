"""What happens to a day."""
