"""A run as plain values, its named recipes, and the flags that both become. Nothing here imports torch."""
