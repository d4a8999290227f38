"""The placed layers: each computes on its own channels and crosses where its way says.

Placing changes the class of a plain layer and the storage of its parameters, nothing else: names, attributes and hooks
stay. Parameters and channel buffers are DTensors on the ("data", "lane") mesh; the arithmetic sees only ``to_local()``.

Kept out: the crossings themselves (crossing.py), who holds which part of a weight (placement.py).
"""

from lanes.layers.become import PLACED as PLACED
from lanes.layers.become import become_placed as become_placed
from lanes.layers.become import becomes_placed as becomes_placed
from lanes.layers.become import gather_together as gather_together
from lanes.layers.placed import local as local
