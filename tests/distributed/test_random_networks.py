"""Random networks on random meshes: each is placed and equals the plain model, or is refused with a reason that holds.

A case that fails prints its seed and its network. It runs alone by ``lanes_of_seed=SEED`` in the environment:
``LANES_SEEDS=17:18 pytest tests/distributed/test_random_networks.py``.
"""
