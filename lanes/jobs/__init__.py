"""Jobs of a SLURM cluster: what they were given, and what shall become of them. Needs nothing but Python."""
