"""Taking samples down: every row, sum and byte that a table has of them."""
