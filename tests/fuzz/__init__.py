"""Seeded attacks on the bundle: each ends in a result or in one sentence, and leaves the user's files unchanged.

`make test` tries a bounded round of each kind, `python -m tests.fuzz --minutes 10` new ones until the time is over.
"""
