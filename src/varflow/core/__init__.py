"""The ground floor: errors with what to do, files whole or not at all, random numbers by (purpose, seed, step),
several processes, and names that are imported when they are used.
"""
