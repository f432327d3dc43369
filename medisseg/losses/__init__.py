"""What training minimises: mask terms, the dispersive term, and the two stages' sums."""
