"""Questions answered by many runs over seeds: which runs, what is kept of each, how one is trained, tables and figures.

Kept out: the studies themselves (scripts/studies/), the statistics (analysis/over_seeds.py).
"""
