"""The bench around boards: who holds them, what is plugged in, what is wrong with them."""
