"""What an operator sees: days, deadlines, alarms, metrics."""
