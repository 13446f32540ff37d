"""Converts the rows of one export into the gzip logs of one day, with a tally that balances."""
