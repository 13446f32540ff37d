"""The page, as browsers and programs see it."""
