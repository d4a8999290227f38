"""A page without an account: runs on disk, as one HTML file or live on 127.0.0.1.

Here: reading what Weights & Biases wrote (reading.py), the page (page.py and its template files), serving it while
training goes on (serving.py), the verb (command.py), and uPlot for the curves (vendor/). Kept out: whatever takes
measures or draws pictures, and torch and Lightning, for which nobody who only looks should wait.
"""

from lanes.report.page import write_report

__all__ = ["write_report"]
