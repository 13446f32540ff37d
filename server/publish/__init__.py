"""What happens to a day: due, held, late, published, pruned."""
