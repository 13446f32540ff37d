"""The only code that prints and exits."""
