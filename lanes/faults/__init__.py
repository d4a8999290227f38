"""Faults: processes that die, hang, or differ; signals. Everyone ends soon, the culprit is named, nothing is lost."""
